//! A model of a loaded balancer: its settings and tables, read through the library.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use katran::DecapMode;
use katran::Encapsulation;
use katran::Family;
use katran::Features;
use katran::FlowTracking;
use katran::Gateway;
use katran::Katran;
use katran::NextHops;
use katran::Prefix;
use katran::RealFlags;
use katran::Vip;
use katran::VipFlags;
use katran::ring::Endpoint;
use katran::ring::Ring;
use katran::ring::RingSize;
use katran::state::OuterDontFragment;
use katran_model as model;
use katran_model::Balancer;

/// A model of the balancer's current configuration, without flows and with all counters 0, for
/// packets on CPU `cpu`. VIPs are numbered by their place in `katran.vips()`, reals as in the
/// library.
pub(crate) fn of(katran: &Katran, cpu: u32) -> Balancer {
    Balancer::new(config(katran, cpu), tables(katran))
}

fn config(katran: &Katran, cpu: u32) -> model::Config {
    let settings = katran.state().balancer.unwrap();
    let features = katran.features();
    let has = |feature| features.contains(feature);
    let Gateway::Mac(gateway) = katran.gateways().setting() else {
        panic!("a gateway that has to be found");
    };
    let forwards = katran.forwarding_cpus().contains(&cpu);
    model::Config {
        encapsulation: match settings.encapsulation.unwrap() {
            Encapsulation::Ipip => model::Encapsulation::Ipip,
            Encapsulation::Gue => model::Encapsulation::Gue,
            other => panic!("the model does not know {other}"),
        },
        features: model::Features {
            source_routing: has(Features::SOURCE_ROUTING),
            inline_decap: has(Features::INLINE_DECAP),
            strict_destination: has(Features::STRICT_DESTINATION),
            icmp_too_big: has(Features::ICMP_TOO_BIG),
            tcp_server_id: has(Features::TCP_SERVER_ID),
            udp_stable_routing: has(Features::UDP_STABLE_ROUTING),
            global_flow_table: has(Features::GLOBAL_FLOW_TABLE),
            local_delivery: has(Features::LOCAL_DELIVERY),
            introspection: has(Features::INTROSPECTION),
        },
        max_frame: katran.gateways().max_frame() as usize,
        max_vips: settings.max_vips.unwrap(),
        ring_size: settings.ring_size.unwrap(),
        hash_seed: settings.hash_seed,
        gateway_mac: gateway.octets(),
        gateway_mac_v6: katran.gateways().mac(Family::V6).octets(),
        next_hops: settings.next_hops.unwrap_or_default() != NextHops::Gateway,
        own_macs: Vec::new(),
        source_v4: settings.source_v4,
        source_v6: settings.source_v6,
        gue_port: settings.gue_port.unwrap(),
        ipip_source_v4: first(settings.ipip_source_v4.unwrap().into()),
        ipip_source_v6: first(settings.ipip_source_v6.unwrap().into()),
        outer_dont_fragment: settings.outer_dont_fragment == Some(OuterDontFragment::Inherit),
        tracking: match settings.flow_tracking.unwrap() {
            FlowTracking::All => model::Tracking::All,
            FlowTracking::Changed => model::Tracking::Changed,
            other => panic!("the model does not know {other}"),
        },
        flow_idle_timeout: settings.flow_idle_timeout.unwrap().as_millis() as u64,
        udp_timeout: settings.udp_timeout.unwrap().as_millis() as u64,
        counts_syns: settings.count_syns.unwrap(),
        max_vip_reals: settings.max_vip_reals.unwrap() as usize,
        orphaned: false,
        flood_threshold: settings.flood_threshold.unwrap().into(),
        has_flow_table: forwards,
        has_global_table: forwards,
    }
}

/// The first bytes of an address.
fn first<const BYTES: usize>(address: IpAddr) -> [u8; BYTES] {
    let bytes = model::bytes::octets(address);
    bytes[..BYTES].try_into().unwrap()
}

fn numbers(katran: &Katran) -> BTreeMap<IpAddr, u32> {
    let numbers = katran.real_numbers().into_iter();
    numbers
        .map(|(address, number)| (address, number.get()))
        .collect()
}

