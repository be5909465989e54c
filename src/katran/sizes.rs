//! The balancer's size in the kernel: the memory of its maps, and its programs.

use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use super::counters::Stats;
use crate::error::Error;
use crate::error::Result;
use crate::healthcheck::HealthChecks;

/// # Memory and programs
impl Stats<'_> {
    /// Bytes of kernel memory that the maps currently take, by the kernel's accounting.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn memory_in_use(&self) -> Result<u64> {
        let katran = self.katran;
        let special = [katran.programs.special.as_fd()];
        let named = katran
            .maps
            .named()
            .into_iter()
            .chain(katran.healthchecks.iter().flat_map(HealthChecks::maps))
            .map(|(_, map)| map)
            .chain(special);
        let memory = |map| {
            let bytes = crate::sys::map::memory(map);
            katran.kernel.check("read the memory of", "a map", bytes)
        };
        let inner = katran.maps.inner();
        let mut all = named.map(|map| (1, map)).chain(inner);
        all.try_fold(0, |sum, (count, map)| {
            Ok::<u64, Error>(sum + count as u64 * memory(map)?)
        })
    }

    /// Bytes of the attached program after the verifier has removed what is off; 8 per instruction.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel does not report it.
    pub fn program_size(&self) -> Result<u32> {
        let programs = &self.katran.programs;
        self.size_of("katran", &programs.main)
    }

    /// Bytes of the explaining twin, which only [`simulate`](crate::Katran::simulate) runs: no
    /// packet pays for its excess over [`program_size`](Self::program_size).
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel does not report it.
    pub fn explainer_size(&self) -> Result<u32> {
        let programs = &self.katran.programs;
        self.size_of("katran_explain", &programs.explainer)
    }

    fn size_of(&self, name: &str, program: &OwnedFd) -> Result<u32> {
        let info = crate::sys::program::info(program.as_fd());
        let kernel = &self.katran.kernel;
        kernel
            .check("read the size of", name, info)
            .map(|info| info.translated_bytes)
    }
}
