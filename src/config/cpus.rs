//! The machine's CPUs and NUMA nodes, from sysfs.
//!
//! Flow tables are made for CPUs and placed on nodes, so a configuration can be checked only
//! against the machine it will run on.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io;

use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;

const ONLINE: &str = "/sys/devices/system/cpu/online";
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
const NODES: &str = "/sys/devices/system/node";

/// A CPU that has a flow table, and where that table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForwardingCpu {
    pub(crate) cpu: u32,
    /// None on a kernel without NUMA: the kernel chooses.
    pub(crate) numa_node: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topology {
    /// CPUs that are running.
    pub(crate) online: BTreeSet<u32>,
    /// CPUs that may ever run, including those that do.
    pub(crate) possible: BTreeSet<u32>,
    /// Nodes that are online; node 0 on a kernel without NUMA.
    pub(crate) nodes: BTreeSet<u32>,
    /// The node of each CPU; none on a kernel without NUMA.
    pub(crate) node_of: BTreeMap<u32, u32>,
}

impl Topology {
    /// Reads this machine's topology.
    ///
    /// # Errors
    /// [`Error::Kernel`] if sysfs is not mounted or does not contain CPU lists.
    pub(crate) fn read() -> Result<Self> {
        let mut topology = Self {
            online: read_list(ONLINE)?,
            possible: read_list(POSSIBLE)?,
            nodes: BTreeSet::from([0]),
            node_of: BTreeMap::new(),
        };
        match read_list(&format!("{NODES}/online")) {
            Ok(nodes) => topology.nodes = nodes,
            Err(Error::Kernel { errno, .. }) if errno.kind() == io::ErrorKind::NotFound => {
                return Ok(topology);
            }
            Err(error) => return Err(error),
        }
        for node in &topology.nodes {
            let cpus = read_list(&format!("{NODES}/node{node}/cpulist"))?;
            topology
                .node_of
                .extend(cpus.iter().map(|cpu| (*cpu, *node)));
        }
        Ok(topology)
    }
}

fn read_list(path: &str) -> Result<BTreeSet<u32>> {
    let error = |errno| kernel_error("read the CPUs or nodes in", path, errno);
    let text = fs::read_to_string(path).map_err(error)?;
    parse_list(text.trim())
        .ok_or_else(|| error(io::Error::new(io::ErrorKind::InvalidData, text.trim())))
}

/// Reads a list in the kernel's form: `0-3,8,10-11`, or nothing.
pub(crate) fn parse_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut list = BTreeSet::new();
    if text.is_empty() {
        return Some(list);
    }
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        // The kernel's largest NR_CPUS is far below; a bad list must not fill the memory.
        if first > last || last > 1 << 20 {
            return None;
        }
        list.extend(first..=last);
    }
    Some(list)
}

fn number(text: &str) -> Option<u32> {
    let digits_only = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits_only)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        let list = |text| parse_list(text).map(|list| list.into_iter().collect::<Vec<_>>());
        assert_eq!(list("0"), Some(vec![0]));
        assert_eq!(list("0-3,8"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(list(""), Some(vec![]));
        for bad in ["a", "3-1", "1,", "-1", "+1", "0-", "0-4294967295"] {
            assert_eq!(list(bad), None, "{bad}");
        }
    }

    /// Compared with each CPU separately; and a list that was read can be written and read again.
    #[test]
    fn mutated_lists_are_refused_or_mean_what_they_say() {
        mutate::cases(20_000, |rng| {
            let mut text = b"0-3,8,10-11,64,127-129".to_vec();
            for _ in 0..rng.u32(0..4) {
                mutate::text(rng, &mut text);
            }
            let text = String::from_utf8_lossy(&text);
            let Some(list) = parse_list(&text) else {
                return;
            };
            let bounds = text.split(',').filter(|_| !text.is_empty()).map(|part| {
                let mut ends = part.split('-').map(|end| end.parse::<u32>().unwrap());
                let first = ends.next().unwrap();
                (first, ends.next().unwrap_or(first))
            });
            let bounds: Vec<_> = bounds.collect();
            for cpu in (0..300).chain(list.iter().copied().take(300)) {
                let is_in = bounds
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&cpu));
                assert_eq!(list.contains(&cpu), is_in, "{cpu} in {text}");
            }
            let again: Vec<_> = list.iter().map(u32::to_string).collect();
            assert_eq!(parse_list(&again.join(",")), Some(list));
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads sysfs")]
    fn this_machine_can_be_read() {
        let topology = Topology::read().unwrap();
        assert!(!topology.online.is_empty());
        assert!(topology.online.is_subset(&topology.possible));
        assert!(
            topology
                .node_of
                .values()
                .all(|node| topology.nodes.contains(node))
        );
    }
}
