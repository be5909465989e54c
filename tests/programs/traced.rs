//! Kills a process right after the n-th system call by which it changes pins or attachments, traced
//! with ptrace(2).

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::process::Stdio;

use nix::libc;
use nix::sys::ptrace;
use nix::sys::ptrace::Options;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use seccompiler::BpfProgram;
use seccompiler::SeccompAction;
use seccompiler::SeccompCmpArgLen;
use seccompiler::SeccompCmpOp;
use seccompiler::SeccompCondition;
use seccompiler::SeccompFilter;
use seccompiler::SeccompRule;

/// A call that changes what a process leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Pin,
    Attach,
    Switch,
    Detach,
    MakeDirectory,
    RemoveDirectory,
    Rename,
    Unlink,
    Link,
}

const FILE_CALLS: [(libc::c_long, Call); 8] = [
    (libc::SYS_mkdir, Call::MakeDirectory),
    (libc::SYS_mkdirat, Call::MakeDirectory),
    (libc::SYS_rmdir, Call::RemoveDirectory),
    // On files; pins are not removed by this.
    (libc::SYS_unlinkat, Call::RemoveDirectory),
    (libc::SYS_rename, Call::Rename),
    (libc::SYS_renameat2, Call::Rename),
    (libc::SYS_unlink, Call::Unlink),
    (libc::SYS_symlink, Call::Link),
];

/// Commands of bpf(2), as in linux/bpf.h.
const BPF_CALLS: [(u64, Call); 4] = [
    (6, Call::Pin),
    (28, Call::Attach),
    (29, Call::Switch),
    (34, Call::Detach),
];

impl Call {
    fn of(number: u64, first: u64) -> Option<Self> {
        let number = number as libc::c_long;
        if number == libc::SYS_bpf {
            let call = BPF_CALLS.iter().find(|(command, _)| *command == first);
            return call.map(|(_, call)| *call);
        }
        let call = FILE_CALLS.iter().find(|(of, _)| *of == number);
        call.map(|(_, call)| *call)
    }
}

/// Makes a process stop at these calls, and at no others.
fn filter() -> BpfProgram {
    let of_bpf = BPF_CALLS.iter().map(|(command, _)| {
        let is_it = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *command);
        SeccompRule::new(vec![is_it.unwrap()]).unwrap()
    });
    let mut rules: BTreeMap<_, Vec<SeccompRule>> = FILE_CALLS
        .iter()
        .map(|(number, _)| (*number, Vec::new()))
        .collect();
    rules.insert(libc::SYS_bpf, of_bpf.collect());
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Trace(0),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    filter.unwrap().try_into().unwrap()
}

/// Runs a command until `is_last` accepts the calls it has made, then kills it. Returns the calls,
/// and whether it was killed rather than ended. `is_last` also gets the process id.
#[allow(clippy::zombie_processes, reason = "its end is waited for by its id")]
pub(crate) fn run_until(
    mut command: Command,
    mut is_last: impl FnMut(&[Call], Pid) -> bool,
) -> (Vec<Call>, bool) {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let filter = filter();
    let prepare = move || {
        ptrace::traceme()?;
        seccompiler::apply_filter(&filter).map_err(std::io::Error::other)
    };
    // SAFETY: the child only makes system calls, which take numbers and a filter that outlives
    // them.
    let child = unsafe { command.pre_exec(prepare) }.spawn();
    let child = child.unwrap();
    let id = Pid::from_raw(child.id() as i32);
    // It stops when the new program begins.
    let begun = waitpid(id, None).unwrap();
    assert!(matches!(begun, WaitStatus::Stopped(..)), "{begun:?}");
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACESECCOMP
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(id, options).unwrap();
    ptrace::cont(id, None).unwrap();
    let mut calls = Vec::new();
    let mut entered = None;
    loop {
        match waitpid(id, None).unwrap() {
            // At the entry of one of these calls.
            WaitStatus::PtraceEvent(..) => {
                let info = ptrace::syscall_info(id).unwrap();
                // SAFETY: at such a stop the kernel fills this member of the union.
                let call = unsafe { info.u.seccomp };
                entered = Call::of(call.nr, call.args[0]);
                ptrace::syscall(id, None).unwrap();
            }
            // At its return.
            WaitStatus::PtraceSyscall(_) => {
                calls.extend(entered.take());
                if is_last(&calls, id) {
                    kill(id, Signal::SIGKILL).unwrap();
                    waitpid(id, None).unwrap();
                    return (calls, true);
                }
                ptrace::cont(id, None).unwrap();
            }
            WaitStatus::Stopped(_, signal) => ptrace::cont(id, Some(signal)).unwrap(),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return (calls, false),
            other => panic!("{other:?}"),
        }
    }
}
