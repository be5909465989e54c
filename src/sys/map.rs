//! BPF maps: creation, single elements, per-CPU elements, batches.
//!
//! These go to libbpf's system call wrappers, because libbpf-rs's own batch and per-CPU calls lose
//! entries, the count, or the errno in cases that matter here.

mod per_cpu_hash;

#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::io;
use std::mem;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use super::check;
use super::fdinfo::FdInfo;
use super::name_of;
use super::pod::Pod;
use super::pod::as_mut_ptr;
use super::pod::as_ptr;

pub(crate) use per_cpu_hash::PerCpuHash;

/// The properties of a map to make.
pub(crate) struct Spec<'a> {
    pub(crate) kind: libbpf_sys::bpf_map_type,
    pub(crate) name: &'a str,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    pub(crate) numa_node: Option<u32>,
}

/// Makes a map.
pub(crate) fn create(spec: &Spec<'_>) -> io::Result<OwnedFd> {
    let name = CString::new(spec.name)?;
    let mut options = libbpf_sys::bpf_map_create_opts {
        sz: mem::size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        map_flags: spec.flags,
        ..Default::default()
    };
    if let Some(node) = spec.numa_node {
        options.map_flags |= libbpf_sys::BPF_F_NUMA_NODE;
        options.numa_node = node;
    }
    // SAFETY: the name is a C string and the options are initialised; both outlive the call.
    let fd = check(unsafe {
        libbpf_sys::bpf_map_create(
            spec.kind,
            name.as_ptr(),
            spec.key_size,
            spec.value_size,
            spec.max_entries,
            &options,
        )
    })?;
    // SAFETY: a descriptor that the call has just made and nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Creates an array with one value of `bytes`, which can be mapped into memory.
pub(crate) fn create_value(name: &str, bytes: usize) -> io::Result<OwnedFd> {
    create(&Spec {
        kind: libbpf_sys::BPF_MAP_TYPE_ARRAY,
        name,
        key_size: 4,
        value_size: bytes as u32,
        max_entries: 1,
        flags: libbpf_sys::BPF_F_MMAPABLE,
        numa_node: None,
    })
}

/// What the kernel says about a map.
pub(crate) struct Info {
    pub(crate) kind: libbpf_sys::bpf_map_type,
    /// The map's id.
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) max_entries: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
}

/// Asks the kernel about a map.
pub(crate) fn info(map: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info = libbpf_sys::bpf_map_info::default();
    let mut length = mem::size_of_val(&info) as u32;
    // SAFETY: `info` is as long as `length` says, and both outlive the call.
    check(unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(
            map.as_raw_fd(),
            std::ptr::from_mut(&mut info).cast(),
            &mut length,
        )
    })?;
    Ok(Info {
        kind: info.type_,
        id: info.id,
        name: name_of(&info.name),
        max_entries: info.max_entries,
        key_size: info.key_size,
        value_size: info.value_size,
    })
}

/// Opens a map by its id, which takes `CAP_SYS_ADMIN`.
pub(super) fn by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call passes a number by value, and the kernel accesses no memory of ours.
    let fd = check(unsafe { libbpf_sys::bpf_map_get_fd_by_id(id) })?;
    // SAFETY: a descriptor that the call has just made and nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The first value of an array, of any type.
pub(crate) fn first_value(array: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let info = info(array)?;
    if info.kind != libbpf_sys::BPF_MAP_TYPE_ARRAY || info.key_size != 4 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // The kernel writes whole words.
    let mut words = vec![0_u64; (info.value_size as usize).div_ceil(size_of::<u64>())];
    // SAFETY: the key is as long as the map's, and there is room for its one value.
    check(unsafe {
        libbpf_sys::bpf_map_lookup_elem(
            array.as_raw_fd(),
            as_ptr(&0_u32),
            words.as_mut_ptr().cast(),
        )
    })?;
    let bytes = words.into_iter().flat_map(u64::to_ne_bytes);
    Ok(bytes.take(info.value_size as usize).collect())
}

/// Bytes that the kernel charges to the map, from the descriptor's `fdinfo`.
pub(crate) fn memory(map: BorrowedFd<'_>) -> io::Result<u64> {
    FdInfo::of(map)?.number("memlock")
}

