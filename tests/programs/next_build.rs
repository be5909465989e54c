//! A later build of the example `katran`, as after an upgrade: a copy of the crate with a later
//! version's changes.
//!
//! It is built offline in this test's target directory, where its dependencies are compiled
//! already. The copy is there, too: the next run writes only what has changed, and cargo compiles
//! that.

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

/// The example's files and directories.
const TAKEN: [&str; 6] = [
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
    "src",
    "examples/katran",
    "examples/common",
];
/// Workspace members that are not copied.
const MEMBERS: [&str; 3] = ["katran-lab", "katran-model", "katran-yardstick"];

/// How the next build differs, besides its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Its kernel program has one more instruction.
    Program,
    /// Its pins have another layout as well.
    Layout,
}

impl Next {
    /// The name of the built example.
    pub(crate) fn example(self) -> &'static str {
        let name = match self {
            Self::Program => "katran_next",
            Self::Layout => "katran_next_layout",
        };
        build(self, name);
        name
    }

    /// Its version, different for each: cargo tells builds apart by version, not by path.
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

/// Replaces what occurs exactly once in a text.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replacen(from, to, 1)
}

/// A manifest for one example.
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

/// The files at a path below the crate's directory, by relative path.
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

/// Updates the copy where it differs.
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
    // Removes files that are no longer part of the crate.
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
    // Another test or run may be building it.
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
        // Cargo's settings are found from here.
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // Cargo's variables about this test's package would make other packages' build scripts run
    // again.
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
