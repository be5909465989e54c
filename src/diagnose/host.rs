//! What follows from the facts about the machine and this process: the kernel and what it supports, and
//! what this process may do there. It needs nothing loaded, so it can say why loading fails.

use std::path::Path;

use super::Diagnosis;
use super::Subject;
use super::facts::sysctl;
use crate::environment;
use crate::environment::Privileges;
use crate::sys::release;

/// What kernels above the oldest supported one have that is used where it is there.
const NEWER: [((u32, u32), &str); 3] = [
    ((6, 3), "tells what drivers can do"),
    ((6, 3), "strips tunnels of another family in tc"),
    ((6, 6), "tcx"),
];

/// The machine and this process, as far as balancing goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostFacts {
    pub(crate) release: String,
    /// Why the kernel is too old.
    pub(crate) too_old: Option<String>,
    /// BPF programs are compiled.
    pub(crate) jit: Option<bool>,
    /// What it has of what is used where it is there.
    pub(crate) has: Vec<&'static str>,
    /// And what it has not.
    pub(crate) lacks: Vec<&'static str>,
    pub(crate) privileges: Option<Privileges>,
    /// An entry of a root program is ours: to take one over, one has to see whose it is.
    pub(crate) shares: bool,
}

impl HostFacts {
    /// `compiled`: what the kernel says of a program of ours. Whether an entry is ours, who asks knows.
    pub(crate) fn gather(compiled: Option<bool>) -> Self {
        let (has, lacks): (Vec<_>, Vec<_>) = NEWER
            .iter()
            .partition(|(release, _)| release::is_at_least(*release));
        let names =
            |of: Vec<&((u32, u32), &'static str)>| of.iter().map(|(_, name)| *name).collect();
        let (mut has, mut lacks): (Vec<_>, Vec<_>) = (names(has), names(lacks));
        match Path::new("/sys/kernel/btf/vmlinux").exists() {
            true => has.push("BTF"),
            false => lacks.push("BTF"),
        }
        Self {
            release: release::release(),
            too_old: environment::check_kernel().err().map(|e| e.to_string()),
            jit: compiled.or_else(|| sysctl("net/core/bpf_jit_enable").map(|on| on != 0)),
            has,
            lacks,
            privileges: environment::privileges(),
            shares: false,
        }
    }
}

pub(super) fn host(facts: &HostFacts, found: &mut Diagnosis) {
    let release = &facts.release;
    let about = Subject::Kernel;
    if let Some(message) = &facts.too_old {
        found.problem(about, message, "boot a newer kernel");
        return;
    }
    match facts.jit {
        Some(false) => found.warn(
            about,
            format!(
                "Linux {release} interprets BPF programs instead of compiling them: the balancer does not load, the \
                 other programs are several times slower"
            ),
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(true) => found.ok(about, format!("Linux {release}, compiles BPF programs")),
        None => found.note(
            about,
            format!("Linux {release}; it does not tell here whether it compiles BPF programs"),
            "outside of network namespaces: sysctl net.core.bpf_jit_enable; 1 is right",
        ),
    }
    let has = format!("supports: {}", facts.has.join(", "));
    match facts.lacks.is_empty() {
        true => found.ok(about, has),
        false => found.ok(about, format!("{has}; not: {}", facts.lacks.join(", "))),
    }
    privileges(facts, found);
}

fn privileges(facts: &HostFacts, found: &mut Diagnosis) {
    let about = Subject::Privileges;
    match &facts.privileges {
        None => found.note(
            about,
            "/proc does not tell",
            "mount -t proc proc /proc",
        ),
        Some(privileges) if !privileges.lacking.is_empty() => found.problem(
            about,
            format!("missing: {}", privileges.lacking.join(", ")),
            "run as root, or grant them (AmbientCapabilities= of a systemd unit)",
        ),
        Some(privileges) if facts.shares && !privileges.sees_all_programs => found.warn(
            about,
            "without CAP_SYS_ADMIN nobody tells whose program is in a shared entry: one that a crash \
             has left cannot be taken over",
            "grant CAP_SYS_ADMIN, too",
        ),
        Some(_) => found.ok(about, "sufficient"),
    }
}