/// Map types with one value per element: the kernel copies as many bytes as the map's values have.
/// For arrays of maps and devices that is a number; the key of socket storage is a socket's
/// descriptor.
const SINGLE: [libbpf_sys::bpf_map_type; 7] = [
    libbpf_sys::BPF_MAP_TYPE_HASH,
    libbpf_sys::BPF_MAP_TYPE_ARRAY,
    libbpf_sys::BPF_MAP_TYPE_LRU_HASH,
    libbpf_sys::BPF_MAP_TYPE_LPM_TRIE,
    libbpf_sys::BPF_MAP_TYPE_ARRAY_OF_MAPS,
    libbpf_sys::BPF_MAP_TYPE_DEVMAP,
    libbpf_sys::BPF_MAP_TYPE_SK_STORAGE,
];

/// Arrays whose elements have a value for each possible CPU.
const PER_CPU: [libbpf_sys::bpf_map_type; 1] = [libbpf_sys::BPF_MAP_TYPE_PERCPU_ARRAY];

/// Checks what later calls rely on: with a map of another type or other sizes the kernel would read
/// or write past their buffers. An error of kind `InvalidInput` if the map has none of these types,
/// or other sizes.
pub(super) fn check_map<K: Pod, V>(
    map: BorrowedFd<'_>,
    types: &[libbpf_sys::bpf_map_type],
) -> io::Result<()> {
    let info = info(map)?;
    let fits = types.contains(&info.kind)
        && info.key_size as usize == size_of::<K>()
        && info.value_size as usize == size_of::<V>();
    fits.then_some(())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// An array of programs: written as descriptors, read as program ids.
pub(crate) struct ProgramArray {
    fd: OwnedFd,
    info: Info,
}

impl ProgramArray {
    /// `None` if it is another type of map, or not a map.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Option<Self>> {
        let kind: io::Result<u32> = FdInfo::of(fd.as_fd())?.number("map_type");
        if kind.ok() != Some(libbpf_sys::BPF_MAP_TYPE_PROG_ARRAY) {
            return Ok(None);
        }
        let info = info(fd.as_fd())?;
        Ok(Some(Self { fd, info }))
    }

    /// The array's id.
    pub(crate) fn id(&self) -> u32 {
        self.info.id
    }

    /// Its name, of at most 15 characters.
    pub(crate) fn name(&self) -> &str {
        &self.info.name
    }

    pub(crate) fn entries(&self) -> u32 {
        self.info.max_entries
    }

    /// The id of the program at `index`.
    pub(crate) fn get(&self, index: u32) -> io::Result<Option<u32>> {
        // SAFETY: keys and values of such an array are 32-bit numbers.
        unsafe { number_at(self.fd.as_fd(), index) }
    }

    pub(crate) fn set(&self, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
        let value = program.as_raw_fd() as u32;
        // SAFETY: keys and values of such an array are 32-bit numbers, as are these locals; the
        // borrow keeps the program's descriptor open.
        check(unsafe {
            libbpf_sys::bpf_map_update_elem(self.fd.as_raw_fd(), as_ptr(&index), as_ptr(&value), 0)
        })
        .map(drop)
    }

    /// Empties an entry, even if it is empty.
    pub(crate) fn clear(&self, index: u32) -> io::Result<()> {
        // SAFETY: keys of such an array are 32-bit numbers, as is `index`.
        unsafe { delete(self.fd.as_fd(), &index) }.map(drop)
    }
}

