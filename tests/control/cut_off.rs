//! An interrupted replacement that packets have used, beside a set that the next owner can read
//! only in part or not at all: the next owner continues with the packets' counters and flows, and
//! reports what it cannot know.

use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;

use katran::Katran;
use katran::Real;
use katran::VipFlags;
use katran::flows::Verdict;
use katran_lab::Host;
use katran_lab::allowed_cpus;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use katran_lab::stay_on;
use log::Level;
use nix::errno::Errno;
use nix::libc;

use crate::common::all_in_table;
use crate::common::bpf;
use crate::common::faults::LINK_UPDATE;
use crate::common::faults::judged;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::ip;
use crate::common::layout::COUNTERS;
use crate::common::layout::FLOWS as FLOW_TABLES;
use crate::common::layout::STATE;
use crate::common::layout::relay;
use crate::common::layout::words;
use crate::common::layout::write;
use crate::common::logs::heard;
use crate::common::pins;
use crate::common::pins::tree;
use crate::common::serve;
use crate::common::vip;
use crate::given_up::FIRST;
use crate::given_up::FLOWS;
use crate::given_up::SECOND;
use crate::given_up::attach;
use crate::given_up::frames;
use crate::given_up::host;
use crate::given_up::links;
use crate::given_up::programs;
use crate::given_up::real_of;
use crate::given_up::refused;

struct Place {
    host: Host,
    directory: PathBuf,
}

impl Place {
    fn new() -> Self {
        require_root();
        // `simulate` uses this CPU's flow table.
        stay_on(allowed_cpus()[0]);
        Self {
            host: host(),
            directory: private_bpf_fs().unwrap().join("katran"),
        }
    }

    fn set(&self) -> PathBuf {
        self.directory.join("set")
    }

    fn load(&self) -> Katran {
        let builder = all_in_table().max_vips(4);
        let mut katran = builder.pin(&self.directory).load().unwrap();
        serve(&mut katran, FIRST, VipFlags::empty(), &[A]);
        // The replacement has other reals for it.
        serve(&mut katran, SECOND, VipFlags::empty(), &[B]);
        attach(&self.host, &mut katran);
        katran
    }

    fn adopt(&self) -> katran::Result<Katran> {
        let builder = all_in_table().pin(&self.directory);
        self.host.run(|| builder.adopt())
    }
}

/// Leaves packets on a replacement of a set of another layout, as one link refuses its program.
fn refused_by_a_link(place: &Place, frames: &[Vec<u8>]) {
    let links = links(&place.directory);
    let before = programs(&links);
    let mut updates = 0;
    let judge = || {
        updates += 1;
        if updates != 2 {
            return None;
        }
        let on = programs(&links).into_iter();
        let new: Vec<u32> = on.filter(|id| !before.contains(id)).collect();
        let program = pins::program(new[0]);
        for frame in frames {
            assert_eq!(bpf::run(program.as_fd(), frame).verdict, Verdict::Tx);
        }
        Some(Errno::EBUSY)
    };
    let failed = judged(libc::SYS_bpf, Some(LINK_UPDATE), judge, || place.adopt());
    failed.unwrap_err();
    assert_eq!(updates, 3, "updated, refused, and restored");
    assert_eq!(programs(&links), before);
}

#[test]
fn counters_and_flows_of_a_cut_off_replacement_return() {
    for parts in [&[COUNTERS][..], &[FLOW_TABLES], &[STATE]] {
        let place = Place::new();
        let katran = place.load();
        let pinned = tree(&place.directory);
        drop(katran);
        let own = words(&place.set());
        relay(&place.set(), parts);
        refused_by_a_link(&place, &frames(FIRST));
        assert_eq!(tree(&place.directory), pinned, "{parts:?}");
        write(&place.set(), &own);
        let mut katran = place.adopt().unwrap();
        let counted = katran.counters().unwrap().totals.total.packets;
        match parts {
            // This version cannot read the earlier counts.
            [COUNTERS] => assert_eq!(counted, 0),
            _ => assert_eq!(counted, u64::from(FLOWS), "{parts:?}"),
        }
        // Only a flow entry leads there.
        katran
            .add_real(vip(FIRST), Real::new(ip(A)).weight(0))
            .unwrap();
        katran.add_real(vip(FIRST), Real::new(ip(B))).unwrap();
        let real = real_of(&katran, FIRST);
        let known = parts != [FLOW_TABLES];
        assert_eq!(real, ip(if known { A } else { B }), "{parts:?}");
        katran.remove().unwrap();
    }
}

/// A later version has begun a replacement: this one cannot read which numbers it used, and reports
/// that.
#[test]
fn an_unreadable_record_is_reported() {
    let place = Place::new();
    let mut katran = place.load();
    let before = (katran.state(), tree(&place.directory));
    refused(&mut katran, &links(&place.directory), true);
    drop(katran);
    let of_another_layout = |set: &Path| {
        let ledger = pins::open(&set.join("ledger"));
        let mut page = bpf::lookup(ledger.as_fd(), &[0; 4]).unwrap();
        page[4..8].copy_from_slice(&99_u32.to_ne_bytes());
        bpf::update(ledger.as_fd(), &[0; 4], &page);
    };
    of_another_layout(&place.directory.join("next_set"));
    let builder = all_in_table().pin(&place.directory);
    let (katran, heard) = place.host.run(|| heard(|| builder.adopt().unwrap()));
    let told = |(level, text): &(Level, String)| {
        *level == Level::Error && text.contains("layout 99") && text.contains("connections")
    };
    assert!(heard.iter().any(told), "{heard:?}");
    assert_eq!((katran.state(), tree(&place.directory)), before);
    katran.remove().unwrap();
}
