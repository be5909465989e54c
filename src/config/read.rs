//! Reads values of the TOML document, and explains errors in an operator's words.
//!
//! `keys.rs` writes the same forms. The crate `toml` parses the TOML itself; serde's errors do not
//! say what to write instead, so the values are read here.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use bitflags::Flags;
use toml::Spanned;
use toml::de::DeValue;

use super::keys::AutoOr;
use super::keys::FirstOf;
use super::keys::Form;
use super::keys::Seconds;
use super::keys::Set;
use super::keys::Text;
use super::keys::Texts;
use super::keys::Whole;
use crate::error::Error;
use crate::types::MaxFrame;
use crate::types::Prefix;
use crate::types::flag_by_name;
use crate::types::flag_names;

/// Longer text is not a typing error, and searching for what was meant may take long.
const LONGEST_HINTED: usize = 100;

pub(crate) type Value<'d> = Spanned<DeValue<'d>>;

#[derive(Debug)]
pub(crate) struct Wrong {
    /// Its place: the value, or the one in a list.
    pub(crate) span: Range<usize>,
    /// The fault, and the remedy: the end of a sentence that begins with the value.
    pub(crate) reason: String,
    /// Whether a number is out of bounds for what it counts; its range says more.
    pub(crate) is_range: bool,
}

impl Wrong {
    pub(crate) fn new(value: &Value<'_>, reason: impl Into<String>) -> Self {
        Self {
            span: value.span(),
            reason: reason.into(),
            is_range: false,
        }
    }
}

/// A value that a document can contain.
pub(crate) trait Read: Sized {
    fn of(value: &Value<'_>) -> Result<Self, Wrong>;
}

/// A value in the form `F`.
pub(super) fn read_as<F: Form<T> + Read, T>(value: &Value<'_>) -> Result<T, Wrong> {
    Ok(F::of(value)?.read())
}

/// A setting's value within its range, which is also given in words.
pub(super) fn in_range<T>(
    value: &Value<'_>,
    range: &str,
    read: Result<T, Wrong>,
    check: impl Fn(&T) -> crate::error::Result<()>,
) -> Result<T, Wrong> {
    let read = read.map_err(|wrong| match wrong.is_range && range != "any" {
        true => Wrong::new(value, format!("must be {}", range.replace('_', ""))),
        false => wrong,
    })?;
    match check(&read) {
        Ok(()) => Ok(read),
        Err(error) => Err(Wrong::new(value, reason(error))),
    }
}

/// An error's message about a value, without the value's name.
pub(crate) fn reason(error: Error) -> String {
    match error {
        Error::InvalidConfig { reason, .. } => reason,
        Error::InvalidAddress { reason, .. } => reason.to_owned(),
        Error::Parse { expected, .. } => format!("this is not {expected}"),
        Error::Unsupported { reason, .. } => reason.to_owned(),
        other => other.to_string(),
    }
}

/// What to write instead of a value of another type.
fn other_than(wanted: &str, value: &DeValue<'_>) -> String {
    let hint = match value {
        DeValue::String(text) if is_plain(text) => ": leave out the quotes",
        DeValue::Array(_) => ", not a list",
        DeValue::Table(_) => ", not a table",
        _ => "",
    };
    format!("must be {wanted}{hint}")
}

/// Whether text looks like a number, or like `true` or `false`.
fn is_plain(text: &str) -> bool {
    text.parse::<f64>().is_ok() || matches!(text, "true" | "false")
}

fn text<'v>(value: &'v Value<'_>) -> Result<&'v str, Wrong> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text),
        other => Err(Wrong::new(value, other_than("text in quotes", other))),
    }
}

fn list<'v, 'd>(value: &'v Value<'d>) -> Result<&'v [Value<'d>], Wrong> {
    match value.get_ref() {
        DeValue::Array(values) => Ok(values),
        _ => Err(Wrong::new(value, "must be a list: put it in [ ]")),
    }
}

/// A whole number of any size that TOML's parser takes.
fn whole(value: &Value<'_>) -> Result<i128, Wrong> {
    match value.get_ref() {
        DeValue::Integer(number) => {
            i128::from_str_radix(number.as_str(), number.radix()).map_err(|_| too_large(value))
        }
        other => Err(Wrong::new(value, other_than("a whole number", other))),
    }
}

fn too_large(value: &Value<'_>) -> Wrong {
    Wrong::new(
        value,
        "must be at most 2^63 - 1, the largest number in a document",
    )
}

