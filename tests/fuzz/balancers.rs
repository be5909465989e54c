//! The balancers that the model is compared with: few, as loading takes time, but each feature is
//! enabled in some and disabled in others, in combination with every other one.

use std::net::IpAddr;
use std::time::Duration;

use katran::DecapMode;
use katran::Encapsulation;
use katran::Features;
use katran::FlowTableKind;
use katran::FlowTracking;
use katran::Gateway;
use katran::HashFunction;
use katran::Katran;
use katran::NextHops;
use katran::Real;
use katran::RealFlags;
use katran::ServerId;
use katran::SourceRoute;
use katran::State;
use katran::VipFlags;
use katran::state::BalancerState;
use katran::state::DecapState;
use katran::state::OuterDontFragment;
use katran::state::ServerIdState;
use katran::state::VipState;
use katran_lab::require_root;

use crate::common::GATEWAY;
use crate::common::ip;
use crate::common::vip;

/// How a balancer differs from the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    encapsulation: Encapsulation,
    table: FlowTableKind,
    features: Features,
    max_frame: u32,
    pub(crate) frags: bool,
    /// The flood threshold, in new flows a second; `None`: no guard.
    pub(crate) flood: Option<u32>,
    /// Whether the CPU that frames arrive on has a flow table.
    own_table: bool,
    /// Non-default outer sources, GUE port, hash seed and fragmentation bits.
    odd: bool,
    pub(crate) next_hops: NextHops,
    /// Attached to interfaces (`stations`); also, every address belongs to a VIP.
    pub(crate) attached: bool,
    tracking: FlowTracking,
    ring_size: u32,
    /// The timeouts of TCP and UDP flows, in seconds.
    timeouts: Option<[u64; 2]>,
    /// Frames run through the explaining twin.
    pub(crate) explained: bool,
    counts_syns: bool,
    /// How many pairs of VIP and real are counted.
    max_vip_reals: u32,
}

const SETS: FlowTableKind = FlowTableKind::SetAssociative;
const LRU: FlowTableKind = FlowTableKind::KernelLru;
const IPIP: Encapsulation = Encapsulation::Ipip;
const GUE: Encapsulation = Encapsulation::Gue;

const PLAIN: Kind = Kind {
    name: "plain",
    encapsulation: IPIP,
    table: SETS,
    features: Features::ICMP_TOO_BIG.union(Features::LOCAL_DELIVERY),
    max_frame: 1514,
    frags: false,
    flood: None,
    own_table: true,
    odd: false,
    next_hops: NextHops::Gateway,
    attached: false,
    tracking: FlowTracking::All,
    ring_size: 1009,
    timeouts: None,
    explained: false,
    counts_syns: false,
    max_vip_reals: 0,
};

/// Only packets in unsettled slots look at tables. Slots are few, so flows share them. The
/// resolution of slots' times is a fraction of the timeouts: short ones, so that a batch spans many
/// steps.
const CHANGED: Kind = Kind {
    tracking: FlowTracking::Changed,
    ring_size: 37,
    timeouts: Some([4, 5]),
    ..PLAIN
};

/// Slots settle soon enough for a test to wait.
pub(crate) const SETTLING: Kind = Kind {
    name: "settling",
    timeouts: Some([2, 2]),
    ..CHANGED
};

