//! Every call that changes something, with its arguments.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use super::Katran;
use crate::config::Features;
use crate::document::DecapState;
use crate::document::VipState;
use crate::error::Result;
use crate::types::DecapMode;
use crate::types::Gateway;
use crate::types::HashFunction;
use crate::types::MacAddr;
use crate::types::Real;
use crate::types::RealChange;
use crate::types::RealFlags;
use crate::types::ServerId;
use crate::types::Vip;
use crate::types::VipFlags;

pub(super) const ROUTER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

pub(super) fn features() -> Features {
    Features::default() | Features::SOURCE_ROUTING | Features::INLINE_DECAP
}

pub(in super::super::super) fn vip(number: u8) -> Vip {
    match number % 3 {
        0 => Vip::udp((Ipv4Addr::new(203, 0, 113, number), 443).into()),
        1 => Vip::tcp((Ipv4Addr::new(203, 0, 113, number), 0).into()),
        _ => format!("[2001:db8:{number:x}::/48]:80/tcp")
            .parse()
            .unwrap(),
    }
}

pub(in super::super::super) fn address(number: u8) -> IpAddr {
    match number % 4 {
        0 => Ipv6Addr::from(0x2001_0db8_ffff << 80 | u128::from(number)).into(),
        _ => Ipv4Addr::new(198, 51, 100, number).into(),
    }
}

pub(super) type Call = fn(&mut Katran) -> Result<()>;

/// Every call that changes something, in a possible order; and some that are refused.
pub(super) const CALLS: &[(&str, Call)] = &[
    ("add a VIP", |katran| {
        katran.add_vip(vip(1), VipFlags::empty())
    }),
    ("add a prefix", |katran| {
        katran.add_vip(vip(2), VipFlags::NO_SRC_PORT)
    }),
    ("add one again", |katran| {
        katran.add_vip(vip(1), VipFlags::empty())
    }),
    ("add a real", |katran| {
        katran.add_real(vip(1), Real::new(address(1)).weight(3))
    }),
    ("add more", |katran| {
        let reals = [2, 3, 4].map(|number| RealChange::Add(Real::new(address(number))));
        katran.modify_reals(vip(1), &reals)
    }),
    ("share one", |katran| {
        katran.add_real(vip(2), Real::new(address(2)))
    }),
    ("drain", |katran| {
        katran.add_real(vip(1), Real::new(address(1)).weight(0))
    }),
    ("mark down", |katran| katran.mark_down(vip(1), address(2))),
    ("mark up", |katran| katran.mark_up(vip(1), address(2))),
    ("mark down again", |katran| {
        katran.mark_down(vip(1), address(4))
    }),
    ("remove a real", |katran| {
        katran.remove_real(vip(1), address(3))
    }),
    ("remove an unknown real", |katran| {
        katran.remove_real(vip(1), address(9))
    }),
    ("flags of a VIP", |katran| {
        katran.set_vip_flags(vip(1), VipFlags::NO_SRC_PORT)
    }),
    ("flags of a real", |katran| {
        katran.set_real_flags(address(1), RealFlags::LOCAL_REAL)
    }),
    ("hash function", |katran| {
        katran.set_hash_function(vip(1), HashFunction::Maglev)
    }),
    ("server ids", |katran| {
        let ids = [ServerId::new(7, address(1)), ServerId::new(8, address(5))];
        katran.server_ids_mut().add(&ids)
    }),
    ("an unknown id", |katran| {
        katran.server_ids_mut().remove(&[99])
    }),
    ("invalidate", |katran| {
        katran.server_ids_mut().invalidate(&[7, 8])
    }),
    ("revalidate", |katran| {
        katran.server_ids_mut().revalidate(&[8])
    }),
    ("remove an id", |katran| {
        katran.server_ids_mut().remove(&[8])
    }),
    ("source routes", |katran| {
        let prefixes = ["10.0.0.0/8", "2001:db8:1::/48"].map(|text| text.parse().unwrap());
        katran.source_routes_mut().add(&prefixes, address(6))
    }),
    ("remove a route", |katran| {
        katran
            .source_routes_mut()
            .remove(&["10.0.0.0/8".parse().unwrap()])
    }),
    ("decap", |katran| {
        katran.decap_mut().add(address(20), DecapMode::Egress)
    }),
    ("decap again", |katran| {
        katran.decap_mut().add(address(20), DecapMode::Egress)
    }),
    ("remove decap", |katran| {
        katran.decap_mut().remove(address(20))
    }),
    ("gateway", |katran| {
        katran
            .gateways_mut()
            .set(Gateway::Mac(MacAddr::new([2, 0, 0, 0, 0, 9])))
    }),
    ("gateway of IPv6", |katran| {
        katran.gateways_mut().set_mac_v6(Some(ROUTER))
    }),
    ("source", |katran| {
        katran
            .gateways_mut()
            .set_source(Ipv4Addr::new(192, 0, 2, 7).into())
    }),
    ("map a mark", |katran| {
        katran.probes_mut().map_mark(1000, address(1))
    }),
    ("map another", |katran| {
        katran.probes_mut().map_mark(1001, address(4))
    }),
    ("unmap a mark", |katran| {
        katran.probes_mut().unmap_mark(1000)
    }),
    ("match", |katran| {
        katran
            .probes_mut()
            .match_destination((address(30), 80).into(), address(1))
    }),
    ("match by source", |katran| {
        katran
            .probes_mut()
            .match_source((address(31), 0).into(), address(1))
    }),
    ("unmatch", |katran| {
        katran
            .probes_mut()
            .unmatch_destination((address(30), 80).into())
    }),
    ("count probes", |katran| {
        katran.probes_mut().register(vip(1))
    }),
    ("count them no more", |katran| {
        katran.probes_mut().unregister(vip(1))
    }),
    ("count none", |katran| {
        katran.probes_mut().unregister(vip(1))
    }),
    ("watch", |katran| katran.stats_mut().watch_misses(vip(2))),
    ("remove a VIP", |katran| katran.remove_vip(vip(2))),
    ("watch another", |katran| {
        katran.stats_mut().watch_misses(vip(1))
    }),
    ("watch no more", |katran| {
        katran.stats_mut().unwatch_misses();
        Ok(())
    }),
    ("features", |katran| {
        katran.reload(features() | Features::TCP_SERVER_ID)
    }),
    ("features in use", |katran| {
        katran.reload(Features::default())
    }),
    ("apply", |katran| {
        let mut state = katran.state();
        state.vips.push(some_vip(4, &[7, 8, 10]));
        state.vips.push(some_vip(5, &[9]));
        state
            .decap
            .push(DecapState::new(address(21), DecapMode::Inline));
        state.source_routes.clear();
        katran.apply(&state).map(drop)
    }),
    ("apply what cannot be", |katran| {
        let mut state = katran.state();
        state.vips.clear();
        state
            .vips
            .extend((10..20).map(|number| some_vip(number, &[])));
        katran.apply(&state).map(drop)
    }),
];

pub(super) fn some_vip(number: u8, reals: &[u8]) -> VipState {
    let mut state = VipState::new(vip(number));
    state.reals = reals.iter().map(|real| Real::new(address(*real))).collect();
    state
}
