//! Generates the wire types with protox, a protobuf compiler in Rust: no protoc is needed.

fn main() {
    let files = protox::compile(["thanos/v1/thanos.proto"], ["."]).expect("thanos.proto compiles");
    tonic_prost_build::configure().btree_map(".").compile_fds(files).expect("the wire types are generated");
    println!("cargo:rerun-if-changed=thanos");
}
