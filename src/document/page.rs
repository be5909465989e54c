//! The text of a document, for errors: where something is, and what is written there.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

use super::places::Places;
use super::sections::HEALTH;
use super::sections::Section;
use super::sections::owned_keys;
use super::sections::owner;
use super::state::Conflict;
use super::state::State;
use crate::config::Fault;
use crate::config::Read;
use crate::config::Value;
use crate::config::Wrong;
use crate::config::did_you_mean;
use crate::config::no_address;
use crate::config::reason;
use crate::error::Error;
use crate::error::Result;

/// How many characters of a wrong value an error shows.
const SHOWN: usize = 60;

/// A document while a piece of it is read.
#[derive(Clone, Copy)]
pub(crate) struct Page<'t> {
    pub(super) file: Option<&'t Path>,
    pub(super) text: &'t str,
    /// Where the piece begins; places are relative to it.
    pub(crate) start: usize,
}

impl<'t> Page<'t> {
    /// An error at a place.
    pub(crate) fn refuse(&self, at: usize, message: impl Into<String>) -> Error {
        let before = self.text.get(..self.start + at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before[start..].chars().count() + 1;
        Error::Document {
            file: self.file.map(Path::to_owned),
            at: Some((line, column)),
            message: message.into(),
        }
    }

    /// An error about a state that was read: where it is, and where the thing is that it
    /// contradicts.
    pub(super) fn refuse_conflict(
        &self,
        state: &State,
        places: &Places,
        conflict: Conflict,
    ) -> Error {
        let Conflict {
            place,
            other,
            mut message,
        } = conflict;
        if let Some(other) = other.and_then(|other| places.start(state, other)) {
            let line = self.line(other);
            message.push_str(&format!("; the other is in line {line}"));
        }
        self.refuse(places.start(state, place).unwrap_or(0), message)
    }

    /// An error of TOML's parser, explained where its own text is too short.
    pub(crate) fn refuse_syntax(&self, span: Range<usize>, message: &str) -> Error {
        let at = span.start;
        let shown = self.shown(span);
        if message == "duplicate key" {
            return self.refuse(at, format!("{shown} is given twice in this table"));
        }
        match self.unquoted(at) {
            Some((at, value)) if value.len() <= SHOWN => {
                let message = format!("{value} must be in quotes: \"{value}\"");
                self.refuse(at, message)
            }
            Some((at, value)) => self.refuse(at, format!("{} must be in quotes", cut(value))),
            None => self.refuse(at, message),
        }
    }

    /// A value without quotes in the line of a place, other than a number, true or false.
    fn unquoted(&self, at: usize) -> Option<(usize, &'t str)> {
        let at = self.start + at;
        let start = self.text.get(..at)?.rfind('\n').map_or(0, |end| end + 1);
        let line = self.text[start..].lines().next()?;
        let (key, value) = line.split_once('=')?;
        let value = value.split('#').next()?;
        let begins = value.len() - value.trim_start().len();
        let value = value.trim();
        let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '/');
        let is_bare = !value.is_empty() && value.chars().all(bare);
        (is_bare && value.parse::<f64>().is_err())
            .then(|| (start + key.len() + 1 + begins - self.start, value))
    }

    /// The line of a place in the document.
    pub(super) fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    /// An error in the value of a key.
    pub(crate) fn refuse_value(&self, key: &str, value: &Value<'_>, wrong: Wrong) -> Error {
        let Wrong { span, reason, .. } = wrong;
        let shown = self.shown(span.clone());
        let message = match span == value.span() {
            true => format!("{key} = {shown}: {reason}"),
            false => format!("{shown} in {key}: {reason}"),
        };
        self.refuse(span.start, message)
    }

    /// What is written at a place, as one line.
    fn shown(&self, span: Range<usize>) -> String {
        let span = self.start + span.start..self.start + span.end;
        cut(self.text.get(span).unwrap_or_default())
    }

    /// Whether the key is written with `=` (`vip = [ ... ]`), not as tables.
    pub(super) fn is_assigned(&self, key: &Spanned<impl AsRef<str>>) -> bool {
        let rest = self.text.get(self.start + key.span().end..);
        rest.is_some_and(|rest| rest.trim_start_matches([' ', '\t']).starts_with('='))
    }

    /// The tables of a section.
    pub(super) fn tables<'v, 'd>(
        &self,
        section: &Section,
        key: &Spanned<impl AsRef<str>>,
        value: &'v Value<'d>,
    ) -> Result<&'v [Value<'d>]> {
        match value.get_ref() {
            DeValue::Array(tables) => Ok(tables),
            _ => {
                let (name, title) = (section.name, section.title);
                let message = match key.get_ref().as_ref() == "reals" {
                    true => "reals must be a list of tables: [ { address = \"198.51.100.1\" } ]"
                        .to_owned(),
                    false => format!(
                        "{name} is a section that may occur many times: write {title}, followed by \
                             its keys"
                    ),
                };
                Err(self.refuse(key.span().start, message))
            }
        }
    }
}

/// What an address is for, which decides what to say about a prefix or a port in it.
#[derive(Clone, Copy)]
pub(super) enum Host {
    Vip,
    Real,
    /// An address beside a `port`.
    Probe,
    TunnelEnd,
}

impl Host {
    fn hint(self, fault: Fault) -> Option<String> {
        match (self, fault) {
            (Self::Vip, Fault::Prefix(length)) => Some(format!(
                "write the address alone, and add prefix_length = {length}"
            )),
            (Self::Vip | Self::Probe, Fault::Port(port)) => {
                Some(format!("write the port as a key: port = {port}"))
            }
            (Self::Real, Fault::Prefix(length)) => {
                Some(format!("a real is one host: leave out /{length}"))
            }
            (Self::Real, Fault::Port(port)) => Some(format!(
                "packets reach a real at the VIP's port: leave out :{port}"
            )),
            _ => None,
        }
    }
}

