#!/bin/sh
# Collects into a folder the licence of this project, of every Rust crate that was downloaded for the build, and of the
# Python wheels that libtorch comes in. Fails if one of the three kinds is missing.
set -eu
destination=$1
mkdir -p "$destination/crates" "$destination/libtorch"
cp LICENSE "$destination/"

sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
for crate in "$sources"/*/*/; do
    name=$(basename "$crate")
    find "$crate" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' -o -iname 'unlicense*' \) \
        -exec sh -c 'mkdir -p "$1" && shift && cp "$@"' sh "$destination/crates/$name" --target-directory="$destination/crates/$name" {} +
done

cache=${XDG_CACHE_HOME:-$HOME/.cache}/thanos
(cd "$cache" && find . -path '*.dist-info/*' -type f \( -iname 'licen[cs]e*' -o -iname 'notice*' \)) | while read -r file; do
    target=$destination/libtorch/$(echo "$file" | sed 's#^\./##')
    mkdir -p "$(dirname "$target")"
    cp "$cache/$file" "$target"
done

for kind in LICENSE crates libtorch; do
    if [ -z "$(find "$destination/$kind" -type f -size +0 -print -quit)" ]; then
        echo "no licence found for $kind" >&2
        exit 1
    fi
done
