//! The path of health checks: this host's probes, addressed to a VIP, reach exactly the real they
//! are for.

use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use katran::Encapsulation;
use katran::Error;
use katran::Gateway;
use katran::Katran;
use katran::NextHops;
use katran::State;
use katran::Vip;
use katran::XdpMode;
use katran::attachments::TcHook;
use katran::stats::HealthcheckCounters;
use katran_lab::Host;
use katran_lab::LabConfig;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Mark;

use crate::segment::Arrival;
use crate::segment::Segment;
use crate::site::PORT;
use crate::site::Site;
use crate::site::eventually;
use crate::site::first_choice;

/// How long a busy machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for an answer that must not come.
const IN_VAIN: Duration = Duration::from_secs(2);

/// Asks the server at `to` for its name, from a socket with this mark and, if given, this source
/// address.
pub(crate) fn probe(
    host: &Host,
    to: SocketAddr,
    mark: u32,
    from: Option<IpAddr>,
) -> std::io::Result<String> {
    probe_within(PATIENCE, host, to, mark, from)
}

/// The same where no answer must come.
pub(crate) fn probe_in_vain(host: &Host, to: SocketAddr, mark: u32, from: Option<IpAddr>) {
    let answer = probe_within(IN_VAIN, host, to, mark, from);
    assert!(answer.is_err(), "{answer:?}");
}

fn probe_within(
    limit: Duration,
    host: &Host,
    to: SocketAddr,
    mark: u32,
    from: Option<IpAddr>,
) -> std::io::Result<String> {
    host.run(|| {
        let domain = match to {
            SocketAddr::V4(_) => socket2::Domain::IPV4,
            SocketAddr::V6(_) => socket2::Domain::IPV6,
        };
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        setsockopt(&socket, Mark, &mark)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::from((from, 0)).into())?;
        }
        socket.connect_timeout(&to.into(), limit)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"who\n")?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 && byte != *b"\n" {
            answer.push(byte[0]);
        }
        Ok(String::from_utf8(answer).unwrap())
    })
}

pub(crate) fn counters(katran: &Katran) -> HealthcheckCounters {
    katran.probes().counters().unwrap()
}

/// A site whose balancer has health checks enabled.
pub(crate) fn site(settings: impl FnOnce(katran::Builder) -> katran::Builder) -> Site {
    Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        settings(
            builder
                .healthcheck_interface("eth0")
                .source_v4("10.0.0.2".parse().unwrap())
                .source_v6("2001:db8:b::2".parse().unwrap()),
        )
    })
}

/// Maps a mark to each backend and family.
fn map_marks(site: &mut Site) -> Vec<(u32, String)> {
    let mut marks = Vec::new();
    for (index, backend) in site.lab.backends.iter().enumerate() {
        let addresses = [IpAddr::from(backend.v4), backend.v6.into()];
        for (kind, address) in addresses.into_iter().enumerate() {
            let mark = 1000 + 10 * index as u32 + kind as u32;
            site.katran.probes_mut().map_mark(mark, address).unwrap();
            marks.push((mark, backend.host.name().to_owned()));
        }
    }
    marks
}

