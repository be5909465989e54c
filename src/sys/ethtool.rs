//! What a driver says of an interface, by the ethtool ioctls (linux/ethtool.h): its name, its queues, and
//! the offloads that change packets before XDP sees them.

use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use nix::libc;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::socket;

const GDRVINFO: u32 = 0x03;
const GFLAGS: u32 = 0x25;
const GGRO: u32 = 0x2b;
const GCHANNELS: u32 = 0x3c;

const FLAG_RXVLAN: u32 = 1 << 8;
const FLAG_LRO: u32 = 1 << 15;

/// A socket that interfaces are asked about by; it belongs to the calling thread's network namespace.
pub(crate) struct Ethtool(OwnedFd);

/// How many queues there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Channels {
    /// That receive: on their own, or together with sending.
    pub(crate) receive: u32,
}

/// A command that is answered with one number.
#[repr(C)]
#[derive(Default)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct ChannelsAnswer {
    command: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverAnswer {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 196 - 36],
}

impl Ethtool {
    pub(crate) fn new() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        Ok(Self(socket))
    }

    /// Whether large receive offload is on, and whether VLAN tags are taken off on arrival.
    pub(crate) fn flags(&self, interface: &str) -> io::Result<(bool, bool)> {
        let flags = self.value(interface, GFLAGS)?;
        Ok((flags & FLAG_LRO != 0, flags & FLAG_RXVLAN != 0))
    }

    /// Whether generic receive offload is on.
    pub(crate) fn gro(&self, interface: &str) -> io::Result<bool> {
        self.value(interface, GGRO).map(|on| on != 0)
    }

    fn value(&self, interface: &str, command: u32) -> io::Result<u32> {
        let mut value = Value { command, data: 0 };
        // SAFETY: for these commands the kernel writes two 32-bit words.
        unsafe { self.ask(interface, &mut value) }?;
        Ok(value.data)
    }

    pub(crate) fn channels(&self, interface: &str) -> io::Result<Channels> {
        let mut answer = ChannelsAnswer {
            command: GCHANNELS,
            ..Default::default()
        };
        // SAFETY: the kernel writes a struct ethtool_channels, nine 32-bit words.
        unsafe { self.ask(interface, &mut answer) }?;
        Ok(Channels {
            receive: answer.rx + answer.combined,
        })
    }

    /// The driver's name.
    pub(crate) fn driver(&self, interface: &str) -> io::Result<String> {
        let mut answer = DriverAnswer {
            command: GDRVINFO,
            driver: [0; 32],
            rest: [0; 160],
        };
        // SAFETY: the kernel writes a struct ethtool_drvinfo, 196 bytes.
        unsafe { self.ask(interface, &mut answer) }?;
        let name = CStr::from_bytes_until_nul(&answer.driver).map_err(io::Error::other)?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// # Safety
    /// `answer` must begin with the command and be as long as what the kernel writes for it.
    unsafe fn ask<T>(&self, interface: &str, answer: &mut T) -> io::Result<()> {
        // SAFETY: zero is a value of all of its fields.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        if interface.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = std::ptr::from_mut(answer).cast();
        // SAFETY: the request has a name that ends, and the address of an answer as long as the caller
        // promises; both outlive the call.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) };
        match result {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

const _: () = assert!(mem::size_of::<DriverAnswer>() == 196);
const _: () = assert!(mem::size_of::<ChannelsAnswer>() == 36);
