//! With the feature `cuda` the test binary needs libtorch_cuda, by which libtorch sees GPUs. It
//! refers to nothing in that library, so the linker would leave it out.

use std::env;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let libtorch =
        env::var("LIBTORCH").expect("LIBTORCH names the torch folder: run `make libtorch`");
    println!(
        "cargo:rustc-link-arg-tests=-Wl,--push-state,--no-as-needed,\
         {libtorch}/lib/libtorch_cuda.so,--pop-state"
    );
}
