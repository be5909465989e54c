//! Ends this process right after the n-th thing that it does to what outlives it: a system call
//! that changes something, or a store into memory shared with programs.
//!
//! The library takes no part, so nothing is missed and users pay nothing: a seccomp filter traps
//! each call, and mapped map values are read-only, so that each store faults and is then made as a
//! single step. All threads count.

use std::ffi::c_int;
use std::ffi::c_long;
use std::ffi::c_void;
use std::fs;
use std::ptr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use nix::libc;

/// The most mappings at a time.
const MOST: usize = 512;
const PAGE: usize = 4096;
/// Pages that one instruction may touch.
const AT_ONCE: usize = 4;
/// The trap flag: traps after one instruction.
const TRAP_FLAG: i64 = 0x100;

/// Commands of bpf(2) with effects that others see, as in linux/bpf.h: map elements, pins,
/// attachments.
const CHANGING: [i64; 13] = [2, 3, 6, 8, 9, 21, 22, 25, 26, 27, 28, 29, 34];

const CALLS: [c_long; 11] = [
    libc::SYS_bpf,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
];

/// Netlink requests (tc filters).
const REQUESTS: [c_long; 2] = [libc::SYS_sendto, libc::SYS_sendmsg];

static STARTS: [AtomicUsize; MOST] = [const { AtomicUsize::new(0) }; MOST];
static LENGTHS: [AtomicUsize; MOST] = [const { AtomicUsize::new(0) }; MOST];
static ARMED: AtomicBool = AtomicBool::new(false);
static CALLED: AtomicU64 = AtomicU64::new(0);
static STORED: AtomicU64 = AtomicU64::new(0);
/// After this many the process ends; 0: never.
static LAST: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Pages that are writable until the current instruction has ended.
    static OPEN: [AtomicUsize; AT_ONCE] = const { [const { AtomicUsize::new(0) }; AT_ONCE] };
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Done {
    pub(crate) calls: u64,
    pub(crate) stores: u64,
}

impl Done {
    pub(crate) fn all(self) -> u64 {
        self.calls + self.stores
    }
}

// nr in rdi, arguments in rsi, rdx, rcx, r8, r9 and on the stack. The filter lets this call pass,
// as it returns here.
std::arch::global_asm!(
    ".globl survival_call",
    "survival_call:",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov r10, r8",
    "mov r8, r9",
    "mov r9, [rsp + 8]",
    "syscall",
    ".globl survival_called",
    "survival_called:",
    "ret",
);

unsafe extern "C" {
    fn survival_call(nr: i64, a: i64, b: i64, c: i64, d: i64, e: i64, f: i64) -> i64;
    fn survival_called();
}

/// Makes this process trap its calls and stores. Cannot be undone.
pub(crate) fn prepare() {
    handle(libc::SIGSEGV, on_store);
    handle(libc::SIGTRAP, on_step);
    handle(libc::SIGSYS, on_call);
    filter();
}

/// Starts counting; the process ends after `last`, unless 0.
pub(crate) fn arm(last: u64) {
    CALLED.store(0, SeqCst);
    STORED.store(0, SeqCst);
    LAST.store(last, SeqCst);
    ARMED.store(true, SeqCst);
    each(|start, length| protect(start, length, libc::PROT_READ));
}

/// Stops counting.
pub(crate) fn disarm() -> Done {
    ARMED.store(false, SeqCst);
    each(|start, length| protect(start, length, libc::PROT_READ | libc::PROT_WRITE));
    Done {
        calls: CALLED.load(SeqCst),
        stores: STORED.load(SeqCst),
    }
}

fn each(mut f: impl FnMut(usize, usize)) {
    for (start, length) in STARTS.iter().zip(&LENGTHS) {
        let (start, length) = (start.load(SeqCst), length.load(SeqCst));
        if start != 0 {
            f(start, length);
        }
    }
}

fn protect(start: usize, length: usize, how: c_int) {
    // SAFETY: a mapping of a map's values; a write to it while it is read-only goes to `on_store`.
    let done = unsafe { libc::mprotect(start as *mut c_void, length, how) };
    assert_eq!(done, 0);
}

fn count(of: &AtomicU64) {
    of.fetch_add(1, SeqCst);
    let last = LAST.load(SeqCst);
    if last != 0 && CALLED.load(SeqCst) + STORED.load(SeqCst) >= last {
        end();
    }
}

/// Kills this process.
pub(crate) fn end() -> ! {
    // SAFETY: both take numbers.
    unsafe {
        let own = survival_call(libc::SYS_getpid, 0, 0, 0, 0, 0, 0);
        survival_call(libc::SYS_kill, own, libc::SIGKILL.into(), 0, 0, 0, 0);
    }
    loop {
        std::hint::spin_loop();
    }
}

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

fn handle(signal: c_int, handler: Handler) {
    // SAFETY: the action is complete, and the handler does only what a handler may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
    }
}

