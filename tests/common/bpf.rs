//! Programs and maps through their descriptors: running a program on a frame, reading and writing
//! elements, sizes.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use katran::flows::Verdict;

/// What a program did with a frame.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ran {
    pub(crate) verdict: Verdict,
    pub(crate) frame: Vec<u8>,
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::from_raw_os_error(-result))
    } else {
        Ok(result)
    }
}

/// Runs an XDP program on a frame, on the CPU that this thread is on.
pub(crate) fn run(program: BorrowedFd<'_>, frame: &[u8]) -> Ran {
    run_with(program, frame, None)
}

/// The same with `metadata` bytes before the frame, which use up that much headroom.
pub(crate) fn run_with_metadata(program: BorrowedFd<'_>, frame: &[u8], metadata: u32) -> Ran {
    let mut bytes = vec![0; metadata as usize];
    bytes.extend(frame);
    let mut context = libbpf_sys::xdp_md {
        data: metadata,
        data_end: bytes.len() as u32,
        ..Default::default()
    };
    let mut ran = run_with(program, &bytes, Some(&mut context));
    ran.frame.drain(..metadata as usize);
    ran
}

/// Runs a tc program on a frame.
pub(crate) fn run_tc(program: BorrowedFd<'_>, frame: &[u8]) -> Ran {
    const TC_ACT_UNSPEC: u32 = u32::MAX;
    const TC_ACT_SHOT: u32 = 2;
    let (action, frame) = run_raw(program, frame, None);
    let verdict = match action {
        TC_ACT_UNSPEC => Verdict::Pass,
        TC_ACT_SHOT => Verdict::Drop,
        other => panic!("tc action {other}"),
    };
    Ran { verdict, frame }
}

/// A socket buffer's fields besides its bytes, before a run and after it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Buffer {
    pub(crate) mark: u32,
    /// For a buffer to be segmented later: the payload bytes of each segment.
    pub(crate) segment: u32,
}

/// Runs a tc program on a frame that leaves by `lo`; returns its action, the frame, and the
/// buffer's mark.
pub(crate) fn run_tc_with(
    program: BorrowedFd<'_>,
    frame: &[u8],
    buffer: Buffer,
) -> (u32, Vec<u8>, u32) {
    let mut out = vec![0; frame.len() + 512];
    // struct __sk_buff of linux/bpf.h, in words.
    const WORDS: usize = 48;
    const MARK: usize = 2;
    const GSO_SIZE: usize = 44;
    let mut context = [0_u32; WORDS];
    context[MARK] = buffer.mark;
    context[GSO_SIZE] = buffer.segment;
    let mut after = [0_u32; WORDS];
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: mem::size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        data_out: out.as_mut_ptr().cast(),
        data_size_out: out.len() as u32,
        ctx_in: context.as_ptr().cast(),
        ctx_size_in: mem::size_of_val(&context) as u32,
        ctx_out: after.as_mut_ptr().cast(),
        ctx_size_out: mem::size_of_val(&after) as u32,
        repeat: 1,
        ..Default::default()
    };
    // SAFETY: the options give all buffers' lengths, and all of them outlive the call.
    check(unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) })
        .unwrap();
    out.truncate(options.data_size_out as usize);
    (options.retval, out, after[MARK])
}

fn run_with(
    program: BorrowedFd<'_>,
    bytes: &[u8],
    context: Option<&mut libbpf_sys::xdp_md>,
) -> Ran {
    let (action, frame) = run_raw(program, bytes, context);
    let verdict = match action {
        libbpf_sys::XDP_TX => Verdict::Tx,
        libbpf_sys::XDP_PASS => Verdict::Pass,
        libbpf_sys::XDP_DROP => Verdict::Drop,
        other => panic!("XDP action {other}"),
    };
    Ran { verdict, frame }
}

