//! The backend's decapsulator against its model, on the same frames as the balancer: at XDP and at
//! tc.

use std::collections::BTreeSet;
use std::net::IpAddr;

use katran::Decap;
use katran::Flow;
use katran::Prefix;
use katran::attachments::TcHook;
use katran::flows::Verdict;
use katran_lab::Host;
use katran_lab::Newer;
use katran_model as model;
use katran_model::bytes::ETHERNET;
use katran_model::bytes::IPIP;
use katran_model::bytes::IPV4;
use katran_model::bytes::IPV6;
use katran_model::bytes::TYPE_IPV4;
use katran_model::bytes::TYPE_IPV6;
use katran_model::bytes::u16_at;

use crate::common::at;
use crate::common::bpf;
use crate::common::frames::Packet;
use crate::common::frames::ethernet;
use crate::common::frames::packet;
use crate::common::ip;
use crate::generate::Generator;
use crate::generate::Target;
use crate::pair::compared;
use crate::pair::hex;
use crate::random::setting;
use crate::sound;

const GUE_PORT: u16 = 6080;
const OWN_ID: u32 = 0x8001;
/// Tunnel ends that frames go to.
const OWN: [&str; 2] = ["192.0.2.200", "2001:db8:9::200"];

/// Some of the clients and services.
const SOURCES: [&str; 2] = ["100.64.7.0/24", "2001:db8:c:7::/64"];
const DESTINATIONS: [&str; 2] = ["203.0.113.0/30", "2001:db8:1::/126"];

fn prefixes(limited: bool, prefixes: [&str; 2]) -> Vec<(IpAddr, u8)> {
    let prefixes = prefixes.map(|prefix| prefix.parse::<Prefix>().unwrap());
    let prefixes = prefixes.map(|prefix| (prefix.address(), prefix.length()));
    if limited {
        prefixes.to_vec()
    } else {
        Vec::new()
    }
}

/// A decapsulator and its model, on the same frames.
struct Twins {
    decap: Decap,
    model: model::Decap,
    /// Runs the tc program instead of the XDP one.
    tc: bool,
}

impl Twins {
    /// Compares both on a frame.
    fn take(&mut self, frame: &[u8]) -> Result<(), String> {
        let ran = match self.decap.tc_program_fd().filter(|_| self.tc) {
            Some(program) => bpf::run_tc(program, frame),
            None => bpf::run(self.decap.program_fd(), frame),
        };
        let (verdict, out) = self.model.take(frame);
        let passed = verdict == model::Verdict::Pass;
        if (ran.verdict == Verdict::Pass) != passed {
            return Err(format!(
                "the program: {}, the model: {verdict:?}",
                ran.verdict
            ));
        }
        if !passed {
            return Ok(());
        }
        if ran.frame != out {
            let (program, model) = (hex(&ran.frame), hex(&out));
            return Err(format!("the program: {program}\nthe model:   {model}"));
        }
        match sound::fault(frame, GUE_PORT) {
            Some(_) => Ok(()),
            None => sound::fault(&out, GUE_PORT).map_or(Ok(()), |fault| Err(fault.to_owned())),
        }
    }
}

/// Whether the IP header is complete: otherwise a test run makes no socket buffer.
pub(crate) fn is_whole(frame: &[u8]) -> bool {
    let header = match u16_at(frame, 12) {
        TYPE_IPV4 => IPV4,
        TYPE_IPV6 => IPV6,
        _ => 1,
    };
    frame.len() >= ETHERNET + header
}

