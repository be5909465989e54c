//! A map is accepted only as its own type.

use super::*;

fn map(kind: libbpf_sys::bpf_map_type, value_size: u32) -> OwnedFd {
    create(&Spec {
        kind,
        name: "typed",
        key_size: 4,
        value_size,
        max_entries: 2,
        flags: 0,
        numa_node: None,
    })
    .unwrap()
}

#[test]
fn a_map_of_another_type_is_refused() {
    use libbpf_sys::*;
    let refused = Some(io::ErrorKind::InvalidInput);
    // In these maps a u64 would be only the first of many values.
    for kind in [
        BPF_MAP_TYPE_PERCPU_ARRAY,
        BPF_MAP_TYPE_PERCPU_HASH,
        BPF_MAP_TYPE_LRU_PERCPU_HASH,
    ] {
        let typed = Typed::<u32, u64>::new(map(kind, 8));
        assert_eq!(typed.err().map(|error| error.kind()), refused, "{kind}");
    }
    for kind in [BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH] {
        let typed = Typed::<u32, u64>::new(map(kind, 8)).unwrap();
        typed.update(&1, &7).unwrap();
        assert_eq!(typed.lookup(&1).unwrap(), Some(7));
        let wrong_size = Typed::<u32, u64>::new(map(kind, 16));
        assert_eq!(wrong_size.err().map(|error| error.kind()), refused);
        let per_cpu = PerCpuArray::<u64>::new(map(kind, 8));
        assert_eq!(per_cpu.err().map(|error| error.kind()), refused, "{kind}");
    }
    let per_cpu = PerCpuArray::<u64>::new(map(BPF_MAP_TYPE_PERCPU_ARRAY, 8)).unwrap();
    per_cpu.fill(1, 7).unwrap();
    assert!(per_cpu.get(1).unwrap().iter().all(|value| *value == 7));
}
