//! The table's rows: the traffic, and what the balancer must do with it.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::slice;

use katran::Builder;
use katran::Encapsulation;
use katran::Features;
use katran::FlowTracking;
use katran::Katran;
use katran::Prefix;
use katran::Protocol;
use katran::ServerId;
use katran::VipFlags;
use katran_yardstick::Peer;

use crate::common::ACK;
use crate::common::NO_FLOOD_GUARD;
use crate::common::OTHER_PORT;
use crate::common::PORT;
use crate::common::Reals;
use crate::common::SERVER_ID;
use crate::common::SYN;
use crate::common::TCP;
use crate::common::UDP;
use crate::common::change_every_slot;
use crate::common::frame;
use crate::common::options::Options;
use crate::common::peer::peer;
use crate::common::quic_short;
use crate::common::serve_by;
use crate::common::with_payload;

const TCP_OFFSET: usize = 14 + 20 + 12;
const TCP_OPTIONS: usize = 14 + 20 + 20;

pub(crate) const TX: u32 = 3;
pub(crate) const PASS: u32 = 2;
/// As many as the wrapper can distinguish: more than a row's packets, so each is a new flow.
pub(crate) const UNSEEN: u32 = 1 << 30;

/// What the balancer does with each packet.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Expected {
    /// Sent to a real from the flow table, once the flow is known.
    Known,
    /// Sent to a real as a new flow each time.
    New,
    /// Sent to a real, as a new flow or a known one.
    Sent,
    /// Sent to the real that the packet names, which is no flow table miss.
    Named,
    Passed,
}

/// The state of the slots that packets fall on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Slots {
    /// Unused: all flows of the VIP are remembered.
    NotAsked,
    Settled,
    /// Each has a base.
    Unsettled,
}

/// What distinguishes a row's balancer.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Special {
    Nothing,
    /// The UDP VIPs use QUIC connection ids, and packets name a server id.
    Quic,
    /// TCP packets name a server id in an option.
    TcpServerId,
    /// Datagrams name a server id.
    StableUdp,
    /// Source routes choose the real, with many prefixes.
    SourceRoutes,
    /// GUE instead of IP in IP.
    Gue,
}

/// The number of server ids.
const SERVER_IDS: u32 = 10_000;
/// The number of client prefixes.
const PREFIXES: u32 = 100_000;

pub(crate) struct Traffic {
    pub(crate) name: &'static str,
    pub(crate) frame: Vec<u8>,
    pub(crate) expected: Expected,
    /// The flood threshold; `None`: the default.
    pub(crate) flood_threshold: Option<u32>,
    /// The number of flows, instead of several in turn.
    pub(crate) only: Option<u32>,
    pub(crate) special: Special,
    pub(crate) reals: Reals,
    /// Whether Katran's own program can do the same, so that `--peer` times both.
    pub(crate) compared: bool,
}

impl Traffic {
    pub(crate) fn new(name: &'static str, expected: Expected, frame: Vec<u8>) -> Self {
        Self {
            name,
            frame,
            expected,
            flood_threshold: Some(NO_FLOOD_GUARD),
            only: None,
            special: Special::Nothing,
            reals: Reals::V4,
            compared: false,
        }
    }

    fn special(mut self, special: Special) -> Self {
        self.special = special;
        self
    }

    /// The traffic's balancer.
    pub(crate) fn balancer(&self, settings: Builder) -> Katran {
        let with = |features| Features::default() | features;
        let settings = match self.special {
            Special::Nothing | Special::Quic => settings,
            Special::TcpServerId => settings.features(with(Features::TCP_SERVER_ID)),
            Special::StableUdp => settings.features(with(Features::UDP_STABLE_ROUTING)),
            Special::SourceRoutes => settings.features(with(Features::SOURCE_ROUTING)),
            Special::Gue => settings
                .encapsulation(Encapsulation::Gue)
                .source_v4([198, 18, 0, 10].into()),
        };
        let mut katran = serve_by(settings, self.reals);
        let flag = match self.special {
            Special::Quic => VipFlags::QUIC,
            Special::StableUdp => VipFlags::UDP_STABLE_ROUTING,
            Special::SourceRoutes => VipFlags::SRC_ROUTING,
            _ => VipFlags::empty(),
        };
        for vip in katran.vips() {
            if vip.protocol() == Protocol::Udp || flag == VipFlags::SRC_ROUTING {
                katran.set_vip_flags(vip, flag).unwrap();
            }
        }
        let real = self.reals.address(1);
        if let Special::Quic | Special::TcpServerId | Special::StableUdp = self.special {
            let ids: Vec<_> = (1..=SERVER_IDS).map(|id| ServerId::new(id, real)).collect();
            katran.server_ids_mut().add(&ids).unwrap();
        }
        if self.special == Special::SourceRoutes {
            // Around the clients, 100.64.0.0/16, which have their own prefix.
            let prefixes = (1..=PREFIXES).map(|i| {
                let address = Ipv4Addr::from(0x6440_0000 + (i << 8));
                Prefix::new(address.into(), 24).unwrap()
            });
            let clients = Prefix::new([100, 64, 0, 0].into(), 16).unwrap();
            let prefixes: Vec<_> = prefixes.chain([clients]).collect();
            katran.source_routes_mut().add(&prefixes, real).unwrap();
        }
        katran
    }

    pub(crate) fn is_tcp(&self) -> bool {
        let protocol = match self.frame[12..14] {
            [0x86, 0xdd] => self.frame[14 + 6],
            _ => self.frame[14 + 9],
        };
        protocol == TCP
    }

