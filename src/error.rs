//! The crate's error type.
//!
//! Every variant names the operation and its object, carries the kernel's errno where there is one,
//! and prints a remedy in an operator's words (`tests/docs/rust_words.rs` checks that).

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;

use nix::libc;

/// The resource that ran out where it was descriptors.
pub(crate) const OPEN_FILES: &str = "open files of this process (RLIMIT_NOFILE)";
/// The operation of an attachment that the driver refuses.
pub(crate) const ATTACH_NATIVE: &str = "attach XDP in native mode to";

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, on what, and the remedy.
///
/// The text is complete, including the kernel's errno; there is no
/// [`source`](std::error::Error::source) to print.
///
/// A call that returns an error has changed nothing, unless its documentation says otherwise.
///
/// ```no_run
/// use katran::Error;
/// use katran::XdpMode;
///
/// # fn example(katran: &mut katran::Katran) -> katran::Result<()> {
/// match katran.attach("eth0", XdpMode::Native) {
///     Ok(attachment) => println!("attached in {} mode", attachment.mode),
///     Err(Error::Unsupported { .. }) => println!("the driver has no native mode"),
///     Err(error) => eprintln!("{error}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of range, or contradicts another one.
    #[error("configuration: {setting} = {value}: {reason}")]
    InvalidConfig {
        /// The name of the setting, as in [`Builder`](crate::Builder) and in the TOML form.
        setting: &'static str,
        /// The refused value.
        value: String,
        /// Why, and what is accepted.
        reason: String,
    },

    /// An address cannot be a VIP, a real or a tunnel end.
    #[error("address {address}: {reason}")]
    InvalidAddress {
        /// The refused address.
        address: IpAddr,
        /// Why, and what is accepted.
        reason: &'static str,
    },

    /// Malformed text: a MAC address, a VIP, a prefix length, a flag.
    #[error("`{input}` is not {expected}")]
    Parse {
        /// The text that was read.
        input: String,
        /// What was expected.
        expected: &'static str,
    },

    /// An invalid configuration document, or a state that contradicts itself.
    #[error("{}{message}", place(file.as_deref(), *at))]
    Document {
        /// The file, if it was read from one.
        file: Option<PathBuf>,
        /// Line and column from 1, if there is a document.
        at: Option<(usize, usize)>,
        /// What is wrong, and what to write instead.
        message: String,
    },

    /// The thing to be added exists already.
    #[error("{what} exists already")]
    AlreadyExists {
        /// The thing to be added.
        what: String,
    },

    /// What is pinned there belongs to another process, or to another handle of this one.
    #[error(
        "what is pinned in {} belongs to {}: end that process first (the kernel keeps the programs \
         running); you can also take a balancer over",
        path.display(),
        owner.map_or("a process that cannot be seen from here".to_owned(), |id| format!("process {id}"))
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// The process; `None` if this one cannot see it, as in another PID namespace.
        owner: Option<u32>,
    },

    /// Another process has taken over the pinned balancer; this handle can no longer read or change
    /// it.
    #[error(
        "the balancer pinned in {} was handed over to {}: drop this handle (the balancer \
         continues to forward); to get the balancer back, take it over",
        path.display(),
        to.map_or("a process that cannot be seen from here".to_owned(), |id| format!("process {id}"))
    )]
    HandedOver {
        /// Where it is pinned.
        path: PathBuf,
        /// The process that asked for it; `None` if this one cannot see it, as in another PID
        /// namespace.
        to: Option<u32>,
    },

    /// The handle of a pinned balancer was dropped, which ends what came from it, such as a
    /// monitor.
    #[error(
        "the handle of the balancer pinned in {} was dropped, and another process may own the \
        balancer by now: keep the handle while you use what it made, or adopt the balancer and \
        start again",
        path.display()
    )]
    HandleDropped {
        /// Where the balancer is pinned.
        path: PathBuf,
    },

    /// The thing to be given up is still needed.
    #[error("{what} is in use by {by}")]
    InUse {
        /// The thing to be given up.
        what: String,
        /// What needs it, and the remedy.
        by: &'static str,
    },

    /// The thing to be changed or removed does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// What was named.
        what: String,
    },

    /// A table is full; nothing has changed.
    #[error(
        "no room for more {what}: the limit is {limit}; {}",
        how_to_raise(what)
    )]
    Exhausted {
        /// What ran out, with the setting that limits it.
        what: &'static str,
        /// The current limit.
        limit: u64,
    },

    /// This version, or its configuration, does not support the request.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// What was requested.
        what: String,
        /// Why not, and the alternative.
        reason: &'static str,
    },

    /// The process lacks a privilege.
    #[error("cannot {operation}: not permitted: {}", how_to_permit(missing))]
    Privilege {
        /// What was tried, with its object.
        operation: String,
        /// The missing capabilities, or why the kernel refuses despite them.
        missing: String,
    },

    /// The kernel has no `bpf` system call, or forbids it to this process.
    #[error(
        "this process cannot call bpf(2): run a kernel with CONFIG_BPF_SYSCALL, or allow the call \
         in the container's seccomp profile"
    )]
    BpfUnavailable,

    /// The kernel is too old.
    #[error("kernel {found} is too old for {what}: boot {needed} or newer")]
    KernelTooOld {
        /// What needs the newer kernel.
        what: &'static str,
        /// The running kernel's release.
        found: String,
        /// The required release.
        needed: &'static str,
    },

    /// No such interface in this network namespace.
    #[error("interface {interface} does not exist in this network namespace: see `ip link`")]
    NoSuchInterface {
        /// The name looked for.
        interface: String,
    },

    /// The interface has another XDP program, which stays.
    #[error(
        "interface {interface} already runs XDP program {program_id} ({program_name}) of another \
         owner: stop the process that attached it (`bpftool link` shows it; if there is no \
         link: `ip link set dev {interface} xdp off`), or share the interface through a root \
         program"
    )]
    ForeignProgram {
        /// The interface.
        interface: String,
        /// The kernel's id of that program.
        program_id: u32,
        /// The name of that program; empty if the kernel does not report it.
        program_name: String,
    },

    /// A file could not be made, read or written.
    #[error("cannot {operation} {}: {error}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },

    /// The library did not find the gateway.
    #[error(
        "no next hop for packets to reals: {reason}: set gateway_mac, or next_hops = \"per-real\" \
         if the reals are on this host's own segment; see `ip route` and `ip neighbour`"
    )]
    NoNextHop {
        /// What was missing.
        reason: String,
    },

    /// The entry of a shared array holds another program, which stays.
    #[error(
        "entry {position} of {} holds program {program_id} ({program_name}) of another owner: \
         choose another position, or empty it first",
        path.display()
    )]
    ForeignEntry {
        /// Where the array is pinned.
        path: PathBuf,
        /// The entry.
        position: u32,
        /// The kernel's id of that program.
        program_id: u32,
        /// The name of that program; empty if the kernel does not report it.
        program_name: String,
    },

    /// The place has another tc filter, which stays.
    #[error(
        "interface {interface} already has a tc filter of priority {priority} with program \
         {program_id} ({program_name}) of another owner: choose another priority"
    )]
    ForeignTcFilter {
        /// The interface.
        interface: String,
        /// The priority.
        priority: u16,
        /// The kernel's id of that program.
        program_id: u32,
        /// The name of that program; empty if the kernel does not report it.
        program_name: String,
    },

    /// The maps do not fit into memory.
    #[error(
        "{} ({limited_by}): raise that limit or free some memory, or lower flow_table_size or \
         max_reals",
        how_much_lacks(what, *needed, *available)
    )]
    InsufficientMemory {
        /// What needs the memory: all maps together, the map that the kernel refused, or the
        /// operation.
        what: String,
        /// Bytes needed; 0 if only the kernel knows.
        needed: u64,
        /// Bytes that were available.
        available: u64,
        /// The file with that limit: `/proc/meminfo` for the machine, or the limit of a memory
        /// cgroup, such as `/sys/fs/cgroup/system.slice/memory.max`, which free(1) does not show.
        limited_by: String,
    },

    /// The verifier rejected a program.
    #[error(
        "the kernel's verifier rejected program {program} ({errno}): boot a newer kernel, or \
         build with another clang (14 or newer); please report the end of the log:\n{log}"
    )]
    Verifier {
        /// The program's name.
        program: &'static str,
        /// The end of the verifier's log.
        log: String,
        /// The kernel's errno.
        errno: io::Error,
    },

    /// Any other refusal of the kernel.
    #[error("cannot {operation} {object}: {errno}{}", what_to_do(operation, errno))]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// Its object.
        object: String,
        /// The kernel's errno. libbpf-rs hides most numbers, so an error that came through it may
        /// have no [`raw_os_error`](io::Error::raw_os_error); kind and text are the same.
        errno: io::Error,
    },
}

