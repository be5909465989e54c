//! Judges the facts about the machine and this process: the kernel, what it supports, and what this
//! process may do. Nothing needs to be loaded, so this can explain why loading fails.

use std::fs;
use std::path::Path;

use super::Diagnosis;
use super::Subject;
use super::facts::sysctl;
use crate::environment;
use crate::environment::Privileges;
use crate::sys::release;

/// Facilities newer than the oldest supported kernel, used where they exist.
const NEWER: [((u32, u32), &str); 3] = [
    ((6, 3), "reports what drivers can do"),
    ((6, 3), "strips tunnels of another family in tc"),
    ((6, 6), "tcx"),
];

/// From this release on, a real-time kernel handles the packets of a CPU one after the other only
/// if it was configured to.
const BH_LOCK_OPTIONAL: (u32, u32) = (6, 18);

/// Whether one packet may interrupt another on its CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Realtime {
    /// Not a real-time kernel: never.
    #[default]
    No,
    /// A lock prevents it.
    Locked,
    /// A real-time kernel without that lock.
    Unlocked,
    /// A real-time kernel whose configuration cannot be read.
    Unknown,
}

impl Realtime {
    fn gather() -> Self {
        let told = fs::read_to_string("/sys/kernel/realtime");
        let is_realtime = told.is_ok_and(|text| text.trim() == "1");
        if !is_realtime && !release::version().contains("PREEMPT_RT") {
            return Self::No;
        }
        let release = release::release();
        let configuration = fs::read_to_string(format!("/boot/config-{release}"));
        Self::of(&release, configuration.ok().as_deref())
    }

    /// The answer for a real-time kernel.
    fn of(release: &str, configuration: Option<&str>) -> Self {
        let is_set = |line: &str| line == "CONFIG_PREEMPT_RT_NEEDS_BH_LOCK=y";
        match configuration {
            _ if release::numbers(release) < BH_LOCK_OPTIONAL => Self::Locked,
            Some(configuration) if configuration.lines().any(is_set) => Self::Locked,
            Some(_) => Self::Unlocked,
            None => Self::Unknown,
        }
    }
}

/// The machine and this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostFacts {
    pub(crate) release: String,
    /// Why the kernel is too old, if it is.
    pub(crate) too_old: Option<String>,
    /// Whether the kernel compiles BPF programs.
    pub(crate) jit: Option<bool>,
    pub(crate) realtime: Realtime,
    /// The optional facilities that the kernel has.
    pub(crate) has: Vec<&'static str>,
    /// Those that it lacks.
    pub(crate) lacks: Vec<&'static str>,
    pub(crate) privileges: Option<Privileges>,
    /// One of our attachments is a root entry. To take an entry over, a process must be able to
    /// read whose it is.
    pub(crate) shares: bool,
}

impl HostFacts {
    /// `compiled`: whether the kernel compiled a program of ours. The caller sets `shares`.
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
            realtime: Realtime::gather(),
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
                "Linux {release} interprets BPF programs instead of compiling them: the balancer does not load, and \
                 the other programs are several times slower"
            ),
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(true) => found.ok(about, format!("Linux {release}, compiles BPF programs")),
        None => found.note(
            about,
            format!("Linux {release}; in this network namespace it does not report whether it compiles BPF programs"),
            "in the initial network namespace run: sysctl net.core.bpf_jit_enable (it must be 1)",
        ),
    }
    let has = format!("supports: {}", facts.has.join(", "));
    match facts.lacks.is_empty() {
        true => found.ok(about, has),
        false => found.ok(about, format!("{has}; not: {}", facts.lacks.join(", "))),
    }
    realtime(facts.realtime, found);
    privileges(facts, found);
}

fn realtime(realtime: Realtime, found: &mut Diagnosis) {
    let about = Subject::Kernel;
    match realtime {
        Realtime::No => {}
        Realtime::Locked => found.ok(about, "PREEMPT_RT; each CPU handles its packets one after the other"),
        Realtime::Unlocked => found.warn(
            about,
            "PREEMPT_RT without its BH lock: one packet may interrupt another and go where the other was sent",
            "boot a kernel with CONFIG_PREEMPT_RT_NEEDS_BH_LOCK=y, or without PREEMPT_RT",
        ),
        Realtime::Unknown => found.warn(
            about,
            "PREEMPT_RT, and its configuration cannot be read: without the BH lock one packet may interrupt \
             another and go where the other was sent",
            "zgrep PREEMPT_RT_NEEDS_BH_LOCK /proc/config.gz (it must be y)",
        ),
    }
}

fn privileges(facts: &HostFacts, found: &mut Diagnosis) {
    let about = Subject::Privileges;
    match &facts.privileges {
        None => found.note(
            about,
            "/proc is not readable, so the capabilities are unknown",
            "mount -t proc proc /proc",
        ),
        Some(privileges) if !privileges.lacking.is_empty() => found.problem(
            about,
            format!("missing: {}", privileges.lacking.join(", ")),
            "run as root, or grant them (AmbientCapabilities= of a systemd unit)",
        ),
        Some(privileges) if facts.shares && !privileges.sees_all_programs => found.warn(
            about,
            "without CAP_SYS_ADMIN this process cannot see whose program is in a root entry, so it cannot \
             take over an entry that a crash left",
            "grant CAP_SYS_ADMIN too",
        ),
        Some(_) => found.ok(about, "sufficient"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn a_real_time_kernel_without_its_lock_is_a_warning() {
        for (realtime, severity) in [
            (Realtime::No, None),
            (Realtime::Locked, Some(Severity::Ok)),
            (Realtime::Unlocked, Some(Severity::Warning)),
            (Realtime::Unknown, Some(Severity::Warning)),
        ] {
            let facts = HostFacts {
                jit: Some(true),
                realtime,
                ..HostFacts::default()
            };
            let mut found = Diagnosis::default();
            host(&facts, &mut found);
            let told = found.about(Subject::Kernel);
            let mut told = told.filter(|finding| finding.message.contains("PREEMPT_RT"));
            let told = told.next().map(|finding| finding.severity);
            assert_eq!(told, severity, "{realtime:?}");
        }
    }

    #[test]
    fn a_real_time_kernel_has_its_lock_or_does_not_tell() {
        let with = "CONFIG_PREEMPT_RT=y\nCONFIG_PREEMPT_RT_NEEDS_BH_LOCK=y\n";
        let without = "CONFIG_PREEMPT_RT=y\n# CONFIG_PREEMPT_RT_NEEDS_BH_LOCK is not set\n";
        for (release, configuration, expected) in [
            ("6.1.0-49-rt-amd64", None, Realtime::Locked),
            ("6.17.9", Some(without), Realtime::Locked),
            ("6.18.0-rt", Some(with), Realtime::Locked),
            ("6.18.0-rt", Some(without), Realtime::Unlocked),
            ("7.0.1", Some(""), Realtime::Unlocked),
            ("6.18.0-rt", None, Realtime::Unknown),
        ] {
            assert_eq!(Realtime::of(release, configuration), expected, "{release}");
        }
    }
}
