//! Probes by DNS.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use simple_dns::CLASS;
use simple_dns::Name;
use simple_dns::Packet;
use simple_dns::PacketFlag;
use simple_dns::QCLASS;
use simple_dns::QTYPE;
use simple_dns::Question;
use simple_dns::TYPE;
use simple_dns::rdata::RData;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use super::super::check::Dns;
use super::Failure;
use super::Place;
use super::connect;
use super::udp;
use crate::types::Protocol;

/// The offset of the response code; the parser does not know all names.
const CODE: usize = 3;

pub(super) async fn ask(dns: &Dns, place: Place) -> std::result::Result<(), Failure> {
    let id = fastrand::u16(..);
    let query = query(dns, id).map_err(Failure::not_sent)?;
    match dns.protocol {
        Protocol::Udp => {
            let socket = udp(place).await?;
            socket.send(&query).await?;
            let mut answer = vec![0; usize::from(u16::MAX)];
            loop {
                let length = socket.recv(&mut answer).await?;
                // Ignore late answers and those from others.
                if let Some(judged) = judge(dns, id, &answer[..length]) {
                    return judged.map_err(Failure::answer);
                }
            }
        }
        Protocol::Tcp => {
            let mut stream = connect(place).await?;
            let length = query.len() as u16;
            stream.write_all(&length.to_be_bytes()).await?;
            stream.write_all(&query).await?;
            let mut answer = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut answer).await?;
            let judged = judge(dns, id, &answer);
            let judged = judged.unwrap_or(Err("no answer to the query".to_owned()));
            judged.map_err(Failure::answer)
        }
    }
}

fn query(dns: &Dns, id: u16) -> simple_dns::Result<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let record_type = QTYPE::TYPE(TYPE::from(dns.record_type));
    let class = QCLASS::CLASS(CLASS::IN);
    let question = Question::new(Name::new(&dns.name)?, record_type, class, false);
    packet.questions.push(question);
    packet.build_bytes_vec()
}

/// Judges an answer; `None` if it does not belong to this query.
fn judge(dns: &Dns, id: u16, answer: &[u8]) -> Option<Result<(), String>> {
    let packet = Packet::parse(answer).ok()?;
    let asked = packet.questions.first()?;
    let name = asked.qname.to_string();
    let wanted = Name::new(&dns.name).ok()?.to_string();
    let is_own = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && name.eq_ignore_ascii_case(&wanted);
    if !is_own {
        return None;
    }
    let code = answer[CODE] & 0xf;
    if !dns.codes.contains(&code) {
        return Some(Err(format!("response code {code}")));
    }
    let Some(wanted) = dns.address else {
        return Some(Ok(()));
    };
    let mut found = packet
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            RData::A(a) => Some(IpAddr::from(Ipv4Addr::from(a.address))),
            RData::AAAA(aaaa) => Some(IpAddr::from(Ipv6Addr::from(aaaa.address))),
            _ => None,
        });
    Some(match found.any(|address| address == wanted) {
        true => Ok(()),
        false => Err(format!("{wanted} is not among the answers")),
    })
}
