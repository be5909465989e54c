//! All `unsafe` of the crate: system calls through libbpf-sys, shared memory, plain-data types.
//!
//! Functions here are thin and safe to call: they take descriptors by type, report errno as
//! [`std::io::Error`], and know nothing of VIPs or reals.

pub(crate) mod ethtool;
mod fdinfo;
pub(crate) mod link;
pub(crate) mod map;
pub(crate) mod mapping;
pub(crate) mod object;
pub(crate) mod pin;
pub(crate) mod pod;
pub(crate) mod program;
pub(crate) mod rcu;
pub(crate) mod tc;

use std::io;

/// The result of a libbpf call: zero or more, or a negated errno.
fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::from_raw_os_error(-result))
    } else {
        Ok(result)
    }
}