pub(crate) const KINDS: [Kind; 16] = [
    Kind {
        // Fewer than exist.
        max_vip_reals: 100,
        ..PLAIN
    },
    Kind {
        name: "gue",
        encapsulation: GUE,
        table: LRU,
        ..PLAIN
    },
    Kind {
        name: "everything",
        features: Features::all()
            .difference(Features::FLOW_DEBUG)
            .difference(Features::STRICT_DESTINATION),
        max_vip_reals: 4096,
        ..PLAIN
    },
    Kind {
        name: "everything in gue",
        encapsulation: GUE,
        table: LRU,
        features: Features::all().difference(Features::FLOW_DEBUG),
        ..PLAIN
    },
    Kind {
        name: "shared table",
        table: LRU,
        features: Features::INLINE_DECAP
            .union(Features::STRICT_DESTINATION)
            .union(Features::UDP_STABLE_ROUTING)
            .union(Features::ICMP_TOO_BIG),
        max_frame: 590,
        own_table: false,
        odd: true,
        next_hops: NextHops::PerReal,
        ..PLAIN
    },
    Kind {
        name: "long frames",
        encapsulation: GUE,
        features: Features::SOURCE_ROUTING
            .union(Features::TCP_SERVER_ID)
            .union(Features::ICMP_TOO_BIG),
        max_frame: 9014,
        frags: true,
        odd: true,
        ..PLAIN
    },
    Kind {
        name: "shared sets",
        features: Features::GLOBAL_FLOW_TABLE
            .union(Features::INLINE_DECAP)
            .union(Features::LOCAL_DELIVERY),
        own_table: false,
        next_hops: NextHops::Redirect,
        ..PLAIN
    },
    Kind {
        name: "flood",
        table: LRU,
        features: Features::SOURCE_ROUTING
            .union(Features::TCP_SERVER_ID)
            .union(Features::UDP_STABLE_ROUTING)
            .union(Features::ICMP_TOO_BIG),
        flood: Some(100),
        ..PLAIN
    },
    Kind {
        name: "flood of sets",
        features: Features::SOURCE_ROUTING
            .union(Features::TCP_SERVER_ID)
            .union(Features::GLOBAL_FLOW_TABLE),
        flood: Some(200),
        ..PLAIN
    },
    Kind {
        name: "stations",
        features: Features::ICMP_TOO_BIG.union(Features::INLINE_DECAP),
        attached: true,
        ..PLAIN
    },
    Kind {
        name: "changed",
        max_vip_reals: 4096,
        ..CHANGED
    },
    Kind {
        name: "changed, of everything",
        encapsulation: GUE,
        table: LRU,
        features: Features::all().difference(Features::FLOW_DEBUG),
        ..CHANGED
    },
    Kind {
        name: "changed, shared",
        features: Features::INTROSPECTION.union(Features::SOURCE_ROUTING),
        own_table: false,
        odd: true,
        ..CHANGED
    },
    Kind {
        name: "changed, explained",
        table: LRU,
        explained: true,
        ..CHANGED
    },
    Kind {
        name: "changed, flood",
        features: Features::INTROSPECTION,
        flood: Some(100),
        counts_syns: true,
        ..CHANGED
    },
    Kind {
        name: "changed, flood of ids",
        features: Features::INTROSPECTION.union(Features::TCP_SERVER_ID),
        flood: Some(100),
        ..CHANGED
    },
];

impl Kind {
    /// Whether VIPs change between frames.
    pub(crate) fn changes(&self) -> bool {
        self.tracking == FlowTracking::Changed
    }

    /// The balancer's document, for frames on CPU `cpu`.
    pub(crate) fn state(&self, cpu: u32) -> State {
        let mut state = State::default();
        let forwarding = match self.own_table {
            true => cpu,
            false => cpu ^ 1,
        };
        let mut settings = BalancerState::default();
        settings.gateway_mac = Some(Gateway::Mac(GATEWAY));
        settings.encapsulation = Some(self.encapsulation);
        settings.flow_table = Some(self.table);
        settings.features = Some(self.features);
        settings.max_frame = Some(self.max_frame.into());
        settings.frags = Some(self.frags);
        settings.next_hops = Some(self.next_hops);
        settings.max_vips = Some(64);
        settings.max_reals = Some(64);
        settings.ring_size = Some(self.ring_size);
        settings.max_server_ids = Some(1024);
        settings.max_source_routes = Some(1024);
        settings.global_flow_table_size = Some(1024);
        settings.flow_table_size = Some(32_768);
        settings.flow_tracking = Some(self.tracking);
        settings.count_syns = Some(self.counts_syns);
        settings.max_vip_reals = Some(self.max_vip_reals);
        if let Some([tcp, udp]) = self.timeouts {
            settings.flow_idle_timeout = Some(Duration::from_secs(tcp));
            settings.udp_timeout = Some(Duration::from_secs(udp));
        }
        settings.flood_threshold = Some(self.flood.unwrap_or(u32::MAX));
        settings.forwarding_cpus = Some(vec![forwarding]);
        settings.source_v4 = Some([10, 10, 10, 10].into());
        settings.source_v6 = Some([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1].into());
        if self.odd {
            settings.gateway_mac_v6 = Some([0x0a, 0, 0, 0, 0, 0x66].into());
            settings.outer_dont_fragment = Some(OuterDontFragment::Inherit);
            settings.gue_port = Some(4754);
            settings.hash_seed = Some(0x0123_4567_89ab_cdef);
            settings.ipip_source_v4 = Some([10, 77, 0, 0].into());
            settings.ipip_source_v6 = Some([0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0].into());
        }
        if !self.own_table && self.features.contains(Features::INLINE_DECAP) {
            let prefixes = |texts: [&str; 2]| texts.map(|text| text.parse().unwrap()).to_vec();
            settings.allow_sources = Some(prefixes(["100.64.0.0/21", "::/0"]));
            settings.egress_sources = Some(prefixes(["100.64.0.0/22", "2000::/3"]));
        }
        state.balancer = Some(settings);
        state.vips = services();
        if self.attached {
            state
                .vips
                .extend(ANYWHERE.map(|name| VipState::new(vip(name))));
        }
        state.server_ids = server_ids();
        if self.features.contains(Features::SOURCE_ROUTING) {
            state.source_routes = source_routes();
        }
        if self.features.contains(Features::INLINE_DECAP) {
            state.decap = decap();
        }
        state
    }

