//! Threads on which the kernel refuses things: with a seccomp filter that answers a system call
//! with an errno, or without capabilities. Both last as long as the thread and bind nobody else.

use std::collections::BTreeMap;
use std::thread;

use caps::CapSet;
use caps::Capability;
use nix::errno::Errno;
use nix::libc;
use seccompiler::BpfProgram;
use seccompiler::SeccompAction;
use seccompiler::SeccompCmpArgLen;
use seccompiler::SeccompCmpOp;
use seccompiler::SeccompCondition;
use seccompiler::SeccompFilter;
use seccompiler::SeccompRule;

/// Commands of bpf(2), as in linux/bpf.h.
pub(crate) const MAP_CREATE: u32 = 0;
pub(crate) const MAP_LOOKUP_ELEM: u32 = 1;
pub(crate) const MAP_UPDATE_ELEM: u32 = 2;
pub(crate) const MAP_DELETE_ELEM: u32 = 3;
pub(crate) const PROG_LOAD: u32 = 5;
pub(crate) const PROG_TEST_RUN: u32 = 10;
pub(crate) const MAP_LOOKUP_BATCH: u32 = 24;
pub(crate) const MAP_UPDATE_BATCH: u32 = 26;
pub(crate) const MAP_DELETE_BATCH: u32 = 27;
pub(crate) const LINK_CREATE: u32 = 28;
pub(crate) const LINK_UPDATE: u32 = 29;

/// Runs `f` on a thread where these commands of bpf(2) fail with `errno`.
pub(crate) fn without_commands<T: Send>(
    commands: &[u32],
    errno: Errno,
    f: impl FnOnce() -> T + Send,
) -> T {
    let rules = commands
        .iter()
        .map(|command| {
            let is_command = SeccompCondition::new(
                0,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                (*command).into(),
            );
            SeccompRule::new(vec![is_command.unwrap()]).unwrap()
        })
        .collect();
    refusing(libc::SYS_bpf, rules, errno, f)
}

/// Runs `f` on a thread where a system call fails with `errno`.
pub(crate) fn without_call<T: Send>(
    call: libc::c_long,
    errno: Errno,
    f: impl FnOnce() -> T + Send,
) -> T {
    refusing(call, Vec::new(), errno, f)
}

fn refusing<T: Send>(
    call: libc::c_long,
    rules: Vec<SeccompRule>,
    errno: Errno,
    f: impl FnOnce() -> T + Send,
) -> T {
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, rules)]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    on_thread(|| {
        seccompiler::apply_filter(&program).unwrap();
        f()
    })
}

/// Runs `f` on a thread that has all capabilities but these.
pub(crate) fn without_capabilities<T: Send>(
    missing: &[Capability],
    f: impl FnOnce() -> T + Send,
) -> T {
    on_thread(|| {
        for capability in missing {
            caps::drop(None, CapSet::Effective, *capability).unwrap();
        }
        f()
    })
}

fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(f).join().unwrap())
}
