//! Test hosts: network namespaces that vanish with the process.
//!
//! A [`Host`] is an anonymous network namespace, held by a thread of this process. Nothing is
//! created under a name (no `ip netns add`), so a test that panics, is interrupted or is killed
//! with SIGKILL leaves nothing behind: namespace, interfaces, routes and child processes go with
//! it. Hosts are joined by [`veth`], or come ready-made as a [`Lab`]:
//!
//! ```text
//!                                +---------------+
//!                          +-----+ balancers[..] |   MTU 1600
//!   +--------+  MTU 1500 +-+------+ +------------+
//!   | client +-----------+ router |
//!   +--------+           +-+------+ +------------+
//!                          +--------+ backends[..] | MTU 1600, VIPs on `lo`
//!                                   +--------------+
//! ```
//!
//! The router sends the VIPs to the balancers; a backend answers the client directly (DSR).
//! What runs *on* the hosts is up to the caller: an XDP program attached within
//! [`Host::run`], a process started by [`Host::spawn_command`], or one of the small servers here,
//! which answer with their name so that a client knows which backend it reached.
//!
//! The crate knows nothing of the load balancer, and fails rather than skips: call
//! [`require_root`] first, so that a missing privilege is said in plain words.

mod bpf_fs;
mod cgroup;
mod eventually;
mod host;
mod http;
mod kernel;
mod link;
mod process;
mod sys;
mod tcp;
mod threads;
mod topology;
mod udp;

pub use bpf_fs::private_bpf_fs;
pub use cgroup::Cgroup;
pub use eventually::eventually;
pub use eventually::waited;
pub use host::Host;
pub use host::Inside;
pub use http::Response;
pub use http::http_get;
pub use kernel::Newer;
pub use link::MacAddr;
pub use link::Port;
pub use link::veth;
pub use process::Process;
pub use tcp::TCP_LISTEN;
pub use tcp::TCP_TIME_WAIT;
pub use tcp::TcpClient;
pub use tcp::TcpServer;
pub use tcp::tcp_states;
pub use threads::StopOnDrop;
pub use threads::allowed_cpus;
pub use threads::is_thread_there;
pub use threads::stay_on;
pub use topology::BACKEND_GATEWAY_V4;
pub use topology::BACKEND_GATEWAY_V6;
pub use topology::Backend;
pub use topology::Balancer;
pub use topology::Lab;
pub use topology::LabConfig;
pub use udp::UdpClient;
pub use udp::UdpServer;

/// Panics with a clear message unless the process runs as root.
///
/// Tests that load programs into the kernel need it, and a test that skips itself proves nothing.
///
/// # Panics
///
/// If the effective user id is not 0.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "run as root: these tests load programs into the kernel"
    );
}
