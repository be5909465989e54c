//! Reads a check from a document.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use toml::de::DeValue;

use super::check::Answer;
use super::check::Check;
use super::check::Command;
use super::check::Dns;
use super::check::Http;
use super::check::Method;
use super::check::Quic;
use super::check::Tls;
use super::check::Trust;
use super::check::Udp;
use super::keys;
use super::keys::SECTIONS;
use super::table::checked;
use super::table::chosen;
use super::table::refuse;
use crate::config::Read;
use crate::config::Text;
use crate::config::Value;
use crate::config::Wrong;
use crate::config::did_you_mean;
use crate::document::Keys;
use crate::document::Page;
use crate::document::Section;
use crate::error::Result;
use crate::types::Protocol;

/// A check, or `none`.
pub(super) type Asked = Option<Check>;

/// The check under this key, if the table has it.
pub(super) fn asked(keys: &Keys<'_, '_, '_>, key: &str) -> Result<Option<Asked>> {
    let value = keys.key_of(key).and_then(|key| keys.value(key));
    value.map(|value| check(keys.page, key, value)).transpose()
}

/// The files of authorities in a table's checks, and where they are in the document.
pub(super) fn authorities(keys: &Keys<'_, '_, '_>) -> Vec<(String, usize)> {
    let names = ["check", "tcp_check", "udp_check"];
    let checks = names
        .iter()
        .filter_map(|name| keys.value(keys.key_of(name)?));
    let files = checks.filter_map(|check| match check.get_ref() {
        DeValue::Table(table) => table.get("authorities"),
        _ => None,
    });
    let files = files.filter_map(|value| {
        let at = keys.page.start + value.span().start;
        Some((value.get_ref().as_str()?.to_owned(), at))
    });
    files.collect()
}

/// Reads a check: `"tcp"`, or `{ kind = "http", path = "/healthz" }`.
fn check(page: &Page<'_>, key: &str, value: &Value<'_>) -> Result<Asked> {
    let refuse =
        |at: &Value<'_>, reason: String| page.refuse_value(key, value, Wrong::new(at, reason));
    let of_kind = |at: &Value<'_>, kind: &str| {
        section(kind).ok_or_else(|| {
            let kinds: Vec<_> = kinds().collect();
            let hint = did_you_mean(kind, kinds.iter().copied());
            let kinds = kinds.join(", ");
            refuse(at, format!("unknown{hint} (known: none, {kinds})"))
        })
    };
    let table = match value.get_ref() {
        DeValue::String(word) if word == "none" => return Ok(None),
        DeValue::String(word) => {
            let kind = of_kind(value, word)?;
            return plain(kind).map(Some).map_err(|more| {
                let table = format!("{{ kind = \"{word}\", {more} }}");
                refuse(value, format!("this check needs more keys: write {table}"))
            });
        }
        DeValue::Table(table) => table,
        _ => {
            let reason =
                "must be a check, such as \"tcp\" or { kind = \"http\", path = \"/healthz\" }";
            return Err(refuse(value, reason.to_owned()));
        }
    };
    let Some(kind) = table.get("kind") else {
        let reason = "add its kind: { kind = \"http\", ... }".to_owned();
        return Err(refuse(value, reason));
    };
    let DeValue::String(word) = kind.get_ref() else {
        return Err(refuse(kind, "must be a word in quotes".to_owned()));
    };
    if word == "none" {
        let reason = "write just \"none\", without a table".to_owned();
        return Err(refuse(value, reason));
    }
    let keys = Keys::new(page, of_kind(kind, word)?, value)?;
    let check = read(&keys, word)?;
    checked(&keys, check.validate())?;
    Ok(Some(check))
}

/// The sections of kinds, whose names are the words for them.
fn kinds() -> impl Iterator<Item = &'static str> {
    let names = SECTIONS.iter().map(|section| section.name);
    names.filter(|name| *name != keys::ALL.name)
}

fn section(kind: &str) -> Option<&'static Section> {
    let mut sections = SECTIONS.iter().filter(|of| of.name != keys::ALL.name);
    sections.find(|of| of.name == kind).copied()
}