/// Frames for counters that random frames may not move.
fn certain() -> Vec<Vec<u8>> {
    const OUTER: [&str; 2] = ["100.64.7.1", "2001:db8:c:7::1"];
    let inner = |to, id: u32| {
        let [a, b, c, d] = id.to_le_bytes();
        let packet = Packet::new(Flow::tcp(at("100.64.9.1:2000"), at(to)));
        packet.options(&[0xb7, 6, a, b, c, d]).ip()
    };
    let (own, another) = (inner("203.0.113.1:80", OWN_ID), inner("203.0.113.1:80", 7));
    let in_ip = |from, to, inner: &[u8]| ethernet(&packet(ip(from), ip(to), IPIP, 0, inner));
    let to_own = |inner: &[u8]| in_ip(OUTER[0], OWN[0], inner);
    let changed = |bytes: &[(usize, u8)]| {
        let mut frame = to_own(&own);
        for (at, byte) in bytes {
            frame[*at] = *byte;
        }
        frame
    };
    let mut frames = vec![
        to_own(&another),
        // Truncated; a forbidden inner destination, and a forbidden source; not to this host.
        to_own(&own[..IPV4 - 1]),
        to_own(&inner("198.51.100.1:80", OWN_ID)),
        in_ip("198.51.100.1", OWN[0], &own),
        in_ip(OUTER[0], "192.0.2.201", &own),
        // Options, a fragment, an unexpected congestion mark, another version inside.
        changed(&[(ETHERNET, 0x46)]),
        changed(&[(ETHERNET + 6, 0x20)]),
        changed(&[(ETHERNET + 1, 3)]),
        changed(&[(ETHERNET + IPV4, 0x65)]),
    ];
    for (from, to) in OUTER.into_iter().zip(OWN) {
        let gue = Flow::udp((ip(from), 99).into(), (ip(to), GUE_PORT).into());
        frames.push(in_ip(from, to, &own));
        frames.push(Packet::new(gue).data(&own).frame());
    }
    frames
}

#[test]
fn the_model_and_the_decapsulator_agree_on_random_frames() {
    katran_lab::require_root();
    // All destinations; two; one of one family; without GUE; with allowed sources and destinations.
    let kinds: [(&[&str], u16, u32, bool); 5] = [
        (&[], GUE_PORT, 0, false),
        (&OWN, GUE_PORT, OWN_ID, false),
        (&OWN[1..], GUE_PORT, OWN_ID, false),
        (&OWN[..1], 0, 0, false),
        (&[], GUE_PORT, OWN_ID, true),
    ];
    let frames = setting("KATRAN_FRAMES", 200_000).max(200_000) / 8 / kinds.len() as u64;
    let seed = setting("KATRAN_SEED", fastrand::u64(..));
    eprintln!("KATRAN_SEED={seed}");
    // Attaching loads the tc program.
    let host = Host::new("tc").unwrap();
    for tc in [false, true] {
        let mut moved = BTreeSet::new();
        for (destinations, port, id, limited) in kinds {
            let mut builder = Decap::builder().server_id(id).gue_port(port);
            for destination in destinations {
                builder = builder.destination(ip(destination));
            }
            if limited {
                builder = builder
                    .allow_sources(SOURCES.map(|prefix| prefix.parse().unwrap()))
                    .allow_destinations(DESTINATIONS.map(|prefix| prefix.parse().unwrap()));
            }
            let mut decap = builder.load().unwrap();
            if tc {
                host.run(|| decap.attach_tc("lo", TcHook::Auto).unwrap());
                decap.detach("lo").unwrap();
            }
            let model = model::Decap {
                destinations: destinations.iter().map(|address| ip(address)).collect(),
                allow_sources: prefixes(limited, SOURCES),
                allow_destinations: prefixes(limited, DESTINATIONS),
                gue_port: port,
                server_id: id,
                one_family: tc && !Newer::DecapAcrossFamilies.is_here(),
                ..model::Decap::default()
            };
            let target = Target {
                gue_port: GUE_PORT,
                max_frame: 1514,
                longest: 3520,
            };
            let mut generator = Generator::new(seed, target);
            let mut twins = Twins { decap, model, tc };
            let random = (0..frames).map(|_| generator.frame());
            for frame in certain().into_iter().chain(random) {
                if tc && !is_whole(&frame) {
                    continue;
                }
                if let Err(what) = twins.take(&frame) {
                    panic!(
                        "KATRAN_SEED={seed} tc: {tc} {destinations:?}: {}\n{what}",
                        hex(&frame)
                    );
                }
            }
            let counters = twins.decap.counters().unwrap();
            moved.extend(compared(counters, &twins.model.counters));
        }
        // All but `drop_head`, which only older kernels at tc can move.
        moved.remove("drop_head");
        assert_eq!(moved.len(), 15, "{moved:?}");
    }
}
