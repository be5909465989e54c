//! Signs of life: packets depend on them, so they continue during an adoption.

use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use katran::VipFlags;
use katran::flows::Verdict;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::errno::Errno;
use nix::libc;

use crate::common::bpf;
use crate::common::builder;
use crate::common::faults::PROG_LOAD;
use crate::common::faults::judged;
use crate::common::fixtures::A;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::flow_v4;
use crate::common::frames::syn;
use crate::common::layout::COUNTERS;
use crate::common::layout::LAYOUT;
use crate::common::layout::OTHER;
use crate::common::layout::STATE;
use crate::common::layout::relay;
use crate::common::layout::words;
use crate::common::load;
use crate::common::pins;
use crate::common::serve;

/// The minimum.
const LIMIT: Duration = Duration::from_secs(5);
const LONGER: Duration = Duration::from_secs(7);

/// Whether the set forwards a frame after this time.
fn forwarded_after(set: &Path, time: Duration) -> bool {
    thread::sleep(time);
    let program = pins::open(&set.join("programs/program"));
    let ran = bpf::run(program.as_fd(), &syn(flow_v4()));
    assert!([Verdict::Tx, Verdict::Pass].contains(&ran.verdict));
    ran.verdict == Verdict::Tx
}

#[test]
fn an_adoption_may_take_longer_than_the_limit() {
    require_root();
    // `None` last: slow when this version's set counts already, but there is no owner yet.
    type Slow = (Option<&'static [usize]>, libc::c_long, Option<u32>);
    let slow: [Slow; 3] = [
        (Some(&[COUNTERS]), libc::SYS_bpf, Some(PROG_LOAD)),
        (None, libc::SYS_bpf, Some(PROG_LOAD)),
        (Some(&[STATE]), libc::SYS_unlink, None),
    ];
    thread::scope(|scope| {
        for (parts, call, command) in slow {
            scope.spawn(move || {
                let directory = private_bpf_fs().unwrap().join("katran");
                let set = directory.join("set");
                let settings = || builder().orphan_limit(LIMIT).pin(&directory);
                let mut katran = load(settings());
                serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
                drop(katran);
                if let Some(parts) = parts {
                    relay(&set, parts);
                }
                let mut forwarded = None;
                let judge = || {
                    let is_due = call != libc::SYS_unlink || words(&set)[LAYOUT] != OTHER;
                    if is_due && forwarded.is_none() {
                        forwarded = Some(forwarded_after(&set, LONGER));
                    }
                    None
                };
                let katran = judged(call, command, judge, || settings().adopt().unwrap());
                assert_eq!(forwarded, Some(true), "{parts:?}");
                katran.remove().unwrap();
            });
        }
    });
}

/// A process that cannot adopt the balancer is no owner, however often it tries.
#[test]
fn an_adoption_that_fails_at_once_gives_no_sign() {
    require_root();
    let directory = private_bpf_fs().unwrap().join("katran");
    let settings = || builder().orphan_limit(LIMIT).pin(&directory);
    let mut katran = load(settings());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    drop(katran);
    let set = directory.join("set");
    relay(&set, &[COUNTERS]);
    let refuse = || Some(Errno::EPERM);
    for _ in 0..14 {
        thread::sleep(Duration::from_millis(500));
        let adopt = || settings().adopt().map(drop);
        judged(libc::SYS_bpf, Some(PROG_LOAD), refuse, adopt).unwrap_err();
    }
    assert!(!forwarded_after(&set, Duration::ZERO));
    katran::remove(&directory).unwrap();
}