fn registers(context: *mut c_void) -> &'static mut [i64; 23] {
    // SAFETY: the kernel gives the handler the thread's context, to use until it returns.
    unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs }
}

/// A store to a read-only page: counts it, and makes it as a single step.
extern "C" fn on_store(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: for this signal the kernel gives an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut is_ours = false;
    each(|start, length| is_ours |= (start..start + length).contains(&address));
    if !is_ours {
        // Any other fault: it repeats, and ends the process. SAFETY: takes numbers.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    if ARMED.load(SeqCst) {
        // Counted first: the process ends before this store, after all earlier ones.
        count(&STORED);
    }
    let page = address & !(PAGE - 1);
    protect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE);
    OPEN.with(|open| {
        let free = open.iter().find(|of| [0, page].contains(&of.load(SeqCst)));
        if let Some(free) = free {
            free.store(page, SeqCst);
        }
    });
    registers(context)[libc::REG_EFL as usize] |= TRAP_FLAG;
}

/// The store has been made.
extern "C" fn on_step(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    registers(context)[libc::REG_EFL as usize] &= !TRAP_FLAG;
    OPEN.with(|open| {
        for page in open {
            let page = page.swap(0, SeqCst);
            let mut is_there = false;
            each(|start, length| is_there |= (start..start + length).contains(&page));
            if is_there && ARMED.load(SeqCst) {
                protect(page, PAGE, libc::PROT_READ);
            }
        }
    });
}

/// Makes the trapped call in the caller's place, and counts it.
extern "C" fn on_call(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let registers = registers(context);
    let of = |register: c_int| registers[register as usize];
    let number = of(libc::REG_RAX);
    let first = of(libc::REG_RDI);
    // SAFETY: the call and arguments that the thread was about to make.
    let result = unsafe {
        survival_call(
            number,
            first,
            of(libc::REG_RSI),
            of(libc::REG_RDX),
            of(libc::REG_R10),
            of(libc::REG_R8),
            of(libc::REG_R9),
        )
    };
    registers[libc::REG_RAX as usize] = result;
    let changes = number != libc::SYS_bpf || CHANGING.contains(&first);
    if ARMED.load(SeqCst) && changes {
        count(&CALLED);
    }
}

/// Makes each of these calls trap into [`on_call`], except those that it makes itself.
fn filter() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let own = survival_called as *const () as u64;
    // `struct seccomp_data`: the number, and the return address in two halves.
    let mut steps = vec![
        step(LOAD, 0, 0, 8),
        step(EQUAL, 0, 2, own as u32),
        step(LOAD, 0, 0, 12),
        step(EQUAL, 1, 0, (own >> 32) as u32),
        step(EQUAL, 1, 1, 0),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(LOAD, 0, 0, 0),
    ];
    for call in CALLS.iter().chain(&REQUESTS) {
        steps.push(step(EQUAL, 0, 1, *call as u32));
        steps.push(step(RETURN, 0, 0, libc::SECCOMP_RET_TRAP));
    }
    steps.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the calls take numbers and a filter that outlives them. All threads get it.
    let filtered = unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    assert_eq!(filtered, 0, "{}", std::io::Error::last_os_error());
}

/// Replaces the C library's in this whole binary: notes mappings of map values.
///
/// # Safety
/// As mmap(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    how: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: as the caller says.
    let mapped = unsafe { libc::syscall(libc::SYS_mmap, address, length, how, flags, fd, offset) };
    if mapped == -1 {
        return libc::MAP_FAILED;
    }
    if fd >= 0 && flags & libc::MAP_SHARED != 0 && how & libc::PROT_WRITE != 0 && is_map(fd) {
        let length = length.next_multiple_of(PAGE);
        for (start, of) in STARTS.iter().zip(&LENGTHS) {
            let taken = start.compare_exchange(0, mapped as usize, SeqCst, SeqCst);
            if taken.is_ok() {
                of.store(length, SeqCst);
                if ARMED.load(SeqCst) {
                    protect(mapped as usize, length, libc::PROT_READ);
                }
                return mapped as *mut c_void;
            }
        }
        panic!("more than {MOST} mappings");
    }
    mapped as *mut c_void
}

/// The same for munmap(2): forgets the mapping.
///
/// # Safety
/// As munmap(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn munmap(address: *mut c_void, length: usize) -> c_int {
    for (start, of) in STARTS.iter().zip(&LENGTHS) {
        if start.load(SeqCst) == address as usize {
            of.store(0, SeqCst);
            start.store(0, SeqCst);
        }
    }
    // SAFETY: as the caller says.
    unsafe { libc::syscall(libc::SYS_munmap, address, length) as c_int }
}

fn is_map(fd: c_int) -> bool {
    let of = fs::read_link(format!("/proc/self/fd/{fd}"));
    of.is_ok_and(|of| of.to_string_lossy().contains("bpf-map"))
}
