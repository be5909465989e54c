//! A pinned balancer whose handle is dropped: connections continue, by XDP, by a root entry, and
//! probes by tc; what was detached stays so, and it can be removed without a handle.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use katran::Error;
use katran::Features;
use katran::Gateway;
use katran::Katran;
use katran::MacAddr;
use katran::Real;
use katran::RootProgram;
use katran::Vip;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran::attachments::SharedEntries;
use katran::attachments::TcHook;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::Newer;
use katran_lab::eventually;

use crate::health;
use crate::objects;
use crate::shared::Pins;
use crate::site;
use crate::site::PORT;
use crate::site::Site;

const MARK: u32 = 7;

/// A site whose balancer is pinned in a directory beside the test's root program.
fn pinned(pins: &Pins, settings: impl FnOnce(katran::Builder) -> katran::Builder) -> Site {
    Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        settings(builder.pin(directory(pins)))
    })
}

pub(crate) fn directory(pins: &Pins) -> PathBuf {
    pins.path().with_file_name("katran")
}

pub(crate) fn attached(pins: &Pins) -> Vec<String> {
    let entries = std::fs::read_dir(directory(pins).join("attached")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn has_xdp(host: &Host) -> bool {
    host.ip("link show dev eth0").unwrap().contains("xdp")
}

/// The id of the only pinned link.
pub(crate) fn link_id(pins: &Pins) -> u32 {
    let path = directory(pins).join("attached").join(&attached(pins)[0]);
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut length = size_of_val(&info) as u32;
    // SAFETY: takes a C string; `length` is the size of `info`; all outlive the calls.
    unsafe {
        let fd = libbpf_sys::bpf_obj_get(path.as_ptr());
        assert!(fd >= 0);
        let fd = std::os::fd::OwnedFd::from_raw_fd(fd);
        let asked = libbpf_sys::bpf_link_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut length);
        assert_eq!(asked, 0);
    }
    info.id
}

/// Two services on which the backends answer.
fn serve(site: &mut Site) -> [Vip; 2] {
    let services = [site.lab.vip4(), site.lab.vip6()].map(|vip| Vip::tcp((vip, PORT).into()));
    for vip in services {
        let reals = site::reals(&site.lab, vip.address());
        site.add_service(vip, &reals);
    }
    services
}

#[test]
fn connections_continue_without_a_handle_until_removal() {
    let pins = Pins::new();
    let mut site = pinned(&pins, |builder| builder);
    let services = serve(&mut site);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    let [v4, _] = services;
    let [mut first, mut second] = ["backend0", "backend1"].map(|of| site.connect_to(v4, of));
    // The ring leads elsewhere: only the flow table still leads to the first.
    let [_, to]: [IpAddr; 2] = site::reals(&site.lab, v4.address()).try_into().unwrap();
    for real in site.katran.reals(v4).unwrap() {
        let weight = u32::from(real.address() == to);
        let real = Real::new(real.address()).weight(weight);
        site.katran.add_real(v4, real).unwrap();
    }
    let Site {
        katran,
        decaps,
        lab,
    } = site;
    assert_eq!(attached(&pins).len(), 1);
    drop(katran);
    let host_of = |lab: &katran_lab::Lab| has_xdp(&lab.balancers[0].host);
    assert!(host_of(&lab));
    for _ in 0..20 {
        assert_eq!(first.ask("who").unwrap(), "backend0");
        assert_eq!(second.ask("who").unwrap(), "backend1");
        let mut new = site::connect(&lab.client, v4);
        assert_eq!(new.ask("who").unwrap(), "backend1");
    }
    for vip in services {
        site::connect(&lab.client, vip).ask("who").unwrap();
    }

    // The next handle adopts the same link and flows.
    let host = &lab.balancers[0].host;
    let before = link_id(&pins);
    let mut katran = host.run(|| {
        site::small(MacAddr::new([2, 0, 0, 0, 0, 9]))
            .pin(directory(&pins))
            .adopt()
            .unwrap()
    });
    assert_eq!(link_id(&pins), before);
    let [attachment] = &katran.interfaces()[..] else {
        panic!("{:?}", katran.interfaces());
    };
    assert_eq!(
        (attachment.interface.as_str(), attachment.state),
        ("eth0", AttachmentState::Attached)
    );
    for _ in 0..20 {
        assert_eq!(first.ask("who").unwrap(), "backend0");
        assert_eq!(second.ask("who").unwrap(), "backend1");
    }
    katran
        .reload(Features::default() | Features::SOURCE_ROUTING)
        .unwrap();
    assert_eq!(first.ask("who").unwrap(), "backend0");
    drop(katran);

    katran::remove(directory(&pins)).unwrap();
    assert!(!host_of(&lab));
    assert!(pins.list().is_empty(), "{:?}", pins.list());
    drop(decaps);
}

#[test]
fn detached_interfaces_are_unpinned_and_lost_ones_restored() {
    let pins = Pins::new();
    let mut site = pinned(&pins, |builder| builder);
    let host = &site.lab.balancers[0].host;
    // With a name that no BPF file system allows.
    let make = || {
        host.ip("link add eth1.5 type veth peer name eth2").unwrap();
        host.ip("link set eth1.5 up").unwrap();
    };
    make();
    let katran = &mut site.katran;
    host.run(|| katran.attach("eth1.5", XdpMode::Generic).unwrap());
    let both = attached(&pins);
    assert!(
        both.len() == 2 && both.iter().any(|name| name.ends_with("eth1%2e5")),
        "{both:?}"
    );
    // The interface is replaced by another of the same name.
    host.ip("link del eth1.5").unwrap();
    assert_eq!(katran.interfaces()[1].state, AttachmentState::Gone);
    assert_eq!(attached(&pins), both);
    make();
    host.run(|| katran.reattach().unwrap());
    assert_eq!(katran.interfaces()[1].state, AttachmentState::Attached);
    let after = attached(&pins);
    assert!(after.len() == 2 && after != both, "{both:?} {after:?}");
    host.run(|| katran.detach("eth1.5").unwrap());
    assert_eq!(attached(&pins).len(), 1);
    assert!(!host.ip("link show dev eth1.5").unwrap().contains("xdp"));
    // A refused attach leaves neither a pin nor the program.
    let fails = || {
        crate::faults::without_commands(&[6], nix::errno::Errno::ENOSPC, || {
            katran.attach("eth1.5", XdpMode::Generic).unwrap_err()
        })
    };
    let error = host.run(fails).to_string();
    assert!(error.contains("pin the attachment"), "{error}");
    assert!(!host.ip("link show dev eth1.5").unwrap().contains("xdp"));
    assert_eq!(attached(&pins).len(), 1);
    katran.detach_all();
    assert!(attached(&pins).is_empty() && !has_xdp(host));
    host.run(|| katran.attach("eth0", XdpMode::Native).unwrap());
    assert!(has_xdp(host));
    let Site { katran, lab, .. } = site;
    katran.remove().unwrap();
    assert!(!has_xdp(&lab.balancers[0].host) && pins.list().is_empty());
}

/// A lab whose balancer is gone and has left its pins and a clsact filter.
fn left_with_clsact(pins: &Pins) -> Lab {
    let site = health::site(|builder| {
        builder
            .pin(directory(pins))
            .healthcheck_hook(TcHook::Clsact)
    });
    let Site { katran, lab, .. } = site;
    drop(katran);
    lab
}

/// Foreign links pinned among ours stay; an interface may have any name.
#[test]
fn foreign_links_stay_and_interfaces_may_have_any_name() {
    let pins = Pins::new();
    let lab = left_with_clsact(&pins);
    let host = &lab.balancers[0].host;
    let kept = directory(&pins).join("attached");
    let names = attached(&pins);
    let link = objects::open(&kept.join(&names[1]));
    for name in ["xdp_theirs", "tcx_1", "xdp_1_2_auto"] {
        objects::pin(link.as_fd(), &kept.join(name));
    }
    // The record's name if the interface had this name.
    let of_new = names[0].replace("_eth0", "_new");
    std::fs::rename(kept.join(&names[0]), kept.join(of_new)).unwrap();
    katran::remove(directory(&pins)).unwrap();
    assert_eq!(attached(&pins), ["tcx_1", "xdp_1_2_auto", "xdp_theirs"]);
    let filters = host.tool("tc", "filter show dev eth0 egress").unwrap();
    assert!(filters.is_empty(), "{filters}");
}

/// An earlier removal was interrupted between the filter and its qdisc.
#[test]
fn a_clsact_discipline_without_its_filter_is_removed() {
    let pins = Pins::new();
    let lab = left_with_clsact(&pins);
    let host = &lab.balancers[0].host;
    host.tool("tc", "filter del dev eth0 egress").unwrap();
    let has_clsact = || {
        let qdiscs = host.tool("tc", "qdisc show dev eth0").unwrap();
        qdiscs.contains("clsact")
    };
    assert!(has_clsact());
    katran::remove(directory(&pins)).unwrap();
    assert!(!has_clsact());
    assert!(pins.list().is_empty(), "{:?}", pins.list());
}

/// A handle finds its attachments where a search of the namespaces would not.
#[test]
fn a_handle_removes_what_only_it_reaches() {
    let pins = Pins::new();
    let site = health::site(|builder| {
        builder
            .pin(directory(&pins))
            .healthcheck_hook(TcHook::Clsact)
    });
    let Site { katran, lab, .. } = site;
    let kept = directory(&pins).join("attached");
    let names = attached(&pins);
    // With a bad namespace number the record leads nowhere.
    let words: Vec<_> = names[0].split('_').collect();
    let lost = names[0].replacen(words[1], "1", 1);
    std::fs::rename(kept.join(&names[0]), kept.join(lost)).unwrap();
    katran.remove().unwrap();
    assert!(pins.list().is_empty(), "{:?}", pins.list());
    let host = &lab.balancers[0].host;
    let filters = host.tool("tc", "filter show dev eth0 egress").unwrap();
    assert!(filters.is_empty(), "{filters}");
}

#[test]
fn a_reload_leaves_the_link_and_works_on_without_a_handle() {
    let pins = Pins::new();
    let mut site = pinned(&pins, |builder| builder);
    let [v4, _] = serve(&mut site);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    let mut connection = site.connect_to(v4, "backend0");
    let links = attached(&pins);
    let features = Features::default() | Features::SOURCE_ROUTING;
    site.katran.reload(features).unwrap();
    assert_eq!(attached(&pins), links);
    let Site {
        katran,
        decaps,
        lab,
    } = site;
    drop(katran);
    assert_eq!(connection.ask("who").unwrap(), "backend0");
    // Frames that need a second program besides the attached one.
    lab.client
        .tool("ping", &format!("-c 3 -W 5 {}", lab.vip4()))
        .unwrap();
    katran::remove(directory(&pins)).unwrap();
    assert!(pins.list().is_empty());
    drop(decaps);
}

#[test]
fn probes_reach_their_reals_without_a_handle() {
    for hook in [TcHook::Tcx, TcHook::Clsact] {
        if hook == TcHook::Tcx && !Newer::Tcx.is_here() {
            continue;
        }
        let pins = Pins::new();
        let mut site = health::site(|builder| builder.pin(directory(&pins)).healthcheck_hook(hook));
        let [v4, _] = serve(&mut site);
        let _servers = site.lab.serve_tcp(PORT).unwrap();
        let [real, _]: [IpAddr; 2] = site::reals(&site.lab, v4.address()).try_into().unwrap();
        site.katran.probes_mut().map_mark(MARK, real).unwrap();
        let Site {
            katran,
            decaps,
            lab,
        } = site;
        let host = &lab.balancers[0].host;
        let probe = || health::probe(host, site::service(v4), MARK, None);
        assert_eq!(probe().unwrap(), "backend0");
        let names = attached(&pins);
        let kinds: Vec<_> = names
            .iter()
            .filter_map(|name| name.split('_').next())
            .collect();
        assert_eq!(kinds, [hook.to_string().as_str(), "xdp"]);
        drop(katran);
        assert_eq!(attached(&pins), names);
        assert_eq!(probe().unwrap(), "backend0", "{hook}");
        // The next handle knows the marks and where it is attached.
        let mut katran = host.run(|| Katran::builder().pin(directory(&pins)).adopt().unwrap());
        let held = katran.probes().attachment().unwrap();
        assert_eq!((held.hook, held.state), (hook, AttachmentState::Attached));
        assert_eq!(katran.probes().marks(), [(MARK, real)]);
        assert_eq!(probe().unwrap(), "backend0", "{hook}");
        katran.probes_mut().detach();
        assert_eq!(attached(&pins).len(), 1);
        host.run(|| katran.probes_mut().attach().unwrap());
        assert_eq!(probe().unwrap(), "backend0", "{hook}");
        drop(katran);
        katran::remove(directory(&pins)).unwrap();
        assert!(pins.list().is_empty(), "{:?}", pins.list());
        let filters = host.tool("tc", "filter show dev eth0 egress").unwrap();
        assert!(filters.is_empty(), "{filters}");
        let qdiscs = host.tool("tc", "qdisc show dev eth0").unwrap();
        assert!(!qdiscs.contains("clsact"), "{qdiscs}");
        drop(decaps);
    }
}

#[test]
fn an_entry_of_a_root_program_stays_with_its_record() {
    let pins = Pins::new();
    let site = Site::new(LabConfig::default());
    let Site {
        katran,
        decaps,
        lab,
    } = site;
    drop(katran);
    let host = &lab.balancers[0].host;
    let mut root = RootProgram::builder().load().unwrap();
    host.run(|| root.attach("eth0", XdpMode::Native).unwrap());
    root.pin(pins.path()).unwrap();
    let load = || -> Katran {
        let gateway = MacAddr::new(lab.balancers[0].gateway_mac);
        let builder = site::small(gateway).pin(directory(&pins));
        let mut katran = builder.load().unwrap();
        let vip = Vip::tcp((lab.vip4(), PORT).into());
        site::add_service(&mut katran, vip, &site::reals(&lab, lab.vip4()));
        katran.attach_shared(pins.path(), 2).unwrap();
        katran
    };
    let _servers = lab.serve_tcp(PORT).unwrap();
    let answers = || site::connect(&lab.client, Vip::tcp((lab.vip4(), PORT).into())).ask("who");
    let entries = SharedEntries::open(pins.path()).unwrap();
    let is_set = || entries.programs().unwrap()[2].is_some();
    let own_pins = || {
        let names = pins.list();
        names
            .into_iter()
            .filter(|name| name.starts_with("root_2_"))
            .count()
    };

    let katran = load();
    assert_eq!((is_set(), own_pins(), attached(&pins).len()), (true, 1, 1));
    drop(katran);
    assert_eq!((is_set(), own_pins(), attached(&pins).len()), (true, 1, 1));
    answers().unwrap();
    // The next handle has the entry, and drops it with its own programs.
    let katran = Katran::builder().pin(directory(&pins)).adopt().unwrap();
    assert_eq!(katran.shared_entries()[0].state, AttachmentState::Attached);
    assert_eq!((is_set(), own_pins(), attached(&pins).len()), (true, 1, 1));
    answers().unwrap();
    drop(katran);
    answers().unwrap();
    katran::remove(directory(&pins)).unwrap();
    assert_eq!((is_set(), own_pins()), (false, 0));

    // The entry belongs to another balancer: it stays.
    drop(load());
    let gateway = MacAddr::new(lab.balancers[0].gateway_mac);
    let mut next = site::small(gateway).load().unwrap();
    next.attach_shared(pins.path(), 2).unwrap();
    katran::remove(directory(&pins)).unwrap();
    assert_eq!((is_set(), own_pins()), (true, 1));
    drop(next);
    assert_eq!((is_set(), own_pins()), (false, 0));

    // A detached entry leaves no record.
    let mut katran = load();
    katran
        .reload(Features::default() | Features::SOURCE_ROUTING)
        .unwrap();
    katran.detach_shared(pins.path()).unwrap();
    assert_eq!((is_set(), own_pins(), attached(&pins).len()), (false, 0, 0));
    katran.attach_shared(pins.path(), 2).unwrap();
    // The root program is dropped, and its array with it.
    drop(katran);
    drop((root, entries));
    RootProgram::remove(pins.path()).unwrap();
    katran::remove(directory(&pins)).unwrap();
    assert!(pins.list().is_empty(), "{:?}", pins.list());
    drop(decaps);
}

/// The root program is replaced, and another live balancer has the entry: the next owner leaves it
/// alone.
#[test]
fn an_entry_taken_by_another_balancer_stays_with_it() {
    let pins = Pins::new();
    let root = || {
        let mut root = RootProgram::builder().load().unwrap();
        root.pin(pins.path()).unwrap();
        root
    };
    let gateway = MacAddr::new([0x0a, 0, 0, 0, 0, 0xfe]);
    let first = root();
    let mut katran = site::small(gateway).pin(directory(&pins)).load().unwrap();
    katran.attach_shared(pins.path(), 2).unwrap();
    drop((katran, first));
    RootProgram::remove(pins.path()).unwrap();
    let _second = root();
    let entries = SharedEntries::open(pins.path()).unwrap();
    let there = || entries.programs().unwrap().swap_remove(2).map(|of| of.id);
    let mut other = site::small(gateway).load().unwrap();
    other.attach_shared(pins.path(), 2).unwrap();
    let its = there();
    let adopt = || Katran::builder().pin(directory(&pins)).adopt().unwrap();
    drop(adopt());
    let mut katran = adopt();
    let lost = |katran: &Katran| {
        let [of] = &katran.shared_entries()[..] else {
            panic!("there is one");
        };
        assert_eq!((&of.path, of.position), (&pins.path(), 2));
        of.state == AttachmentState::Gone
    };
    assert!(lost(&katran));
    assert!(matches!(katran.reattach(), Err(Error::ForeignEntry { .. })));
    assert_eq!(there(), its);
    // Without the other balancer the entry is free; taking another's takes an explicit call.
    drop(other);
    assert_eq!(there(), None);
    katran.reattach().unwrap();
    assert!(!lost(&katran) && there().is_some());
    assert_eq!(attached(&pins).len(), 1);
    drop(katran);
    let mut katran = adopt();
    assert!(!lost(&katran));
    let third = {
        RootProgram::remove(pins.path()).unwrap();
        root()
    };
    let entries = SharedEntries::open(pins.path()).unwrap();
    let there = || entries.programs().unwrap().swap_remove(2).map(|of| of.id);
    let mut other = site::small(gateway).load().unwrap();
    other.attach_shared(pins.path(), 2).unwrap();
    let its = there();
    assert!(matches!(
        katran.reattach(),
        Err(Error::ForeignEntry { position: 2, .. })
    ));
    assert_eq!(there(), its);
    katran.attach_shared(pins.path(), 2).unwrap();
    assert_ne!(there(), its);
    // A lost entry that is detached is no longer looked for.
    drop((katran, third));
    RootProgram::remove(pins.path()).unwrap();
    let mut katran = adopt();
    assert!(lost(&katran));
    katran.detach_shared(pins.path()).unwrap();
    assert!(katran.shared_entries().is_empty() && attached(&pins).is_empty());
    let _fourth = root();
    katran.remove().unwrap();
    drop(other);
    RootProgram::remove(pins.path()).unwrap();
}

/// Restoring attachments at an adoption may wait seconds for a gateway: the owner is visible
/// meanwhile, and lets go afterwards.
#[test]
fn an_adoption_that_waits_for_a_gateway_gives_signs_of_life() {
    const LIMIT: Duration = Duration::from_secs(1);
    let pins = Pins::new();
    let host = Host::new("alone").unwrap();
    // A gateway that no host has.
    let connect = || {
        host.ip("link add eth0 type veth peer name eth1").unwrap();
        host.ip("addr add 192.0.2.1/24 dev eth0").unwrap();
        host.ip("link set eth0 up").unwrap();
        host.ip("link set eth1 up").unwrap();
        host.ip("route add default via 192.0.2.254").unwrap();
    };
    connect();
    host.ip("neighbour add 192.0.2.254 lladdr 02:00:00:00:00:fe dev eth0 nud permanent")
        .unwrap();
    host.run(|| {
        let builder = Katran::builder()
            .gateway(Gateway::Auto)
            .max_vips(16)
            .flow_table_size(1000)
            .pin(directory(&pins));
        let mut katran = builder.load().unwrap();
        let vip: Vip = "203.0.113.1:443/tcp".parse().unwrap();
        katran.add_vip(vip, katran::VipFlags::empty()).unwrap();
        let real = Real::new("198.51.100.1".parse().unwrap());
        katran.add_real(vip, real).unwrap();
        katran.attach("eth0", XdpMode::Generic).unwrap();
    });
    host.ip("link del eth0").unwrap();
    connect();
    std::thread::sleep(2 * LIMIT);
    let silence = || {
        let pinned = katran::pinned(directory(&pins)).unwrap();
        pinned.silence.unwrap()
    };
    assert!(silence() > LIMIT);
    std::thread::scope(|scope| {
        let adopting =
            scope.spawn(|| host.run(|| Katran::builder().pin(directory(&pins)).adopt().unwrap()));
        eventually("it gives a sign of life", || silence() < LIMIT);
        let begun = Instant::now();
        assert!(!adopting.is_finished());
        let katran = adopting.join().unwrap();
        // It waited in vain.
        assert!(begun.elapsed() > LIMIT);
        assert_eq!(katran.interfaces()[0].state, AttachmentState::Gone);
        katran.remove().unwrap();
    });
}
