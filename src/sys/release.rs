//! The running kernel's release, for the few calls that work differently on older ones.

use nix::sys::utsname::uname;

/// The first release in which the kernel reports what drivers can do for XDP.
pub(crate) const TELLS_XDP_FEATURES: (u32, u32) = (6, 3);

/// Whether the running kernel is this release or a newer one.
pub(crate) fn is_at_least(needed: (u32, u32)) -> bool {
    numbers(&release()) >= needed
}

/// The running kernel's release; empty if it does not say.
pub(crate) fn release() -> String {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned());
    release.unwrap_or_default()
}

/// How the running kernel was built: number, preemption, date; empty if it does not say.
pub(crate) fn version() -> String {
    let version = uname().map(|name| name.version().to_string_lossy().into_owned());
    version.unwrap_or_default()
}

/// The first two numbers of a release.
pub(crate) fn numbers(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
