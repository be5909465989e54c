//! What the kernel sends for a probe that has given up reaches the probe's real, not the VIP.

use std::net::IpAddr;
use std::net::SocketAddr;

use katran::MacAddr;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Mark;

use crate::health::counters;
use crate::health::site;
use crate::site::PORT;
use crate::site::eventually;

const MARK: u32 = 7;

#[test]
fn the_reset_of_a_probe_that_gave_up_reaches_its_real() {
    let mut site = site(|builder| builder);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    let vip: SocketAddr = (site.lab.vip4(), PORT).into();
    for backend in [0, 1] {
        let real = IpAddr::from(site.lab.backends[backend].v4);
        site.katran.probes_mut().map_mark(MARK, real).unwrap();
        let balancer = &site.lab.balancers[0];
        let answers_go_to = |mac: MacAddr| {
            let (address, interface) = (balancer.v4, &balancer.router_interface);
            let entry = format!("{address} lladdr {mac} nud permanent dev {interface}");
            site.lab
                .router
                .ip(&format!("neigh replace {entry}"))
                .unwrap();
        };
        // No answer comes back, and the probe gives up.
        answers_go_to(MacAddr::new([2, 0, 0, 0, 0xff, 0x99]));
        let before = (
            counters(&site.katran),
            site.decaps[backend].counters().unwrap(),
        );
        balancer.host.run(|| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            setsockopt(&socket, Mark, &MARK).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&vip.into()).unwrap_err();
        });
        let stripped = || {
            let now = site.decaps[backend].counters().unwrap();
            now.ipip_v4 - before.1.ipip_v4
        };
        eventually("the SYN arrives", || stripped() >= 1);
        assert_eq!(counters(&site.katran).recalled, before.0.recalled);
        // The server retransmits after a second.
        answers_go_to(MacAddr::new(balancer.mac));
        eventually("the RST arrives", || stripped() >= 2);
        let now = counters(&site.katran);
        assert!(now.recalled > before.0.recalled, "{now:?}");
        assert_eq!(now.processed - before.0.processed, stripped());
    }
}
