#!/bin/sh
# Gives every crate of the workspace whose manifest is here empty sources, so that cargo can build the dependencies before
# the sources are copied: the image's layer of dependencies then changes with the manifests alone.
set -eu
for manifest in */Cargo.toml */*/Cargo.toml; do
    crate=$(dirname "$manifest")
    mkdir -p "$crate/src"
    : > "$crate/src/lib.rs"
    if grep -q '^\[build-dependencies\]' "$manifest"; then
        echo 'fn main() {}' > "$crate/build.rs"
    fi
    if grep -q '^path = "src/main.rs"' "$manifest"; then
        echo 'fn main() {}' > "$crate/src/main.rs"
    fi
    if grep -q '^path = "main.rs"' "$manifest"; then
        : > "$crate/main.rs"
    fi
done
