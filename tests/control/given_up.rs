//! The kernel refuses a replacement when packets already use its programs: what they did there does
//! not affect anything later.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use katran::Error;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RootProgram;
use katran::ServerId;
use katran::State;
use katran::VipFlags;
use katran::XdpMode;
use katran::attachments::SharedEntries;
use katran::flows::Verdict;
use katran::state::VipState;
use katran_lab::Host;
use katran_lab::allowed_cpus;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use katran_lab::stay_on;
use nix::errno::Errno;
use nix::libc;

use crate::common::all_in_table;
use crate::common::bpf;
use crate::common::faults::LINK_UPDATE;
use crate::common::faults::MAP_LOOKUP_BATCH;
use crate::common::faults::MAP_LOOKUP_ELEM;
use crate::common::faults::judged;
use crate::common::faults::without_commands;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::flows;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::pins;
use crate::common::pins::tree;
use crate::common::serve;
use crate::common::vip;

pub(crate) const FIRST: &str = "203.0.113.1:443/tcp";
pub(crate) const SECOND: &str = "203.0.113.2:443/tcp";
/// Only the replacement has this VIP and the next real.
const THIRD: &str = "203.0.113.3:443/tcp";
const NEW: &str = "198.51.100.90";
const LATER: &str = "198.51.100.91";

pub(crate) const FLOWS: u16 = 40;

pub(crate) fn host() -> Host {
    let host = Host::new("balancer").unwrap();
    for (one, other) in [("eth0", "peer0"), ("eth1", "peer1")] {
        let pair = format!("link add {one} type veth peer name {other}");
        host.ip(&pair).unwrap();
    }
    host
}

pub(crate) fn attach(host: &Host, katran: &mut Katran) {
    for interface in ["eth0", "eth1"] {
        let attach = || katran.attach(interface, XdpMode::Generic).unwrap();
        host.run(attach);
    }
}

pub(crate) fn frames(of: &str) -> Vec<Vec<u8>> {
    let (to, _) = of.split_once('/').unwrap();
    let flows = flows(Protocol::Tcp, to, FLOWS);
    flows.into_iter().map(syn).collect()
}

/// The real that all of a VIP's connections go to.
pub(crate) fn real_of(katran: &Katran, of: &str) -> IpAddr {
    let frames = frames(of).into_iter();
    let mut reals: Vec<_> = frames
        .map(|frame| katran.simulate(&frame).unwrap().real.unwrap())
        .collect();
    reals.dedup();
    assert_eq!(reals.len(), 1, "{of}: {reals:?}");
    reals[0]
}

