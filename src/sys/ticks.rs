//! The kernel's ticks, the clock that packets use.

use std::time::Duration;

use nix::libc;
use nix::unistd::SysconfVar;
use nix::unistd::sysconf;

/// The kernel's count of ticks (`jiffies_64`), accurate to a hundredth of a second, and never
/// ahead. `tick` is the length of one, the resolution of the coarse clocks. The count stops while
/// the machine is suspended.
///
/// It comes from times(2), in other units, which takes neither privileges nor a program. Other
/// clocks will not do, because time servers adjust their rate.
pub(crate) fn ticks(tick: Duration) -> u64 {
    let mut times = libc::tms {
        tms_utime: 0,
        tms_stime: 0,
        tms_cutime: 0,
        tms_cstime: 0,
    };
    // SAFETY: writes into the struct, which outlives the call.
    let hundredths = unsafe { libc::times(&raw mut times) };
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let tick = tick.as_nanos().max(1);
    // The reverse of the kernel's conversion (kernel/time/time.c), so the smallest count with this
    // result.
    let lasts = u128::from(hundredths as u64) * (1_000_000_000 / u128::from(a_second as u64));
    lasts.div_ceil(tick) as u64
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::time::ClockId;

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "the clock is the kernel's")]
    fn they_go_on_by_the_tick() {
        let tick = Duration::from(ClockId::CLOCK_MONOTONIC_COARSE.res().unwrap());
        let before = ticks(tick);
        thread::sleep(Duration::from_millis(300));
        let passed = (ticks(tick) - before) as u32 * tick;
        let bounds = Duration::from_millis(280)..Duration::from_secs(5);
        assert!(bounds.contains(&passed), "{passed:?}");
    }
}
