//! Carries counters from maps that packets have left to their replacements, so that no counter goes
//! back. A program in the kernel does it (`bpf/carry.bpf.c`), one whole CPU at a time: even if the
//! process dies each packet is counted once, and the next owner carries the rest.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::thread;

use libbpf_rs::ObjectBuilder;
use nix::sched::CpuSet;
use nix::sched::sched_setaffinity;
use nix::unistd::Pid;

use crate::error::Error;
use crate::kernel::kernel_error;
use crate::skel::CARRY;
use crate::skel::katran::types;
use crate::sys::map;
use crate::sys::object::into_io;
use crate::sys::object::numbered;
use crate::sys::program;
use crate::sys::signals::without_signals;

/// What a map's elements count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Only counters, whose CPU does not matter.
    Sums,
    /// The record of each CPU: its counters, and other fields that are not carried.
    Cpus,
}

impl Counted {
    /// By the map's name; `None`: nothing.
    pub(crate) fn of(name: &str) -> Option<Self> {
        match name {
            "vip_counters" | "real_counters" | "vip_details" | "probe_counters" => Some(Self::Sums),
            "cpus" => Some(Self::Cpus),
            _ => None,
        }
    }
}

/// Carries the counters of one map to another. It is made before packets leave the first one,
/// because it must not fail afterwards.
pub(crate) struct Carrier {
    program: OwnedFd,
    counted: Counted,
}

/// The shortest frame that the kernel runs a program on.
const FRAME: usize = 14;

impl Carrier {
    /// From one map of this name to another, of which either may have more elements; `None`: they
    /// are one map, or such maps count nothing.
    ///
    /// # Errors
    /// If the kernel refuses, or they count in different forms.
    pub(crate) fn between(
        name: &str,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
    ) -> io::Result<Option<Self>> {
        let Some(counted) = Counted::of(name) else {
            return Ok(None);
        };
        let (one, other) = (map::info(from)?, map::info(to)?);
        if one.id == other.id {
            return Ok(None);
        }
        if (one.kind, one.value_size) != (other.kind, other.value_size) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let bytes = match counted {
            Counted::Sums => one.value_size as usize,
            Counted::Cpus => size_of::<types::counters>(),
        };
        let words = (bytes / size_of::<u64>()) as u32;
        let elements = one.max_entries.min(other.max_entries);
        let mut builder = ObjectBuilder::default();
        let mut open = numbered(|| builder.open_memory(CARRY))?;
        for mut map in open.maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            let (of, fd) = match name.as_str() {
                "carried_from" => (&one, from),
                "carried_to" => (&other, to),
                _ => {
                    // Its constants.
                    let words = [words, elements].into_iter().flat_map(u32::to_ne_bytes);
                    if let Some(value) = map.initial_value_mut() {
                        value.iter_mut().zip(words).for_each(|(to, of)| *to = of);
                    }
                    continue;
                }
            };
            let sized = map
                .set_value_size(of.value_size)
                .and_then(|()| map.set_max_entries(of.max_entries));
            sized.map_err(into_io)?;
            numbered(|| map.reuse_fd(fd))?;
        }
        let object = without_signals(|| numbered(|| open.load()))?;
        let mut programs = object.progs();
        let program = programs.next().ok_or(io::ErrorKind::NotFound)?;
        let program = program.as_fd().try_clone_to_owned()?;
        Ok(Some(Self { program, counted }))
    }

    /// Carries the current counts.
    ///
    /// # Errors
    /// If the kernel refuses; the rest can be carried later.
    pub(crate) fn carry(&self) -> io::Result<()> {
        let cpus = map::possible_cpus()?;
        match self.counted {
            Counted::Sums => (0..cpus).try_for_each(|cpu| self.run(cpu)),
            // Runs on the CPU itself, so that the counts stay its own. A separate thread, because
            // the caller's has its own CPU affinity.
            Counted::Cpus => thread::scope(|scope| {
                let all = || (0..cpus).try_for_each(|cpu| self.run_on(cpu));
                let thread = thread::Builder::new()
                    .name("katran-carry".to_owned())
                    .spawn_scoped(scope, all)?;
                let ended = thread.join();
                ended.unwrap_or_else(|_| Err(io::Error::other("a thread has panicked")))
            }),
        }
    }

    fn run_on(&self, cpu: usize) -> io::Result<()> {
        let mut only = CpuSet::new();
        // The counts of an offline CPU, or one that this process may not use, go to another.
        if let Err(error) = only
            .set(cpu)
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only))
        {
            log::debug!("cannot run on CPU {cpu}: {error}");
        }
        self.run(cpu)
    }

    fn run(&self, cpu: usize) -> io::Result<()> {
        let mut frame = [0; FRAME];
        frame[..4].copy_from_slice(&(cpu as u32).to_ne_bytes());
        program::run(self.program.as_fd(), &frame).map(drop)
    }
}

/// The error when the programs of a [`Carrier`] cannot be loaded.
pub(crate) fn no_carrier(error: io::Error) -> Error {
    kernel_error("load", "the programs that carry counters", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::map::PerCpuArray;
    use crate::sys::map::Spec;

    fn counters(elements: u32) -> PerCpuArray<types::real_counters> {
        let map = map::create(&Spec {
            kind: libbpf_sys::BPF_MAP_TYPE_PERCPU_ARRAY,
            name: "counters",
            key_size: 4,
            value_size: size_of::<types::real_counters>() as u32,
            max_entries: elements,
            flags: 0,
            numa_node: None,
        });
        PerCpuArray::new(map.unwrap()).unwrap()
    }

    fn counts(misses: u64) -> types::real_counters {
        types::real_counters {
            misses,
            ..Default::default()
        }
    }

    #[test]
    fn counts_are_carried_once() {
        let cpus = map::possible_cpus().unwrap() as u64;
        for (of_one, of_other) in [(5, 300), (300, 5)] {
            let (one, other) = (counters(of_one), counters(of_other));
            one.fill(4, counts(7)).unwrap();
            one.fill(0, counts(3)).unwrap();
            other.fill(4, counts(100)).unwrap();
            let carrier = Carrier::between("vip_counters", one.as_fd(), other.as_fd())
                .unwrap()
                .unwrap();
            for _ in 0..2 {
                carrier.carry().unwrap();
                let sum = |of: &PerCpuArray<types::real_counters>, index| {
                    let counts = of.get(index).unwrap();
                    counts.iter().map(|of| of.misses).sum::<u64>()
                };
                assert_eq!((sum(&one, 4), sum(&other, 4)), (0, 107 * cpus));
                assert_eq!((sum(&one, 0), sum(&other, 0)), (0, 3 * cpus));
            }
            // Later counts are carried the next time.
            one.fill(1, counts(1)).unwrap();
            carrier.carry().unwrap();
            assert_eq!(
                other
                    .get(1)
                    .unwrap()
                    .iter()
                    .map(|of| of.misses)
                    .sum::<u64>(),
                cpus
            );
        }
    }

    #[test]
    fn what_counts_in_another_form_is_refused() {
        let (one, other) = (counters(5), counters(5));
        let carrier = Carrier::between("vip_counters", one.as_fd(), other.as_fd());
        assert!(carrier.unwrap().is_some());
        let sums = map::create(&Spec {
            kind: libbpf_sys::BPF_MAP_TYPE_PERCPU_ARRAY,
            name: "counters",
            key_size: 4,
            value_size: 8,
            max_entries: 5,
            flags: 0,
            numa_node: None,
        });
        let refused = Carrier::between("vip_counters", one.as_fd(), sums.unwrap().as_fd());
        assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::InvalidData);
    }
}
