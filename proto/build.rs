//! Generates the wire types with protox, a protobuf compiler in Rust: no protoc is needed.

fn main() {
    let files = protox::compile(["thanos/v1/thanos.proto"], ["."]).expect("thanos.proto compiles");
    tonic_prost_build::configure()
        .btree_map(".")
        // The values of a rendezvous are sent to many ranks: they are shared, not copied.
        .bytes(".thanos.v1.StoreSet.value")
        .bytes(".thanos.v1.StoreReply.values")
        .compile_fds(files)
        .expect("the wire types are generated");
    println!("cargo:rerun-if-changed=thanos");
}
