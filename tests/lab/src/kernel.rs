//! Features that the oldest supported kernel, Linux 6.1, lacks. A test checks the kernel's release,
//! not the feature: it fails where the feature should exist and does not, and where it is missing
//! it asserts the documented behaviour.

use nix::sys::utsname::uname;

/// A feature newer than 6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newer {
    /// A tc program can strip an outer header of another family than the inner one's.
    DecapAcrossFamilies,
    /// The verifier turns a lookup in a per-CPU array into loads.
    LoadsOfCpus,
    /// Links can attach tc programs.
    Tcx,
}

impl Newer {
    /// Whether this machine's kernel is new enough.
    ///
    /// # Panics
    /// If the kernel does not report its release.
    pub fn is_here(self) -> bool {
        let since = match self {
            Self::DecapAcrossFamilies => (6, 3),
            Self::LoadsOfCpus => (6, 10),
            Self::Tcx => (6, 6),
        };
        release() >= since
    }
}

/// The first two numbers of the kernel's release.
#[allow(clippy::expect_used, reason = "every kernel tells its release")]
fn release() -> (u32, u32) {
    let names = uname().expect("uname fails for bad addresses only");
    let release = names.release().to_str().unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => panic!("no release: {release:?}"),
    }
}
