//! The names of pins that keep attachments when their process ends: each says all that it takes to go on with
//! the attachment, so that the pin alone, which the kernel makes as a whole or not, is the record of it.
//!
//! `xdp_NAMESPACE_INDEX_ASKED_MODE_REFUSED_NAME`, `tcx_...`, `clsact_...`: the interface, how it was asked for and what was
//! got. A BPF file system takes no dots in names, and a `/` is never one of a name: bytes other than letters,
//! digits and `-` are written as `%` and two digits.

use std::fmt::Write;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;

use super::place::Place;
use super::place::Target;

/// The end of a name under which a pin is made, before it takes the place of another: no interface's name is written
/// like that.
const MEANWHILE: &str = "%new";

/// The same of one whose maker has died.
const GIVEN_UP: &str = "%end%new";

/// What a pin's name says: words, and an interface.
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

    /// What the name of a pin of this kind says; `None` if it is no such name. One under which a pin is made
    /// is none: what it keeps was told to nobody.
    pub(super) fn of(kind: &str, path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let mut parts = name.split('_');
        let kind = parts.next().filter(|of| *of == kind)?.to_owned();
        let namespace = parts.next()?.parse().ok()?;
        let index = parts.next()?.parse().ok()?;
        let mut words: Vec<String> = parts.map(unescaped).collect::<Option<_>>()?;
        let name = words.pop()?;
        // As this crate writes it, and not nearly so.
        let parsed = Self {
            kind,
            place: Place { namespace, index },
            words,
            name,
        };
        (parsed.file_name() == path.file_name()?.to_str()?).then_some(parsed)
    }

    /// Whether a path is that of a pin of this kind, with so many words.
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

    /// The path in a directory, and that under which the pin is made.
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

/// The path under which a pin is made, before it takes the place of what is pinned at `path`.
pub(super) fn meanwhile(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(MEANWHILE);
    path.into()
}

/// The path whose place a pin was to take that was being made when its process ended; `None` for any other.
pub(crate) fn made_for(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    Some(path.with_file_name(name.strip_suffix(MEANWHILE)?))
}

/// The path to which a pin is moved that was being made, before another process ends what it keeps: its maker cannot have
/// it take a place any more. One that has been moved stays.
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
            // A string takes anything.
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
            // One that is being made is told from one that is there.
            assert_eq!(PinName::of("xdp", &meanwhile), None);
            let moved = given_up(&meanwhile);
            assert!(moved != meanwhile && made_for(&moved).is_some());
            assert_eq!(given_up(&moved), moved);
            assert_eq!((made_for(&meanwhile), made_for(&path)), (Some(path), None));
        }
    }

    /// What others have put there is told from what this crate has.
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
