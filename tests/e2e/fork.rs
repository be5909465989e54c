//! A process with handles forks. The child has copies of them and none of the threads; dropping the
//! copies must not affect the network.

use std::fs;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Decap;
use katran::Features;
use katran::Gateway;
use katran::MacAddr;
use katran::RootProgram;
use katran::ServerIdOption;
use katran::Vip;
use katran::XdpMode;
use katran::attachments::SharedEntries;
use katran::attachments::TcHook;
use katran::events::MonitorOptions;
use katran_lab::Cgroup;
use katran_lab::Host;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::wait::WaitPidFlag;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use nix::unistd::fork;

use crate::health;
use crate::site;
use crate::site::PORT;
use crate::site::Site;

const PATIENCE: Duration = Duration::from_secs(60);
/// The frame size above which a frame is too big and makes an event, and a datagram that makes one.
const MAX_FRAME: u32 = 600;
const TOO_BIG: [u8; 700] = [0; 700];
const POSITION: u32 = 2;

/// Drops the handles in a child, which must exit without a panic.
fn drop_in_child<T>(handles: T) -> T {
    // SAFETY: the child has what this thread holds and glibc's heap, whose locks fork(2) leaves
    // in order; it drops the handles and ends without another look at the test's process.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let dropped = catch_unwind(AssertUnwindSafe(|| drop(handles)));
            // SAFETY: takes a number and does not return.
            unsafe { libc::_exit(i32::from(dropped.is_err())) }
        }
        ForkResult::Parent { child } => {
            let end = Instant::now() + PATIENCE;
            loop {
                match waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap() {
                    WaitStatus::StillAlive if Instant::now() < end => {
                        thread::sleep(Duration::from_millis(10));
                    }
                    WaitStatus::StillAlive => {
                        kill(child, Signal::SIGKILL).unwrap();
                        waitpid(child, None).unwrap();
                        panic!("the child hangs");
                    }
                    status => {
                        assert_eq!(status, WaitStatus::Exited(child, 0), "it has panicked");
                        return handles;
                    }
                }
            }
        }
    }
}

/// What is attached to `eth0` of a host.
fn attached(host: &Host) -> (bool, [String; 2]) {
    let has_xdp = host.ip("link show eth0").unwrap().contains("xdp");
    let filters = ["ingress", "egress"].map(|way| {
        host.tool("tc", &format!("filter show dev eth0 {way}"))
            .unwrap()
    });
    (has_xdp, filters)
}

fn pins(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path.parent().unwrap()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    // The file system's own entries have dots.
    let mut names: Vec<_> = names.filter(|name| !name.contains('.')).collect();
    names.sort();
    names
}

