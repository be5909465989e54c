//! A driver's view of an interface, through the ethtool ioctls (linux/ethtool.h): its name, its
//! queues, and the offloads that change packets before XDP sees them.

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
const GTXCSUM: u32 = 0x16;
pub(super) const GSTRINGS: u32 = 0x1b;
const GFLAGS: u32 = 0x25;
const GGRO: u32 = 0x2b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const GCHANNELS: u32 = 0x3c;

/// The set of feature names (ETH_SS_FEATURES), and the bytes of a name.
const FEATURES: u32 = 4;
pub(super) const NAME_BYTES: usize = 32;

const FLAG_RXVLAN: u32 = 1 << 8;
const FLAG_LRO: u32 = 1 << 15;

/// A socket for questions about interfaces; it belongs to the calling thread's network namespace.
pub(crate) struct Ethtool(OwnedFd);

/// Numbers of queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Channels {
    /// Queues that receive, alone or combined with sending.
    pub(crate) receive: u32,
    /// The most queues that can do both.
    pub(crate) most_combined: u32,
}

/// A command whose answer is one number.
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

    /// Whether large receive offload is on, and whether the device removes VLAN tags on arrival.
    pub(crate) fn flags(&self, interface: &str) -> io::Result<(bool, bool)> {
        let flags = self.value(interface, GFLAGS)?;
        Ok((flags & FLAG_LRO != 0, flags & FLAG_RXVLAN != 0))
    }

    /// Whether generic receive offload is on.
    pub(crate) fn gro(&self, interface: &str) -> io::Result<bool> {
        self.value(interface, GGRO).map(|on| on != 0)
    }

    /// Whether the interface leaves checksums of outgoing packets to a device or, if it is virtual,
    /// to the receiver.
    pub(crate) fn leaves_checksums(&self, interface: &str) -> io::Result<bool> {
        self.value(interface, GTXCSUM).map(|on| on != 0)
    }

    /// Whether a feature is on, by its name in `ethtool -k`; `false` if the kernel does not know
    /// the name.
    pub(crate) fn feature(&self, interface: &str, name: &str) -> io::Result<bool> {
        let Some(bit) = self.features(interface)?.position(|of| of == name) else {
            return Ok(false);
        };
        // Command and number of blocks; for each block what is available, requested, active and
        // fixed.
        let mut answer = vec![0; 2 + 4 * (bit / 32 + 1)];
        (answer[0], answer[1]) = (GFEATURES, bit as u32 / 32 + 1);
        // SAFETY: `answer` has room for the number of blocks that it states, and the kernel writes
        // no more.
        unsafe { self.ask(interface, &mut answer[..]) }?;
        let active = answer[2 + 4 * (bit / 32) + 2];
        Ok(active & 1 << (bit % 32) != 0)
    }

    /// The number of names in a set, for sets below 32.
    pub(super) fn size_of_set(&self, interface: &str, set: u32) -> io::Result<usize> {
        // Command, reserved, a 64-bit mask with the set's bit, and the answer. The kernel clears
        // the bit of a missing set.
        let mut question = [GSSET_INFO, 0, 1 << set, 0, 0];
        // SAFETY: the kernel writes a struct ethtool_sset_info with one number per bit of the mask,
        // and `question` has room for one.
        unsafe { self.ask(interface, &mut question) }?;
        Ok(question[4] as usize)
    }

    /// The names of all features, in the order of their bits.
    fn features(&self, interface: &str) -> io::Result<impl Iterator<Item = String>> {
        let number = self.size_of_set(interface, FEATURES)?;
        // Command, set, number of names.
        let mut answer = vec![0_u32; 3 + number * NAME_BYTES / 4];
        (answer[0], answer[1], answer[2]) = (GSTRINGS, FEATURES, number as u32);
        // SAFETY: the kernel writes a struct ethtool_gstrings with all names of the set. `number`
        // is the kernel's count. For features it is a constant that was compiled into the kernel
        // (NETDEV_FEATURE_COUNT), so there is room.
        unsafe { self.ask(interface, &mut answer[..]) }?;
        let words = answer.into_iter().skip(3);
        let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
        Ok((0..number).map(move |at| name_in(&bytes[at * NAME_BYTES..][..NAME_BYTES])))
    }

    fn value(&self, interface: &str, command: u32) -> io::Result<u32> {
        let mut value = Value { command, data: 0 };
        // SAFETY: for these commands the kernel writes two 32-bit words, the size of the answer.
        unsafe { self.ask(interface, &mut value) }?;
        Ok(value.data)
    }

    pub(crate) fn channels(&self, interface: &str) -> io::Result<Channels> {
        let mut answer = ChannelsAnswer {
            command: GCHANNELS,
            ..Default::default()
        };
        // SAFETY: the kernel writes a struct ethtool_channels, nine 32-bit words, the size of the
        // answer.
        unsafe { self.ask(interface, &mut answer) }?;
        Ok(Channels {
            receive: answer.rx.saturating_add(answer.combined),
            most_combined: answer.max[3],
        })
    }

    /// The driver's name.
    pub(crate) fn driver(&self, interface: &str) -> io::Result<String> {
        let mut answer = DriverAnswer {
            command: GDRVINFO,
            driver: [0; 32],
            rest: [0; 160],
        };
        // SAFETY: the kernel writes a struct ethtool_drvinfo, 196 bytes, the size of the answer.
        unsafe { self.ask(interface, &mut answer) }?;
        let name = CStr::from_bytes_until_nul(&answer.driver).map_err(io::Error::other)?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// # Safety
    /// `answer` must begin with the command, and be as long as the kernel's answer to it.
    pub(super) unsafe fn ask<T: ?Sized>(&self, interface: &str, answer: &mut T) -> io::Result<()> {
        // SAFETY: zero is valid for all fields of the C struct.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        if interface.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = std::ptr::from_mut(answer).cast();
        // SAFETY: the request has a terminated name, and the address of an answer whose length the
        // caller guarantees; both outlive the call.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) };
        match result {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A name that ends at a zero, or at the end of its field.
pub(super) fn name_in(bytes: &[u8]) -> String {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

const _: () = assert!(mem::size_of::<DriverAnswer>() == 196);
const _: () = assert!(mem::size_of::<ChannelsAnswer>() == 36);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_known_by_their_names() {
        let ethtool = Ethtool::new().unwrap();
        let names: Vec<_> = ethtool.features("lo").unwrap().collect();
        for name in ["rx-gro", "rx-gro-hw", "rx-lro", "tx-checksum-ip-generic"] {
            assert!(names.iter().any(|of| of == name), "{name}: {names:?}");
        }
        // Two features that the kernel also reports in another way, and one beyond the first block.
        let gro = ethtool.feature("lo", "rx-gro").unwrap();
        assert_eq!(gro, ethtool.gro("lo").unwrap());
        let checksums = ethtool.feature("lo", "tx-checksum-ip-generic").unwrap();
        assert_eq!(checksums, ethtool.leaves_checksums("lo").unwrap());
        assert!(!ethtool.feature("lo", "rx-gro-hw").unwrap());
        assert!(!ethtool.feature("lo", "no such feature").unwrap());
        assert!(ethtool.feature("no-such-interf", "rx-gro").is_err());
    }
}