#[test]
fn a_marked_socket_reaches_its_real_whatever_the_families() {
    for (encapsulation, hook) in [
        (Encapsulation::Ipip, TcHook::Auto),
        (Encapsulation::Ipip, TcHook::Clsact),
        (Encapsulation::Gue, TcHook::Auto),
    ] {
        let mut site = site(|builder| builder.encapsulation(encapsulation).healthcheck_hook(hook));
        let servers = site.lab.serve_tcp(PORT).unwrap();
        let attachment = site.katran.probes().attachment().unwrap();
        assert_eq!(attachment.interface, "eth0");
        let expected = match hook {
            TcHook::Auto => first_choice(),
            _ => hook,
        };
        assert_eq!(attachment.hook, expected);
        let marks = map_marks(&mut site);
        assert_eq!(site.katran.probes().marks().len(), marks.len());
        let host = &site.lab.balancers[0].host;
        let vips = [site.lab.vip4(), site.lab.vip6()];
        let key = Vip::tcp((vips[0], PORT).into());
        site.katran.probes_mut().register(key).unwrap();
        // The VIPs need not be added: probes bypass the balancer.
        for vip in vips {
            for (mark, name) in &marks {
                let answer = probe(host, (vip, PORT).into(), *mark, None);
                assert_eq!(answer.unwrap(), *name, "{mark} {vip}");
            }
        }
        let now = counters(&site.katran);
        assert!(now.processed >= 8 * 4, "{now:?}");
        assert_eq!((now.dropped, now.too_big), (0, 0));
        let counted = site.katran.probes().counter(key).unwrap();
        assert!(
            counted > 0 && counted < now.processed,
            "{counted} of {now:?}"
        );
        assert_eq!(site.katran.stats().totals().unwrap().tx.packets, 0);
        // An unmapped mark is skipped. Uses its own port, as the earlier connections may still be
        // closing.
        let before = now.skipped;
        let other: SocketAddr = (vips[0], PORT + 1).into();
        site.katran.probes_mut().register(Vip::tcp(other)).unwrap();
        probe_in_vain(host, other, 5, None);
        let now = counters(&site.katran);
        assert!(now.skipped > before);
        assert_eq!(site.katran.probes().counter(Vip::tcp(other)).unwrap(), 0);
        site.katran.probes_mut().unmap_mark(marks[0].0).unwrap();
        let vip = (vips[0], PORT).into();
        probe_in_vain(host, vip, marks[0].0, None);
        assert!(matches!(
            site.katran.probes_mut().unmap_mark(marks[0].0),
            Err(Error::NotFound { .. })
        ));
        site.katran.probes_mut().unregister(key).unwrap();
        assert!(site.katran.probes().counter(key).is_err());
        drop(servers);
    }
}

#[test]
fn probes_match_by_mark_then_destination_then_source() {
    let mut site = site(|builder| builder);
    let servers = site.lab.serve_tcp(PORT).unwrap();
    let [first, second] = [0, 1].map(|i| IpAddr::from(site.lab.backends[i].v4));
    let vip: SocketAddr = (site.lab.vip4(), PORT).into();
    let any_port: SocketAddr = (site.lab.vip4(), 0).into();
    let other = "10.0.0.9".parse().unwrap();
    let host = &site.lab.balancers[0].host;
    host.ip("addr add 10.0.0.9/32 dev lo").unwrap();
    site.lab
        .router
        .ip("route add 10.0.0.9/32 via 10.0.0.2")
        .unwrap();
    let katran = &mut site.katran;
    katran
        .probes_mut()
        .match_source((other, 0).into(), first)
        .unwrap();
    probe_in_vain(host, vip, 0, None);
    assert_eq!(probe(host, vip, 0, Some(other)).unwrap(), "backend0");
    let now = counters(katran);
    assert!(now.src_matched > 0);
    assert_eq!(now.dst_matched, 0);

    katran
        .probes_mut()
        .match_destination(any_port, second)
        .unwrap();
    for from in [None, Some(other)] {
        assert_eq!(probe(host, vip, 0, from).unwrap(), "backend1");
    }
    assert!(counters(katran).dst_matched > 0);
    // The exact port takes precedence over any port.
    katran.probes_mut().match_destination(vip, first).unwrap();
    assert_eq!(probe(host, vip, 0, None).unwrap(), "backend0");
    assert_eq!(
        katran.probes().destination_matches(),
        [(any_port, second), (vip, first)]
    );
    // A mark takes precedence over both.
    katran.probes_mut().map_mark(7, second).unwrap();
    assert_eq!(probe(host, vip, 7, Some(other)).unwrap(), "backend1");

    katran.probes_mut().unmatch_destination(vip).unwrap();
    assert_eq!(probe(host, vip, 0, None).unwrap(), "backend1");
    katran.probes_mut().unmatch_destination(any_port).unwrap();
    katran
        .probes_mut()
        .unmatch_source((other, 0).into())
        .unwrap();
    assert!(matches!(
        katran.probes_mut().unmatch_source((other, 0).into()),
        Err(Error::NotFound { .. })
    ));
    probe_in_vain(host, vip, 0, Some(other));
    drop(servers);
}