/// The program's return value, as a number.
pub(crate) fn run_raw(
    program: BorrowedFd<'_>,
    bytes: &[u8],
    context: Option<&mut libbpf_sys::xdp_md>,
) -> (u32, Vec<u8>) {
    let mut out = vec![0; bytes.len() + 512];
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: mem::size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: bytes.as_ptr().cast(),
        data_size_in: bytes.len() as u32,
        data_out: out.as_mut_ptr().cast(),
        data_size_out: out.len() as u32,
        repeat: 1,
        ..Default::default()
    };
    if let Some(context) = context {
        let size = mem::size_of_val(context) as u32;
        options.ctx_in = std::ptr::from_ref(context).cast();
        options.ctx_size_in = size;
    }
    // SAFETY: the options give all buffers' lengths, and all of them outlive the call.
    check(unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) })
        .unwrap();
    out.truncate(options.data_size_out as usize);
    (options.retval, out)
}

/// A map's type, as the kernel's number.
pub(crate) fn map_type(map: BorrowedFd<'_>) -> u32 {
    map_info(map).type_
}

/// Makes the kernel fill in what it knows of a program. Arrays that `about` asks for must have the
/// lengths it states.
fn tell_about(program: BorrowedFd<'_>, about: &mut libbpf_sys::bpf_prog_info) {
    let mut length = mem::size_of_val(about) as u32;
    // SAFETY: `length` is the size of `about`, and the callers here provide arrays of the stated
    // lengths.
    check(unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(
            program.as_raw_fd(),
            std::ptr::from_mut(about).cast(),
            &mut length,
        )
    })
    .unwrap();
}

/// The types of all maps that a program uses.
pub(crate) fn maps_of(program: BorrowedFd<'_>) -> Vec<u32> {
    let mut ids = [0u32; 64];
    let mut info = libbpf_sys::bpf_prog_info {
        nr_map_ids: ids.len() as u32,
        map_ids: ids.as_mut_ptr() as u64,
        ..Default::default()
    };
    tell_about(program, &mut info);
    let ids = &ids[..info.nr_map_ids as usize];
    ids.iter()
        .map(|id| map_type(map_by_id(*id).as_fd()))
        .collect()
}

/// The size of a program as the kernel runs it, and how many instructions the verifier processed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) bytes: u32,
    pub(crate) verified: u32,
}

/// The size of a program.
pub(crate) fn size(program: BorrowedFd<'_>) -> Size {
    let mut info = libbpf_sys::bpf_prog_info::default();
    tell_about(program, &mut info);
    Size {
        bytes: info.xlated_prog_len,
        verified: info.verified_insns,
    }
}

/// A program as the kernel runs it: the instructions after verification, 8 bytes each.
pub(crate) fn translated(program: BorrowedFd<'_>) -> Vec<u8> {
    let mut instructions = vec![0; size(program).bytes as usize];
    let mut info = libbpf_sys::bpf_prog_info {
        xlated_prog_len: instructions.len() as u32,
        xlated_prog_insns: instructions.as_mut_ptr() as u64,
        ..Default::default()
    };
    tell_about(program, &mut info);
    instructions
}

/// All programs that this process has a descriptor of, or of a link to, by name (the kernel keeps
/// 15 characters).
pub(crate) fn own_programs() -> Vec<(String, Size)> {
    let descriptors = fs::read_dir("/proc/self/fdinfo").unwrap();
    let mut ids = BTreeSet::new();
    for descriptor in descriptors {
        // Concurrent tests close theirs.
        let about = fs::read_to_string(descriptor.unwrap().path()).unwrap_or_default();
        let id = about.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(id.map(|id| id.trim().parse::<u32>().unwrap()));
    }
    let there = ids.into_iter().filter_map(|id| program_by_id(id).ok());
    there
        .map(|program| {
            let mut info = libbpf_sys::bpf_prog_info::default();
            tell_about(program.as_fd(), &mut info);
            let name = info.name.iter().map(|byte| *byte as u8);
            let name = name.take_while(|byte| *byte != 0).collect();
            (String::from_utf8(name).unwrap(), size(program.as_fd()))
        })
        .collect()
}

