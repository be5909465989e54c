//! Reloads that fail, reloads of balancers that the library did not attach, and that neither leaves
//! anything behind.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

use katran::Decap;
use katran::Error;
use katran::Features;
use katran::MacAddr;
use katran::Real;
use katran::RootProgram;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::eventually;
use katran_lab::require_root;
use nix::errno::Errno;
use nix::libc;

use crate::attach::program;
use crate::faults;
use crate::faults::without_commands;
use crate::links::xdp_link;
use crate::site;
use crate::site::PORT;
use crate::site::Site;

/// Every feature that can be enabled.
fn everything() -> Features {
    Features::all().difference(Features::FLOW_DEBUG)
}

/// A VIP whose packets continue in a second program.
fn add_special(katran: &mut katran::Katran, lab: &Lab) -> Vip {
    let vip = Vip::udp((lab.vip4(), PORT).into());
    katran.add_vip(vip, VipFlags::QUIC).unwrap();
    for real in site::reals(lab, vip.address()) {
        katran.add_real(vip, Real::new(real)).unwrap();
    }
    vip
}

#[test]
fn a_program_in_an_embedders_entry_works_until_it_is_replaced() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let _decaps = site::decaps(&lab, XdpMode::Native);
    let servers = lab.serve_udp(PORT).unwrap();
    let mut root = RootProgram::builder().load().unwrap();
    let host = &lab.balancers[0].host;
    host.run(|| root.attach("eth0", XdpMode::Native).unwrap());
    let mut katran = site::small(MacAddr::new(lab.balancers[0].gateway_mac))
        .load()
        .unwrap();
    let vip = add_special(&mut katran, &lab);
    let socket = site::udp(&lab.client, vip);
    // No descriptor was handed out, so the old program is not kept.
    katran.reload(everything()).unwrap();
    assert!(!katran.release_replaced_program());

    let entries = root.entries();
    entries.set(2, katran.program_fd()).unwrap();
    let name = socket.ask(b"who").unwrap();
    for features in [Features::default(), everything(), Features::empty()] {
        katran.reload(features).unwrap();
        // The entry still has the old program.
        for _ in 0..20 {
            assert_eq!(socket.ask(b"who").unwrap(), name);
        }
        entries.set(2, katran.program_fd()).unwrap();
        assert_eq!(socket.ask(b"who").unwrap(), name);
    }
    // A failed reload takes nothing from the entry.
    let refused = without_commands(&[faults::PROG_LOAD], Errno::EINVAL, || {
        katran.reload(everything())
    });
    assert!(refused.is_err());
    assert_eq!(socket.ask(b"who").unwrap(), name);
    assert!(katran.release_replaced_program());
    assert_eq!(socket.ask(b"who").unwrap(), name);

    // Releasing the old program too early leaves the entry empty.
    katran.reload(Features::default()).unwrap();
    assert_eq!(socket.ask(b"who").unwrap(), name);
    assert!(katran.release_replaced_program());
    assert!(!katran.release_replaced_program());
    socket.set_patience(Duration::from_millis(300)).unwrap();
    site::eventually("the kernel has let go of what goes with it", || {
        socket.ask(b"who").is_err()
    });
    entries.set(2, katran.program_fd()).unwrap();
    let socket = site::udp(&lab.client, vip);
    socket.ask(b"who").unwrap();
    drop(servers);
}

#[test]
fn a_reload_that_the_kernel_refuses_changes_nothing() {
    let mut site = Site::new(LabConfig::default());
    let servers = site.lab.serve_udp(PORT).unwrap();
    let vip = add_special(&mut site.katran, &site.lab);
    let socket = site::udp(&site.lab.client, vip);
    let name = socket.ask(b"who").unwrap();
    // A TCP server id may lead to a real that is down, so the VIP's packets must know.
    let tcp = Vip::tcp((vip.address(), PORT + 1).into());
    site.katran.add_vip(tcp, VipFlags::empty()).unwrap();
    let dead = site::reals(&site.lab, vip.address())[0];
    site.katran.add_real(tcp, Real::new(dead)).unwrap();
    site.katran.mark_down(tcp, dead).unwrap();
    let pairs = |katran: &katran::Katran| {
        let maps = katran.stats().library().unwrap().maps;
        let of_down = maps.iter().find(|map| map.name == "down_reals");
        of_down.unwrap().entries
    };
    eventually("void entries are removed", || pairs(&site.katran) == 0);
    let host = &site.lab.balancers[0].host;
    let before = program(host, "eth0").unwrap();
    for command in [faults::PROG_LOAD, faults::MAP_CREATE, faults::LINK_UPDATE] {
        let katran = &mut site.katran;
        let error = without_commands(&[command], Errno::EINVAL, || {
            katran.reload(everything()).unwrap_err()
        });
        let refused = matches!(error, Error::Kernel { .. } | Error::Verifier { .. });
        assert!(refused, "{command}: {error}");
        assert_eq!(katran.features(), Features::default());
        assert_eq!(program(host, "eth0"), Some(before));
        for name in ["source_routes_v4", "global_flows", "events"] {
            assert!(katran.map_fd(name).is_none(), "{name}");
        }
        assert_eq!(pairs(katran), 0);
        for _ in 0..20 {
            assert_eq!(socket.ask(b"who").unwrap(), name);
        }
    }
    site.katran.reload(everything()).unwrap();
    assert_eq!(pairs(&site.katran), 1);
    assert_ne!(program(host, "eth0"), Some(before));
    assert_eq!(socket.ask(b"who").unwrap(), name);
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
    drop(servers);
}

