//! Packets that are too big: for the client's network, where the router's ICMP error has to find
//! the backend that sent them, and for the balancer, which answers with an error of its own.

use std::net::IpAddr;

use katran::Features;
use katran::Real;
use katran::Vip;
use katran::XdpMode;
use katran::stats::DropReason;
use katran_lab::Host;
use katran_lab::LabConfig;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

const CLIENT_V4: &str = "192.0.2.2";
const CLIENT_V6: &str = "2001:db8:c::2";

/// Whether this host believes that packets to `address` may have this size.
fn has_learnt(host: &Host, address: &str, from: Option<IpAddr>, mtu: u32) -> bool {
    let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
    let route = host.ip(&format!("route get {address}{from}")).unwrap();
    route.contains(&format!("mtu {mtu} ")) || route.trim_end().ends_with(&format!("mtu {mtu}"))
}

#[test]
fn an_error_about_the_path_reaches_the_backend_that_owns_the_flow() {
    let mut site = Site::new(LabConfig::default());
    site::arrive_on_one_cpu(&site.lab);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    // The second limit counts as small, which for IPv6 no limit does.
    for (address, client, limits) in [
        (site.lab.vip4(), CLIENT_V4, [1400, 1000]),
        (site.lab.vip6(), CLIENT_V6, [1400, 1280]),
    ] {
        let vip = Vip::tcp((address, PORT).into());
        let reals = site::reals(&site.lab, address);
        site.add_service(vip, &reals);
        let mut connection = site.connect_to(vip, "backend0");
        // From now on the ring alone would send the error to the wrong backend.
        let drained = Real::new(reals[0]).weight(0);
        site.katran.add_real(vip, drained).unwrap();

        for limit in limits {
            site.lab.limit_client_mtu(limit).unwrap();
            let answer = connection.ask("fill 400000").unwrap();
            assert_eq!(answer.len(), "backend0 ".len() + 400_000);
            let learnt = |backend: usize| {
                let host = &site.lab.backends[backend].host;
                has_learnt(host, client, Some(address), limit)
            };
            assert!(learnt(0), "{}", site.report());
            assert!(!learnt(1), "not about its flow");
        }
        site.lab.limit_client_mtu(1500).unwrap();
    }
    let icmp = site.katran.stats().icmp().unwrap();
    assert!(
        icmp.ptb_v4_small > 0 && icmp.ptb_v4 > icmp.ptb_v4_small,
        "{icmp:?}"
    );
    assert!(icmp.ptb_v6 > 1 && icmp.ptb_v6_small == 0, "{icmp:?}");
    assert_eq!((icmp.too_big_v4, icmp.too_big_v6), (0, 0));
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
}

#[test]
fn a_client_adapts_to_the_largest_frame_in_native_mode() {
    client_adapts(XdpMode::Native);
}

#[test]
fn a_client_adapts_to_the_largest_frame_in_generic_mode() {
    client_adapts(XdpMode::Generic);
}

fn client_adapts(mode: XdpMode) {
    const MTU: u32 = 1300;
    let mut site = Site::with(LabConfig::default(), mode, |builder| {
        builder.max_frame(14 + MTU)
    });
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    for address in [site.lab.vip4(), site.lab.vip6()] {
        let vip = Vip::tcp((address, PORT).into());
        site.add_service(vip, &site::reals(&site.lab, address));
        let mut client = site::connect(&site.lab.client, vip);
        let name = client.ask("who").unwrap();
        assert_eq!(client.ask(&"x".repeat(400_000)).unwrap(), name);
        assert!(has_learnt(
            &site.lab.client,
            &address.to_string(),
            None,
            MTU
        ));
        let forwarded = site.katran.stats().vip(vip).unwrap().forwarded;
        assert!(forwarded.bytes > 400_000);
        assert!(forwarded.bytes / forwarded.packets <= u64::from(MTU));
    }
    let icmp = site.katran.stats().icmp().unwrap();
    assert!(icmp.too_big_v4 > 0 && icmp.too_big_v6 > 0, "{icmp:?}");
    assert_eq!((icmp.ptb_v4, icmp.ptb_v6), (0, 0));
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
}

#[test]
fn without_the_feature_too_big_a_frame_is_dropped() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.max_frame(1014).features(Features::empty())
    });
    let _servers = site.lab.serve_udp(PORT).unwrap();
    for (address, headers) in [(site.lab.vip4(), 28), (site.lab.vip6(), 48)] {
        let vip = Vip::udp((address, PORT).into());
        site.add_service(vip, &site::reals(&site.lab, address));
        let client = site::udp(&site.lab.client, vip);
        let largest = vec![0; 1000 - headers];
        assert!(client.ask(&largest).unwrap().starts_with("backend"));
        client
            .set_patience(std::time::Duration::from_millis(300))
            .unwrap();
        assert!(client.ask(&[&largest[..], b"x"].concat()).is_err());
    }
    let drops = site.katran.stats().drop_reasons().unwrap();
    assert_eq!(drops.get(DropReason::TooBig), 2);
    let icmp = site.katran.stats().icmp().unwrap();
    assert_eq!((icmp.too_big_v4, icmp.too_big_v6), (0, 0));
}
