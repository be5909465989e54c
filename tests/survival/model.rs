//! The test's model of a balancer: everything that can be asked of it, in ordered lists.

use std::collections::BTreeSet;
use std::net::IpAddr;

use katran::Features;
use katran::HashFunction;
use katran::Katran;
use katran::MacAddr;
use katran::Real;
use katran::RealFlags;
use katran::ServerId;
use katran::SourceRoute;
use katran::State;
use katran::Vip;
use katran::VipFlags;
use katran::state::DecapState;
use katran::state::MarkState;
use katran::state::ProbeMatch;
use katran::state::ProbeMatchState;
use katran::state::ServerIdState;
use katran::state::VipState;

use crate::common::ip;
use crate::common::vip;

/// The clients' services, which no change removes; their reals are the backends' addresses.
pub(crate) const SERVICES: [(&str, [&str; 2]); 3] = [
    ("203.0.113.1:80/tcp", ["198.51.100.1", "198.51.100.2"]),
    ("[2001:db8:1::1]:80/tcp", ["2001:db8:2::1", "2001:db8:2::2"]),
    ("203.0.113.1:80/udp", ["198.51.100.1", "198.51.100.2"]),
];

/// A balancer without its counters and flows.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) state: State,
    /// Names of interfaces.
    pub(crate) attached: BTreeSet<String>,
    /// Entries of root programs.
    pub(crate) entries: usize,
    pub(crate) watched: Option<Vip>,
    /// Whether the probes' path is attached.
    pub(crate) probing: bool,
}

impl Model {
    pub(crate) fn of(katran: &Katran) -> Self {
        let attached = katran.interfaces().into_iter();
        Self {
            state: katran.state(),
            attached: attached.map(|of| of.interface).collect(),
            entries: katran.shared_entries().len(),
            watched: katran.stats().watched_vip(),
            probing: katran.probes().attachment().is_some(),
        }
    }

    /// A text that is equal if the model is; with the reals that must have numbers, as something
    /// names them.
    pub(crate) fn text(&self) -> String {
        let mut model = self.clone();
        let state = &mut model.state;
        state.vips.sort_by_key(|of| of.vip);
        for of in &mut state.vips {
            of.reals.sort_by_key(Real::address);
            of.down.sort();
        }
        state.server_ids.sort_by_key(|of| of.id.id());
        state.source_routes.sort_by_key(SourceRoute::prefix);
        state.decap.sort();
        state.marks.sort();
        state.probe_matches.sort();
        state.probes.sort();
        format!("{model:#?}\n{:?}", self.named())
    }

    /// The text of a real balancer.
    pub(crate) fn text_of(katran: &Katran, after: &str) -> String {
        let model = Self::of(katran);
        let numbers = katran.real_numbers().into_iter();
        let numbers: BTreeSet<IpAddr> = numbers.map(|(real, _)| real).collect();
        assert_eq!(
            numbers,
            model.named(),
            "{after}: reals with numbers, and reals with names"
        );
        model.text()
    }

    fn named(&self) -> BTreeSet<IpAddr> {
        let state = &self.state;
        let vips = state.vips.iter().flat_map(|of| &of.reals);
        let ids = state.server_ids.iter().map(|of| of.id.real());
        let routes = state.source_routes.iter().map(SourceRoute::real);
        vips.map(Real::address).chain(ids).chain(routes).collect()
    }

    pub(crate) fn vip_mut(&mut self, vip: Vip) -> &mut VipState {
        let mut vips = self.state.vips.iter_mut();
        vips.find(|of| of.vip == vip).unwrap()
    }

    /// Gives a VIP a real, or changes its weight.
    pub(crate) fn put(&mut self, vip: Vip, address: IpAddr, weight: u32) {
        let flags = self.flags_of(address);
        let of = self.vip_mut(vip);
        of.reals.retain(|real| real.address() != address);
        of.reals.push(real(address, weight, flags));
    }

    pub(crate) fn flags_of(&self, address: IpAddr) -> RealFlags {
        let mut reals = self.state.vips.iter().flat_map(|of| &of.reals);
        let real = reals.find(|real| real.address() == address);
        real.and_then(Real::get_flags).unwrap_or_default()
    }