macro_rules! numbers {
    ($($number:ty)+) => {$(
        impl Read for $number {
            fn of(value: &Value<'_>) -> Result<Self, Wrong> {
                Self::try_from(whole(value)?).map_err(|_| Wrong {
                    is_range: true,
                    ..Wrong::new(value, format!("must be 0 to {}", Self::MAX))
                })
            }
        }
    )+};
}
numbers!(u8 u16 u32);

impl Read for Whole {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        let number = whole(value)?;
        match (i64::try_from(number), u64::try_from(number)) {
            (Ok(_), Ok(number)) => Ok(Self::write(number)),
            (Err(_), Ok(_)) => Err(too_large(value)),
            _ => Err(Wrong {
                is_range: true,
                ..Wrong::new(value, "must not be negative")
            }),
        }
    }
}

impl Read for bool {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        match value.get_ref() {
            DeValue::Boolean(on) => Ok(*on),
            other => Err(Wrong::new(value, other_than("true or false", other))),
        }
    }
}

impl Read for String {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        text(value).map(str::to_owned)
    }
}

impl<T: Read> Read for Vec<T> {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        list(value)?.iter().map(T::of).collect()
    }
}

impl<T: Worded> Read for Text<T> {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        let read = T::of_text(text(value)?);
        read.map(Self).map_err(|reason| Wrong::new(value, reason))
    }
}

impl<T: Worded> Read for Texts<Vec<T>> {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        let texts = Vec::<Text<T>>::of(value)?;
        let values: Vec<T> = texts.into_iter().map(|Text(value)| value).collect();
        Ok(Self::write(values))
    }
}

impl Read for AutoOr {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        match value.get_ref() {
            DeValue::String(word) if word == "auto" => Ok(Self::write(MaxFrame::Auto)),
            DeValue::Integer(_) => u32::of(value).map(MaxFrame::Bytes).map(Self::write),
            other => {
                let wanted = "a whole number of bytes, or \"auto\"";
                Err(Wrong::new(value, other_than(wanted, other)))
            }
        }
    }
}

impl<A: FromStr, const LENGTH: u8> Read for FirstOf<A, LENGTH> {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        let text = text(value)?;
        let first = text.strip_suffix(&format!("/{LENGTH}"));
        let first: Option<A> = first.and_then(|address| address.parse().ok());
        first.map(Self::write).ok_or_else(|| {
            let hint = match text.contains('/') || text.len() > LONGEST_HINTED {
                true => String::new(),
                false => format!(": add the length: {text}/{LENGTH}"),
            };
            let family = if LENGTH > 32 { "IPv6" } else { "IPv4" };
            let reason = format!("must be an {family} prefix of length {LENGTH}{hint}");
            Wrong::new(value, reason)
        })
    }
}

impl<F: Flags> Read for Set<F> {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        let mut set = F::empty();
        for value in list(value)? {
            let name = text(value)?;
            let flag: F = flag_by_name(name).ok_or_else(|| {
                let names = flag_names(&F::all());
                let hint = did_you_mean(name, names.iter().map(String::as_str));
                let names = names.join(", ");
                Wrong::new(value, format!("unknown{hint} (known: {names})"))
            })?;
            set.insert(flag);
        }
        Ok(Self(set))
    }
}

impl Read for Seconds {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        let (is_negative, time) = match value.get_ref() {
            DeValue::Integer(_) => {
                let seconds = whole(value)?;
                let time = u64::try_from(seconds).ok().map(Duration::from_secs);
                (seconds < 0, time)
            }
            DeValue::Float(number) => {
                let seconds = number.as_str().parse().unwrap_or(f64::NAN);
                (seconds < 0.0, Duration::try_from_secs_f64(seconds).ok())
            }
            other => {
                let reason = other_than("a number of seconds", other);
                return Err(Wrong::new(value, reason));
            }
        };
        // So that whole ones can be written, too.
        let time = time.filter(|time| i64::try_from(time.as_secs()).is_ok());
        time.map(Self::write).ok_or_else(|| Wrong {
            is_range: true,
            ..Wrong::new(
                value,
                match is_negative {
                    true => "must not be negative",
                    false => "must be a number of seconds",
                },
            )
        })
    }
}

/// A time, in seconds.
#[cfg(feature = "health")]
pub(crate) struct Time(pub(crate) Duration);

