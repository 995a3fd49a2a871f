//! Compiles the shim against libtorch's own headers, found by the environment variable LIBTORCH.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=shim");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = PathBuf::from(
        env::var("LIBTORCH").expect("LIBTORCH names the torch folder: run `make libtorch`"),
    );
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .warnings(false)
        .files(
            ["shim", "buckets", "device", "graph", "measure"]
                .map(|name| format!("shim/{name}.cpp")),
        )
        .include("shim")
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        // As libtorch was built: members of its structs depend on it.
        .define("NDEBUG", None)
        .define("USE_C10D_GLOO", None);
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let site = libtorch.parent().expect("LIBTORCH ends in /torch");
        for folder in ["nvidia/cu13/include", "nvidia/cu13/include/cccl", "nvidia/nccl/include"] {
            build.include(site.join(folder));
        }
        build.define("USE_C10D_NCCL", None);
    }
    build.compile("thanos_c10d");
    let cuda = ["torch_cuda", "c10_cuda"]
        .into_iter()
        .filter(|_| env::var_os("CARGO_FEATURE_CUDA").is_some());
    println!("cargo:rustc-link-search=native={}", libtorch.join("lib").display());
    for library in ["torch_cpu", "c10"].into_iter().chain(cuda) {
        println!("cargo:rustc-link-lib={library}");
    }
}
