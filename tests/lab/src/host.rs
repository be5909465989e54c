//! A host: one anonymous network namespace and the thread that holds it.
//!
//! The keeper thread unshares its network namespace and then only starts child processes, which the
//! kernel kills with it. Closures run on separate threads that enter the namespace, so several
//! can run at once and one may call another.

use std::fmt;
use std::fs;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::panic;
use std::path::PathBuf;
use std::process;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::thread;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use crate::Process;
use crate::kernel::Newer;
use crate::sys;
use crate::sys::Verdict;

/// The calling thread's network namespace. (`/proc/self` would be that of the main thread.)
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// For arguments of `mount` that do not matter.
const NOTHING: Option<&str> = None;

/// A request to the keeper thread, with a channel for the answer.
type Spawn = (Command, mpsc::Sender<io::Result<Child>>);

/// A test host: a network namespace that lives as long as this value.
///
/// It starts with `lo` up, reverse-path filters off, and IPv6 without duplicate address detection
/// and autoconfiguration, so that addresses work at once.
///
/// Dropping it kills its processes and removes the namespace with its interfaces, as soon as the
/// last socket made in it is closed; so does the end of this process, whatever the cause.
#[must_use = "the namespace goes when the host is dropped"]
pub struct Host {
    name: String,
    namespace: OwnedFd,
    /// Taken on drop, which ends the keeper.
    spawner: Option<mpsc::Sender<Spawn>>,
    keeper: Option<thread::JoinHandle<()>>,
    /// Of XDP programs, which are detached when these are closed.
    links: Mutex<Vec<(String, OwnedFd)>>,
}

impl Host {
    /// Makes a host. The name is for messages only and need not be unique.
    ///
    /// # Errors
    ///
    /// Those of the kernel, usually that root is needed, and if iproute2 is not installed.
    pub fn new(name: impl Into<String>) -> io::Result<Self> {
        let name = name.into();
        let (spawner, requests) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let keeper = thread::Builder::new()
            .name(format!("keeper of {name}"))
            .spawn(move || keep(&ready, &requests))?;
        let namespace = started
            .recv()
            .map_err(|_| io::Error::other("the keeper thread died"))
            .and_then(|result| result)
            .map_err(|e| context(&e, format_args!("cannot make the network namespace {name}")))?;
        let host = Self {
            name,
            namespace,
            spawner: Some(spawner),
            keeper: Some(keeper),
            links: Mutex::default(),
        };
        host.prepare()?;
        Ok(host)
    }

    /// The name given to [`Host::new`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which any root process can open the namespace (`ip link ... netns <path>`,
    /// `nsenter --net=<path>`) while this host and this process live.
    pub fn namespace_path(&self) -> PathBuf {
        let fd = self.namespace.as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{fd}", process::id()))
    }