    pub(crate) fn set_flags(&mut self, address: IpAddr, flags: RealFlags) {
        for of in self.state.vips.iter_mut().flat_map(|of| &mut of.reals) {
            if of.address() == address {
                *of = real(address, of.get_weight(), flags);
            }
        }
    }
}

fn real(address: IpAddr, weight: u32, flags: RealFlags) -> Real {
    let real = Real::new(address).weight(weight);
    match flags.is_empty() {
        true => real,
        false => real.flags(flags),
    }
}

/// The lines in which two texts differ.
pub(crate) fn difference(found: &str, expected: &str) -> String {
    let lines = |text: &str, other: &str, sign: char| {
        let other: Vec<String> = other.lines().map(str::to_owned).collect();
        let mut left = other.clone();
        let mut said = String::new();
        for line in text.lines() {
            match left.iter().position(|of| of == line) {
                Some(at) => drop(left.remove(at)),
                None => said += &format!("{sign} {}\n", line.trim()),
            }
        }
        said
    };
    lines(found, expected, '+') + &lines(expected, found, '-')
}

pub(crate) fn is_service(vip: Vip) -> bool {
    SERVICES
        .iter()
        .any(|(service, _)| crate::common::vip(service) == vip)
}

/// A real that no service uses.
pub(crate) fn other_real(number: u8) -> IpAddr {
    match number % 4 {
        0 => format!("2001:db8:2::{number:x}:1").parse().unwrap(),
        _ => [198, 51, 100, 10 + number].into(),
    }
}

/// A VIP that clients do not use.
pub(crate) fn other_vip(number: u8) -> Vip {
    vip(&match number % 4 {
        0 => format!("203.0.113.{}:443/tcp", 50 + number),
        1 => format!("[2001:db8:1::{number:x}:0]:0/udp"),
        2 => format!("203.0.113.{}:53/udp", 50 + number),
        _ => format!("203.0.{}.0/24:443/tcp", 114 + number),
    })
}

/// The start of every run: some of everything, so that every kind of change is possible.
pub(crate) fn first(gateway: MacAddr) -> State {
    let mut state = State::default();
    for (service, reals) in SERVICES {
        let mut of = VipState::new(vip(service));
        of.reals = reals.map(|real| Real::new(ip(real))).into();
        state.vips.push(of);
    }
    for (number, reals) in [(0, [1, 2, 3]), (2, [2, 4, 5]), (3, [6, 7, 8])] {
        let mut of = VipState::new(other_vip(number));
        of.reals = reals.map(|number| Real::new(other_real(number))).into();
        of.reals[0] = Real::new(of.reals[0].address()).weight(3);
        of.down = vec![of.reals[1].address()];
        state.vips.push(of);
    }
    state.vips[4].hash = Some(HashFunction::Maglev);
    state.vips[5].flags = VipFlags::SRC_ROUTING;
    for id in 1..10 {
        let id = ServerId::new(id, other_real(id as u8 % 5 + 4));
        state.server_ids.push(ServerIdState::new(id));
    }
    state.server_ids[2].valid = false;
    for nth in 0..4 {
        let prefix = format!("10.{nth}.0.0/16").parse().unwrap();
        let route = SourceRoute::new(prefix, other_real(nth + 14));
        state.source_routes.push(route);
    }
    let decap = DecapState::new(ip("203.0.113.200"), katran::DecapMode::Egress);
    state.decap.push(decap);
    state.marks = vec![
        MarkState::new(1000, other_real(1)),
        MarkState::new(1001, other_real(12)),
    ];
    for by in [ProbeMatch::Destination, ProbeMatch::Source] {
        let by = by(([203, 0, 113, 201], 80).into());
        let of = ProbeMatchState::new(by, other_real(13));
        state.probe_matches.push(of);
    }
    state.probes = vec![other_vip(0)];
    let mut settings = katran::state::BalancerState::default();
    settings.features = Some(features());
    settings.gateway_mac = Some(katran::Gateway::Mac(gateway));
    settings.source_v4 = Some([192, 0, 2, 9].into());
    settings.source_v6 = Some("2001:db8::9".parse().unwrap());
    state.balancer = Some(settings);
    state
}

pub(crate) fn features() -> Features {
    Features::default() | Features::SOURCE_ROUTING | Features::INLINE_DECAP
}