#[test]
fn a_childs_drop_leaves_the_parents_handles_alone() {
    require_root();
    let path = private_bpf_fs().unwrap().join("root");
    // A link, a clsact filter, the thread that follows next hops, and a monitor's thread.
    let mut site = health::site(|builder| {
        builder
            .gateway(Gateway::Auto)
            .healthcheck_hook(TcHook::Clsact)
            .features(Features::default() | Features::INTROSPECTION)
            .max_frame(MAX_FRAME)
    });
    let monitor = site.katran.events().to_list(MonitorOptions::new(), 100);
    let monitor = monitor.unwrap();
    // Another filter: the decapsulator's.
    drop(site.decaps.remove(0));
    let mut by_tc = Decap::builder().load().unwrap();
    let backend = &site.lab.backends[0].host;
    let attach = || by_tc.attach_tc("eth0", TcHook::Clsact).unwrap();
    assert_eq!(backend.run(attach).hook, TcHook::Clsact);
    site.decaps.push(by_tc);
    // An entry of a root program, and its pin.
    let shared = Host::new("shared").unwrap();
    shared.ip("link add eth0 type veth peer name eth1").unwrap();
    for end in ["eth0", "eth1"] {
        shared.ip(&format!("link set {end} up")).unwrap();
    }
    let mut root = RootProgram::builder().load().unwrap();
    shared.run(|| root.attach("eth0", XdpMode::Generic).unwrap());
    root.pin(&path).unwrap();
    let mut sharing = site::small(MacAddr::new([2, 0, 0, 0, 0, 9]))
        .load()
        .unwrap();
    sharing.attach_shared(&path, POSITION).unwrap();
    // The thread that follows the longest frame (`auto`, the default).
    let mut measuring = site::small(MacAddr::new([2, 0, 0, 0, 0, 9]))
        .load()
        .unwrap();
    shared.run(|| measuring.attach("eth1", XdpMode::Generic).unwrap());
    assert_eq!(measuring.gateways().max_frame(), 1494);
    // A cgroup program.
    let in_cgroup = Cgroup::new().unwrap();
    let mut option = ServerIdOption::server(7).unwrap();
    option.attach(in_cgroup.path()).unwrap();

    let servers = (site.lab.serve_tcp(PORT).unwrap(), site.lab.serve_udp(PORT));
    let tcp = Vip::tcp((site.lab.vip4(), PORT).into());
    let udp = Vip::udp((site.lab.vip4(), PORT).into());
    let reals = site::reals(&site.lab, site.lab.vip4());
    site.add_service(tcp, &reals);
    site.add_service(udp, &reals);
    let works = |site: &Site| {
        for backend in ["backend0", "backend1"] {
            site.connect_to(tcp, backend);
        }
    };
    works(&site);
    let hosts = |site: &Site| {
        let lab = &site.lab;
        let hosts = [&lab.balancers[0].host, &lab.backends[0].host];
        let hosts = hosts.into_iter().chain([&lab.backends[1].host, &shared]);
        hosts.map(attached).collect::<Vec<_>>()
    };
    let before = (hosts(&site), pins(&path));
    // Each shows something that could vanish.
    assert!(before.0[0].0 && before.0[0].1[1].contains("bpf"));
    assert!(before.0[1].1[0].contains("bpf") && before.0[2].0 && before.0[3].0);
    assert_eq!(
        pins(&path).len(),
        5,
        "array, program, counter, link and what goes with an entry"
    );
    let Site {
        katran,
        decaps,
        lab,
    } = site;

    let handles = (katran, decaps, sharing, root, monitor, measuring, option);
    let (katran, decaps, sharing, root, monitor, measuring, option) = drop_in_child(handles);

    let site = Site {
        katran,
        decaps,
        lab,
    };
    assert_eq!((hosts(&site), pins(&path)), before);
    let entries = SharedEntries::open(&path).unwrap();
    let held = || entries.programs().unwrap()[POSITION as usize].is_some();
    assert!(held());
    works(&site);
    let client = &site.lab.client;
    let socket = client.run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    let told = || {
        socket.send_to(&TOO_BIG, (site.lab.vip4(), PORT)).unwrap();
        !monitor.take().is_empty()
    };
    site::eventually("the monitor gets frames that are too big", told);
    shared.ip("link set eth1 mtu 1200").unwrap();
    site::eventually("the longest frame follows the MTU", || {
        measuring.gateways().max_frame() == 1194
    });
    let any = (Ipv4Addr::LOCALHOST, 0);
    let listener = in_cgroup.run(|| shared.run(|| TcpListener::bind(any).unwrap()));
    let address = listener.local_addr().unwrap();
    let connection = shared.run(|| TcpStream::connect(address).unwrap());
    site::eventually("the connection is counted", || {
        option.counters().unwrap().served == 1
    });
    drop((connection, listener));

    // Dropping in the parent removes everything.
    let Site {
        katran,
        decaps,
        lab,
    } = site;
    drop((katran, decaps, monitor, sharing, root, measuring, option));
    for host in [&lab.balancers[0].host, &lab.backends[0].host] {
        let (has_xdp, filters) = attached(host);
        assert!(
            !has_xdp && filters.iter().all(String::is_empty),
            "{filters:?}"
        );
    }
    assert!(!held());
    RootProgram::remove(&path).unwrap();
    drop(servers);
}
