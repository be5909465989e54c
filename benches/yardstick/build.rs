//! Compiles the wrapper and generates its skeleton, and compiles objects for tests.

// A build script reports failure by panicking.
#![allow(clippy::expect_used)]

use std::env;
use std::path::Path;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "src/yardstick.bpf.c";
/// For tests: one object for each, with this constant defined.
const STAND_IN: &str = "src/stand_in.bpf.c";
const STAND_INS: [&str; 3] = ["COMPLETE", "LACKS_A_MAP", "REFUSED"];

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-changed={STAND_IN}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target");
    let headers = format!("/usr/include/{arch}-linux-gnu");
    let mut args = vec![
        "-mcpu=v3".to_owned(),
        "-Wall".to_owned(),
        "-Werror".to_owned(),
    ];
    if Path::new(&headers).is_dir() {
        args.push(format!("-I{headers}"));
    }
    for constant in STAND_INS {
        let mut args = args.clone();
        args.push(format!("-D{constant}"));
        SkeletonBuilder::new()
            .source(STAND_IN)
            .obj(out.join(constant).with_extension("o"))
            .clang_args(args)
            .build()
            .expect("clang compiles src/stand_in.bpf.c");
    }
    SkeletonBuilder::new()
        .source(SOURCE)
        .clang_args(args)
        .build_and_generate(out.join("yardstick.skel.rs"))
        .expect("clang compiles src/yardstick.bpf.c");
}
