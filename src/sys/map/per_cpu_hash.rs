//! A hash with a value for each possible CPU in every element.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use super::check_map;
use super::possible_cpus;
use crate::sys::check;
use crate::sys::pod::Pod;
use crate::sys::pod::as_mut_ptr;
use crate::sys::pod::as_ptr;

/// Elements that are read by one call. A bucket with more of them would be refused; keys are no attacker's choice.
const BATCH: u32 = 512;

/// A per-CPU hash, read over all possible CPUs.
pub(crate) struct PerCpuHash<K, V> {
    fd: OwnedFd,
    cpus: usize,
    types: std::marker::PhantomData<fn(K) -> V>,
}

impl<K, V> AsFd for PerCpuHash<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<K: Pod, V: Pod> PerCpuHash<K, V> {
    /// Takes a map; an error of kind `InvalidInput` if it is no per-CPU hash, or its sizes are not those of the types.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // The kernel rounds each CPU's value up to 8 bytes; all ours are that long.
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        check_map::<K, V>(fd.as_fd(), &[libbpf_sys::BPF_MAP_TYPE_PERCPU_HASH])?;
        Ok(Self {
            fd,
            cpus: possible_cpus()?,
            types: std::marker::PhantomData,
        })
    }

    /// Shows every element to `see`, with a value per possible CPU. What is there all the time is met, whatever comes and
    /// goes meanwhile.
    pub(crate) fn each(&self, mut see: impl FnMut(K, &[V])) -> io::Result<()> {
        let mut keys = vec![K::default(); BATCH as usize];
        let mut values = vec![V::default(); self.cpus * BATCH as usize];
        let mut place = 0_u32;
        let mut is_first = true;
        loop {
            let from = place;
            let start = match is_first {
                true => std::ptr::null(),
                false => as_ptr(&from),
            };
            let mut count = BATCH;
            // SAFETY: there is room for `count` keys as long as the map's, compared in `new`, and for one value for each
            // possible CPU with each; places in a hash are 32-bit numbers of buckets; NULL asks for the beginning.
            let read = check(unsafe {
                libbpf_sys::bpf_map_lookup_batch(
                    self.fd.as_raw_fd(),
                    start.cast_mut(),
                    as_mut_ptr(&mut place),
                    keys.as_mut_ptr().cast(),
                    values.as_mut_ptr().cast(),
                    &mut count,
                    std::ptr::null(),
                )
            });
            let is_last = match read {
                Ok(_) => false,
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                Err(error) => return Err(error),
            };
            let of_keys = values.chunks_exact(self.cpus);
            for (key, values) in keys.iter().zip(of_keys).take(count as usize) {
                see(*key, values);
            }
            if is_last {
                return Ok(());
            }
            is_first = false;
        }
    }

    /// Removes an element; one that is not there stays so.
    pub(crate) fn delete(&self, key: &K) -> io::Result<()> {
        // SAFETY: the key is as long as the map's, compared in `new`.
        let deleted =
            check(unsafe { libbpf_sys::bpf_map_delete_elem(self.fd.as_raw_fd(), as_ptr(key)) });
        match deleted {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
