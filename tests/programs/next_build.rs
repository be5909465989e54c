//! Another build of the example `katran`, as an upgrade brings it: a copy of the crate, changed as a later version
//! could be.
//!
//! It is built in the target directory of this test, where all that it depends on is compiled already, and without a
//! network. The copy lies there, too, under a name of its own: the next run writes what has changed since, and cargo compiles that.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use toml_edit::Array;
use toml_edit::DocumentMut;
use toml_edit::Item;
use toml_edit::value;

/// What the example takes: files and directories.
const TAKEN: [&str; 6] = [
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
    "src",
    "examples/katran",
    "examples/common",
];
/// Members of the workspace, which stay where they are.
const MEMBERS: [&str; 3] = ["katran-lab", "katran-model", "katran-yardstick"];

/// How the next build is another one, besides its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Its program in the kernel has an instruction more.
    Program,
    /// What it pins has another layout as well.
    Layout,
}

impl Next {
    /// The name of its example, when it is built.
    pub(crate) fn example(self) -> &'static str {
        let name = match self {
            Self::Program => "katran_next",
            Self::Layout => "katran_next_layout",
        };
        build(self, name);
        name
    }

    /// Its version: one each, for cargo tells what it has built by that, and not by where it lies.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::Program => "77.0.0-program",
            Self::Layout => "77.0.0-layout",
        }
    }

    fn patched(self, path: &Path, text: String, name: &str) -> String {
        match path.to_str().unwrap() {
            "Cargo.toml" => manifest(&text, name, self.version()),
            "Cargo.lock" => replaced(
                &text,
                &format!(
                    "name = \"katran\"\nversion = \"{}\"",
                    env!("CARGO_PKG_VERSION")
                ),
                &format!("name = \"katran\"\nversion = \"{}\"", self.version()),
            ),
            "src/bpf/katran.bpf.c" => replaced(
                &text,
                "\tchoice.number = 0;\n",
                "\tasm volatile(\"r0 = 0\" ::: \"r0\");\n\tchoice.number = 0;\n",
            ),
            "src/pins/layout.rs" if self == Self::Layout => replaced(
                &text,
                "pub(super) const LAYOUT: u64 = ",
                "pub(super) const LAYOUT: u64 = 1_000 + ",
            ),
            _ => text,
        }
    }
}

/// A text with something else in the place of what is in it once.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replacen(from, to, 1)
}

/// The manifest of one example.
fn manifest(text: &str, name: &str, version: &str) -> String {
    let mut manifest: DocumentMut = text.parse().unwrap();
    manifest["package"]["version"] = value(version);
    manifest["workspace"]["members"] = value(Array::new());
    for member in MEMBERS {
        let path = &mut manifest["dev-dependencies"][member]["path"];
        let there = Path::new(env!("CARGO_MANIFEST_DIR")).join(path.as_str().unwrap());
        *path = value(there.to_str().unwrap());
    }
    for targets in ["test", "bench"] {
        manifest.remove(targets).unwrap();
    }
    let Item::ArrayOfTables(examples) = &mut manifest["example"] else {
        panic!("{text}");
    };
    examples.retain(|example| example["name"].as_str() == Some("katran"));
    let example = examples.get_mut(0).unwrap();
    example["name"] = value(name);
    example["path"] = value("examples/katran/main.rs");
    manifest.to_string()
}

/// Files at a path below the crate's directory, by their paths there.
fn files(crate_at: &Path, path: &Path, found: &mut BTreeSet<PathBuf>) {
    let there = crate_at.join(path);
    if !there.is_dir() {
        found.insert(path.to_owned());
        return;
    }
    for entry in fs::read_dir(there).unwrap() {
        files(crate_at, &path.join(entry.unwrap().file_name()), found);
    }
}

/// Makes the copy what it should be, and leaves alone what is so already.
fn copy(next: Next, name: &str, to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut taken = BTreeSet::new();
    for path in TAKEN {
        files(from, Path::new(path), &mut taken);
    }
    for path in &taken {
        let content = fs::read_to_string(from.join(path)).unwrap();
        let content = next.patched(path, content, name);
        let there = to.join(path);
        if fs::read_to_string(&there).is_ok_and(|there| there == content) {
            continue;
        }
        fs::create_dir_all(there.parent().unwrap()).unwrap();
        fs::write(there, content).unwrap();
    }
    // What was taken once, and is no more.
    let mut there = BTreeSet::new();
    for path in fs::read_dir(to).unwrap() {
        files(to, Path::new(&path.unwrap().file_name()), &mut there);
    }
    for path in there.difference(&taken) {
        fs::remove_file(to.join(path)).unwrap();
    }
}

fn build(next: Next, name: &str) {
    let at = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&at).unwrap();
    // Another test, or another run of this one, builds it or is about to.
    let lock = Flock::lock(File::open(&at).unwrap(), FlockArg::LockExclusive);
    let _lock = lock.map_err(|(_, error)| error).unwrap();
    copy(next, name, &at);
    // TARGET/PROFILE/deps/TEST
    let test = env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let target = profile.parent().unwrap();
    let profile = match profile.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        other => other,
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--offline", "--all-features"])
        .args(["--profile", profile, "--example", name])
        .arg("--target-dir")
        .arg(target)
        .arg("--manifest-path")
        .arg(at.join("Cargo.toml"))
        // The settings of cargo are those that are found from here.
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo says of this test's own package would be news to build scripts of others.
    for (name, _) in env::vars_os() {
        let is_of_package = |name: &str| {
            let of_package = [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_BIN_",
                "CARGO_CRATE_",
            ];
            of_package.iter().any(|prefix| name.starts_with(prefix)) || name == "OUT_DIR"
        };
        if name.to_str().is_some_and(is_of_package) {
            cargo.env_remove(name);
        }
    }
    let output = cargo.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{cargo:?}: {text}");
}