/// A table of a document, with only keys of its section.
pub(crate) struct Keys<'p, 'v, 'd> {
    pub(crate) page: &'p Page<'p>,
    section: &'static Section,
    table: &'v DeTable<'d>,
    /// Where the table begins in the document.
    pub(crate) at: usize,
}

impl<'p, 'v, 'd> Keys<'p, 'v, 'd> {
    pub(crate) fn new(
        page: &'p Page<'p>,
        section: &'static Section,
        value: &'v Value<'d>,
    ) -> Result<Self> {
        let at = value.span().start;
        let DeValue::Table(table) = value.get_ref() else {
            let example = match section.name {
                "reals" => "write a table such as { address = \"198.51.100.1\" }",
                HEALTH => "write a table such as { interval = 2 }",
                _ => "write a table",
            };
            let shown = page.shown(value.span());
            let message = format!("{shown} is not {}: {example}", section.title);
            return Err(page.refuse(at, message));
        };
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !section.has(name) {
                let message = unknown(section.title, name, section.key_names());
                return Err(page.refuse(key.span().start, message));
            }
        }
        Ok(Self {
            page,
            section,
            table,
            at: page.start + at,
        })
    }

    pub(crate) fn value(&self, key: &str) -> Option<&'v Value<'d>> {
        debug_assert!(self.section.has(key), "{key}");
        self.table.get(key)
    }

    /// The name as a key of the section, if it is one.
    #[cfg(feature = "health")]
    pub(crate) fn key_of(&self, name: &str) -> Option<&'static str> {
        self.section.key_names().find(|key| *key == name)
    }

    /// The key itself, for its place.
    pub(super) fn key(&self, key: &str) -> Option<&'v Spanned<Cow<'d, str>>> {
        self.table.get_key_value(key).map(|(key, _)| key)
    }

    /// An optional value.
    pub(crate) fn given<T: Read>(&self, key: &str) -> Result<Option<T>> {
        self.value(key)
            .map(|value| {
                T::of(value).map_err(|wrong| {
                    // The table of sections has the range for this key.
                    let wrong = match self.section.key(key) {
                        Some(row) if wrong.is_range => Wrong {
                            reason: format!("must be {}", plain(row.range)),
                            ..wrong
                        },
                        _ => wrong,
                    };
                    self.page.refuse_value(key, value, wrong)
                })
            })
            .transpose()
    }

    /// A required value.
    pub(crate) fn needed<T: Read>(&self, key: &str) -> Result<T> {
        self.given(key)?.ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &str) -> Error {
        let row = self.section.key(key);
        let range = row.map_or("", |row| row.range);
        let message = format!("{} needs the key {key} ({range})", self.section.title);
        self.page.refuse(self.at - self.page.start, message)
    }

    /// A required address, which must pass `check`.
    pub(super) fn address(
        &self,
        key: &str,
        host: Host,
        check: impl Fn(IpAddr) -> Result<()>,
    ) -> Result<IpAddr> {
        let value = self.value(key).ok_or_else(|| self.missing(key))?;
        let read = match value.get_ref() {
            DeValue::String(text) => text.parse().map_err(|_| {
                let wanted = "an IPv4 or IPv6 address";
                Wrong::new(value, no_address(text, wanted, |fault| host.hint(fault)))
            }),
            _ => Err(Wrong::new(
                value,
                "must be an IPv4 or IPv6 address in quotes",
            )),
        };
        let address = read.map_err(|wrong| self.page.refuse_value(key, value, wrong))?;
        self.checked(key, check(address))?;
        Ok(address)
    }

    /// Refuses the value of a key if a check failed.
    pub(crate) fn checked<T>(&self, key: &str, checked: Result<T>) -> Result<T> {
        checked.map_err(|error| match self.value(key) {
            Some(value) => {
                let wrong = Wrong::new(value, reason(error));
                self.page.refuse_value(key, value, wrong)
            }
            None => self.page.refuse(self.at - self.page.start, reason(error)),
        })
    }
}

/// The beginning of a text, as one line.
fn cut(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut shown: String = line.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

/// A range with its numbers as a document has them.
fn plain(range: &str) -> String {
    let digit = |c: Option<&u8>| c.is_some_and(u8::is_ascii_digit);
    let bytes = range.as_bytes();
    let parts = range.char_indices().filter(|(place, c)| {
        let between = *place > 0 && digit(bytes.get(place - 1)) && digit(bytes.get(place + 1));
        !(*c == ',' && between)
    });
    parts.map(|(_, c)| c).collect()
}

/// The message about an unknown key.
pub(super) fn unknown(
    title: &str,
    key: &str,
    names: impl Iterator<Item = &'static str> + Clone,
) -> String {
    let shown = cut(key);
    let hint = match owner(key) {
        Some(place) => format!("; it belongs to {place}"),
        None => did_you_mean(key, names.clone()),
    };
    if !hint.is_empty() {
        return format!("{title} has no key {shown}{hint}");
    }
    let hint = did_you_mean(key, owned_keys());
    let names: Vec<_> = names.collect();
    match names.len() > 12 {
        true => format!("{title} has no key {shown}{hint} (docs/configuration.md has them all)"),
        false => format!(
            "{title} has no key {shown}{hint} (it has {})",
            names.join(", ")
        ),
    }
}
