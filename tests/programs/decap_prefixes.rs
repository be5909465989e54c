//! `decap --from` and `--to`: which tunnels the example unwraps, beside a balancer that also runs
//! as a program.

use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::require_root;

use crate::examples::balancing;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;

const SIGTERM: i32 = 15;
/// The counters' column of drops.
const DROPPED: usize = 5;

#[test]
fn decap_strips_only_allowed_tunnels() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let _servers = lab.serve_tcp(80).unwrap();
    let file = Scratch::new("prefixes.toml");
    let mut balancer = balancing(&lab, &file);

    let backend = &lab.backends[0];
    let vips = [lab.vip4(), lab.vip6()].map(|vip| SocketAddr::from((vip, 80)));
    let [v4, v6] = vips.map(|vip| vip.ip().to_string());
    // The balancer's default tunnel sources, one argument each.
    let sources = ["--from", "172.16.0.0/16", "--from", "100::/64"];
    let services = ["--to", &v4, "--to", &v6];
    for (arguments, is_answered) in [
        ([sources, services].concat(), true),
        ([&sources[..], &["--to", "192.0.2.200"]].concat(), false),
        ([&services[..], &["--from", "192.0.2.200"]].concat(), false),
    ] {
        let mut command = example("decap");
        command.args(["--interface", &backend.interface]);
        command.args(&arguments);
        let mut decap = Running::start(&backend.host, command);
        decap.says("stripping tunnels on eth0 in native mode");
        for vip in vips {
            if is_answered {
                let mut client = TcpClient::connect(&lab.client, vip).unwrap();
                assert_eq!(client.ask("who?").unwrap(), "backend0", "{arguments:?}");
            } else {
                let patience = Duration::from_millis(1500);
                let connected = lab
                    .client
                    .run(|| TcpStream::connect_timeout(&vip, patience));
                assert!(connected.is_err(), "{arguments:?}");
            }
        }
        if !is_answered {
            decap.counts(DROPPED);
        }
        decap.end(SIGTERM);
    }
    balancer.end(SIGTERM);
}
