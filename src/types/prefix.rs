//! Prefixes of addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::error::Error;

/// All addresses that begin with the same bits, such as `100.64.0.0/10` or `2001:db8::/32`.
///
/// ```
/// use katran::Prefix;
///
/// let prefix: Prefix = "100.64.0.0/10".parse().unwrap();
/// assert!(prefix.covers("100.127.0.1".parse().unwrap()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// # Address and length
impl Prefix {
    /// The addresses whose first `length` bits are those of `address`: 0 to 32 for IPv4, 0 to 128
    /// for IPv6. A prefix of IPv4-mapped IPv6 addresses is the IPv4 prefix.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if `length` is longer than the address, or if the address has bits
    /// set beyond the prefix.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, Error> {
        check_prefix(address, length)?;
        Ok(match (address, address.to_canonical()) {
            (IpAddr::V6(_), v4 @ IpAddr::V4(_)) if length >= 96 => Self {
                address: v4,
                length: length - 96,
            },
            _ => Self { address, length },
        })
    }

    /// The first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The number of bits that its addresses share.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the prefix contains an address; never one of the other family.
    pub fn covers(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.address.is_ipv4() == address.is_ipv4() && mask(address, self.length) == self.address
    }

    /// Every prefix that contains an address, longest first.
    pub(crate) fn all_of(address: IpAddr) -> impl Iterator<Item = Self> {
        (0..=full_length(address)).rev().map(move |length| Self {
            address: mask(address, length),
            length,
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = Error;

    /// An address, or an address and a length.
    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error::Parse {
            input: text.to_owned(),
            expected: "a prefix such as 100.64.0.0/10 or 2001:db8::/32",
        };
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let length = match length {
            Some(length) => length.parse().map_err(|_| error())?,
            None => full_length(address),
        };
        Self::new(address, length)
    }
}

/// Refuses an invalid prefix.
///
/// # Errors
/// [`Error::InvalidConfig`].
pub(super) fn check_prefix(address: IpAddr, length: u8) -> Result<(), Error> {
    let refuse = |reason: String| {
        Err(Error::InvalidConfig {
            setting: "prefix_length",
            value: format!("{address}/{length}"),
            reason,
        })
    };
    let longest = full_length(address);
    if length > longest {
        return refuse(format!("the longest prefix of this family is {longest}"));
    }
    match mask(address, length) {
        first if first == address => Ok(()),
        first => refuse(format!(
            "bits beyond the prefix are set; the prefix would be {first}/{length}"
        )),
    }
}

pub(super) fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

pub(super) fn mask(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn text_forms() {
        for text in ["100.64.0.0/10", "0.0.0.0/0", "::/0", "2001:db8::1/128"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("192.0.2.1").to_string(), "192.0.2.1/32");
        assert_eq!(prefix("::ffff:100.64.0.0/106"), prefix("100.64.0.0/10"));
        for bad in [
            "",
            "100.64.0.0/",
            "100.64.0.0/33",
            "100.64.0.1/10",
            "::/129",
            "a/8",
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        let error = "100.65.0.0/10".parse::<Prefix>().unwrap_err().to_string();
        assert!(error.contains("would be 100.64.0.0/10"), "{error}");
    }

    #[test]
    fn covering() {
        let covers = |text, address: &str| prefix(text).covers(address.parse().unwrap());
        assert!(covers("0.0.0.0/0", "192.0.2.1") && !covers("0.0.0.0/0", "2001:db8::1"));
        assert!(covers("192.0.2.0/24", "::ffff:192.0.2.9"));
        assert!(!covers("192.0.2.0/24", "192.0.3.0"));
        let all: Vec<_> = Prefix::all_of("192.0.2.1".parse().unwrap()).collect();
        assert_eq!(all.len(), 33);
        assert_eq!(
            (all[0], all[8]),
            (prefix("192.0.2.1/32"), prefix("192.0.2.0/24"))
        );
    }
}
