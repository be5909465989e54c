//! Text from /proc and sysfs. It contains names that others have chosen, of threads, interfaces,
//! cgroups and mounts, in any bytes: one that is not UTF-8 must not hide the rest.

use std::fs;
use std::io;
use std::path::Path;

/// Reads a file; invalid UTF-8 becomes U+FFFD.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = fs::read(path)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// Decodes the escapes of /proc's mount lists: a backslash and three octal digits for blanks,
/// line ends and backslashes.
pub(crate) fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = text.iter().copied();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => {
                let digits = bytes.by_ref().take(3);
                digits.fold(0_u8, |sum, digit| {
                    sum.wrapping_mul(8).wrapping_add(digit.wrapping_sub(b'0'))
                })
            }
            byte => byte,
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn a_name_that_is_no_text_hides_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"Name:\t\xc3\nCapEff:\t1\n").unwrap();
        assert_eq!(read(file.path()).unwrap(), "Name:\t\u{fffd}\nCapEff:\t1\n");
        assert!(read(file.path().join("none")).is_err());
    }

    #[test]
    fn escapes_are_octal() {
        assert_eq!(unescaped(br"a\040b\134\134040"), br"a b\\040");
        assert_eq!(unescaped(br"\0"), b"\0");
        assert_eq!(unescaped(b"\xff"), b"\xff");
    }
}
