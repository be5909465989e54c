//! Links with VLAN tags: one (IEEE 802.1Q), and two (802.1ad with 802.1Q inside).

use katran::MacAddr;
use katran::Vip;
use katran_lab::LabConfig;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

/// Tags the balancer's link. `tags`: protocol and tag, the inner one first.
pub(crate) fn tag_link(site: &Site, tags: &[(u16, u16)]) {
    let router = &site.lab.router;
    let balancer = &site.lab.balancers[0];
    // The balancer's host has no VLANs, so it does not answer ARP.
    let own = MacAddr::new(balancer.mac);
    for address in [balancer.v4.to_string(), balancer.v6.to_string()] {
        let entry = format!("neigh replace {address} lladdr {own} nud permanent dev bal0");
        router.ip(&entry).unwrap();
    }
    router.tag("bal0", tags).unwrap();
}

fn tagged_links_work(tags: &[(u16, u16)]) {
    let mut site = Site::new(LabConfig::default());
    tag_link(&site, tags);
    let servers = (
        site.lab.serve_tcp(PORT).unwrap(),
        site.lab.serve_udp(PORT).unwrap(),
    );
    // Before any TCP, whose late packets would count, too. Each arriving packet has 4 bytes a tag
    // on top of Ethernet, IPv4 and UDP.
    let vip = Vip::udp((site.lab.vip4(), PORT).into());
    site.add_service(vip, &site::reals(&site.lab, vip.address()));
    let socket = site::udp(&site.lab.client, vip);
    let before = site.katran.stats().totals().unwrap().tx;
    for _ in 0..10 {
        socket.ask(b"who").unwrap();
    }
    let after = site.katran.stats().totals().unwrap().tx;
    assert_eq!(after.packets - before.packets, 10);
    let frame = 14 + 20 + 8 + 3 + 4 * tags.len() as u64;
    assert_eq!(after.bytes - before.bytes, 10 * frame);
    for vip in [site.lab.vip4(), site.lab.vip6()] {
        let vip = Vip::tcp((vip, PORT).into());
        site.add_service(vip, &site::reals(&site.lab, vip.address()));
        for backend in ["backend0", "backend1"] {
            let mut connection = site.connect_to(vip, backend);
            assert_eq!(connection.ask("again").unwrap(), backend);
        }
    }
    let totals = site.katran.stats().totals().unwrap();
    assert!(totals.tx.packets > 0);
    assert_eq!(totals.drop.packets, 0, "{}", site.report());
    drop(servers);
}

#[test]
fn links_with_one_tag_work() {
    tagged_links_work(&[(0x8100, 100)]);
}

#[test]
fn links_with_two_tags_work() {
    tagged_links_work(&[(0x8100, 7), (0x88a8, 100)]);
}
