//! What is counted on demand: each VIP's SYNs, and what each of its reals gets.

use std::collections::BTreeMap;
use std::net::IpAddr;

use katran::Error;
use katran::Katran;
use katran::Protocol;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran::stats::VipRealCounters;
use katran_lab::private_bpf_fs;

use crate::common::all_in_table;
use crate::common::builder;
use crate::common::drain;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::fixtures::TO_VIP4;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::VIP6;
use crate::common::fixtures::flow_v4;
use crate::common::fixtures::flow_v6;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::sent;
use crate::common::serve;

/// Packets and SYNs of each VIP and real.
fn pairs(katran: &Katran) -> BTreeMap<(Vip, IpAddr), (u64, u64)> {
    let pairs = katran.stats().vip_reals().unwrap().into_iter();
    let of = |of: &VipRealCounters| (of.forwarded.packets, of.syns);
    let of_vips = pairs.map(|(vip, reals)| {
        let reals = reals.iter();
        let reals: Vec<_> = reals
            .map(|(real, counted)| ((vip, *real), of(counted)))
            .collect();
        reals
    });
    of_vips.flatten().collect()
}

fn syns(katran: &Katran, of: Vip) -> u64 {
    katran.stats().vip_details().unwrap()[&of].syns
}

#[test]
fn nothing_is_counted_unless_requested() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    sent(&katran, &syn(flow_v4()));
    let counters = katran.counters().unwrap();
    assert!(counters.vip_details.is_empty() && counters.vip_reals.is_empty());
    assert!(katran.map_fd("vip_details").is_none());
    let maps = counters.library.maps.iter();
    assert!(maps.map(|map| map.name).all(|name| name != "vip_reals"));
}

#[test]
fn syns_are_counted_whether_flows_are_remembered_or_not() {
    for builder in [builder(), all_in_table()] {
        let mut katran = load(builder.count_syns(true));
        let of = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
        let other = serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
        for frame in [frame(flow_v4()), syn(flow_v4()), frame(flow_v4())] {
            assert_eq!(sent(&katran, &frame).0, Some(ip(A)));
        }
        assert_eq!((syns(&katran, of), syns(&katran, other)), (1, 0));
        // In unsettled slots, too.
        drain(&mut katran, of, A, B);
        let new = flows(Protocol::Tcp, TO_VIP4, 1)[0];
        assert_eq!(sent(&katran, &syn(new)).0, Some(ip(B)));
        sent(&katran, &syn(flow_v6()));
        assert_eq!((syns(&katran, of), syns(&katran, other)), (2, 1));
        assert!(pairs(&katran).is_empty());
        // A VIP that is added again begins at 0.
        katran.remove_vip(of).unwrap();
        serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
        assert_eq!(syns(&katran, of), 0);
    }
}

#[test]
fn each_pair_is_counted_separately() {
    let mut katran = load(builder().max_vip_reals(16));
    let of = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let other = serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    for frame in [syn(flow_v4()), frame(flow_v4()), frame(flow_v6())] {
        sent(&katran, &frame);
    }
    let a = ip(A);
    let expected = BTreeMap::from([((of, a), (2, 1)), ((other, a), (1, 0))]);
    assert_eq!(pairs(&katran), expected);
    let bytes = katran.stats().vip_reals().unwrap()[&of][&a].forwarded.bytes;
    assert_eq!(bytes, katran.stats().vip(of).unwrap().forwarded.bytes);
    let counters = katran.counters().unwrap();
    let mut maps = counters.library.maps.iter();
    let use_of = maps.find(|map| map.name == "vip_reals").unwrap();
    assert_eq!((use_of.capacity, use_of.entries), (16, 2));
}

#[test]
fn packets_of_a_pair_without_room_are_forwarded_and_counted() {
    let mut katran = load(builder().max_vip_reals(1));
    let of = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let other = serve(&mut katran, VIP6, VipFlags::empty(), &[B]);
    sent(&katran, &syn(flow_v4()));
    for _ in 0..3 {
        assert_eq!(sent(&katran, &syn(flow_v6())).0, Some(ip(B)));
    }
    let details = katran.stats().vip_details().unwrap();
    assert_eq!((details[&of].syns, details[&of].unpaired), (1, 0));
    assert_eq!((details[&other].syns, details[&other].unpaired), (3, 3));
    assert_eq!(pairs(&katran), BTreeMap::from([((of, ip(A)), (1, 1))]));
    // Once its counters have been read, the place of a removed pair is free.
    katran.remove_vip(of).unwrap();
    assert!(pairs(&katran).is_empty());
    // Only one of 256 packets without a pair looks for a place, beginning with the first.
    for _ in 3..256 {
        sent(&katran, &syn(flow_v6()));
        assert!(pairs(&katran).is_empty());
    }
    sent(&katran, &syn(flow_v6()));
    assert_eq!(pairs(&katran), BTreeMap::from([((other, ip(B)), (1, 1))]));
    let details = katran.stats().vip_details().unwrap();
    assert_eq!(details[&other].unpaired, 256);
}

