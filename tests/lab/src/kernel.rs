//! What the oldest supported kernel, Linux 6.1, has not. A test asks the kernel's release and not for the feature
//! itself: it fails where the feature should be there and is not, and where it is missing it asserts
//! what is documented of that.

use nix::sys::utsname::uname;

/// Something that came with a kernel after 6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newer {
    /// A tc program takes off an outer header whose family is not that of what is in it.
    DecapAcrossFamilies,
    /// The verifier puts loads in the place of a lookup in an array of each CPU's.
    LoadsOfCpus,
    /// tc programs are attached by links.
    Tcx,
}

impl Newer {
    /// Whether this machine's kernel is new enough.
    ///
    /// # Panics
    /// If the kernel does not tell its release.
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
