//! The generated skeletons: the compiled programs, and the types of `bpf/shared.h`.

#![allow(
    clippy::all,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::undocumented_unsafe_blocks
)]
#![allow(unreachable_pub, unsafe_code, unsafe_op_in_unsafe_fn, unused)]

pub(crate) mod katran {
    include!(concat!(env!("OUT_DIR"), "/katran.skel.rs"));

    /// Differs between objects.
    pub(crate) const DIGEST: u64 = include!(concat!(env!("OUT_DIR"), "/katran.digest"));
}

/// An object by itself: a skeleton would take over its maps by name.
pub(crate) const CARRY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carry.bpf.o"));

pub(crate) mod decap {
    include!(concat!(env!("OUT_DIR"), "/decap.skel.rs"));
}

pub(crate) mod decap_tc {
    include!(concat!(env!("OUT_DIR"), "/decap_tc.skel.rs"));
}

pub(crate) mod healthcheck {
    include!(concat!(env!("OUT_DIR"), "/healthcheck.skel.rs"));
}

pub(crate) mod root {
    include!(concat!(env!("OUT_DIR"), "/root.skel.rs"));
}

pub(crate) mod server_id {
    include!(concat!(env!("OUT_DIR"), "/server_id.skel.rs"));
}
