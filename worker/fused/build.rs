//! Compiles the kernels once for each instruction set that libtorch itself distinguishes, and the operations around them
//! against libtorch's headers, found by the environment variable LIBTORCH.

use std::env;
use std::path::PathBuf;

/// Name, compiler flags, and whether only x86-64 has it. The machine that runs the program chooses among them.
const INSTRUCTION_SETS: [(&str, &[&str], bool); 3] = [
    ("portable", &[], false),
    ("avx2", &["-mavx2", "-mfma"], true),
    (
        "avx512",
        &["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"],
        true,
    ),
];

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = PathBuf::from(env::var("LIBTORCH").expect("LIBTORCH names the torch folder: run `make libtorch`"));
    let is_x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    // Before the kernels: a static library is searched for what those before it need.
    operations(&libtorch).compile("thanos_fused");
    for (name, flags, x86_only) in INSTRUCTION_SETS {
        if is_x86 || !x86_only {
            kernels(name, flags).compile(&format!("thanos_fused_{name}"));
        }
    }
    println!("cargo:rustc-link-search=native={}", libtorch.join("lib").display());
    for library in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib={library}");
    }
}

fn optimised() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").warnings(false).opt_level(3).include("kernels").define("NDEBUG", None);
    build
}

fn operations(libtorch: &std::path::Path) -> cc::Build {
    let mut build = optimised();
    let include = libtorch.join("include");
    build.file("kernels/operations.cpp").include(include.join("torch/csrc/api/include")).include(include);
    build
}

/// These files include no header of libtorch or of the C++ library: an inline function compiled for one instruction set
/// could otherwise replace its namesake in the whole program.
fn kernels(name: &str, flags: &[&str]) -> cc::Build {
    let mut build = optimised();
    // Products and sums are contracted in every build, as ISO C++ mode alone would not do.
    build.file("kernels/kernels.cpp").define("THANOS_KERNELS", name).flag("-ffp-contract=fast");
    build.flag("-fno-math-errno").flag("-Wno-psabi");
    for flag in flags {
        build.flag(flag);
    }
    build
}