    /// Runs a closure inside the namespace, on a new thread, and returns its result.
    ///
    /// Sockets stay in the namespace they were made in: one returned from here can be used
    /// anywhere, and so can an attached XDP program. `/proc/net` and `/sys` show those of the
    /// caller, not of the host; `/proc/thread-self/net` and `/proc/sys/net` are right.
    ///
    /// # Panics
    ///
    /// With the closure's own panic, and if the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || match self.enter() {
            Ok(_inside) => f(),
            Err(e) => panic!("cannot enter {}: {e}", self.name),
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name(self.name.clone())
                .spawn_scoped(scope, inside)
                .unwrap_or_else(|e| panic!("cannot start a thread for {}: {e}", self.name));
            thread
                .join()
                .unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Moves the calling thread into the namespace until the returned guard is dropped, for values
    /// that cannot be sent to another thread.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn enter(&self) -> io::Result<Inside> {
        let outside = File::open(OWN_NAMESPACE)?.into();
        nix::sched::setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        Ok(Inside {
            outside,
            _this_thread_only: PhantomData,
        })
    }

    /// Starts a process inside. It dies with the returned handle, the host, or this process,
    /// whichever ends first.
    ///
    /// This does not hold for processes that it forks: run servers in the foreground and as one
    /// process (nginx: `daemon off; master_process off;`).
    ///
    /// # Errors
    ///
    /// If the program cannot be started.
    pub fn spawn_command(&self, mut command: Command) -> io::Result<Process> {
        sys::die_with_parent(&mut command);
        self.start(command)
    }

    /// Starts a process inside, which outlives this one unless it ends by itself.
    fn start(&self, command: Command) -> io::Result<Process> {
        let what = command.get_program().to_string_lossy().into_owned();
        let (reply, child) = mpsc::channel();
        let gone = || io::Error::other("the keeper thread died");
        self.spawner
            .as_ref()
            .ok_or_else(gone)?
            .send((command, reply))
            .map_err(|_| gone())?;
        child
            .recv()
            .map_err(|_| gone())
            .and_then(|result| result)
            .map(|child| Process::new(what.clone(), child))
            .map_err(|e| context(&e, format_args!("cannot start {what} in {}", self.name)))
    }

    /// Runs a program inside to its end and returns its output, whatever its exit status.
    ///
    /// # Errors
    ///
    /// If the program cannot be started.
    pub fn output(&self, command: Command) -> io::Result<Output> {
        self.spawn_command(captured(command))?.wait_with_output()
    }

    /// Runs iproute2's `ip` inside with these arguments, split at white space, and returns what it
    /// prints.
    ///
    /// # Errors
    ///
    /// If `ip` fails: its message, with the command and the host.
    pub fn ip(&self, arguments: &str) -> io::Result<String> {
        self.tool("ip", arguments)
    }

    /// Runs a short-lived tool inside with these arguments, split at white space, and returns what
    /// it prints.
    ///
    /// # Errors
    ///
    /// If it fails: its message, with the command and the host.
    pub fn tool(&self, program: &str, arguments: &str) -> io::Result<String> {
        let mut command = Command::new(program);
        command.args(arguments.split_whitespace());
        // Not killed with this process, but it ends by itself soon. A process that is killed with
        // this one must be forked, and fork copies the page tables of all mapped balancer maps: a
        // third of many tests' CPU time.
        let output = self.start(captured(command))?.wait_with_output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(io::Error::other(format!(
            "`{program} {arguments}` in {}: {}: {}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        )))
    }

    /// Sets a kernel parameter of the namespace, such as `net.ipv4.ip_forward`.
    ///
    /// Dots and slashes may be swapped, for interface names with a dot.
    ///
    /// # Errors
    ///
    /// If there is no such parameter or it does not take the value.
    pub fn sysctl(&self, key: &str, value: impl fmt::Display) -> io::Result<()> {
        let path = if key.contains('/') {
            key.to_owned()
        } else {
            key.replace('.', "/")
        };
        let value = value.to_string();
        self.run(|| fs::write(format!("/proc/sys/{path}"), &value))
            .map_err(|e| context(&e, format_args!("{key} = {value} in {}", self.name)))
    }

    /// Writes to a file below `/sys`, which has this host's interfaces, such as
    /// `class/net/eth0/queues/rx-0/rps_cpus`.
    ///
    /// # Errors
    ///
    /// If there is no such file or it does not take the value.
    pub fn sysfs(&self, path: &str, value: impl fmt::Display) -> io::Result<()> {
        let value = value.to_string();
        self.run(|| {
            // `/sys` shows the interfaces of the namespace that mounted it, so this thread mounts
            // its own, in a mount namespace that ends with it.
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
            nix::mount::mount(NOTHING, "/", NOTHING, private, NOTHING)?;
            let sysfs = Some("sysfs");
            nix::mount::mount(sysfs, "/sys", sysfs, MsFlags::empty(), NOTHING)?;
            fs::write(format!("/sys/{path}"), &value)
        })
        .map_err(|e| context(&e, format_args!("/sys/{path} = {value} in {}", self.name)))
    }

    /// Makes one CPU process all packets that an interface without an XDP program receives.
    ///
    /// A network card brings a flow's packets to one CPU, which per-CPU state depends on; between
    /// virtual interfaces they stay on the sender's current CPU. Set this on the interface through
    /// which packets enter the lab.
    ///
    /// # Errors
    ///
    /// As [`Host::sysfs`].
    pub fn receive_on_cpu(&self, interface: &str, cpu: u32) -> io::Result<()> {
        // A mask in hexadecimal, in groups of 32 bits.
        let mask = format!(
            "{:x}{}",
            1u32 << (cpu % 32),
            ",00000000".repeat(cpu as usize / 32)
        );
        self.sysfs(&format!("class/net/{interface}/queues/rx-0/rps_cpus"), mask)
    }

    /// The index of an interface of this host.
    ///
    /// # Errors
    ///
    /// If there is no such interface.
    pub fn interface_index(&self, interface: &str) -> io::Result<u32> {
        self.run(|| nix::net::if_::if_nametoindex(interface))
            .map_err(|e| context(&e.into(), format_args!("{interface} in {}", self.name)))
    }

    /// Attaches a program to an interface until the host is dropped.
    pub(crate) fn attach_xdp(&self, interface: &str, verdict: Verdict) -> io::Result<()> {
        let index = self.interface_index(interface)?;
        let link = self
            .run(|| sys::attach_xdp(index, verdict))
            .map_err(|e| context(&e, format_args!("XDP on {interface} in {}", self.name)))?;
        self.keep(interface, link);
        Ok(())
    }

    fn keep(&self, interface: &str, link: OwnedFd) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.push((interface.to_owned(), link));
    }

    /// Removes from an interface what this type has attached: its port's XDP program, and tags.
    pub fn strip(&self, interface: &str) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|(on, _)| on != interface);
    }

    /// Adds VLAN tags to everything that leaves by an interface, and removes as many on arrival, as
    /// a switch does for a host without VLANs. Each is a protocol (0x8100 for IEEE 802.1Q, 0x88a8
    /// for 802.1ad) and a tag, the inner one first.
    ///
    /// # Errors
    ///
    /// Those of the kernel. Before Linux 6.6 this needs the kernel modules `act_vlan` and
    /// `cls_matchall`.
    pub fn tag(&self, interface: &str, tags: &[(u16, u16)]) -> io::Result<()> {
        // In the frame itself, where XDP programs see them.
        self.tool(
            "ethtool",
            &format!(
                "-K {interface} txvlan off rxvlan off tx-vlan-stag-hw-insert off \
                 rx-vlan-stag-hw-parse off"
            ),
        )?;
        if !Newer::Tcx.is_here() {
            return self.tag_by_actions(interface, tags);
        }
        let index = self.interface_index(interface)?;
        for direction in [sys::Direction::In, sys::Direction::Out] {
            let link = self
                .run(|| sys::attach_tags(index, direction, tags))
                .map_err(|e| context(&e, format_args!("tags on {interface} in {}", self.name)))?;
            self.keep(interface, link);
        }
        Ok(())
    }

    /// Adds VLAN tags to what leaves by an interface, and removes none, like a switch port in the
    /// wrong VLAN.
    ///
    /// # Errors
    ///
    /// Those of the kernel. Needs Linux 6.6.
    pub fn tag_leaving(&self, interface: &str, tags: &[(u16, u16)]) -> io::Result<()> {
        self.tool("ethtool", &format!("-K {interface} txvlan off"))?;
        let index = self.interface_index(interface)?;
        let link = self
            .run(|| sys::attach_tags(index, sys::Direction::Out, tags))
            .map_err(|e| context(&e, format_args!("tags on {interface} in {}", self.name)))?;
        self.keep(interface, link);
        Ok(())
    }

    /// The same with the kernel's own tc actions, which small kernels may lack.
    fn tag_by_actions(&self, interface: &str, tags: &[(u16, u16)]) -> io::Result<()> {
        let filter = |direction: &str, actions: &[String]| {
            let actions = actions.join(" pipe ");
            let filter = format!("filter add dev {interface} {direction} matchall {actions}");
            self.tool("tc", &filter).map(drop)
        };
        let push = |&(protocol, tag): &(u16, u16)| {
            let (priority, id) = (tag >> 13, tag & 0xfff);
            format!("action vlan push id {id} protocol {protocol:#x} priority {priority}")
        };
        self.tool("tc", &format!("qdisc add dev {interface} clsact"))?;
        filter("ingress", &vec!["action vlan pop".to_owned(); tags.len()])?;
        filter("egress", &tags.iter().map(push).collect::<Vec<_>>())
    }

    fn prepare(&self) -> io::Result<()> {
        // The interface's own value counts, or the larger of it and `all`: new interfaces copy
        // `default`, and `lo` already exists.
        for conf in ["all", "default", "lo"] {
            self.sysctl(&format!("net.ipv4.conf.{conf}.rp_filter"), 0)?;
            self.sysctl(&format!("net.ipv6.conf.{conf}.accept_dad"), 0)?;
            self.sysctl(&format!("net.ipv6.conf.{conf}.accept_ra"), 0)?;
            self.sysctl(&format!("net.ipv6.conf.{conf}.autoconf"), 0)?;
        }
        self.ip("link set lo up")?;
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.spawner = None;
        if let Some(keeper) = self.keeper.take() {
            // The keeper cannot panic; even then the namespace would be gone.
            let _ = keeper.join();
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Keeps the calling thread inside a host's namespace; see [`Host::enter`].
#[must_use = "the thread leaves the namespace when the guard is dropped"]
#[derive(Debug)]
pub struct Inside {
    outside: OwnedFd,
    /// The guard must be dropped on the thread that made it.
    _this_thread_only: PhantomData<*const ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(e) = nix::sched::setns(self.outside.as_fd(), CloneFlags::CLONE_NEWNET) {
            // Continuing in the wrong namespace would make every later failure a riddle.
            eprintln!("cannot leave a test host's network namespace: {e}");
            process::abort();
        }
    }
}

/// The keeper thread: unshares, reports that, then starts processes until the host is dropped.
fn keep(ready: &mpsc::Sender<io::Result<OwnedFd>>, requests: &mpsc::Receiver<Spawn>) {
    let namespace = nix::sched::unshare(CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .and_then(|()| File::open(OWN_NAMESPACE))
        .map(OwnedFd::from);
    // A receiver that is gone has given up; then the loop below ends at once.
    let _ = ready.send(namespace);
    for (mut command, reply) in requests {
        let _ = reply.send(command.spawn());
    }
}

/// The same command, with its output captured.
fn captured(mut command: Command) -> Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The same kind of error, with what was attempted.
fn context(error: &io::Error, what: fmt::Arguments<'_>) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