/// Replaces the program in an interface's XDP link, as any privileged process can.
fn meddle(link_has: u32, index: u32, program: BorrowedFd<'_>) {
    let link = xdp_link(link_has, index);
    // SAFETY: takes descriptors; there are no options.
    let updated = unsafe {
        libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null())
    };
    assert_eq!(updated, 0);
}

#[test]
fn all_interfaces_get_the_new_program_or_none() {
    let mut site = Site::new(LabConfig::default());
    let servers = site.lab.serve_udp(PORT).unwrap();
    let vip = add_special(&mut site.katran, &site.lab);
    let socket = site::udp(&site.lab.client, vip);
    let name = socket.ask(b"who").unwrap();
    let host = &site.lab.balancers[0].host;
    host.run(|| site.katran.attach("lo", XdpMode::Generic).unwrap());
    host.ip("link add gone0 type veth peer name gone1").unwrap();
    host.run(|| site.katran.attach("gone0", XdpMode::Generic).unwrap());
    let (_, id) = program(host, "eth0").unwrap();
    assert_eq!(program(host, "lo"), Some((XdpMode::Generic, id)));

    // The second interface has a foreign program, which the reload leaves alone.
    let other = Decap::builder().load().unwrap();
    let lo = host.interface_index("lo").unwrap();
    meddle(id, lo, other.program_fd());
    let (_, foreign) = program(host, "lo").unwrap();
    assert_ne!(foreign, id);
    let states = |katran: &katran::Katran| {
        let attachments = katran.interfaces().into_iter();
        attachments.map(|of| of.state).collect::<Vec<_>>()
    };
    use AttachmentState::*;
    assert_eq!(states(&site.katran), [Attached, Replaced, Attached]);
    let error = site.katran.reload(everything()).unwrap_err();
    match error {
        Error::ForeignProgram {
            interface,
            program_id,
            program_name,
        } => assert_eq!(
            (&*interface, program_id, &*program_name),
            ("lo", foreign, "decap")
        ),
        other => panic!("{other}"),
    }
    assert_eq!(site.katran.features(), Features::default());
    assert_eq!(program(host, "eth0"), Some((XdpMode::Native, id)));
    assert_eq!(program(host, "lo"), Some((XdpMode::Generic, foreign)));
    assert_eq!(program(host, "gone0"), Some((XdpMode::Generic, id)));
    assert_eq!(socket.ask(b"who").unwrap(), name);

    // Ours again; and a removed interface does not prevent a reload.
    meddle(foreign, lo, site.katran.program_fd());
    host.ip("link del gone0").unwrap();
    assert_eq!(states(&site.katran), [Attached, Attached, Gone]);
    site.katran.reload(everything()).unwrap();
    let (_, new) = program(host, "eth0").unwrap();
    assert_ne!(new, id);
    assert_eq!(program(host, "lo"), Some((XdpMode::Generic, new)));
    assert_eq!(socket.ask(b"who").unwrap(), name);
    site.katran.detach("gone0").unwrap();
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
    drop(servers);
}

#[test]
fn reloads_leave_no_descriptors() {
    require_root();
    let count = || {
        let all = fs::read_dir("/proc/thread-self/fd").unwrap();
        all.count()
    };
    // On a thread with its own descriptor table, so that other tests' descriptors do not count.
    let reload = || {
        // SAFETY: takes numbers; it closes only this thread's descriptors, of which it has none
        // yet.
        let closed = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                u32::MAX,
                libc::CLOSE_RANGE_UNSHARE,
            )
        };
        assert_eq!(closed, 0);
        let mut katran = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
            .load()
            .unwrap();
        let fresh = count();
        let mut counts = Vec::new();
        for _ in 0..3 {
            katran.reload(everything()).unwrap();
            let with_all = count();
            assert!(with_all > fresh);
            katran.reload(Features::default()).unwrap();
            counts.push((with_all, count()));
        }
        assert!(counts.iter().all(|pair| *pair == counts[0]), "{counts:?}");
        assert!(counts[0].1 <= fresh, "{counts:?}, at first {fresh}");
        // A failed reload, too.
        let refused = without_commands(&[faults::PROG_LOAD], Errno::EINVAL, || {
            katran.reload(everything())
        });
        assert!(refused.is_err());
        assert_eq!(count(), counts[0].1);
    };
    thread::scope(|scope| scope.spawn(reload).join().unwrap());
}
