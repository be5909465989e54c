//! Types that are plain bytes to the kernel.

use crate::skel::decap::types::decap_counters;
use crate::skel::healthcheck::types as health;
use crate::skel::katran::types;
use crate::skel::server_id::types::server_id_connection;
use crate::skel::server_id::types::server_id_counters;

/// A type for which every bit pattern is valid and which has no padding that the kernel would see
/// uninitialised.
///
/// # Safety
/// The implementor is `repr(C)` (or a primitive), made of integers only, without padding.
pub(crate) unsafe trait Pod: Copy + Default + 'static {}

macro_rules! pod {
    ($($type:ty = $size:expr;)*) => {$(
        const _: () = assert!(size_of::<$type>() == $size, "differs from bpf/shared.h");
        // SAFETY: a struct of shared.h, `repr(C)` with only integers; its asserted size is the sum
        // of its fields' sizes, so it has no padding.
        unsafe impl Pod for $type {}
    )*};
}

/// 64-bit words without padding: `counters::tests` sets each one, and finds it in the snapshot.
const COUNTERS: usize = size_of::<types::counters>();
const _: () = assert!(COUNTERS.is_multiple_of(size_of::<u64>()));

pod! {
    u8 = 1;
    u32 = 4;
    u64 = 8;
    types::vip_key = 20;
    types::vip_prefix_key = 24;
    types::real = 24;
    types::flow_key = 40;
    types::flow_value = 8;
    types::flow_set = 128;
    types::explanation = 16;
    types::count = 16;
    types::vip_counters = 40;
    types::real_counters = 24;
    types::vip_details = 16;
    types::vip_real = 8;
    types::vip_real_counters = 24;
    types::counters = COUNTERS;
    types::cpu = COUNTERS + 3 * 8 + 2 * 4 + 4 * 8 + 80 + 24;
    types::source_prefix_v4 = 8;
    types::source_prefix_v6 = 20;
    types::down_real = 8;
    types::decap_destination = 20;
    types::address_prefix = 24;
    types::server_id_line = 64;
    health::probe_match = 20;
    health::probe_real = 20;
    health::probe_way = 8;
    health::probe_totals = 7 * 8;
    health::vip_key = 20;
    decap_counters = 16 * 8;
    server_id_counters = 24;
    server_id_connection = 8;
}

/// The bytes of `value`, for the kernel to read.
pub(super) fn as_ptr<T: Pod>(value: &T) -> *const std::ffi::c_void {
    std::ptr::from_ref(value).cast()
}

/// The bytes of `value`, for the kernel to write.
pub(super) fn as_mut_ptr<T: Pod>(value: &mut T) -> *mut std::ffi::c_void {
    std::ptr::from_mut(value).cast()
}

/// The value with these words.
#[cfg(test)]
pub(crate) fn from_words<T: Pod>(words: &[u64]) -> T {
    assert_eq!(size_of_val(words), size_of::<T>());
    // SAFETY: there are as many bytes as a T has, every pattern of which is valid; the read may be
    // unaligned.
    unsafe { words.as_ptr().cast::<T>().read_unaligned() }
}
