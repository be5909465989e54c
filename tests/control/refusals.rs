//! What a machine can refuse before a balancer exists: privileges, bpf(2), memory, the program.
//! Each error says which.

use std::thread;

use caps::Capability;
use katran::Decap;
use katran::Error;
use katran::FlowTableKind;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::require_root;
use nix::errno::Errno;
use nix::libc;

use crate::common::builder;
use crate::common::faults;
use crate::common::faults::without_call;
use crate::common::faults::without_capabilities;
use crate::common::faults::without_commands;
use crate::common::load;

pub(super) const PREFIX: &str = "203.0.113.0/24:0/tcp";

#[test]
fn missing_privileges_are_named() {
    require_root();
    let all = [
        Capability::CAP_SYS_ADMIN,
        Capability::CAP_BPF,
        Capability::CAP_PERFMON,
        Capability::CAP_NET_ADMIN,
    ];
    let name = |error: Error| match error {
        Error::Privilege { missing, .. } => missing,
        other => panic!("{other}"),
    };
    let missing = without_capabilities(&all, || name(builder().load().unwrap_err()));
    assert_eq!(missing, "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF");
    let missing = without_capabilities(&all, || name(Decap::builder().load().unwrap_err()));
    assert_eq!(missing, "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF");
    for (capability, expected) in all
        .iter()
        .zip(["", "CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"])
        .skip(1)
    {
        let without = [Capability::CAP_SYS_ADMIN, *capability];
        let missing = without_capabilities(&without, || name(builder().load().unwrap_err()));
        assert_eq!(missing, expected);
    }
    // The three capabilities are enough.
    let loaded = without_capabilities(&all[..1], || builder().load());
    assert!(loaded.is_ok(), "{loaded:?}");
}

#[test]
fn attaching_where_it_is_forbidden_says_so() {
    let mut katran = load(builder());
    let host = Host::new("forbidden").unwrap();
    let commands = [faults::LINK_CREATE];
    let error = host.run(|| {
        without_commands(&commands, Errno::EPERM, || {
            katran.attach("lo", XdpMode::Generic).unwrap_err()
        })
    });
    assert!(matches!(error, Error::Privilege { .. }), "{error}");
    assert!(katran.interfaces().is_empty());
    host.run(|| katran.attach("lo", XdpMode::Generic)).unwrap();
    assert_eq!(katran.interfaces().len(), 1);
}

#[test]
fn a_kernel_without_bpf_is_named() {
    require_root();
    let errors = without_call(libc::SYS_bpf, Errno::ENOSYS, || {
        [
            builder().load().unwrap_err(),
            Decap::builder().load().unwrap_err(),
        ]
    });
    for error in errors {
        assert!(matches!(error, Error::BpfUnavailable), "{error}");
    }
}

#[test]
fn a_container_that_forbids_bpf_is_named() {
    require_root();
    let error = without_call(libc::SYS_bpf, Errno::EPERM, || {
        builder().load().unwrap_err()
    });
    assert!(
        matches!(&error, Error::Privilege { missing, .. } if missing.contains("seccomp")),
        "{error}"
    );
}

#[test]
fn too_little_memory_is_known_before_anything_is_made() {
    require_root();
    // The maximum number of flows: some 15 GiB for each CPU.
    let cpus = thread::available_parallelism().unwrap().get() as u32;
    let huge = || {
        builder()
            .flow_table(FlowTableKind::KernelLru)
            .forwarding_cpus(0..cpus)
            .flow_table_size(u64::from(cpus) << 27)
    };
    let wanted = huge().memory_estimate().unwrap().at_load();
    // The error is the same if no map can be made: none was tried.
    for commands in [&[][..], &[faults::MAP_CREATE]] {
        let load = || huge().load().unwrap_err();
        let error = match commands.is_empty() {
            true => load(),
            false => without_commands(commands, Errno::EINVAL, load),
        };
        match error {
            Error::InsufficientMemory {
                needed,
                available,
                limited_by,
                ..
            } => {
                assert_eq!(needed, wanted);
                assert!(needed > available, "{needed} of {available}");
                let file = std::fs::read_to_string(limited_by);
                assert!(file.is_ok(), "{file:?}");
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_kernel_that_is_out_of_memory_names_the_map() {
    require_root();
    let error = without_commands(&[faults::MAP_CREATE], Errno::ENOMEM, || {
        builder().load().unwrap_err()
    });
    assert!(
        matches!(&error, Error::InsufficientMemory { what, .. } if what.contains("ring_chunk")),
        "{error}"
    );
}

#[test]
fn a_program_that_is_not_loaded_says_why() {
    require_root();
    for (errno, expected) in [
        (Errno::EPERM, "not permitted"),
        (Errno::EINVAL, "Invalid argument"),
    ] {
        let error = without_commands(&[faults::PROG_LOAD], errno, || {
            builder().load().unwrap_err()
        });
        assert!(error.to_string().contains(expected), "{errno}: {error}");
    }
}