/// The sizes of the programs in an array of programs.
pub(crate) fn sizes_in(programs: BorrowedFd<'_>) -> Vec<Size> {
    let programs = programs_in(programs).into_iter();
    programs.map(|program| size(program.as_fd())).collect()
}

/// The programs in an array of programs.
pub(crate) fn programs_in(array: BorrowedFd<'_>) -> Vec<OwnedFd> {
    let ids = dump(array).into_values();
    ids.map(|id| {
        let id = u32::from_ne_bytes(id.try_into().unwrap());
        program_by_id(id).unwrap()
    })
    .collect()
}

fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes a number.
    let fd = check(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) })?;
    // SAFETY: a descriptor that the call has just made and nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn map_by_id(id: u32) -> OwnedFd {
    // SAFETY: takes a number.
    let fd = check(unsafe { libbpf_sys::bpf_map_get_fd_by_id(id) }).unwrap();
    // SAFETY: a descriptor that the call has just made and nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn map_info(map: BorrowedFd<'_>) -> libbpf_sys::bpf_map_info {
    let mut info = libbpf_sys::bpf_map_info::default();
    let mut length = mem::size_of_val(&info) as u32;
    // SAFETY: `length` is the size of `info`.
    check(unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(
            map.as_raw_fd(),
            std::ptr::from_mut(&mut info).cast(),
            &mut length,
        )
    })
    .unwrap();
    info
}

/// An element of a map that is not per CPU; `None` if there is none.
pub(crate) fn lookup(map: BorrowedFd<'_>, key: &[u8]) -> Option<Vec<u8>> {
    let info = map_info(map);
    assert_eq!(key.len(), info.key_size as usize);
    let mut value = vec![0; info.value_size as usize];
    // SAFETY: key and value are as long as the map's, which is not per CPU.
    let result = check(unsafe {
        libbpf_sys::bpf_map_lookup_elem(
            map.as_raw_fd(),
            key.as_ptr().cast(),
            value.as_mut_ptr().cast(),
        )
    });
    match result {
        Ok(_) => Some(value),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            None
        }
    }
}

pub(crate) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) {
    let info = map_info(map);
    assert_eq!(key.len(), info.key_size as usize);
    assert_eq!(value.len(), info.value_size as usize);
    // SAFETY: key and value are as long as the map's, which is not per CPU.
    check(unsafe {
        libbpf_sys::bpf_map_update_elem(
            map.as_raw_fd(),
            key.as_ptr().cast(),
            value.as_ptr().cast(),
            0,
        )
    })
    .unwrap();
}

/// Sets all counters of an element of a per-CPU array to `count`, on each possible CPU; returns how
/// many these are.
pub(crate) fn count_on_all_cpus(map: BorrowedFd<'_>, index: u32, count: u64) -> u64 {
    // SAFETY: takes nothing.
    let cpus = check(unsafe { libbpf_sys::libbpf_num_possible_cpus() }).unwrap() as usize;
    let values = vec![count; map_info(map).value_size.div_ceil(8) as usize * cpus];
    // SAFETY: the key is a u32, and there is a value, of whole words, for each possible CPU.
    check(unsafe {
        libbpf_sys::bpf_map_update_elem(
            map.as_raw_fd(),
            std::ptr::from_ref(&index).cast(),
            values.as_ptr().cast(),
            0,
        )
    })
    .unwrap();
    cpus as u64
}