/// A check without further keys; if it needs some, an example of them.
fn plain(kind: &Section) -> std::result::Result<Check, &'static str> {
    let anonymous = Tls {
        server_name: None,
        trust: Trust::System,
    };
    Ok(match kind.name {
        of if of == keys::TCP.name => Check::Tcp,
        of if of == keys::SYN.name => Check::Syn,
        of if of == keys::HTTP.name => Http::new("/").into(),
        of if of == keys::HTTPS.name => {
            let mut http = Http::new("/");
            http.tls = Some(anonymous);
            http.into()
        }
        of if of == keys::QUIC.name => Quic::new(anonymous).into(),
        of if of == keys::UDP.name => return Err("payload = \"...\""),
        of if of == keys::DNS.name => return Err("name = \"www.example.com\""),
        _ => return Err("program = \"/...\""),
    })
}

fn read(keys: &Keys<'_, '_, '_>, kind: &str) -> Result<Check> {
    Ok(match kind {
        of if of == keys::TCP.name => Check::Tcp,
        of if of == keys::SYN.name => Check::Syn,
        of if of == keys::HTTP.name => http(keys)?.into(),
        of if of == keys::HTTPS.name => {
            let mut http = http(keys)?;
            http.tls = Some(tls(keys)?);
            http.into()
        }
        of if of == keys::UDP.name => udp(keys)?.into(),
        of if of == keys::DNS.name => dns(keys)?.into(),
        of if of == keys::QUIC.name => {
            let mut quic = Quic::new(tls(keys)?);
            if let Some(alpn) = keys.given("alpn")? {
                quic.alpn = alpn;
            }
            quic.into()
        }
        of => {
            debug_assert_eq!(of, keys::COMMAND.name);
            let mut command = Command::new(keys.needed::<String>("program")?);
            command.arguments = keys.given("arguments")?.unwrap_or_default();
            command.into()
        }
    })
}

fn http(keys: &Keys<'_, '_, '_>) -> Result<Http> {
    let mut http = Http::new(keys.given("path")?.unwrap_or("/".to_owned()));
    let methods = [("get", Method::Get), ("head", Method::Head)];
    http.method = chosen(keys, "method", &methods)?.unwrap_or_default();
    http.host = keys.given("host")?;
    let lines: Option<Vec<Line>> = keys.given("headers")?;
    let lines = lines.unwrap_or_default().into_iter();
    http.headers = lines.map(|Line(name, value)| (name, value)).collect();
    if let Some(statuses) = keys.given::<Vec<Statuses>>("statuses")? {
        http.statuses = statuses.into_iter().map(|Statuses(range)| range).collect();
    }
    let line: Option<Line> = keys.given("answer_header")?;
    http.answer_header = line.map(|Line(name, text)| (name, text));
    http.answer_body = keys.given("answer_body")?;
    if let Some(bytes) = keys.given::<u32>("max_body")? {
        http.max_body = bytes as usize;
    }
    Ok(http)
}

fn tls(keys: &Keys<'_, '_, '_>) -> Result<Tls> {
    let verify = keys.given("verify")?.unwrap_or(true);
    let authorities: Option<String> = keys.given("authorities")?;
    Ok(Tls {
        server_name: keys.given("server_name")?,
        trust: match authorities {
            Some(_) if !verify => {
                let reason = "verify = false accepts any certificate: remove one of the two keys";
                return Err(refuse(keys, "authorities", reason));
            }
            Some(path) if !path.starts_with('/') => {
                return Err(refuse(keys, "authorities", "must be an absolute path"));
            }
            Some(path) => Trust::File(path.into()),
            None if verify => Trust::System,
            None => Trust::Any,
        },
    })
}