fn tables(katran: &Katran) -> model::Tables {
    let numbers = numbers(katran);
    let state = katran.state();
    let mut tables = model::Tables::default();
    for (address, number) in &numbers {
        let real = model::Real {
            address: *address,
            local: false,
        };
        tables.reals.insert(*number, real);
    }
    for (number, vip) in (0..).zip(katran.vips()) {
        let of_vip = vip_of(katran, vip);
        tables.vips.insert(number, of_vip);
        for real in katran.reals(vip).unwrap() {
            let is_local = real.get_flags().unwrap().contains(RealFlags::LOCAL_REAL);
            let number = numbers[&real.address()];
            tables.reals.get_mut(&number).unwrap().local = is_local;
        }
    }
    for id in state.server_ids.iter().filter(|id| id.valid) {
        tables.server_ids.insert(id.id.id(), numbers[&id.id.real()]);
    }
    for route in &state.source_routes {
        let prefix = route.prefix();
        let real = numbers[&route.real()];
        let entry = (prefix.address(), prefix.length(), real);
        tables.source_routes.push(entry);
    }
    for (address, mode) in katran.decap().list() {
        let mode = match mode {
            DecapMode::Inline => model::DecapMode::Inline,
            DecapMode::Egress => model::DecapMode::Egress,
        };
        tables.decap.insert(address, mode);
    }
    let settings = state.balancer.unwrap_or_default();
    let pairs = |prefixes: Option<Vec<Prefix>>| {
        let prefixes = prefixes.unwrap_or_default().into_iter();
        prefixes.map(|of| (of.address(), of.length())).collect()
    };
    tables.allow_sources = pairs(settings.allow_sources);
    tables.egress_sources = pairs(settings.egress_sources);
    tables
}

fn flags(flags: VipFlags) -> model::VipFlags {
    model::VipFlags {
        no_src_port: flags.contains(VipFlags::NO_SRC_PORT),
        lru_bypass: flags.contains(VipFlags::LRU_BYPASS),
        quic: flags.contains(VipFlags::QUIC),
        dport_hash: flags.contains(VipFlags::DPORT_HASH),
        src_routing: flags.contains(VipFlags::SRC_ROUTING),
        local_vip: flags.contains(VipFlags::LOCAL_VIP),
        global_lru: flags.contains(VipFlags::GLOBAL_LRU),
        src_dst_port: flags.contains(VipFlags::SRC_DST_PORT),
        udp_stable_routing: flags.contains(VipFlags::UDP_STABLE_ROUTING),
        udp_flow_migration: flags.contains(VipFlags::UDP_FLOW_MIGRATION),
    }
}

/// A VIP as it is now, with all of its slots settled.
pub(crate) fn vip_of(katran: &Katran, vip: Vip) -> model::Vip {
    let numbers = numbers(katran);
    let reals = katran.reals(vip).unwrap();
    let down = katran.down_reals(vip).unwrap();
    let endpoints: Vec<Endpoint> = reals
        .iter()
        .filter(|real| !down.contains(&real.address()) && real.get_weight() != 0)
        .map(|real| {
            let number = numbers[&real.address()] as u16;
            Endpoint::new(number, real.address(), real.get_weight())
        })
        .collect();
    let settings = katran.state().balancer.unwrap();
    let size = RingSize::try_from(settings.ring_size.unwrap()).unwrap();
    let ring = Ring::build(katran.hash_function(vip).unwrap(), size, &endpoints).unwrap();
    let slots = ring.slots().iter();
    let slots: Arc<[_]> = slots.map(|n| (*n != 0).then_some((*n).into())).collect();
    let drained = reals.iter().filter(|real| real.get_weight() == 0);
    model::Vip {
        address: vip.address(),
        prefix: vip.is_prefix().then(|| vip.prefix_length()),
        port: vip.port(),
        protocol: vip.protocol().number(),
        flags: flags(katran.vip_flags(vip).unwrap()),
        ring: Some(slots),
        reals: reals.iter().map(|real| numbers[&real.address()]).collect(),
        down: down.iter().map(|address| numbers[address]).collect(),
        drained: drained.map(|real| numbers[&real.address()]).collect(),
        unsettled: model::Unsettled::new(),
    }
}