    /// The slots that its packets fall on.
    pub(crate) fn slots(&self, options: &Options) -> Slots {
        match (options.tracking, self.special) {
            (FlowTracking::Changed, Special::Nothing | Special::Gue) if options.changed => {
                Slots::Unsettled
            }
            (FlowTracking::Changed, Special::Nothing | Special::Gue) => Slots::Settled,
            // In the other rows, names in packets or prefixes may place flows.
            _ => Slots::NotAsked,
        }
    }

    /// Changes the real of every slot of every ring.
    pub(crate) fn change_every_slot(&self, katran: &mut Katran) {
        change_every_slot(katran, self.reals);
    }

    /// Katran's own program with the balancer's current VIPs, reals, rings and server ids.
    pub(crate) fn peer(
        &self,
        object: &Path,
        katran: &Katran,
        cpu: u32,
        flows: u32,
    ) -> io::Result<Peer> {
        peer(object, katran, cpu, flows, self.special == Special::Quic)
    }

    /// The numbers of flows to measure: the usual ones, unless the traffic has its own.
    pub(crate) fn numbers<'a>(&'a self, usual: &'a [u32]) -> &'a [u32] {
        self.only.as_ref().map_or(usual, slice::from_ref)
    }

    /// Bytes before the packet when it leaves, without Ethernet's.
    pub(crate) fn outer_bytes(&self) -> usize {
        match (self.special, self.reals) {
            (Special::Gue, _) => 28,
            (_, Reals::V4) => 20,
            (_, Reals::V6) => 40,
        }
    }

    /// Almost no new flow is remembered.
    fn full_flood(mut self) -> Self {
        self.flood_threshold = Some(1);
        self
    }

    /// New flows are remembered up to 125,000 a second, as in Katran.
    fn default_flood_guard(mut self) -> Self {
        self.flood_threshold = None;
        self
    }

    /// No flow repeats: a SYN of a recent flow would follow its entry.
    fn unseen(mut self) -> Self {
        self.only = Some(UNSEEN);
        self
    }

    fn with_v6_reals(mut self) -> Self {
        self.reals = Reals::V6;
        self
    }

    fn compared(mut self) -> Self {
        self.compared = true;
        self
    }

    /// Each packet's XDP action.
    pub(crate) fn action(&self) -> u32 {
        match self.expected {
            Expected::Passed => PASS,
            Expected::Known | Expected::New | Expected::Sent | Expected::Named => TX,
        }
    }
}

pub(crate) fn traffics() -> Vec<Traffic> {
    let known = |name, frame| Traffic::new(name, Expected::Known, frame);
    let new = |name, frame| Traffic::new(name, Expected::New, frame);
    let named = |name, frame| Traffic::new(name, Expected::Named, frame);
    let [syn, syn_v6] = [false, true].map(|v6| frame(v6, TCP, SYN, PORT));
    let [udp, udp_v6] = [false, true].map(|v6| frame(v6, UDP, 0, PORT));
    let [ack, ack_v6] = [false, true].map(|v6| frame(v6, TCP, ACK, PORT));
    let elsewhere = frame(false, TCP, ACK, OTHER_PORT);
    let quic = with_payload(&udp, &quic_short());
    let [high, low] = SERVER_ID.to_be_bytes();
    let stable = with_payload(&udp, &[0x52, 0, high, low, 0, 0, 0, 0]);
    let optional = with_option(&ack);
    let gue = known("TCP/IPv4 established, GUE", ack.clone());
    let routed = new("TCP/IPv4 SYN, source route", syn.clone()).unseen();
    vec![
        known("TCP/IPv4 established", ack.clone()).compared(),
        known("TCP/IPv4 established, IPv6 reals", ack)
            .with_v6_reals()
            .compared(),
        new("TCP/IPv4 SYN", syn.clone())
            .default_flood_guard()
            .unseen()
            .compared(),
        Traffic::new("TCP/IPv4 SYN, again", Expected::Sent, syn.clone())
            .default_flood_guard()
            .compared(),
        new("TCP/IPv4 SYN, flood guard acts", syn.clone())
            .full_flood()
            .unseen(),
        new("TCP/IPv4 SYN, all remembered", syn).unseen(),
        known("UDP/IPv4 established", udp.clone()).compared(),
        new("UDP/IPv4 new, flood guard acts", udp.clone())
            .full_flood()
            .unseen(),
        new("UDP/IPv4 new, all remembered", udp).unseen(),
        known("TCP/IPv6 established", ack_v6.clone()),
        known("TCP/IPv6 established, IPv6 reals", ack_v6)
            .with_v6_reals()
            .compared(),
        new("TCP/IPv6 SYN, flood guard acts", syn_v6.clone())
            .full_flood()
            .unseen(),
        new("TCP/IPv6 SYN, all remembered", syn_v6).unseen(),
        known("UDP/IPv6 established", udp_v6.clone()),
        new("UDP/IPv6 new, flood guard acts", udp_v6.clone())
            .full_flood()
            .unseen(),
        new("UDP/IPv6 new, all remembered", udp_v6).unseen(),
        Traffic::new("not a VIP: passed on", Expected::Passed, elsewhere).compared(),
        named("QUIC by connection id", quic)
            .special(Special::Quic)
            .compared(),
        named("TCP/IPv4 by server id", optional).special(Special::TcpServerId),
        named("UDP/IPv4 by stable routing", stable).special(Special::StableUdp),
        routed.special(Special::SourceRoutes),
        gue.special(Special::Gue),
    ]
}

/// A TCP frame with a server id option behind its header: kind, length, id, and two of no
/// operation.
fn with_option(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[TCP_OFFSET] = 0x70;
    let [low, high] = SERVER_ID.to_le_bytes();
    frame[TCP_OPTIONS..][..8].copy_from_slice(&[0xb7, 6, low, high, 0, 0, 1, 1]);
    frame
}
