//! The text form of sets of bits: names in lower case with hyphens, separated by commas.
//!
//! The names are those of the constants, so that there is one list of them; `none` is the empty
//! set.

use std::fmt;

use bitflags::Bits as _;
use bitflags::Flags;

use crate::error::Error;

/// The names of the bits that are set, in the order of the constants.
pub(crate) fn flag_names<F: Flags>(flags: &F) -> Vec<String> {
    flags.iter_names().map(|(name, _)| kebab(name)).collect()
}

pub(crate) fn flag_by_name<F: Flags>(text: &str) -> Option<F> {
    F::FLAGS
        .iter()
        .find(|flag| kebab(flag.name()) == text)
        .map(|flag| F::from_bits_retain(flag.value().bits()))
}

/// Prints a set; bits without a name are printed as a hexadecimal number.
pub(crate) fn write_set<F: Flags>(flags: &F, f: &mut fmt::Formatter<'_>) -> fmt::Result
where
    F::Bits: fmt::LowerHex,
{
    let mut names = flag_names(flags);
    let rest = F::from_bits_retain(flags.bits())
        .difference(F::all())
        .bits();
    if rest != F::Bits::EMPTY {
        names.push(format!("{rest:#x}"));
    }
    match names.is_empty() {
        true => f.write_str("none"),
        false => f.write_str(&names.join(",")),
    }
}

/// Reads a set; the error names the unknown part.
pub(crate) fn read_set<F: Flags>(text: &str, expected: &'static str) -> Result<F, Error> {
    let mut set = F::empty();
    if matches!(text.trim(), "" | "none") {
        return Ok(set);
    }
    for part in text.split(',').map(str::trim) {
        set.insert(flag_by_name(part).ok_or_else(|| Error::Parse {
            input: part.to_owned(),
            expected,
        })?);
    }
    Ok(set)
}

/// Gives a set of bits its text form.
macro_rules! text_form {
    ($set:ty, $expected:literal) => {
        impl std::fmt::Display for $set {
            /// The names of the bits that are set, separated by commas; `none` if none is.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::types::write_set(self, f)
            }
        }

        impl std::str::FromStr for $set {
            type Err = $crate::error::Error;

            /// Names separated by commas, in any order; `none` or nothing for the empty set.
            fn from_str(text: &str) -> Result<Self, $crate::error::Error> {
                $crate::types::read_set(text, $expected)
            }
        }
    };
}
pub(crate) use text_form;

fn kebab(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}