#[test]
fn long_probes_are_dropped_and_counted() {
    let mut site = site(|builder| builder.healthcheck_max_packet(200));
    let servers = site.lab.serve_udp(PORT).unwrap();
    let real = site.lab.backends[0].v4.into();
    site.katran.probes_mut().map_mark(9, real).unwrap();
    let host = &site.lab.balancers[0].host;
    let socket = host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        setsockopt(&socket, Mark, &9).unwrap();
        socket
    });
    let vip = (site.lab.vip4(), PORT);
    // 14 + 20 + 8 bytes of headers.
    socket.send_to(&[b'x'; 158], vip).unwrap();
    // It leaves once the gateway's neighbour entry is there.
    eventually("the first one leaves", || {
        counters(&site.katran).processed > 0
    });
    let now = counters(&site.katran);
    assert_eq!((now.processed, now.too_big, now.dropped), (1, 0, 0));
    // Whether the kernel tells the sender varies; the packet is dropped either way.
    let _ = socket.send_to(&[b'x'; 159], vip);
    eventually("the second one is dropped", || {
        counters(&site.katran).dropped > 0
    });
    let now = counters(&site.katran);
    assert_eq!((now.processed, now.too_big, now.dropped), (1, 1, 1));
    drop(servers);
}

#[test]
fn probes_leave_by_the_balancers_interface_even_if_sent_on_another() {
    let mut network = Segment::new(Arrival::OwnLink, |builder| {
        builder
            .gateway(Gateway::Auto)
            .healthcheck_interface("eth1")
            .source_v4("10.0.0.2".parse().unwrap())
    });
    let vip = network.lab.vip4();
    let host = &network.lab.balancers[0].host;
    host.run(|| network.katran.attach("eth0", XdpMode::Native).unwrap());
    // The VIP's own route leads elsewhere.
    host.ip(&format!("route add {vip}/32 dev eth1")).unwrap();
    host.ip(&format!(
        "neigh add {vip} lladdr 02:00:00:00:00:55 nud permanent dev eth1"
    ))
    .unwrap();
    let real = network.reals("10.0.0.0".parse().unwrap())[0];
    network.katran.probes_mut().map_mark(3, real).unwrap();
    let before = sent(&network.lab.router, "bal0");
    assert_eq!(
        probe(host, (vip, PORT).into(), 3, None).unwrap(),
        "backend0"
    );
    // The connections' last packets may still be on their way.
    let processed = counters(&network.katran).processed;
    eventually("all probes leave by eth0", || {
        sent(&network.lab.router, "bal0") - before >= processed
    });

    // With both attached, probes leave by the other interface when the first vanishes; called from
    // another namespace, where indexes differ.
    host.run(|| network.katran.attach("eth1", XdpMode::Native).unwrap());
    let interface = |katran: &Katran| {
        let settings = katran.map_fd(".data.settings").unwrap();
        main_interface(settings)
    };
    let index = |name| host.interface_index(name).unwrap();
    assert_eq!(interface(&network.katran), index("eth0"));
    network.katran.detach("eth0").unwrap();
    assert_eq!(interface(&network.katran), index("eth1"));
    host.ip(&format!("route del {vip}/32 dev eth1")).unwrap();
    network.katran.detach("eth1").unwrap();
    assert_eq!(interface(&network.katran), 0);
    assert!(network.katran.probes().attachment().is_none());
}

/// The index of the interface that probes leave by, as the program reads it.
fn main_interface(settings: BorrowedFd<'_>) -> u32 {
    const BYTES: usize = 56;
    const INTERFACE: usize = 24;
    let (key, mut value) = (0_u32, [0_u8; BYTES]);
    // SAFETY: key and value are as long as those of the map.
    let result = unsafe {
        libbpf_sys::bpf_map_lookup_elem(
            settings.as_raw_fd(),
            std::ptr::from_ref(&key).cast(),
            value.as_mut_ptr().cast(),
        )
    };
    assert_eq!(result, 0);
    u32::from_ne_bytes(value[INTERFACE..INTERFACE + 4].try_into().unwrap())
}

/// Packets that an interface has received.
pub(crate) fn sent(host: &Host, interface: &str) -> u64 {
    let text = host.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{interface}:")));
    let field = line.unwrap().split_whitespace().nth(1).unwrap();
    field.parse().unwrap()
}

