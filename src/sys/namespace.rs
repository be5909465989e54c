//! Network namespaces by the kernel's number of them: it tells them apart for good and, other than a
//! descriptor, keeps none of them alive.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use nix::libc;

/// As in asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The kernel's number of the calling thread's network namespace: no other one has it, or will, until the
/// host starts again.
pub(crate) fn network_namespace() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the place for the result outlives the call, and is as long as `length` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    };
    match result {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::CloneFlags;
    use nix::sched::unshare;

    use super::*;

    #[test]
    fn namespaces_have_numbers_of_their_own() {
        let here = network_namespace().unwrap();
        assert_eq!(network_namespace().unwrap(), here);
        let there = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            network_namespace().unwrap()
        });
        assert_ne!(there.join().unwrap(), here);
    }
}
