//! Generates the wire types with a pure-Rust protobuf compiler: no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/cluster.proto");
    let files = protox::compile(["cluster.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".ruvector.v1")
        .compile_fds(files)?;
    Ok(())
}
