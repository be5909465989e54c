//! What this machine and this process can do: kernel release, privileges, free memory.
//!
//! Asked before an operation and after a refusal, so that an error can name the remedy instead of
//! an errno.

mod descriptors;
mod memory;

use std::fs;
use std::path::Path;

use nix::sys::utsname::uname;

pub(crate) use descriptors::exhausted_descriptors;
pub(crate) use memory::Available;
pub(crate) use memory::available_memory;

use crate::error::Error;
use crate::error::Result;
use crate::sys::release::numbers;
use crate::sys::text;

/// The oldest long-term kernel with everything that the crate uses: mappable arrays, inner maps of
/// different sizes, XDP links, the coarse clock, multi-buffer frames, and batch calls on per-CPU
/// arrays and on maps of maps (the latest of these, in Linux 5.19).
const OLDEST_KERNEL: (u32, u32) = (6, 1);
const OLDEST_KERNEL_TEXT: &str = "6.1";

/// The capabilities that loading and attaching need, with their bits (linux/capability.h).
const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
/// With it the kernel reports changes in other network namespaces.
const CAP_NET_BROADCAST: u32 = 11;
/// Stands in for CAP_BPF and CAP_PERFMON.
const CAP_SYS_ADMIN: u32 = 21;

/// Where the verifier gets the argument types of functions that it verifies separately.
const KERNEL_TYPES: &str = "sys/kernel/btf/vmlinux";
/// 0: the kernel interprets programs, and then refuses those that make both calls and tail calls.
const COMPILES: &str = "proc/sys/net/core/bpf_jit_enable";

/// Refuses a kernel that is too old.
///
/// # Errors
/// [`Error::KernelTooOld`].
pub(crate) fn check_kernel() -> Result<()> {
    let name = uname().map_err(|errno| Error::Kernel {
        operation: "read",
        object: "the kernel's release".to_owned(),
        errno: errno.into(),
    })?;
    check_release(&name.release().to_string_lossy())
}

/// Refuses a kernel that lacks what the balancer's programs need, which the verifier's log does not
/// name. The other programs, without tail calls and such functions, load there.
///
/// # Errors
/// [`Error::Unsupported`].
pub(crate) fn check_facilities() -> Result<()> {
    facilities_in(Path::new("/"))
}

/// What cannot be read (no `/sys`, a network namespace other than the first, no privilege) is no
/// reason to refuse.
fn facilities_in(root: &Path) -> Result<()> {
    let refused = |what: &str, reason| {
        Err(Error::Unsupported {
            what: format!("a kernel {what}"),
            reason,
        })
    };
    if fs::read_to_string(root.join(COMPILES)).is_ok_and(|text| text.trim() == "0") {
        return refused(
            "that interprets BPF programs",
            "switch the compiler on: `sysctl -w net.core.bpf_jit_enable=1`",
        );
    }
    let types = root.join(KERNEL_TYPES);
    let can_tell = types
        .parent()
        .and_then(Path::parent)
        .is_some_and(Path::exists);
    if can_tell && !types.exists() {
        return refused(
            "without its own types (BTF)",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF, as distributions' are",
        );
    }
    Ok(())
}

fn check_release(release: &str) -> Result<()> {
    if numbers(release) < OLDEST_KERNEL {
        return Err(Error::KernelTooOld {
            what: "the balancer",
            found: release.to_owned(),
            needed: OLDEST_KERNEL_TEXT,
        });
    }
    Ok(())
}

/// Whether a rejection by the verifier is due to a missing privilege: without CAP_PERFMON it
/// permits less, and reports that in terms of instructions and with varying errnos.
pub(crate) fn is_unprivileged() -> bool {
    own_capabilities().is_some_and(|effective| !has_all(effective))
}

/// What a thread may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Privileges {
    /// The needed capabilities that it lacks.
    pub(crate) lacking: Vec<&'static str>,
    /// It may identify other programs (`CAP_SYS_ADMIN`).
    pub(crate) sees_all_programs: bool,
}

/// This thread's privileges; `None`: `/proc` does not show them.
pub(crate) fn privileges() -> Option<Privileges> {
    let effective = own_capabilities()?;
    Some(Privileges {
        lacking: lacking(effective),
        sees_all_programs: effective & (1 << CAP_SYS_ADMIN) != 0,
    })
}

/// Checks that this thread may open maps by the kernel's numbers.
///
/// # Errors
/// [`Error::Privilege`] if it is known that it may not.
pub(crate) fn check_opens_by_number(operation: &'static str) -> Result<()> {
    match privileges() {
        Some(privileges) if !privileges.sees_all_programs => Err(Error::Privilege {
            operation: operation.to_owned(),
            missing: (privileges.lacking.into_iter())
                .chain(["CAP_SYS_ADMIN (to open maps that are inside others)"])
                .collect::<Vec<_>>()
                .join(", "),
        }),
        _ => Ok(()),
    }
}

