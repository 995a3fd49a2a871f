//! Compiles the kernels once for each instruction set that libtorch itself distinguishes, and the
//! operations around them against libtorch's headers, found by the environment variable LIBTORCH.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name, compiler flags, and whether only x86-64 has it. The machine that runs the program chooses
/// among them.
const INSTRUCTION_SETS: [(&str, &[&str], bool); 3] = [
    ("portable", &[], false),
    ("avx2", &["-mavx2", "-mfma"], true),
    (
        "avx512",
        &[
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mavx2",
            "-mfma",
            "-mprefer-vector-width=512",
        ],
        true,
    ),
];

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = PathBuf::from(
        env::var("LIBTORCH").expect("LIBTORCH names the torch folder: run `make libtorch`"),
    );
    let is_x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    gpu_operations(&libtorch).compile("thanos_fused_gpu");
    // Before the kernels: a static library is searched for what those before it need.
    operations(&libtorch).compile("thanos_fused");
    for (name, flags, x86_only) in INSTRUCTION_SETS {
        if is_x86 || !x86_only {
            kernels(name, flags).compile(&format!("thanos_fused_{name}"));
        }
    }
    println!("cargo:rustc-link-search=native={}", libtorch.join("lib").display());
    let cuda = ["c10_cuda"].into_iter().filter(|_| has_cuda());
    for library in ["torch_cpu", "c10"].into_iter().chain(cuda) {
        println!("cargo:rustc-link-lib={library}");
    }
}

fn has_cuda() -> bool {
    env::var_os("CARGO_FEATURE_CUDA").is_some()
}

fn optimised() -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .warnings(false)
        .opt_level(3)
        .include("kernels")
        .define("NDEBUG", None);
    build
}

fn operations(libtorch: &Path) -> cc::Build {
    let mut build = optimised();
    let include = libtorch.join("include");
    build
        .file("kernels/operations.cpp")
        .include(include.join("torch/csrc/api/include"))
        .include(include);
    build
}

/// These files include no header of libtorch or of the C++ library: an inline function compiled for
/// one instruction set could otherwise replace its namesake in the whole program.
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

/// Machine code of the data-centre GPUs since Ampere, and what later ones translate when they load
/// it.
const GPU_ARCHITECTURES: [&str; 4] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_90,code=sm_90",
    "arch=compute_100,code=sm_100",
    "arch=compute_80,code=compute_80",
];

/// The operations around the kernels of GPUs, the kernels as functions of the CPU, and with the
/// feature `cuda` the kernels themselves, as bytes of the program.
fn gpu_operations(libtorch: &Path) -> cc::Build {
    let mut build = optimised();
    let include = libtorch.join("include");
    build.files(["calls", "driver", "host"].map(|name| format!("kernels/gpu/{name}.cpp")));
    build.include(include.join("torch/csrc/api/include")).include(include);
    if has_cuda() {
        let site = libtorch.parent().expect("LIBTORCH ends in /torch");
        let headers = site.join("nvidia/cu13/include");
        let image = compiled_kernels(&site.join("nvcc/nvidia/cu13/bin/nvcc"), &headers);
        build.include(headers);
        build.define("THANOS_FATBIN", format!("\"{}\"", image.display()).as_str());
    }
    build
}

fn compiled_kernels(nvcc: &Path, headers: &Path) -> PathBuf {
    let image =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.fatbin");
    let mut command = Command::new(nvcc);
    command.args([
        "-O3",
        "-std=c++17",
        "--expt-relaxed-constexpr",
        "-fatbin",
        "kernels/gpu/kernels.cu",
        "-o",
    ]);
    command.arg(&image).arg("-I").arg(headers);
    for architecture in GPU_ARCHITECTURES {
        command.args(["-gencode", architecture]);
    }
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("{}: {error}: run `make cuda`", nvcc.display()));
    assert!(status.success(), "{command:?}: {status}");
    image
}
