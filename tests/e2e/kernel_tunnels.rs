//! Backends without our decapsulator: the kernel's tunnel devices, set up by the guide's commands,
//! unwrap the packets, and the diagnosis knows them. `make kernels` runs this, as its kernels have
//! such devices.

use std::net::IpAddr;

use katran::Decap;
use katran::Encapsulation;
use katran::Vip;
use katran::XdpMode;
use katran::diagnosis::Severity;
use katran::diagnosis::Subject;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::require_root;

use crate::site;
use crate::site::PORT;

/// The commands of docs/operations.md, with names instead of addresses: those of `ip`, without that
/// word.
fn commands(guide: &str) -> Vec<&str> {
    let (_, section) = guide
        .split_once("### Backends without katran decap")
        .unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let lines = block
        .lines()
        .map(|line| line.split(" #").next().unwrap().trim());
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
#[ignore = "needs ipip, sit, ip6_tunnel, fou and fou6, which not every kernel has: make kernels"]
fn the_kernels_tunnels_unwrap_our_packets() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let _servers = lab.serve_tcp(PORT).unwrap();
    let vips = [lab.vip4(), lab.vip6()];
    let decap = Decap::builder().load().unwrap();
    let about = |backend: usize| {
        let host = &lab.backends[backend].host;
        host.run(|| decap.diagnose("eth0", &vips).unwrap())
    };
    assert_eq!(about(0).about(Subject::TunnelEnds).count(), 0);
    let guide = include_str!("../../docs/operations.md");
    for backend in &lab.backends {
        for line in commands(guide) {
            let line = line.replace("2001:db8:2::1", &backend.v6.to_string());
            if let Some(arguments) = line.strip_prefix("ip ") {
                backend.host.ip(arguments).unwrap();
            } else if let Some(settings) = line.strip_prefix("sysctl -w ") {
                for setting in settings.split(' ') {
                    let (key, value) = setting.split_once('=').unwrap();
                    backend.host.sysctl(key, value).unwrap();
                }
            } else {
                // The test machine has the modules loaded.
                assert!(line.starts_with("modprobe "), "{line}");
            }
        }
    }
    let found = about(0);
    assert!(found.works(), "{found}");
    let ends: Vec<_> = found.about(Subject::TunnelEnds).collect();
    // Each family in each other: four. GUE over each: two.
    let good = ends.iter().filter(|of| of.severity == Severity::Ok).count();
    assert!(good >= 6, "{found}");

    for kind in [Encapsulation::Ipip, Encapsulation::Gue] {
        let (v4, v6) = (lab.balancers[0].v4, lab.balancers[0].v6);
        let (mut katran, _) = site::balancer(&lab, 0, XdpMode::Native, |builder| {
            builder.encapsulation(kind).source_v4(v4).source_v6(v6)
        });
        for address in vips {
            for like in [IpAddr::from(v4), IpAddr::from(v6)] {
                let vip = Vip::tcp((address, PORT).into());
                site::add_service(&mut katran, vip, &site::reals(&lab, like));
                for _ in 0..4 {
                    let mut client = site::connect(&lab.client, vip);
                    let name = client.ask(&"x".repeat(30_000)).unwrap();
                    assert!(
                        name.starts_with("backend"),
                        "{kind} {vip} by {like}: {name}"
                    );
                }
                katran.remove_vip(vip).unwrap();
            }
        }
    }

    // rp_filter drops what comes out of the tunnel, even in loose mode.
    let host = &lab.backends[0].host;
    host.sysctl("net/ipv4/conf/tunl0/rp_filter", 2).unwrap();
    let found = about(0);
    let mut filter = found.about(Subject::ReversePathFilter);
    assert!(
        filter.any(|of| of.severity == Severity::Problem && of.advice.contains("tunl0")),
        "{found}"
    );
}
