//! A ledger of many VIPs, reals and server ids.

use super::*;

/// All of them where it is measured.
fn count(all: u32) -> u32 {
    match cfg!(debug_assertions) {
        true => all / 20,
        false => all,
    }
}

/// As large as possible: read back, and one real changed.
#[test]
fn a_large_balancer_is_read_in_a_moment() {
    let mut kept = loaded(builder().max_vips(512).max_reals(4096));
    let vips: Vec<Vip> = (0..512_u32)
        .map(|index| Vip::tcp((Ipv4Addr::from(0xcb00_7100 + index), 443).into()))
        .collect();
    for (index, vip) in vips.iter().enumerate() {
        let staged = kept
            .table
            .stage_add_vip(*vip, VipFlags::empty(), HashFunction::MaglevV2);
        kept.table.commit(staged.unwrap());
        let reals = (0..200).map(|nth| {
            let address = Ipv4Addr::from(0x0a00_0000 + (index as u32 * 8 + nth) % 4000);
            RealChange::Add(Real::new(address.into()).weight(nth))
        });
        let reals: Vec<_> = reals.collect();
        kept.table
            .commit(kept.table.stage_reals(vip, &reals, &[]).unwrap());
    }
    let first: BTreeMap<u32, IpAddr> = (1..=1_000_000)
        .map(|id| (id * 4000, Ipv4Addr::from(0x0a00_0000 + id % 4000).into()))
        .collect();
    kept.server_ids.commit(
        &[],
        first
            .iter()
            .map(|(id, real)| (*id, kept.table.real_index(*real).unwrap())),
    );
    let routes = (0..count(100_000)).map(|nth| {
        let address = Ipv6Addr::from((0x2001_0db8_u128 << 32 | u128::from(nth)) << 64);
        (
            Prefix::new(address.into(), 64).unwrap(),
            kept.table
                .real_index(Ipv4Addr::from(0x0a00_0000 + nth % 4000).into())
                .unwrap(),
        )
    });
    kept.source_routes.commit(&[], routes);
    let heap = Heap::new(FIRST_BYTES);
    let start = Instant::now();
    let mut ledger = Ledger::create(Box::new(heap.clone()), &kept.view()).unwrap();
    let written = start.elapsed();
    let found = heap.found();
    let start = Instant::now();
    let replayed = read(&found).unwrap().1;
    let took = start.elapsed();
    assert_same(&replayed.kept, &kept);
    let start = Instant::now();
    let changes = 1000;
    for nth in 0..changes {
        let real = Real::new(Ipv4Addr::from(0x0a00_0000).into()).weight(nth);
        let paper: Paper = kept
            .table
            .stage_reals(&vips[0], &[RealChange::Add(real)], &[])
            .unwrap()
            .into();
        let intent = Intent {
            edit: Some(paper.stored()),
            changes: Vec::new(),
        };
        ledger.intend(intent, || Ok(kept.view())).unwrap();
        kept.table.commit(paper);
        ledger.done();
    }
    let each = start.elapsed() / changes;
    println!(
        "{} bytes: written in {written:?}, read in {took:?}, a change {each:?}",
        found.bytes().len()
    );
    assert_same(&read(&heap.found()).unwrap().1.kept, &kept);
    if !cfg!(debug_assertions) {
        assert!(took < Duration::from_millis(300), "{took:?}");
    }
}