/// Whether the kernel reports changes in other network namespaces to this thread's sockets
/// (`CAP_NET_BROADCAST`), if that can be known.
pub(crate) fn hears_other_namespaces() -> bool {
    own_capabilities().is_none_or(|effective| effective & (1 << CAP_NET_BROADCAST) != 0)
}

/// The needed capabilities that this thread lacks, for an error's text.
pub(crate) fn missing_capabilities() -> String {
    match own_capabilities() {
        Some(effective) => missing_of(effective),
        None => {
            "/proc is not mounted, so the missing capabilities are unknown: run as root".to_owned()
        }
    }
}

/// Those of this thread, whatever its name: the kernel cuts a name after 15 bytes, perhaps within a
/// character.
fn own_capabilities() -> Option<u64> {
    let status = text::read("/proc/thread-self/status").ok()?;
    effective_capabilities(&status)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn lacking(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    NEEDED
        .iter()
        .filter(|(name, bit)| !has(*bit) && (*name == "CAP_NET_ADMIN" || !has(CAP_SYS_ADMIN)))
        .map(|(name, _)| *name)
        .collect()
}

fn has_all(effective: u64) -> bool {
    lacking(effective).is_empty()
}

fn missing_of(effective: u64) -> String {
    let missing = lacking(effective);
    if missing.is_empty() {
        "no capability is missing: a security module or a container's seccomp profile refuses it"
            .to_owned()
    } else {
        missing.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert!(check_release("6.1.0-28-amd64").is_ok());
        assert!(check_release("6.18.44").is_ok());
        assert!(check_release("10.0").is_ok());
        for old in ["5.4.0", "4.19.0-27", "5.15.0-1-amd64", "6.0.9", "nonsense"] {
            assert!(
                matches!(check_release(old), Err(Error::KernelTooOld { .. })),
                "{old}"
            );
        }
    }

    #[test]
    fn a_kernel_that_interprets_programs_or_has_no_types_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let check = || facilities_in(root.path()).map_err(|error| error.to_string());
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(check(), Ok(()), "nothing can be read");
        write("sys/kernel/uevent_seqnum", "1\n");
        assert!(check().unwrap_err().contains("CONFIG_DEBUG_INFO_BTF"));
        write(KERNEL_TYPES, "");
        assert_eq!(check(), Ok(()));
        for (value, refused) in [("0\n", true), ("1\n", false), ("2\n", false)] {
            write(COMPILES, value);
            let sysctl = check().is_err_and(|text| text.contains("bpf_jit_enable=1"));
            assert_eq!(sysctl, refused, "{value}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_of(0), "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF");
        assert_eq!(missing_of(1 << CAP_SYS_ADMIN), "CAP_NET_ADMIN");
        assert_eq!(missing_of(1 << 39 | 1 << 12), "CAP_PERFMON");
        assert!(missing_of(u64::MAX).starts_with("no capability"));
        assert_eq!(
            effective_capabilities("Name:\tx\nCapEff:\t0000000000001000\n"),
            Some(0x1000)
        );
    }

    /// std passes 15 bytes of a thread's name, which end within a character.
    #[test]
    #[cfg_attr(miri, ignore = "reads /proc")]
    fn a_thread_s_name_hides_no_capabilities() {
        let of_this_thread = privileges().unwrap();
        let named = std::thread::Builder::new().name("\u{e4}".repeat(20));
        let told = named.spawn(|| (privileges(), missing_capabilities()));
        let (told, missing) = told.unwrap().join().unwrap();
        assert_eq!(told, Some(of_this_thread));
        assert!(!missing.contains("unknown"), "{missing}");
    }

    /// Only intact lines yield the capabilities.
    #[test]
    fn capabilities_are_found_in_any_status() {
        const STATUS: &str = "Name:\tx\nUmask:\t0022\nTgid:\t7\nCapInh:\t0000000000000000\n\
                              CapPrm:\t000001ffffffffff\nCapEff:\t0000008000001000\n\
                              CapBnd:\t000001ffffffffff\nSeccomp:\t0\n";
        mutate::cases(20_000, |rng| {
            let mut status = STATUS.as_bytes().to_vec();
            for _ in 0..rng.u32(1..3) {
                mutate::text(rng, &mut status);
            }
            let status = String::from_utf8_lossy(&status);
            let line = status.lines().find(|line| line.starts_with("CapEff:"));
            let digits = line.map(|line| line["CapEff:".len()..].trim().trim_start_matches('+'));
            let plain = digits.filter(|digits| {
                let digits = digits.trim_start_matches('0');
                digits.len() <= 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            });
            let value = plain.filter(|digits| !digits.is_empty()).map(|digits| {
                let digits = digits
                    .bytes()
                    .map(|digit| (digit as char).to_digit(16).unwrap());
                digits.fold(0_u64, |sum, digit| sum << 4 | u64::from(digit))
            });
            assert_eq!(effective_capabilities(&status), value, "{status}");
            let _ = value.map(missing_of);
        });
    }
}
