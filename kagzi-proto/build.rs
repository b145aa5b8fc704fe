//! Compiles the protos in pure Rust: no `protoc` has to be installed.

use std::path::PathBuf;
use std::{env, error, fs};

use protox::prost::Message as _;

const PROTOS: [&str; 3] =
    ["kagzi/v1/workflow_service.proto", "kagzi/v1/worker_service.proto", "kagzi/v1/admin_service.proto"];

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("kagzi.v1.bin"), descriptors.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    // By its name the codec finds what a message may hold.
    config.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".kagzi.v1")
        .btree_map(".kagzi.v1")
        .codec_path("crate::codec::MessageCodec")
        // `Debug` of a payload shows its length, never its content: see src/lib.rs.
        .skip_debug([".kagzi.v1.Payload"])
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