#[test]
fn probes_find_reals_on_the_same_segment_and_behind_other_interfaces() {
    for (arrival, mode, interface) in [
        (Arrival::Segment, NextHops::PerReal, "eth1"),
        (Arrival::OwnLink, NextHops::Redirect, "eth0"),
    ] {
        let mut network = Segment::new(arrival, |builder| {
            builder
                .gateway(Gateway::Auto)
                .next_hops(mode)
                .healthcheck_interface(interface)
                .source_v4("10.20.0.2".parse().unwrap())
        });
        let host = &network.lab.balancers[0].host;
        let attach = |katran: &mut Katran| katran.attach(interface, XdpMode::Native);
        host.run(|| attach(&mut network.katran).unwrap());
        let vip = (network.lab.vip4(), PORT).into();
        for (index, real) in network
            .reals("10.0.0.0".parse().unwrap())
            .into_iter()
            .enumerate()
        {
            let mark = 1 + index as u32;
            host.run(|| network.katran.probes_mut().map_mark(mark, real).unwrap());
            let name = format!("backend{index}");
            assert_eq!(probe(host, vip, mark, None).unwrap(), name, "{mode}");
        }
    }
}

#[test]
fn invalid_requests_are_refused() {
    let mut plain = Site::new(LabConfig::default());
    let real = plain.lab.backends[0].v4.into();
    plain
        .katran
        .gateways_mut()
        .set_source("10.0.0.2".parse().unwrap())
        .unwrap();
    assert!(plain.katran.probes().program_fd().is_none());
    assert_eq!(counters(&plain.katran), HealthcheckCounters::default());
    // The mark can be mapped, but no interface makes it work.
    plain.katran.probes_mut().map_mark(1, real).unwrap();
    assert!(plain.katran.probes().program_fd().is_some());
    assert!(plain.katran.probes().attachment().is_none());
    let error = plain.katran.probes_mut().attach().unwrap_err();
    assert!(
        error.to_string().contains("set healthcheck_interface"),
        "{error}"
    );
    let host = &plain.lab.balancers[0].host;
    let found = host.run(|| plain.katran.diagnose("eth0").unwrap());
    assert!(
        found
            .to_string()
            .contains("healthcheck program is not attached"),
        "{found}"
    );
    drop(plain);

    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder
            .max_reals(2)
            .max_vips(1)
            .healthcheck_interface("eth0")
            .source_v4("10.0.0.2".parse().unwrap())
    });
    let katran = &mut site.katran;
    assert!(katran.probes().program_fd().is_some());
    assert!(matches!(
        katran.probes_mut().map_mark(0, real),
        Err(Error::InvalidConfig { .. })
    ));
    let v6 = site.lab.backends[0].v6.into();
    let error = katran.probes_mut().map_mark(1, v6).unwrap_err();
    assert!(error.to_string().contains("source_v6"), "{error}");
    assert!(
        katran
            .probes_mut()
            .map_mark(1, "127.0.0.1".parse().unwrap())
            .is_err()
    );
    katran.probes_mut().map_mark(1, real).unwrap();
    katran.probes_mut().map_mark(2, real).unwrap();
    assert!(matches!(
        katran.probes_mut().map_mark(3, real),
        Err(Error::Exhausted { limit: 2, .. })
    ));
    // A mapped mark can still get another real.
    katran
        .probes_mut()
        .map_mark(2, "198.51.100.2".parse().unwrap())
        .unwrap();
    let vip: Vip = "203.0.113.1:80/tcp".parse().unwrap();
    katran.probes_mut().register(vip).unwrap();
    assert!(matches!(
        katran.probes_mut().register(vip),
        Err(Error::AlreadyExists { .. })
    ));
    let other = "203.0.113.2:80/tcp".parse().unwrap();
    assert!(matches!(
        katran.probes_mut().register(other),
        Err(Error::Exhausted { .. })
    ));
    katran.probes_mut().unregister(vip).unwrap();
    katran.probes_mut().register(other).unwrap();

    // As a whole state: all of it applied, or, if impossible, none.
    let before = katran.state();
    let mut wanted = before.clone();
    wanted.marks.push(katran::state::MarkState::new(3, real));
    assert!(katran.apply(&wanted).is_err());
    assert_eq!(katran.state(), before);
    wanted.marks.remove(0);
    wanted.probes.clear();
    let changes = katran.apply(&wanted).unwrap();
    assert_eq!(
        (changes.marks_mapped, changes.marks_unmapped),
        (vec![3], vec![1])
    );
    assert_eq!(katran.state(), wanted);
    let text = wanted.to_toml().unwrap();
    assert_eq!(State::from_toml(&text).unwrap(), wanted);
    assert!(katran.apply(&wanted).unwrap().is_empty());
}
