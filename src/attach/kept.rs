//! The names of pins that keep attachments when their process ends. A name has everything that is
//! needed to adopt the attachment, so the pin, which the kernel makes atomically, is its whole
//! record.
//!
//! `xdp_NAMESPACE_INDEX_ASKED_MODE_REFUSED_NAME`, `tcx_...`, `clsact_...`: the interface, what was
//! requested and what was obtained. A BPF file system allows no dots in names, and `/` is
//! impossible: bytes other than letters, digits and `-` are written as `%` and two digits.

use std::fmt::Write;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;

use super::place::Place;
use super::place::Target;

/// The suffix of a pin before it replaces another one; no interface's name is written like that.
const MEANWHILE: &str = "%new";

/// The suffix of such a pin whose maker has died.
const GIVEN_UP: &str = "%end%new";

/// The contents of a pin's name: words, and an interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PinName {
    kind: String,
    place: Place,
    words: Vec<String>,
    name: String,
}

impl PinName {
    pub(super) fn new(kind: &str, target: &Target, words: &[String]) -> Self {
        Self {
            kind: kind.to_owned(),
            place: target.place,
            words: words.to_vec(),
            name: target.name.clone(),
        }
    }

    /// The contents of the name of a pin of this kind; `None` for other names, and for pins that
    /// have not replaced their predecessor yet: no caller knows those.
    pub(super) fn of(kind: &str, path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let mut parts = name.split('_');
        let kind = parts.next().filter(|of| *of == kind)?.to_owned();
        let namespace = parts.next()?.parse().ok()?;
        let index = parts.next()?.parse().ok()?;
        let mut words: Vec<String> = parts.map(unescaped).collect::<Option<_>>()?;
        let name = words.pop()?;
        // Exactly as this crate writes it.
        let parsed = Self {
            kind,
            place: Place { namespace, index },
            words,
            name,
        };
        (parsed.file_name() == path.file_name()?.to_str()?).then_some(parsed)
    }

    /// Whether a path is that of a pin of this kind with so many words.
    pub(super) fn is(kind: &str, words: usize, path: &Path) -> bool {
        Self::of(kind, path).is_some_and(|name| name.words.len() == words)
    }

    pub(super) fn target(&self) -> Target {
        Target::new(self.place, &self.name)
    }

    /// One of the words.
    pub(super) fn word<T: FromStr>(&self, position: usize) -> Option<T> {
        self.words.get(position)?.parse().ok()
    }

    /// The pin's path in a directory, and its temporary path before.
    pub(super) fn paths(&self, directory: &Path) -> (PathBuf, PathBuf) {
        let path = directory.join(self.file_name());
        let meanwhile = meanwhile(&path);
        (path, meanwhile)
    }

    pub(super) fn file_name(&self) -> String {
        let Place { namespace, index } = self.place;
        let mut text = format!("{}_{namespace}_{index}", self.kind);
        for word in self.words.iter().chain([&self.name]) {
            text.push('_');
            text.push_str(&escaped(word));
        }
        text
    }
}

/// The temporary path of a pin that will replace the one at `path`.
pub(super) fn meanwhile(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(MEANWHILE);
    path.into()
}

/// The path that a temporary pin was to replace; `None` for other paths.
pub(crate) fn made_for(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    Some(path.with_file_name(name.strip_suffix(MEANWHILE)?))
}

/// Where to move a temporary pin before another process ends what it keeps, so that its maker
/// cannot put it in place any more. A moved pin stays.
pub(crate) fn given_up(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(GIVEN_UP).unwrap_or(&name);
    path.with_file_name(format!("{name}{GIVEN_UP}"))
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => escaped.push(byte.into()),
            // Writing to a string cannot fail.
            _ => drop(write!(escaped, "%{byte:02x}")),
        }
    }
    escaped
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let byte = match first {
            b'%' => {
                let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
                rest = rest.get(2..)?;
                u8::from_str_radix(digits, 16).ok()?
            }
            _ => *first,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate;

    #[test]
    fn a_name_says_what_it_was_made_of() {
        let place = Place {
            namespace: 4097,
            index: 12,
        };
        for name in [
            "eth0", "eth0.100", "a_b", "%", "wan-é", "veth:1", "new", "%new", "eth0_new",
        ] {
            let target = Target::new(place, name);
            let made = PinName::new(
                "xdp",
                &target,
                &["auto".into(), "native".into(), "0".into()],
            );
            let (path, meanwhile) = made.paths(Path::new("/sys/fs/bpf/x"));
            let file = path.file_name().unwrap().to_str().unwrap();
            assert!(!file.contains('.') && file.len() < 128, "{file}");
            let read = PinName::of("xdp", &path).unwrap();
            assert_eq!(read, made);
            assert_eq!(read.target().name, name);
            assert_eq!(read.word::<String>(1).unwrap(), "native");
            assert_eq!(PinName::of("tcx", &path), None);
            // A temporary pin is distinguished from a final one.
            assert_eq!(PinName::of("xdp", &meanwhile), None);
            let moved = given_up(&meanwhile);
            assert!(moved != meanwhile && made_for(&moved).is_some());
            assert_eq!(given_up(&moved), moved);
            assert_eq!((made_for(&meanwhile), made_for(&path)), (Some(path), None));
        }
    }

    /// Foreign names are distinguished from this crate's.
    #[test]
    fn other_names_are_none_or_say_what_they_are() {
        const NAME: &str = "xdp_4097_12_auto_native_0_eth0%2e100";
        mutate::cases(10_000, |rng| {
            let mut name = NAME.as_bytes().to_vec();
            mutate::text(rng, &mut name);
            let name = String::from_utf8_lossy(&name).replace('/', "");
            if let Some(read) = PinName::of("xdp", Path::new(&name)) {
                assert_eq!(read.file_name(), name);
            }
        });
    }
}
