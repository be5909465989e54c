//! Step 6: frames too long to be encapsulated. Their sender gets an ICMP error, or they are
//! dropped.

use crate::End;
use crate::Step;
use crate::bytes::ETHERNET;
use crate::bytes::ICMP;
use crate::bytes::ICMPV6;
use crate::bytes::IPV4;
use crate::bytes::IPV6;
use crate::bytes::TYPE_IPV4;
use crate::bytes::TYPE_IPV6;
use crate::bytes::add;
use crate::bytes::pseudo_sum;
use crate::bytes::put_u16;
use crate::bytes::sum;
use crate::bytes::v6_at;
use crate::icmp::SMALLEST_MTU;
use crate::icmp::TTL;
use crate::icmp::is_single_host;
use crate::ip::Family;
use crate::ip::Header;
use crate::walk::Run;

/// Bytes of the packet that the message quotes.
const QUOTE_V4: usize = 84;
const QUOTE_V6: usize = 248;

/// `is_error`: the packet is an ICMP error, which must not be answered (RFC 1122, 3.2.2; RFC 4443,
/// 2.4); nor may a packet whose source is no single host.
pub(crate) fn check(run: &mut Run<'_>, header: &Header, is_error: bool) -> Step<()> {
    let config = &run.balancer.config;
    let max_frame = config.max_frame;
    if run.frame.len() <= max_frame {
        return Ok(());
    }
    let answers = config.features.icmp_too_big && !is_error && is_single_host(header.source);
    run.balancer.tell("packet_too_big", &run.frame);
    if !answers {
        return Err(End::Drop("too_big"));
    }
    let mtu = max_frame - ETHERNET;
    run.frame = match header.family {
        Family::V4 => {
            run.balancer.count("icmp", "too_big_v4");
            message_v4(&run.frame, mtu as u16)
        }
        Family::V6 => {
            run.balancer.count("icmp", "too_big_v6");
            // The minimum of IPv6 (RFC 8200, 5).
            message_v6(&run.frame, (mtu as u32).max(SMALLEST_MTU))
        }
    };
    Err(End::Tx("too big"))
}

/// The answer's Ethernet header.
fn turned_round(frame: &[u8], kind: u16) -> Vec<u8> {
    let mut out = frame[6..12].to_vec();
    out.extend(&frame[..6]);
    out.extend(kind.to_be_bytes());
    out
}

/// Fragmentation needed (RFC 1191).
fn message_v4(frame: &[u8], mtu: u16) -> Vec<u8> {
    let quote = &frame[ETHERNET..ETHERNET + QUOTE_V4];
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(quote);
    let check = !sum(&message);
    put_u16(&mut message, 2, check);

    let length = (IPV4 + message.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 0, 0, 0, TTL, ICMP, 0, 0]);
    // From the VIP, to the client.
    ip.extend(&quote[16..20]);
    ip.extend(&quote[12..16]);
    let check = !sum(&ip);
    put_u16(&mut ip, 10, check);

    let mut out = turned_round(frame, TYPE_IPV4);
    out.extend(ip);
    out.extend(message);
    out
}

/// Packet too big (RFC 4443).
fn message_v6(frame: &[u8], mtu: u32) -> Vec<u8> {
    let quote = &frame[ETHERNET..ETHERNET + QUOTE_V6];
    let (client, vip) = (v6_at(quote, 8), v6_at(quote, 24));
    let mut message = vec![2, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(quote);
    let length = message.len() as u16;
    let check = !add(pseudo_sum(vip, client, ICMPV6, length), sum(&message));
    put_u16(&mut message, 2, check);

    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([ICMPV6, TTL]);
    ip.extend(&quote[24..40]);
    ip.extend(&quote[8..24]);
    debug_assert_eq!(ip.len(), IPV6);

    let mut out = turned_round(frame, TYPE_IPV6);
    out.extend(ip);
    out.extend(message);
    out
}