fn udp(keys: &Keys<'_, '_, '_>) -> Result<Udp> {
    let Bytes(payload) = keys.needed("payload")?;
    let mut udp = Udp::new(payload);
    let answers = [("any", Answer::Any), ("echo", Answer::Echo)];
    let contains: Option<Bytes> = keys.given("answer_contains")?;
    let exactly: Option<Bytes> = keys.given("answer_exactly")?;
    let all = [
        chosen(keys, "answer", &answers)?,
        contains.map(|Bytes(bytes)| Answer::Contains(bytes)),
        exactly.map(|Bytes(bytes)| Answer::Exactly(bytes)),
    ];
    let mut all = all.into_iter().flatten();
    if let Some(answer) = all.next() {
        udp.answer = answer;
    }
    if all.next().is_some() {
        let key = match keys.value("answer_exactly") {
            Some(_) => "answer_exactly",
            None => "answer_contains",
        };
        let reason = "another key sets the answer: remove one of them";
        return Err(refuse(keys, key, reason));
    }
    Ok(udp)
}

fn dns(keys: &Keys<'_, '_, '_>) -> Result<Dns> {
    let mut dns = Dns::new(keys.needed::<String>("name")?);
    if let Some(number) = keys.given("record_type")? {
        dns.record_type = number;
    }
    if let Some(Text(protocol)) = keys.given::<Text<Protocol>>("protocol")? {
        dns.protocol = protocol;
    }
    if let Some(codes) = keys.given("codes")? {
        dns.codes = codes;
    }
    let address: Option<Text<IpAddr>> = keys.given("address")?;
    dns.address = address.map(|Text(address)| address);
    Ok(dns)
}

fn text(value: &Value<'_>) -> std::result::Result<String, Wrong> {
    String::of(value)
}

/// Statuses: a number, or a range in quotes.
struct Statuses(RangeInclusive<u16>);

impl Read for Statuses {
    fn of(value: &Value<'_>) -> std::result::Result<Self, Wrong> {
        let range = match value.get_ref() {
            DeValue::String(text) => text.split_once('-').and_then(|(first, last)| {
                let first: u16 = first.trim().parse().ok()?;
                Some(first..=last.trim().parse().ok()?)
            }),
            _ => u16::of(value).ok().map(|status| status..=status),
        };
        let range = range.filter(|range| {
            (100..=999).contains(range.start())
                && (100..=999).contains(range.end())
                && range.start() <= range.end()
        });
        let wanted = "must be a status from 100 to 999, or a range such as \"200-299\"";
        range.map(Self).ok_or_else(|| Wrong::new(value, wanted))
    }
}

/// A header: its name and its value, or text in its value.
struct Line(String, String);

impl Read for Line {
    fn of(value: &Value<'_>) -> std::result::Result<Self, Wrong> {
        let text = text(value)?;
        let line = text.split_once(':');
        let line = line.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
        let line = line.filter(|(name, _)| !name.is_empty());
        line.map(|(name, value)| Self(name, value))
            .ok_or_else(|| Wrong::new(value, "must be a line such as \"X-State: ready\""))
    }
}

/// Bytes: text, with some in hexadecimal.
struct Bytes(Vec<u8>);

impl Read for Bytes {
    fn of(value: &Value<'_>) -> std::result::Result<Self, Wrong> {
        let text = text(value)?;
        let bytes = bytes(&text).ok_or_else(|| {
            let reason = "a backslash must be followed by x and two hexadecimal digits, or by another \
                          backslash: use single quotes, such as '\\x00'";
            Wrong::new(value, reason)
        });
        bytes.map(Self)
    }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    while let Some(part) = parts.next() {
        match part.strip_prefix('x') {
            Some(rest) => {
                let digits = rest.get(..2)?;
                let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
                bytes.extend_from_slice(&rest.as_bytes()[2..]);
            }
            // Two backslashes, with nothing between them.
            None if part.is_empty() => {
                bytes.push(b'\\');
                bytes.extend_from_slice(parts.next()?.as_bytes());
            }
            None => return None,
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_with_escapes() {
        assert_eq!(bytes(r"ab\x00\xffc\\d").unwrap(), b"ab\x00\xffc\\d");
        assert_eq!(bytes(r"\\x41").unwrap(), br"\x41");
        assert_eq!(bytes("é").unwrap(), "é".as_bytes());
        for wrong in [
            r"\", r"\x", r"\x4", r"\xzz", r"\n", r"\x+1", r"\x1é", r"\\\",
        ] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
