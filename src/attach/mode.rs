//! The place of an XDP program in the receive path, and why it is not in the driver.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::error::Error;
use crate::error::Result;

/// The place of the program in the receive path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum XdpMode {
    /// [`Native`](Self::Native) where the driver has it and natively sent frames arrive, else
    /// [`Generic`](Self::Generic). On a virtual Ethernet link (veth) they arrive only if the far
    /// end has a native XDP program too, whatever that program does.
    #[default]
    Auto,
    /// In the driver, before the kernel allocates a socket buffer. The fast mode.
    Native,
    /// In the network stack. Works on any interface, but several times slower.
    Generic,
    /// On the network card. Always refused: no card supports the maps of maps that rings and flow
    /// tables need.
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
                expected: "an XDP mode (`auto`, `native`, `generic` or `offload`)",
            })
    }
}

/// Why auto mode chose generic mode.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotNative {
    /// The driver refused native mode.
    Refused {
        /// The error number (`errno`).
        errno: i32,
    },
    /// The interface is a virtual Ethernet link (veth) whose far end had no native XDP program at
    /// the time, so it accepts no natively sent frames. If it has one now, detach and attach again.
    OtherEnd,
}

impl NotNative {
    /// The number in a pin's name. Other versions show numbers that they do not know as errors.
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
                write!(f, "the driver refused native mode: {error}")
            }
            Self::OtherEnd => f.write_str(
                "the other end of this virtual link had no XDP program, so it would have dropped \
                 frames sent natively",
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
