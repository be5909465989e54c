//! What a killed balancer leaves on a shared interface: an entry that keeps working, VLAN-tagged
//! frames included, until the next balancer takes it over.

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::place::pins;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::decap;
use crate::program::example;
use crate::program::katran;

const SIGTERM: i32 = 15;

fn root(host: &Host, arguments: &[&str], path: &str) {
    let mut command = example("root");
    command.args(arguments).args(["--path", path]);
    let output = host.output(command).unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn its_entry_works_on_until_it_is_taken_over() {
    require_root();
    let directory = private_bpf_fs().unwrap();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let servers = lab.serve_tcp(80).unwrap();
    let decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
    // Tagged frames need a program besides the one in the entry.
    let (host, router) = (&lab.balancers[0].host, &lab.router);
    let own = lab.balancers[0].mac.map(|octet| format!("{octet:02x}"));
    let neighbour = format!(
        "neigh replace {} lladdr {} nud permanent dev bal0",
        lab.balancers[0].v4,
        own.join(":")
    );
    router.ip(&neighbour).unwrap();
    router.tag("bal0", &[(0x8100, 7)]).unwrap();

    let path = directory.join("shared").display().to_string();
    root(host, &["attach", "--interface", "eth0"], &path);
    let mac = lab.balancers[0]
        .gateway_mac
        .map(|octet| format!("{octet:02x}"));
    let file = Scratch::new("killed.toml");
    file.write(&format!(
        "[balancer]\ngateway_mac = \"{}\"\nflow_table_size = 10_000\n[[vip]]\naddress = \"{}\"\n\
         port = 80\nprotocol = \"tcp\"\nreals = [{{ address = \"{}\" }}]\n",
        mac.join(":"),
        lab.vip4(),
        lab.backends[0].v4
    ));
    let start = |path: &str| {
        let mut command = katran("run");
        command.arg("--config").arg(&file.0);
        command.args(["--shared", path]).current_dir(&directory);
        let mut balancer = Running::start(host, command);
        balancer.says("balancing as entry 2 of");
        balancer
    };
    // A path without a directory.
    let mut killed = start("shared");
    let mut connection = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
    assert_eq!(connection.ask("who").unwrap(), "backend0");
    let held = pins(&directory);
    assert_eq!(held.len(), 5, "{held:?}");
    killed.process.kill().unwrap();
    assert_eq!(pins(&directory), held);
    assert_eq!(connection.ask("who").unwrap(), "backend0");
    let mut another = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
    assert_eq!(another.ask("who").unwrap(), "backend0");

    // The next one takes over the entry and its pins.
    let mut next = start(&path);
    let after = pins(&directory);
    assert!(after.len() == 5 && after != held, "{held:?} {after:?}");
    for connection in [&mut connection, &mut another] {
        assert_eq!(connection.ask("who").unwrap(), "backend0");
    }
    next.end(SIGTERM);
    let left = pins(&directory);
    assert_eq!(left.len(), 4, "{left:?}");
    assert!(
        left[3].starts_with("shared_xdp_") && left[3].ends_with("_eth0"),
        "{left:?}"
    );
    let mut killed = start(&path);
    killed.process.kill().unwrap();
    root(host, &["remove"], &path);
    assert!(pins(&directory).is_empty());
    drop((decaps, servers));
}