/// Removes an element; `false` if there was none.
///
/// # Safety
/// The map's keys are as long as `K`.
unsafe fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    // SAFETY: the key is as long as the map's, as the caller guarantees.
    let deleted = check(unsafe { libbpf_sys::bpf_map_delete_elem(map.as_raw_fd(), as_ptr(key)) });
    match deleted {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads elements of a hash from `from` (`None`: the beginning), in whole buckets, at most as many
/// as fit `keys`. Returns how many, and where to continue (`None`: that was all). An element that
/// is there throughout is seen, whatever comes and goes meanwhile.
///
/// # Safety
/// The map's keys are as long as `K`, and `values` has room for all values of that many elements.
unsafe fn read_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, Option<u32>)> {
    let mut count = checked_count(keys, keys.len())?;
    let mut place = from.unwrap_or_default();
    let start = from.as_ref().map_or(std::ptr::null(), as_ptr);
    // SAFETY: there is room for `count` keys and their values, as the caller guarantees; positions
    // in a hash are 32-bit bucket numbers; NULL asks for the beginning.
    let read = check(unsafe {
        libbpf_sys::bpf_map_lookup_batch(
            map.as_raw_fd(),
            start.cast_mut(),
            as_mut_ptr(&mut place),
            keys.as_mut_ptr().cast(),
            values.as_mut_ptr().cast(),
            &mut count,
            std::ptr::null(),
        )
    });
    let next = match read {
        Ok(_) => Some(place),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok((count as usize, next))
}

/// The id of the program or map at a place in an array.
///
/// # Safety
/// The map's keys and values are 32-bit numbers.
pub(super) unsafe fn number_at(array: BorrowedFd<'_>, index: u32) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    // SAFETY: key and value are as long as the map's, as the caller guarantees.
    let found = check(unsafe {
        libbpf_sys::bpf_map_lookup_elem(array.as_raw_fd(), as_ptr(&index), as_mut_ptr(&mut id))
    });
    match found {
        Ok(_) => Ok(Some(id)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl AsFd for ProgramArray {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Some elements of a hash, and where to continue.
pub(crate) struct Elements<K, V> {
    pub(crate) keys: Vec<K>,
    pub(crate) values: Vec<V>,
    pub(crate) next: Option<u32>,
}

/// A map whose type and key and value sizes were checked once, so that calls need not.
pub(crate) struct Typed<K, V> {
    fd: OwnedFd,
    types: std::marker::PhantomData<fn(K) -> V>,
}

impl<K, V> AsFd for Typed<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<K: Pod, V: Pod> Typed<K, V> {
    /// Takes a map; an error of kind `InvalidInput` if its sizes are not those of the types, or if
    /// it has more than one value per element.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        check_map::<K, V>(fd.as_fd(), &SINGLE)?;
        Ok(Self {
            fd,
            types: std::marker::PhantomData,
        })
    }

    /// Adds or replaces an element.
    pub(crate) fn update(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: key and value are as long as the map's, checked in `new`.
        check(unsafe {
            libbpf_sys::bpf_map_update_elem(
                self.fd.as_raw_fd(),
                as_ptr(key),
                as_ptr(value),
                libbpf_sys::BPF_ANY.into(),
            )
        })
        .map(drop)
    }

    /// Reads an element.
    pub(crate) fn lookup(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::default();
        // SAFETY: key and value are as long as the map's, and it has one value per element, checked
        // in `new`.
        let result = check(unsafe {
            libbpf_sys::bpf_map_lookup_elem(
                self.fd.as_raw_fd(),
                as_ptr(key),
                as_mut_ptr(&mut value),
            )
        });
        match result {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes an element; `false` if there was none.
    pub(crate) fn delete(&self, key: &K) -> io::Result<bool> {
        // SAFETY: the key is as long as the map's, checked in `new`.
        unsafe { delete(self.fd.as_fd(), key) }
    }

    /// Adds or replaces elements in one call. After an error some may be there.
    pub(crate) fn update_all(&self, keys: &[K], values: &[V]) -> io::Result<()> {
        let mut count = checked_count(keys, values.len())?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: there are `count` keys and values, as long as the map's, checked in `new`.
        check(unsafe {
            libbpf_sys::bpf_map_update_batch(
                self.fd.as_raw_fd(),
                keys.as_ptr().cast(),
                values.as_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        })
        .map(drop)
    }

    /// Removes existing elements in one call. After an error some may be gone.
    pub(crate) fn delete_all(&self, keys: &[K]) -> io::Result<()> {
        let mut count = checked_count(keys, keys.len())?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: there are `count` keys, as long as the map's, checked in `new`.
        check(unsafe {
            libbpf_sys::bpf_map_delete_batch(
                self.fd.as_raw_fd(),
                keys.as_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        })
        .map(drop)
    }

    /// Elements of a hash from `from` (`None`: the beginning), in whole buckets, at most `room` of
    /// them, and where to continue (`None`: that was all). An element that is there throughout is
    /// seen, whatever comes and goes meanwhile.
    pub(crate) fn elements(&self, from: Option<u32>, room: u32) -> io::Result<Elements<K, V>> {
        let mut keys = vec![K::default(); room as usize];
        let mut values = vec![V::default(); room as usize];
        // SAFETY: keys and values are as long as the map's, and it has one value per element,
        // checked in `new`.
        let read = unsafe { read_batch(self.fd.as_fd(), from, &mut keys, &mut values) };
        let (count, next) = read?;
        keys.truncate(count);
        values.truncate(count);
        Ok(Elements { keys, values, next })
    }

    /// The key after `key`, or the first one.
    pub(crate) fn next_key(&self, key: Option<&K>) -> io::Result<Option<K>> {
        let mut next = K::default();
        let from = key.map_or(std::ptr::null(), |key| as_ptr(key));
        // SAFETY: both keys are as long as the map's, checked in `new`; NULL asks for the first.
        let result = check(unsafe {
            libbpf_sys::bpf_map_get_next_key(self.fd.as_raw_fd(), from, as_mut_ptr(&mut next))
        });
        match result {
            Ok(_) => Ok(Some(next)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The length of a batch, for the kernel.
fn checked_count<K>(keys: &[K], values: usize) -> io::Result<u32> {
    match u32::try_from(keys.len()) {
        Ok(count) if values == keys.len() => Ok(count),
        _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

/// A per-CPU array, read and cleared over all possible CPUs.
pub(crate) struct PerCpuArray<V> {
    fd: OwnedFd,
    cpus: usize,
    value: std::marker::PhantomData<V>,
}

impl<V> AsFd for PerCpuArray<V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<V: Pod> PerCpuArray<V> {
    /// Takes a map; an error of kind `InvalidInput` if it is not a per-CPU array, or its sizes are
    /// not those of the type.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // The kernel rounds each CPU's value up to 8 bytes; ours are multiples already.
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        check_map::<u32, V>(fd.as_fd(), &PER_CPU)?;
        Ok(Self {
            fd,
            cpus: possible_cpus()?,
            value: std::marker::PhantomData,
        })
    }

    /// One element: a value per possible CPU, in CPU order.
    pub(crate) fn get(&self, index: u32) -> io::Result<Vec<V>> {
        let mut values = vec![V::default(); self.cpus];
        // SAFETY: the kernel writes one V for each possible CPU, and `values` has room for that
        // many.
        check(unsafe {
            libbpf_sys::bpf_map_lookup_elem(
                self.fd.as_raw_fd(),
                as_ptr(&index),
                values.as_mut_ptr().cast(),
            )
        })?;
        Ok(values)
    }

    /// Sets one element to zero on every CPU.
    pub(crate) fn clear(&self, index: u32) -> io::Result<()> {
        self.fill(index, V::default())
    }

    /// Sets one element to this value on every CPU.
    pub(crate) fn fill(&self, index: u32, value: V) -> io::Result<()> {
        let values = vec![value; self.cpus];
        // SAFETY: the kernel reads one V for each possible CPU, and there are that many.
        check(unsafe {
            libbpf_sys::bpf_map_update_elem(
                self.fd.as_raw_fd(),
                as_ptr(&index),
                values.as_ptr().cast(),
                libbpf_sys::BPF_ANY.into(),
            )
        })
        .map(drop)
    }

    /// Bytes of an element over all CPUs.
    pub(crate) fn element_bytes(&self) -> usize {
        self.cpus * size_of::<V>()
    }

    /// Passes the elements of a range to `see`, read by one batch call: for each a value per
    /// possible CPU. The range starts at 1 or later, because the kernel takes the previous key as
    /// the starting point.
    pub(crate) fn range(
        &self,
        run: &RangeInclusive<u32>,
        mut see: impl FnMut(u32, &[V]),
    ) -> io::Result<()> {
        let (first, last) = (*run.start(), *run.end());
        if first == 0 || last < first {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let wanted = last - first + 1;
        let mut keys = vec![0u32; wanted as usize];
        let mut values = vec![V::default(); self.cpus * wanted as usize];
        let mut count = wanted;
        let mut from = first - 1;
        let mut to = 0u32;
        // SAFETY: keys and values have room for `count` elements, with one V for each possible CPU;
        // `from` and `to` are an array's keys.
        let result = check(unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                self.fd.as_raw_fd(),
                as_mut_ptr(&mut from),
                as_mut_ptr(&mut to),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        });
        match result {
            // ENOENT: the batch reached the array's end, and `count` is right.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if count != wanted || keys.first() != Some(&first) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        for (number, values) in (first..).zip(values.chunks(self.cpus)) {
            see(number, values);
        }
        Ok(())
    }
}

/// The number of possible CPUs: how many values a per-CPU element has.
pub(crate) fn possible_cpus() -> io::Result<usize> {
    // SAFETY: the call takes no argument, so it accesses no memory of ours.
    check(unsafe { libbpf_sys::libbpf_num_possible_cpus() }).map(|cpus| cpus as usize)
}
