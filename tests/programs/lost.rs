//! Attachments lost while a program runs: it reports that, and what is on the interface instead;
//! then it restores them, or ends with an error.

use std::os::fd::AsRawFd;
use std::time::Duration;

use katran::Decap;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::require_root;
use libbpf_sys::bpf_link_detach;
use libbpf_sys::bpf_link_update;

use crate::links::xdp_link;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::katran;

const SIGTERM: i32 = 15;
const PATIENCE: Duration = Duration::from_secs(30);

fn pair(host: &Host) {
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    host.ip("link set eth0 up").unwrap();
    host.ip("link set eth1 up").unwrap();
}

fn host() -> Host {
    require_root();
    let host = Host::new("host").unwrap();
    pair(&host);
    host
}

/// A balancer, or a decapsulator, on eth0.
fn start(host: &Host, name: &str, file: &Scratch, options: &[&str]) -> Running {
    file.write("[balancer]\ngateway_mac = \"02:00:00:00:00:01\"\nflow_table_size = 1000\n");
    let mut command = katran(name);
    if name == "run" {
        command.arg("--config").arg(&file.0);
    }
    command
        .args(["--interface", "eth0", "--mode", "generic"])
        .args(options);
    let mut running = Running::start(host, command);
    running.says("on eth0 in generic mode");
    running
}

/// The id of the XDP program on eth0.
fn program(host: &Host) -> u32 {
    let text = host.ip("-details link show eth0").unwrap();
    let (_, after) = text.split_once("prog/xdp id ").expect("a program");
    after.split_whitespace().next().unwrap().parse().unwrap()
}

/// Replaces the program in eth0's link.
fn replace(host: &Host, other: &Decap) {
    let link = xdp_link(program(host), host.interface_index("eth0").unwrap());
    let other = other.program_fd().as_raw_fd();
    // SAFETY: takes descriptors of a link and of a program, and no options.
    let failed = unsafe { bpf_link_update(link.as_raw_fd(), other, std::ptr::null()) };
    assert_eq!(failed, 0);
}

/// Ends eth0's link.
fn take_off(host: &Host) {
    let link = xdp_link(program(host), host.interface_index("eth0").unwrap());
    // SAFETY: takes the descriptor of a link.
    assert_eq!(unsafe { bpf_link_detach(link.as_raw_fd()) }, 0);
}

#[test]
fn lost_programs_are_restored() {
    let host = host();
    let other = Decap::builder().load().unwrap();
    let file = Scratch::new("lost-put-back.toml");
    for (name, options) in [("run", &["--lost", "put-back"][..]), ("decap", &[])] {
        let mut running = start(&host, name, &file, options);
        let own = program(&host);
        // The kernel does not let `ip` remove a program that a link holds.
        let refused = host.ip("link set dev eth0 xdpgeneric off").unwrap_err();
        assert!(refused.to_string().contains("Can't replace"), "{refused}");
        assert_eq!(program(&host), own);

        take_off(&host);
        running.says("gone: the program on eth0: the program was removed from eth0");
        running.says("put back: the program on eth0");
        assert_eq!(program(&host), own);

        host.ip("link del eth0").unwrap();
        running.says(
            "gone: the program on eth0: eth0, where the program was attached, no longer exists",
        );
        pair(&host);
        running.says("put back: the program on eth0");
        assert_eq!(program(&host), own);

        replace(&host, &other);
        let said = running.says("replaced: the program on eth0: eth0 runs XDP program");
        assert!(said.contains("(decap) in the place"), "{said}");
        running.says("put back: the program on eth0");
        assert_eq!(program(&host), own);
        running.end(SIGTERM);
    }
}

#[test]
fn with_exit_it_ends_and_names_the_other_program() {
    let host = host();
    let mut other = Decap::builder().load().unwrap();
    let file = Scratch::new("lost-exit.toml");
    let exit = ["--lost", "exit"];
    let ends = |mut running: Running, says: &str| {
        running.says(says);
        let status = running.process.wait(PATIENCE).unwrap();
        assert_eq!(status.code(), Some(1));
    };
    let running = start(&host, "run", &file, &exit);
    take_off(&host);
    ends(
        running,
        "gone: the program on eth0: the program was removed from eth0",
    );

    let running = start(&host, "decap", &file, &exit);
    replace(&host, &other);
    ends(
        running,
        "(decap) in the place of the program that was attached",
    );

    let running = start(&host, "run", &file, &exit);
    host.ip("link del eth0").unwrap();
    ends(running, "where the program was attached, no longer exists");
    pair(&host);

    // Between two checks the interface is recreated, and another program attached to it.
    let running = start(&host, "run", &file, &exit);
    host.ip("link del eth0").unwrap();
    pair(&host);
    host.run(|| other.attach("eth0", XdpMode::Generic).unwrap());
    let number = program(&host);
    ends(running, "gone: the program on eth0");
    assert_eq!(program(&host), number);
}
