//! Compiles the C programs of `src/bpf` and generates their skeletons.

// A build script reports failure by panicking.
#![allow(clippy::expect_used)]

use std::env;
use std::fs;
use std::hash::DefaultHasher;
use std::hash::Hasher;
use std::path::Path;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

const PROGRAMS: [&str; 6] = [
    "katran",
    "decap",
    "decap_tc",
    "healthcheck",
    "root",
    "server_id",
];

/// A skeleton knows its maps by their names, and this one works on maps of any name.
const WITHOUT_SKELETON: &str = "carry";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = Path::new("src/bpf");
    for entry in fs::read_dir(sources).expect("src/bpf is part of the crate") {
        let path = entry.expect("src/bpf is readable").path();
        println!("cargo:rerun-if-changed={}", path.display());
    }
    println!("cargo:rerun-if-changed={}", sources.display());
    println!("cargo:rerun-if-env-changed=CLANG");

    for name in PROGRAMS.into_iter().chain([WITHOUT_SKELETON]) {
        let object = out.join(format!("{name}.bpf.o"));
        let mut builder = SkeletonBuilder::new();
        builder
            .source(sources.join(format!("{name}.bpf.c")))
            .obj(&object)
            .clang_args(clang_args());
        if let Some(clang) = env::var_os("CLANG") {
            builder.clang(clang);
        }
        let built = match name {
            WITHOUT_SKELETON => builder.build(),
            _ => builder.build_and_generate(out.join(format!("{name}.skel.rs"))),
        };
        if let Err(error) = built {
            panic!(
                "cannot compile src/bpf/{name}.bpf.c: {error:?}\n\
                 needed: clang 14 or newer with the BPF target, and the kernel's headers \
                 (Debian and Ubuntu: apt-get install clang linux-libc-dev libelf-dev zlib1g-dev \
                 pkg-config). Another clang: set CLANG."
            );
        }
        // By which pinned programs are known to be those of this build.
        let mut digest = DefaultHasher::new();
        digest.write(&fs::read(&object).expect("clang has written the object"));
        let digest = format!("{:#x}", digest.finish());
        fs::write(out.join(format!("{name}.digest")), digest).expect("OUT_DIR is writable");
    }
}

/// 32-bit instructions (`v3`: Linux 5.1), and the headers that Debian keeps by architecture:
/// clang looks for them only when it compiles for the host.
fn clang_args() -> Vec<String> {
    let mut args = vec![
        "-mcpu=v3".to_owned(),
        // Headers are read as words of other sizes.
        "-fno-strict-aliasing".to_owned(),
        "-Wall".to_owned(),
        "-Wextra".to_owned(),
        "-Werror".to_owned(),
    ];
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target");
    let multiarch = match arch.as_str() {
        "arm" => "arm-linux-gnueabihf".to_owned(),
        arch => format!("{arch}-linux-gnu"),
    };
    let headers = format!("/usr/include/{multiarch}");
    if Path::new(&headers).is_dir() {
        args.push(format!("-I{headers}"));
    }
    args
}