/// The pinned links.
pub(crate) fn links(directory: &Path) -> Vec<OwnedFd> {
    let entries = std::fs::read_dir(directory.join("attached")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    // An entry's record is a symbolic link.
    let paths = paths.filter(|path| !path.is_symlink());
    paths.map(|path| pins::open(&path)).collect()
}

pub(crate) fn programs(links: &[OwnedFd]) -> Vec<u32> {
    let links = links.iter();
    links.map(|link| pins::link(link.as_fd()).1).collect()
}

/// A higher limit of VIPs, one more VIP, and other reals for the existing ones.
fn wanted(katran: &Katran) -> State {
    let mut wanted = katran.state();
    wanted.balancer.as_mut().unwrap().max_vips = Some(40);
    wanted.vips[0].reals = vec![Real::new(ip(NEW))];
    wanted.vips[1].reals = vec![Real::new(ip(C))];
    let mut third = VipState::new(vip(THIRD));
    third.hash = wanted.vips[0].hash;
    third.reals = vec![Real::new(ip(C))];
    wanted.vips.push(third);
    wanted
}

/// Applies `wanted`. The second interface's link refuses the new program when the first one already
/// has it and connections have arrived there; with `strays`, the first one keeps it.
pub(crate) fn refused(katran: &mut Katran, links: &[OwnedFd], strays: bool) -> Error {
    let wanted = wanted(katran);
    let before = programs(links);
    let mut updates = 0;
    let judge = || {
        updates += 1;
        match updates {
            2 => {
                let on = programs(links).into_iter();
                let new: Vec<u32> = on.filter(|id| !before.contains(id)).collect();
                assert_eq!(new.len(), 1, "one link has the new program");
                let program = pins::program(new[0]);
                for frame in [FIRST, SECOND, THIRD].into_iter().flat_map(frames) {
                    let ran = bpf::run(program.as_fd(), &frame);
                    assert_eq!(ran.verdict, Verdict::Tx);
                }
                Some(Errno::EBUSY)
            }
            3 if strays => Some(Errno::EBUSY),
            _ => None,
        }
    };
    let apply = || katran.apply(&wanted).unwrap_err();
    let error = judged(libc::SYS_bpf, Some(LINK_UPDATE), judge, apply);
    assert_eq!(updates, 3, "updated, refused, and restored");
    error
}

#[test]
fn numbers_that_packets_have_seen_mean_nothing_else_later() {
    require_root();
    // `simulate` uses this CPU's flow table.
    stay_on(allowed_cpus()[0]);
    let host = host();
    let directory = private_bpf_fs().unwrap().join("katran");
    for (strays, adopted) in [(false, false), (false, true), (true, false), (true, true)] {
        // One number is free, so the next VIP gets the number of the replacement's VIP.
        let builder = all_in_table().max_vips(4);
        let mut katran = builder.pin(&directory).load().unwrap();
        serve(&mut katran, FIRST, VipFlags::empty(), &[A]);
        serve(&mut katran, SECOND, VipFlags::empty(), &[B]);
        serve(&mut katran, "203.0.113.9:443/tcp", VipFlags::empty(), &[C]);
        attach(&host, &mut katran);
        let before = (katran.state(), tree(&directory));
        let links = links(&directory);
        let programs_before = programs(&links);
        let error = refused(&mut katran, &links, strays);
        assert!(error.to_string().contains("eth"), "{error}");
        assert_eq!(katran.state(), before.0);
        assert_eq!(programs(&links) == programs_before, !strays);
        assert_eq!(tree(&directory) == before.1, !strays);
        if adopted {
            drop(katran);
            katran = host.run(|| all_in_table().pin(&directory).adopt().unwrap());
            assert_eq!(katran.state(), before.0);
            assert_eq!(tree(&directory), before.1);
            assert_eq!(programs(&links), programs_before);
        }
        // The handle that continues reports these counters.
        let counted = |of| katran.stats().vip(vip(of)).unwrap().forwarded.packets;
        if !strays || adopted {
            assert_eq!([FIRST, SECOND].map(counted), [u64::from(FLOWS); 2]);
        }
        // Drained, so only an entry leads connections there.
        let later = Real::new(ip(LATER)).weight(0);
        katran.add_real(vip(FIRST), later).unwrap();
        serve(&mut katran, THIRD, VipFlags::empty(), &[A]);
        let of = [FIRST, SECOND, THIRD].map(|of| real_of(&katran, of));
        assert_eq!(of, [A, B, A].map(ip), "{strays} {adopted}");
        katran.remove().unwrap();
        assert!(!directory.exists());
    }
}

/// The number of the replacement's VIP exceeds the limit here: its entries are still removed, also
/// for a later owner of that number, and no memory of this balancer is mistaken for the number's.
#[test]
fn numbers_beyond_the_limit_are_swept_as_well() {
    require_root();
    stay_on(allowed_cpus()[0]);
    let host = host();
    let directory = private_bpf_fs().unwrap().join("katran");
    for adopted in [false, true] {
        let settings = all_in_table().max_vips(2);
        let mut katran = settings.pin(&directory).load().unwrap();
        serve(&mut katran, FIRST, VipFlags::empty(), &[A]);
        serve(&mut katran, SECOND, VipFlags::empty(), &[B]);
        // Known here, so its entries would count.
        let named = ServerId::new(1, ip(C));
        katran.server_ids_mut().add(&[named]).unwrap();
        attach(&host, &mut katran);
        let before = katran.state();
        refused(&mut katran, &links(&directory), false);
        if adopted {
            drop(katran);
            katran = host.run(|| all_in_table().pin(&directory).adopt().unwrap());
        }
        assert_eq!(katran.state(), before);
        let mut wanted = katran.state();
        // Leaves no other number for the next VIP.
        wanted.balancer.as_mut().unwrap().max_vips = Some(3);
        host.run(|| katran.apply(&wanted)).unwrap();
        serve(&mut katran, THIRD, VipFlags::empty(), &[A]);
        assert_eq!(real_of(&katran, THIRD), ip(A), "{adopted}");
        katran.remove().unwrap();
    }
}

/// The owner has not removed the entries of a removed VIP yet: the VIP that reuses its number must
/// not see them.
#[test]
fn entries_of_a_vip_that_was_removed_right_before_do_not_come_back() {
    stay_on(allowed_cpus()[0]);
    let mut katran = all_in_table().max_vips(2).load().unwrap();
    serve(&mut katran, FIRST, VipFlags::empty(), &[A]);
    serve(&mut katran, SECOND, VipFlags::empty(), &[B]);
    let named = ServerId::new(1, ip(A));
    katran.server_ids_mut().add(&[named]).unwrap();
    for frame in frames(FIRST) {
        assert_eq!(bpf::run(katran.program_fd(), &frame).verdict, Verdict::Tx);
    }
    // The thread that removes them is refused these calls, as it inherits that from its creator.
    let asked = [MAP_LOOKUP_ELEM, MAP_LOOKUP_BATCH];
    let remove = || katran.remove_vip(vip(FIRST)).unwrap();
    without_commands(&asked, Errno::EPERM, remove);
    let mut wanted = katran.state();
    wanted.balancer.as_mut().unwrap().max_decap = Some(3);
    let changes = katran.apply(&wanted).unwrap();
    assert_eq!(changes.settings_changed, ["max_decap"]);
    serve(&mut katran, FIRST, VipFlags::empty(), &[B]);
    assert_eq!(real_of(&katran, FIRST), ip(B));
}

/// When the first VIP reuses a number, one walk through the tables removes the entries of all
/// removed VIPs.
#[test]
fn former_numbers_take_one_walk_for_all() {
    const VIPS: u32 = 8;
    stay_on(allowed_cpus()[0]);
    let mut katran = all_in_table().max_vips(VIPS).load().unwrap();
    let named = ServerId::new(1, ip(A));
    katran.server_ids_mut().add(&[named]).unwrap();
    let vips: Vec<String> = (1..=VIPS)
        .map(|of| format!("203.0.113.{of}:443/tcp"))
        .collect();
    for of in &vips {
        serve(&mut katran, of, VipFlags::empty(), &[A]);
    }
    let frames: Vec<_> = vips.iter().flat_map(|of| frames(of)).collect();
    for frame in &frames {
        assert_eq!(bpf::run(katran.program_fd(), frame).verdict, Verdict::Tx);
    }
    let asked = [MAP_LOOKUP_ELEM, MAP_LOOKUP_BATCH];
    without_commands(&asked, Errno::EPERM, || {
        vips.iter()
            .for_each(|of| katran.remove_vip(vip(of)).unwrap());
    });
    let mut waits = 0;
    let waited = || {
        waits += 1;
        None
    };
    judged(libc::SYS_membarrier, None, waited, || {
        for of in &vips {
            katran.add_vip(vip(of), VipFlags::empty()).unwrap();
        }
    });
    // For the numbers; before the walk, and after it.
    assert!(waits <= 3, "{waits}");
    for frame in &frames {
        assert_eq!(katran.simulate(frame).unwrap().real, None);
    }
}

/// When an exchange is refused, everything that had the new program gets the old one back: links,
/// an entry, the probes' path.
#[test]
fn everything_that_was_switched_gets_the_former_program_back() {
    require_root();
    let host = host();
    let directory = private_bpf_fs().unwrap();
    let path = directory.join("root");
    let mut root = RootProgram::builder().load().unwrap();
    root.pin(&path).unwrap();
    let entries = SharedEntries::open(&path).unwrap();
    let directory = directory.join("katran");
    let builder = all_in_table().healthcheck_interface("eth1");
    let mut katran = builder.pin(&directory).load().unwrap();
    serve(&mut katran, FIRST, VipFlags::empty(), &[A]);
    host.run(|| {
        katran.attach("eth0", XdpMode::Generic).unwrap();
        katran.attach_shared(&path, 2).unwrap();
    });
    assert!(katran.probes().attachment().is_some());
    let links = links(&directory);
    let attached = || {
        let mut programs = programs(&links);
        programs.extend(entries.programs().unwrap().swap_remove(2).map(|of| of.id));
        programs
    };
    let before = attached();
    assert_eq!(before.len(), 3, "a link of XDP, one of tcx, an entry");
    let mut wanted = katran.state();
    wanted.balancer.as_mut().unwrap().max_vips = Some(40);
    let mut there = Vec::new();
    let judge = || {
        there = attached();
        Some(Errno::EIO)
    };
    judged(libc::SYS_renameat2, None, judge, || {
        host.run(|| katran.apply(&wanted)).unwrap_err()
    });
    let both = || before.iter().zip(&there);
    assert!(both().all(|(before, there)| before != there), "{there:?}");
    assert_eq!(attached(), before);
    host.run(|| katran.apply(&wanted)).unwrap();
    let now = attached();
    let mut both = before.iter().zip(&now);
    assert!(both.all(|(before, now)| before != now), "{now:?}");
    katran.remove().unwrap();
}