/// The place of a fault in a document, in the usual form for editors.
fn place(file: Option<&Path>, at: Option<(usize, usize)>) -> String {
    match (file, at) {
        (Some(file), Some((line, column))) => format!("{}:{line}:{column}: ", file.display()),
        (Some(file), None) => format!("{}: ", file.display()),
        (None, Some((line, column))) => {
            format!("configuration document: line {line}, column {column}: ")
        }
        (None, None) => "configuration document: ".to_owned(),
    }
}

/// What needs the memory, and how it compares with the memory that there is.
fn how_much_lacks(what: &str, needed: u64, available: u64) -> String {
    match needed {
        0 => format!(
            "the kernel found too little memory for {what}: {available} bytes are available"
        ),
        bytes if bytes > available => {
            format!("{what} needs {bytes} bytes, but only {available} are available")
        }
        bytes => format!(
            "{what} needs {bytes} bytes, which the kernel refused although {available} are \
             available"
        ),
    }
}

/// The missing capabilities with the remedy, or why the kernel refuses.
fn how_to_permit(missing: &str) -> String {
    match missing.starts_with("CAP_") {
        true => format!(
            "this process lacks {missing}: run as root, or grant the capabilities (`setcap`, or \
             `AmbientCapabilities=` of the unit)"
        ),
        false => missing.to_owned(),
    }
}