#[cfg(feature = "health")]
impl Read for Time {
    fn of(value: &Value<'_>) -> Result<Self, Wrong> {
        read_as::<Seconds, _>(value).map(Self)
    }
}

/// A value in its text form; a [`reason`] explains a fault.
pub(crate) trait Worded: Sized {
    fn of_text(text: &str) -> Result<Self, String>;
}

macro_rules! worded {
    ($($kind:ident)+) => {$(
        impl Worded for crate::types::$kind {
            fn of_text(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error| {
                    let reason = reason(error);
                    // The words that it can be.
                    let words = reason.split('`').skip(1).step_by(2);
                    let hint = did_you_mean(text, words);
                    reason + &hint
                })
            }
        }
    )+};
}
worded!(DecapMode Encapsulation FlowTableKind FlowTracking Gateway HashFunction MacAddr NextHops);
worded!(OuterDontFragment ProbeSource Protocol TcHook);

impl Worded for IpAddr {
    fn of_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| no_address(text, "an IPv4 or IPv6 address", |_| None))
    }
}

impl Worded for Ipv4Addr {
    fn of_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| no_address(text, "an IPv4 address", |_| None))
    }
}

impl Worded for Ipv6Addr {
    fn of_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| no_address(text, "an IPv6 address", |_| None))
    }
}

impl Worded for Prefix {
    fn of_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error| match text.split_once('/') {
            _ if !matches!(error, Error::Parse { .. }) => reason(error),
            Some((address, _)) if address.parse::<IpAddr>().is_ok() => {
                "the length of a prefix must be 0 to 32 for IPv4, 0 to 128 for IPv6".to_owned()
            }
            Some((address, _)) => no_address(address, "a prefix such as 100.64.0.0/10", |_| None),
            None => no_address(text, "a prefix such as 100.64.0.0/10", |_| None),
        })
    }
}

/// A fault of an address that a place which knows its purpose can explain better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Prefix(u8),
    Port(u16),
}

impl Fault {
    fn of(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Some(Self::Port(address.port()));
        }
        let (address, length) = text.split_once('/')?;
        let _: IpAddr = address.parse().ok()?;
        Some(Self::Prefix(length.parse().ok()?))
    }
}

/// Why text is not an address. `hint` is the remedy, where the place knows one.
pub(crate) fn no_address(
    text: &str,
    wanted: &str,
    hint: impl Fn(Fault) -> Option<String>,
) -> String {
    if text.len() > LONGEST_HINTED {
        return format!("must be {wanted}");
    }
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    if is_address(text) {
        return format!("must be {wanted}");
    }
    if let Some(fault) = Fault::of(text) {
        return hint(fault).unwrap_or_else(|| match fault {
            Fault::Prefix(length) => format!("must be {wanted}: leave out /{length}"),
            Fault::Port(port) => format!("must be {wanted}: leave out the port, {port}"),
        });
    }
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if inner.is_some_and(is_address) {
        return format!("must be {wanted}: leave out the brackets");
    }
    if let Some((address, zone)) = text.split_once('%')
        && is_address(address)
    {
        return format!("must be {wanted}, without the interface %{zone}");
    }
    let plain: Vec<_> = text
        .split('.')
        .map(|part| part.trim_start_matches('0'))
        .map(|part| if part.is_empty() { "0" } else { part })
        .collect();
    if plain.len() == 4 && is_address(&plain.join(".")) {
        return format!(
            "must be {wanted}, without leading zeros: {}",
            plain.join(".")
        );
    }
    if is_address(text.trim()) {
        return format!("must be {wanted}: leave out the spaces");
    }
    let is_name = text.contains(|c: char| c.is_ascii_alphabetic())
        && !text.contains(':')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    match is_name {
        true => format!("must be {wanted}, not a name"),
        false => format!("must be {wanted}"),
    }
}

/// The most similar of some words, as the end of a sentence; empty if none is similar.
pub(crate) fn did_you_mean<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> String {
    if text.len() > LONGEST_HINTED {
        return String::new();
    }
    let lower = text.to_ascii_lowercase().replace('_', "-");
    let alike = |word: &str| strsim::jaro_winkler(&lower, &word.replace('_', "-"));
    let best = words
        .map(|word| (alike(word), word))
        .filter(|(alike, _)| *alike > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.map_or_else(String::new, |(_, word)| format!("; did you mean {word}?"))
}