/// Empties a map: no elements, or zeros where elements always exist.
pub(crate) fn clear(map: BorrowedFd<'_>) {
    let info = map_info(map);
    if info.type_ == libbpf_sys::BPF_MAP_TYPE_ARRAY {
        let mut count = info.max_entries;
        let keys: Vec<u32> = (0..count).collect();
        let values = vec![0u8; info.value_size as usize * count as usize];
        // SAFETY: there are `count` keys and values, each as long as the map's, which is not per
        // CPU.
        check(unsafe {
            libbpf_sys::bpf_map_update_batch(
                map.as_raw_fd(),
                keys.as_ptr().cast(),
                values.as_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        })
        .unwrap();
        return;
    }
    let mut key = vec![0u8; info.key_size as usize];
    loop {
        // SAFETY: the key is as long as the map's; NULL asks for the first.
        let result = check(unsafe {
            let next = key.as_mut_ptr().cast();
            libbpf_sys::bpf_map_get_next_key(map.as_raw_fd(), std::ptr::null(), next)
        });
        if let Err(error) = result {
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            return;
        }
        // SAFETY: the key is as long as the map's.
        check(unsafe { libbpf_sys::bpf_map_delete_elem(map.as_raw_fd(), key.as_ptr().cast()) })
            .unwrap();
    }
}

/// Makes every entry of a flow table of either type older by this many ticks of the kernel's clock.
pub(crate) fn age_flows(table: BorrowedFd<'_>, ticks: u32) {
    // The two low bits of a stamp are flags.
    let ticks = ticks.next_multiple_of(4);
    // An entry of a set is tag, id and stamp; one of the LRU hash is id and stamp.
    const ENTRY: usize = 16;
    let is_hash = map_type(table) == libbpf_sys::BPF_MAP_TYPE_LRU_HASH;
    let entry = if is_hash { ENTRY / 2 } else { ENTRY };
    for (key, mut value) in dump(table) {
        let mut touched = false;
        for bytes in value.chunks_exact_mut(entry) {
            let (id, used) = bytes[entry - 8..].split_at_mut(4);
            if id != [0; 4] {
                let stamp = u32::from_ne_bytes(used.try_into().unwrap());
                used.copy_from_slice(&stamp.wrapping_sub(ticks).to_ne_bytes());
                touched = true;
            }
        }
        if touched {
            update(table, &key, &value);
        }
    }
}

/// Removes an existing element.
pub(crate) fn remove(map: BorrowedFd<'_>, key: &[u8]) {
    assert_eq!(key.len(), map_info(map).key_size as usize);
    // SAFETY: the key is as long as the map's.
    check(unsafe { libbpf_sys::bpf_map_delete_elem(map.as_raw_fd(), key.as_ptr().cast()) })
        .unwrap();
}

/// Every element of a map; one that is removed meanwhile may be missing.
pub(crate) fn dump(map: BorrowedFd<'_>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut elements = BTreeMap::new();
    let mut key = vec![0u8; map_info(map).key_size as usize];
    let mut from = std::ptr::null();
    loop {
        let mut next = vec![0u8; key.len()];
        // SAFETY: both keys are as long as the map's; NULL asks for the first.
        let result = check(unsafe {
            libbpf_sys::bpf_map_get_next_key(map.as_raw_fd(), from, next.as_mut_ptr().cast())
        });
        if let Err(error) = result {
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            return elements;
        }
        if let Some(value) = lookup(map, &next) {
            elements.insert(next.clone(), value);
        }
        key = next;
        from = key.as_ptr().cast();
    }
}

/// The entries of a flow table of either type.
pub(crate) fn flow_entries(table: BorrowedFd<'_>) -> Vec<Vec<u8>> {
    const ENTRY: usize = 16;
    const ID: std::ops::Range<usize> = 8..12;
    let elements = dump(table);
    if map_type(table) == libbpf_sys::BPF_MAP_TYPE_LRU_HASH {
        return elements.into_iter().map(|(k, v)| [k, v].concat()).collect();
    }
    let sets = elements.values();
    sets.flat_map(|set| set.chunks_exact(ENTRY))
        .filter(|entry| entry[ID] != [0; 4])
        .map(<[u8]>::to_vec)
        .collect()
}

/// The map that an array of maps holds at `index`.
pub(crate) fn inner(outer: BorrowedFd<'_>, index: u32) -> OwnedFd {
    let id = lookup(outer, &index.to_ne_bytes()).unwrap();
    map_by_id(u32::from_ne_bytes(id.try_into().unwrap()))
}