/// How to raise a limit.
fn how_to_raise(what: &str) -> &'static str {
    match what == OPEN_FILES {
        true => {
            "raise it (`LimitNOFILE=` of the unit, `ulimit -n`, prlimit(1)): a balancer needs \
             about 100, and 1024 for fast changes of thousands of VIPs"
        }
        false => "load with a larger limit",
    }
}

/// The remedy for a refusal that operation and number explain.
fn what_to_do(operation: &str, errno: &io::Error) -> &'static str {
    match errno.raw_os_error() {
        Some(libc::EINVAL | libc::ERANGE | libc::E2BIG) if operation == ATTACH_NATIVE => {
            ": its MTU may be too large for one page: lower it, set frags, or use generic mode"
        }
        Some(libc::ENFILE) => ": the system has too many open files: raise the sysctl fs.file-max",
        Some(libc::ENOSPC) => {
            ": the table or file system for it is full: remove what is not needed there, or enlarge it"
        }
        Some(libc::E2BIG) => ": a map is full, or too large for the kernel: load with other sizes",
        Some(libc::EAGAIN) => {
            ": the process has too many threads or too much locked memory, or got too many \
             signals: raise `TasksMax=` of the unit, \
             `ulimit -u`, `ulimit -l`"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        let kernel = |number| Error::Kernel {
            operation: "write",
            object: "it".to_owned(),
            errno: io::Error::from_raw_os_error(number),
        };
        for (number, says) in [
            (libc::ENFILE, "fs.file-max"),
            (libc::ENOSPC, "is full"),
            (libc::E2BIG, "other sizes"),
            (libc::EAGAIN, "TasksMax="),
        ] {
            let text = kernel(number).to_string();
            assert!(text.contains(says), "{text}");
        }
        assert!(kernel(libc::EINVAL).to_string().ends_with("(os error 22)"));
        let native = Error::Kernel {
            operation: ATTACH_NATIVE,
            object: "eth0".to_owned(),
            errno: io::Error::from_raw_os_error(libc::EINVAL),
        };
        let text = native.to_string();
        assert!(
            text.starts_with("cannot attach XDP in native mode to eth0: Invalid argument"),
            "{text}"
        );
        assert!(text.contains("its MTU may be too large"), "{text}");
        let refused = |missing: &str| {
            let error = Error::Privilege {
                operation: "load katran".to_owned(),
                missing: missing.to_owned(),
            };
            error.to_string()
        };
        let lacks =
            "cannot load katran: not permitted: this process lacks CAP_BPF: run as root, or";
        assert!(refused("CAP_BPF").starts_with(lacks));
        assert!(refused("a seccomp profile").ends_with("not permitted: a seccomp profile"));
        let limit = |what| Error::Exhausted { what, limit: 7 }.to_string();
        assert!(limit(OPEN_FILES).contains("limit is 7; raise it (`LimitNOFILE="));
        assert!(limit("VIPs (max_vips)").ends_with("limit is 7; load with a larger limit"));
        let memory = |needed| {
            let error = Error::InsufficientMemory {
                what: "the call to load decap".to_owned(),
                needed,
                available: 9,
                limited_by: "memory.max".to_owned(),
            };
            error.to_string()
        };
        for (needed, said) in [
            (
                0,
                "the kernel found too little memory for the call to load decap: 9 bytes are available",
            ),
            (
                16,
                "the call to load decap needs 16 bytes, but only 9 are available",
            ),
            (
                8,
                "the call to load decap needs 8 bytes, which the kernel refused although 9 are \
                 available",
            ),
        ] {
            let start = format!("{said} (memory.max): raise");
            assert!(memory(needed).starts_with(&start), "{}", memory(needed));
        }
    }
}