    pub(crate) fn load(&self, state: &State) -> Katran {
        require_root();
        let mut katran = state.builder().unwrap().load().unwrap();
        let _ = katran.apply(state).unwrap();
        katran
    }
}

/// The real with this number: even ones are IPv4, odd ones IPv6; number 9 is this host.
pub(crate) fn real(number: u16) -> IpAddr {
    match number % 2 {
        0 => [198, 51, 100, number as u8 + 1].into(),
        _ => [0x2001, 0xdb8, 2, 0, 0, 0, 0, number].into(),
    }
}

const LOCAL: u16 = 9;

/// VIPs that also cover multicast, loopback and unspecified addresses.
const ANYWHERE: [&str; 2] = ["0.0.0.0/0:9/udp", "[::/0]:9/udp"];

/// Services of all kinds on few addresses, so that they collide.
fn services() -> Vec<VipState> {
    const NONE: VipFlags = VipFlags::empty();
    let tables: [(&str, VipFlags, &[u16], &[u16]); 26] = [
        ("1:80/tcp", NONE, &[0, 1, 2, 3], &[3]),
        ("1:443/tcp", VipFlags::LRU_BYPASS, &[0, 1, 2], &[]),
        ("1:53/udp", VipFlags::NO_SRC_PORT, &[0, 1, 2, 3], &[]),
        ("1:5000/udp", NONE, &[2, 3, 4, 5], &[]),
        ("1:443/udp", VipFlags::QUIC, &[0, 1, 2, 3], &[]),
        (
            "2:443/udp",
            VipFlags::QUIC.union(VipFlags::LRU_BYPASS),
            &[4, 5],
            &[],
        ),
        (
            "2:53/udp",
            VipFlags::QUIC.union(VipFlags::NO_SRC_PORT),
            &[4, 5, 6],
            &[5],
        ),
        ("2:0/tcp", NONE, &[3, 4, 5], &[4]),
        ("2:0/udp", VipFlags::DPORT_HASH, &[3, 4, 5], &[]),
        ("1/28:8080/tcp", NONE, &[1, 2], &[]),
        ("1/24:0/udp", VipFlags::SRC_DST_PORT, &[1, 2, 6], &[]),
        ("1/24:8080/tcp", VipFlags::DPORT_HASH, &[1, 2, 6], &[]),
        ("0/23:0/tcp", VipFlags::NO_SRC_PORT, &[0, 7], &[]),
        ("3:5000/udp", VipFlags::UDP_STABLE_ROUTING, &[0, 1, 2], &[]),
        (
            "3:443/udp",
            VipFlags::UDP_STABLE_ROUTING.union(VipFlags::QUIC),
            &[0, 1, 2],
            &[2],
        ),
        ("3:80/tcp", VipFlags::SRC_ROUTING, &[0, 1, 8], &[8]),
        (
            "3:53/udp",
            VipFlags::SRC_ROUTING.union(VipFlags::DPORT_HASH),
            &[0, 1],
            &[],
        ),
        ("4:80/tcp", VipFlags::GLOBAL_LRU, &[0, 1, 2], &[]),
        (
            "4:53/udp",
            VipFlags::GLOBAL_LRU.union(VipFlags::LRU_BYPASS),
            &[0, 1],
            &[],
        ),
        ("5:80/tcp", VipFlags::LOCAL_VIP, &[LOCAL, 1], &[]),
        ("5:443/tcp", NONE, &[LOCAL], &[]),
        (
            "6:53/udp",
            VipFlags::UDP_FLOW_MIGRATION.union(VipFlags::QUIC),
            &[2, 3, 4],
            &[3],
        ),
        ("6:80/tcp", NONE, &[2, 3, 4], &[3]),
        ("7:80/tcp", VipFlags::SRC_ROUTING, &[], &[]),
        ("7:443/udp", VipFlags::QUIC, &[], &[]),
        ("7:53/udp", NONE, &[5], &[5]),
    ];
    let mut states = Vec::new();
    for (name, flags, reals, down) in tables {
        let (host, rest) = name.split_once(':').unwrap();
        for v6 in [false, true] {
            let address = match (v6, host.split_once('/')) {
                (false, None) => format!("203.0.113.{host}"),
                (true, None) => format!("[2001:db8:1::{host}]"),
                (false, Some((_, "23"))) => "203.0.112.0/23".to_owned(),
                (false, Some((_, length))) => format!("203.0.113.0/{length}"),
                (true, Some((_, "23"))) => "[2001:db8::/32]".to_owned(),
                (true, Some((_, "24"))) => "[2001:db8:1::/64]".to_owned(),
                (true, Some(_)) => "[2001:db8:1::/125]".to_owned(),
            };
            let mut state = VipState::new(vip(&format!("{address}:{rest}")));
            state.flags = flags;
            state.hash = Some(match v6 {
                true => HashFunction::Maglev,
                false => HashFunction::MaglevV2,
            });
            for (i, number) in reals.iter().enumerate() {
                let mut entry = Real::new(real(*number)).weight(1 + i as u32);
                if *number == LOCAL {
                    entry = entry.flags(RealFlags::LOCAL_REAL);
                }
                state.reals.push(entry);
            }
            state.down = down.iter().map(|number| real(*number)).collect();
            states.push(state);
        }
    }
    states
}

