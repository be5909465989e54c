//! A hash whose elements have a value for each possible CPU.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use super::check_map;
use super::delete;
use super::possible_cpus;
use super::read_batch;
use crate::sys::pod::Pod;

/// Elements per call. The kernel would refuse a bucket with more; attackers do not choose these
/// keys.
const BATCH: usize = 512;

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
    /// Takes a map; an error of kind `InvalidInput` if it is not a per-CPU hash, or its sizes are
    /// not those of the types.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // The kernel rounds each CPU's value up to 8 bytes; ours are multiples already.
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        check_map::<K, V>(fd.as_fd(), &[libbpf_sys::BPF_MAP_TYPE_PERCPU_HASH])?;
        Ok(Self {
            fd,
            cpus: possible_cpus()?,
            types: std::marker::PhantomData,
        })
    }

    /// Passes every element to `see`, with a value per possible CPU. An element that is there
    /// throughout is seen, whatever comes and goes meanwhile.
    pub(crate) fn each(&self, mut see: impl FnMut(K, &[V])) -> io::Result<()> {
        let mut keys = vec![K::default(); BATCH];
        let mut values = vec![V::default(); self.cpus * BATCH];
        let mut from = None;
        loop {
            // SAFETY: keys are as long as the map's, checked in `new`, and each has room for one
            // value per possible CPU.
            let read = unsafe { read_batch(self.fd.as_fd(), from, &mut keys, &mut values) };
            let (count, next) = read?;
            let of_keys = values.chunks_exact(self.cpus);
            for (key, values) in keys.iter().zip(of_keys).take(count) {
                see(*key, values);
            }
            if next.is_none() {
                return Ok(());
            }
            from = next;
        }
    }

    /// Removes an element, if it is there.
    pub(crate) fn delete(&self, key: &K) -> io::Result<()> {
        // SAFETY: the key is as long as the map's, checked in `new`.
        unsafe { delete(self.fd.as_fd(), key) }.map(drop)
    }
}
