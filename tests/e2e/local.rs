//! A balancer that is also a backend: packets whose real is this host go to its own stack, without
//! a tunnel.

use katran::Real;
use katran::RealFlags;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran_lab::LabConfig;
use katran_lab::TcpServer;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

#[test]
fn the_balancers_own_server_answers() {
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let mut site = Site::with(LabConfig::default(), mode, |builder| builder);
        let balancer = &site.lab.balancers[0];
        let _remote = site.lab.serve_tcp(PORT).unwrap();
        let local_server = TcpServer::start(&balancer.host, PORT, "balancer0").unwrap();
        for (address, own) in [
            (site.lab.vip4(), balancer.v4.into()),
            (site.lab.vip6(), balancer.v6.into()),
        ] {
            site::add_to_lo(&balancer.host, address);
            let vip = Vip::tcp((address, PORT).into());
            let remote = site::reals(&site.lab, address)[0];
            let katran = &mut site.katran;
            katran.add_vip(vip, VipFlags::LOCAL_VIP).unwrap();
            let local = Real::new(own).flags(RealFlags::LOCAL_REAL);
            katran.add_real(vip, local).unwrap();
            katran.add_real(vip, Real::new(remote)).unwrap();

            let mut names = Vec::new();
            for _ in 0..32 {
                let mut client = site::connect(&site.lab.client, vip);
                let name = client.ask("who").unwrap();
                let flow = site::flow_of(&client, vip);
                let real = site.katran.real_for_flow(&flow).unwrap().unwrap().real;
                assert_eq!(real == Some(own), name == "balancer0");
                let line = "x".repeat(30_000);
                assert_eq!(client.ask(&line).unwrap(), name);
                let answer = client.ask("fill 30000").unwrap();
                assert_eq!(answer.len(), name.len() + 1 + 30_000);
                names.push(name);
            }
            for name in ["balancer0", "backend0"] {
                assert!(names.iter().any(|other| other == name), "{names:?}");
            }
            let delivered = site.katran.stats().real(own).unwrap().forwarded.packets;
            assert!(delivered > 20);
            assert!(site.katran.stats().totals().unwrap().pass.packets >= delivered);
            site::eventually("the backend gets its share, and only that", || {
                // Reads both again: the last acknowledgement may arrive in between.
                let tunnelled = site.katran.stats().real(remote).unwrap().forwarded.packets;
                let (v4, v6) = site.decapsulated();
                tunnelled == if address.is_ipv4() { v4 } else { v6 }
            });

            // Without the VIP's flag the real is like any other: behind a tunnel, which nothing
            // unwraps here.
            site.katran.set_vip_flags(vip, VipFlags::empty()).unwrap();
            site.katran.remove_real(vip, remote).unwrap();
            let before = local_server.accepted();
            let sent = site.katran.stats().totals().unwrap().tx.packets;
            let refused = site.lab.client.run(|| {
                let limit = std::time::Duration::from_millis(300);
                std::net::TcpStream::connect_timeout(&site::service(vip), limit).is_err()
            });
            assert!(refused);
            assert_eq!(local_server.accepted(), before);
            assert!(site.katran.stats().totals().unwrap().tx.packets > sent);
        }
        assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
    }
}
