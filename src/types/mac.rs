//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// An Ethernet (EUI-48) address.
///
/// ```
/// use katran::MacAddr;
///
/// let mac: MacAddr = "0a:00:00:00:00:fe".parse()?;
/// assert_eq!(mac, MacAddr::new([0x0a, 0, 0, 0, 0, 0xfe]));
/// assert!(mac.is_unicast());
/// # Ok::<(), katran::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr([u8; 6]);

/// # Octets
impl MacAddr {
    /// An address from its six bytes, in transmission order.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes, in transmission order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether a frame can be addressed to exactly one station with it: neither all zero nor a
    /// group address.
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<[u8; 6]> for MacAddr {
    fn from(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }
}

impl FromStr for MacAddr {
    type Err = Error;

    /// Six two-digit hexadecimal groups separated by colons or hyphens.
    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error::Parse {
            input: text.to_owned(),
            expected: "a MAC address such as 0a:00:00:00:00:fe",
        };
        let mut bytes = [0; 6];
        let mut groups = text.split([':', '-']);
        for byte in &mut bytes {
            let group = groups.next().ok_or_else(error)?;
            if group.len() != 2 || !group.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(group, 16).map_err(|_| error())?;
        }
        match groups.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_rejects_nonsense() {
        let mac: MacAddr = "0a:00:00:00:00:fe".parse().unwrap();
        assert_eq!(mac.octets(), [10, 0, 0, 0, 0, 254]);
        assert_eq!(mac.to_string(), "0a:00:00:00:00:fe");
        assert_eq!("0A-00-00-00-00-FE".parse::<MacAddr>().unwrap(), mac);
        for bad in [
            "",
            "0a:00:00:00:00",
            "0a:00:00:00:00:fe:00",
            "0g:00:00:00:00:fe",
            "+a:00:00:00:00:fe",
            "a:0:0:0:0:1",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn unicast_excludes_zero_and_groups() {
        assert!(MacAddr::new([2, 0, 0, 0, 0, 1]).is_unicast());
        assert!(!MacAddr::new([0; 6]).is_unicast());
        assert!(!MacAddr::new([0xff; 6]).is_unicast());
        assert!(!MacAddr::new([1, 0, 0x5e, 0, 0, 1]).is_unicast());
    }
}
