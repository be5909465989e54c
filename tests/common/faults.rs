//! Threads on which the kernel refuses things: by a seccomp filter that returns an errno or asks
//! another thread, or without capabilities. All of this lasts as long as the thread and affects no
//! other.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
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

/// Runs `f` on a thread whose every call of this kind (`command`: of bpf(2)) waits for `judge`,
/// which decides whether it fails, and how, and can look at what has happened so far.
pub(crate) fn judged<T: Send>(
    call: libc::c_long,
    command: Option<u32>,
    mut judge: impl FnMut() -> Option<Errno>,
    f: impl FnOnce() -> T + Send,
) -> T {
    let (sender, listener) = mpsc::channel();
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            sender.send(listen(call, command)).unwrap();
            f()
        });
        let listener = listener.recv().unwrap();
        while !worker.is_finished() {
            if is_asked(&listener) {
                answer(&listener, &mut judge);
            }
        }
        worker.join().unwrap()
    })
}

/// Makes this thread's calls wait for answers, which the descriptor gives.
fn listen(call: libc::c_long, command: Option<u32>) -> OwnedFd {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // `struct seccomp_data`: the number, and the first argument.
    let mut steps = vec![step(LOAD, 0, 0, 0), step(EQUAL, 1, 0, call as u32)];
    steps.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    if let Some(command) = command {
        steps.extend([step(LOAD, 0, 0, 16), step(EQUAL, 1, 0, command)]);
        steps.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    }
    steps.push(step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the calls take numbers and a filter that outlives them; only the caller owns the
    // descriptor.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        );
        assert!(listener >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(listener as i32)
    }
}

/// Whether a call is waiting; gives up after some milliseconds.
fn is_asked(listener: &OwnedFd) -> bool {
    let mut asked = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: takes a structure that outlives the call.
    unsafe { libc::poll(&mut asked, 1, 10) };
    asked.revents & libc::POLLIN != 0
}

fn answer(listener: &OwnedFd, judge: &mut impl FnMut() -> Option<Errno>) {
    // SAFETY: only numbers, for which zero is valid.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let fd = listener.as_raw_fd();
    // SAFETY: takes a structure that outlives the call.
    let received = unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) };
    assert_eq!(received, 0, "{}", io::Error::last_os_error());
    let refused = judge();
    let mut said = libc::seccomp_notif_resp {
        id: asked.id,
        val: 0,
        error: refused.map_or(0, |errno| -(errno as i32)),
        flags: match refused {
            Some(_) => 0,
            None => libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        },
    };
    // SAFETY: as above.
    let sent = unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut said) };
    assert_eq!(sent, 0, "{}", io::Error::last_os_error());
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
