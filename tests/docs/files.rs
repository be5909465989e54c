//! The repository's files, by their paths from its root.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files, except those of builds and version control.
pub(crate) fn all() -> Vec<String> {
    let mut files = Vec::new();
    collect(root().to_owned(), &mut files);
    files.sort_unstable();
    assert!(files.len() > 300, "{}", files.len());
    files
}

fn collect(directory: PathBuf, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let relative = path.strip_prefix(root()).unwrap();
        if !path.is_dir() {
            files.push(relative.to_str().unwrap().to_owned());
        } else if !["target", ".git"].map(Path::new).contains(&relative) {
            collect(path, files);
        }
    }
}

/// The files below these directories whose names end in one of `endings`.
pub(crate) fn below(directories: &[&str], endings: &[&str]) -> Vec<String> {
    let is_below = |file: &str| {
        let begins = |directory: &&str| file.starts_with(&format!("{directory}/"));
        directories.iter().any(begins)
    };
    let ends = |file: &str| endings.iter().any(|ending| file.ends_with(ending));
    let mut files = all();
    files.retain(|file| is_below(file) && ends(file));
    files
}

/// Names of Cargo targets in a directory (`benches`, `tests`, `examples`): files, and directories
/// with a `main.rs`.
pub(crate) fn targets(directory: &str) -> Vec<String> {
    let files = below(&[directory], &[".rs"]);
    let names = files.iter().filter_map(|file| {
        let name = &file[directory.len() + 1..];
        let name = name.strip_suffix("/main.rs").or(name.strip_suffix(".rs"))?;
        (!name.contains('/')).then(|| name.to_owned())
    });
    names.collect()
}
