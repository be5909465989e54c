//! Where in the receive path an XDP program runs; and why it does not run in the driver.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::error::Error;
use crate::error::Result;

/// Where in the receive path the program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum XdpMode {
    /// [`Native`](Self::Native) where the driver has it and frames arrive that are sent so, else
    /// [`Generic`](Self::Generic). One end of a virtual Ethernet link (veth) sends them in vain unless the other end
    /// has a native XDP program too, whatever that does.
    #[default]
    Auto,
    /// In the driver, before the kernel makes a socket buffer: the fast one.
    Native,
    /// In the network stack: any interface, several times slower.
    Generic,
    /// On the network card. Always refused: no card's offload has the maps of maps that rings
    /// and flow tables are made of.
    Offload,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
        })
    }
}

impl FromStr for XdpMode {
    type Err = Error;

    /// `auto`, `native`, `generic` or `offload`.
    fn from_str(text: &str) -> Result<Self> {
        [Self::Auto, Self::Native, Self::Generic, Self::Offload]
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| Error::Parse {
                input: text.to_owned(),
                expected: "an XDP mode: `auto`, `native`, `generic` or `offload`",
            })
    }
}

/// Why the mode is generic, where auto mode was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotNative {
    /// The driver has refused native mode.
    Refused {
        /// The kernel's number of the error.
        errno: i32,
    },
    /// The interface is one end of a virtual Ethernet link (veth) whose other end had no native XDP program when this
    /// was attached: without one it does not take what is sent natively. If it has one by now, detach and attach
    /// again.
    OtherEnd,
}

impl NotNative {
    /// In the name of a pin. Other versions show what they do not know as an error of that number.
    pub(super) fn number(of: Option<&Self>) -> i32 {
        match of {
            None => 0,
            Some(Self::OtherEnd) => -1,
            Some(Self::Refused { errno }) => *errno,
        }
    }

    pub(super) fn numbered(number: i32) -> Option<Self> {
        match number {
            0 => None,
            -1 => Some(Self::OtherEnd),
            errno => Some(Self::Refused { errno }),
        }
    }
}

impl fmt::Display for NotNative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { errno } => {
                let error = io::Error::from_raw_os_error(*errno);
                write!(f, "the driver has refused native mode: {error}")
            }
            Self::OtherEnd => f.write_str(
                "the other end of this virtual link had no XDP program, without which it takes nothing that is \
                 sent natively",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_a_text_form() {
        for text in ["auto", "native", "generic", "offload"] {
            assert_eq!(text.parse::<XdpMode>().unwrap().to_string(), text);
        }
        let error = "Native".parse::<XdpMode>().unwrap_err().to_string();
        assert!(error.starts_with("`Native` is not an XDP mode"), "{error}");
    }

    #[test]
    fn a_pin_says_why_the_mode_is_not_native() {
        let refused = NotNative::Refused { errno: 95 };
        for reason in [None, Some(NotNative::OtherEnd), Some(refused)] {
            let number = NotNative::number(reason.as_ref());
            assert_eq!(NotNative::numbered(number), reason);
        }
    }
}