/// Ids of all widths, and their reals: one that only an id names, one that is down.
pub(crate) const SERVER_IDS: [(u32, u16); 9] = [
    (1, 0),
    (2, 1),
    (3, 2),
    (4, 5),
    (5, 11),
    (0x8001, 3),
    (0x00ab_cdef, 4),
    (0x8000_0001, 1),
    (0xffff_ffff, 2),
];

fn server_ids() -> Vec<ServerIdState> {
    let ids = SERVER_IDS.iter();
    let mut ids: Vec<_> = ids
        .map(|(id, number)| ServerIdState::new(ServerId::new(*id, real(*number))))
        .collect();
    let mut invalid = ServerIdState::new(ServerId::new(77, real(0)));
    invalid.valid = false;
    ids.push(invalid);
    ids
}

fn source_routes() -> Vec<SourceRoute> {
    [
        ("100.64.0.0/10", 4),
        ("100.64.7.0/24", 8),
        ("100.64.9.9/32", 10),
        ("2001:db8:c::/48", 4),
        ("2001:db8:c:7::/64", 8),
    ]
    .map(|(prefix, number)| SourceRoute::new(prefix.parse().unwrap(), real(number)))
    .to_vec()
}

/// Tunnel ends.
pub(crate) const INLINE: [&str; 2] = ["192.0.2.200", "2001:db8:9::200"];
pub(crate) const EGRESS: [&str; 2] = ["192.0.2.201", "2001:db8:9::201"];

fn decap() -> Vec<DecapState> {
    let of =
        |addresses: [&str; 2], mode| addresses.map(|address| DecapState::new(ip(address), mode));
    let mut ends = of(INLINE, DecapMode::Inline).to_vec();
    ends.extend(of(EGRESS, DecapMode::Egress));
    ends
}