#[test]
fn a_vip_with_a_reused_number_has_no_old_pairs() {
    let mut katran = load(builder().max_vips(1).max_vip_reals(16));
    let of = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    // The id keeps the real in use when the VIP goes.
    katran
        .server_ids_mut()
        .add(&[katran::ServerId::new(1, ip(A))])
        .unwrap();
    sent(&katran, &syn(flow_v4()));
    assert_eq!(pairs(&katran), BTreeMap::from([((of, ip(A)), (1, 1))]));
    katran.remove_vip(of).unwrap();
    let other = serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    assert!(pairs(&katran).is_empty());
    sent(&katran, &frame(flow_v6()));
    assert_eq!(pairs(&katran), BTreeMap::from([((other, ip(A)), (1, 0))]));
}

#[test]
fn a_real_that_is_added_again_begins_at_0() {
    let mut katran = load(builder().max_vip_reals(16));
    let of = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let remove = RealChange::Remove(ip(B));
    let only = [
        RealChange::Remove(ip(A)),
        RealChange::Add(katran::Real::new(ip(C))),
    ];
    katran.modify_reals(of, &[remove]).unwrap();
    sent(&katran, &syn(flow_v4()));
    katran.modify_reals(of, &only).unwrap();
    // Nothing uses the real any more.
    assert!(pairs(&katran).is_empty());
    katran
        .modify_reals(
            of,
            &[
                RealChange::Add(katran::Real::new(ip(A))),
                RealChange::Remove(ip(C)),
            ],
        )
        .unwrap();
    sent(&katran, &syn(flow_v4()));
    assert_eq!(pairs(&katran), BTreeMap::from([((of, ip(A)), (1, 1))]));
}

#[test]
fn counts_survive_an_adoption_and_a_replacement() {
    let directory = private_bpf_fs().unwrap().join("katran");
    let mut katran = load(builder().max_vip_reals(16).pin(&directory));
    let of = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    sent(&katran, &syn(flow_v4()));
    let expected = BTreeMap::from([((of, ip(A)), (1, 1))]);
    drop(katran);
    let mut katran = builder().pin(&directory).adopt().unwrap();
    assert_eq!(pairs(&katran), expected);
    let mut state = katran.state();
    let settings = state.balancer.as_mut().unwrap();
    settings.max_reals = Some(128);
    assert!(!katran.apply(&state).unwrap().is_empty());
    assert_eq!((pairs(&katran), syns(&katran, of)), (expected, 1));
    sent(&katran, &syn(flow_v4()));
    assert_eq!(pairs(&katran)[&(of, ip(A))], (2, 2));
    // With another limit pairs begin at 0; VIPs keep their counts.
    state.balancer.as_mut().unwrap().max_vip_reals = Some(32);
    let _ = katran.apply(&state).unwrap();
    assert_eq!((pairs(&katran).len(), syns(&katran, of)), (0, 2));
    state.balancer.as_mut().unwrap().max_vips = Some(32);
    let _ = katran.apply(&state).unwrap();
    assert_eq!(syns(&katran, of), 2);
    state.balancer.as_mut().unwrap().max_vip_reals = Some(0);
    let _ = katran.apply(&state).unwrap();
    assert!(katran.stats().vip_details().unwrap().is_empty());
    sent(&katran, &syn(flow_v4()));
    katran.remove().unwrap();
}

#[test]
fn too_many_pairs_are_refused() {
    let refused = builder().max_vip_reals(1_048_577).load().unwrap_err();
    assert!(matches!(refused, Error::InvalidConfig { .. }), "{refused}");
}

#[test]
fn vips_with_reused_numbers_have_no_old_pairs() {
    let mut katran = load(builder().max_vips(2).max_vip_reals(16));
    let ids = [katran::ServerId::new(1, ip(A))];
    let mut before = Vec::new();
    for vip in [VIP4, VIP6] {
        before.push(serve(&mut katran, vip, VipFlags::empty(), &[A]));
    }
    katran.server_ids_mut().add(&ids).unwrap();
    for frame in [syn(flow_v4()), syn(flow_v6())] {
        sent(&katran, &frame);
    }
    assert_eq!(pairs(&katran).len(), 2);
    before
        .iter()
        .for_each(|vip| katran.remove_vip(*vip).unwrap());
    for vip in [VIP4, VIP6] {
        serve(&mut katran, vip, VipFlags::empty(), &[A]);
    }
    assert!(pairs(&katran).is_empty());
}
