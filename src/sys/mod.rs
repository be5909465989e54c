//! All `unsafe` code of the crate: system calls through libbpf-sys, shared memory, plain-data
//! types.
//!
//! Functions here are thin and safe to call: they take typed descriptors, report errno as
//! [`std::io::Error`], and know nothing about VIPs or reals.

pub(crate) mod directory;
pub(crate) mod ethtool;
mod ethtool_counters;
mod fdinfo;
pub(crate) mod holders;
pub(crate) mod link;
pub(crate) mod lock;
pub(crate) mod map;
pub(crate) mod mapping;
pub(crate) mod namespace;
pub(crate) mod nested;
pub(crate) mod object;
#[cfg(feature = "health")]
pub(crate) mod pidfd;
pub(crate) mod pin;
pub(crate) mod pod;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod rcu;
pub(crate) mod release;
pub(crate) mod signals;
pub(crate) mod tc;
pub(crate) mod tenure;
pub(crate) mod text;
pub(crate) mod ticks;

use std::ffi::CStr;
use std::ffi::c_char;
use std::io;

/// The result of a libbpf call: zero or more, or a negated errno.
fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::from_raw_os_error(-result))
    } else {
        Ok(result)
    }
}

/// A name from the kernel, which ends at a zero.
fn name_of(name: &[c_char; 16]) -> String {
    // SAFETY: characters and bytes have the same size, and every bit pattern is valid for both.
    let name = unsafe { &*std::ptr::from_ref(name).cast::<[u8; 16]>() };
    CStr::from_bytes_until_nul(name)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
