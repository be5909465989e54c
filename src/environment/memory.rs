//! How much memory can be had: what the machine has left, and what the process's memory cgroups leave it,
//! of version 1 and 2. The memory of BPF maps counts against the cgroup of the process that makes them.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Bytes that can be had without swapping; `None` if `/proc` does not say.
pub(crate) fn available_memory() -> Option<u64> {
    available_in(Path::new("/"))
}

/// The same of the machine whose file system begins at `root`.
fn available_in(root: &Path) -> Option<u64> {
    let of_machine = fs::read_to_string(root.join("proc/meminfo")).ok();
    let of_machine = of_machine.and_then(|text| available_of_machine(&text));
    of_machine.into_iter().chain(left_by_cgroups(root)).min()
}

fn available_of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The files of a memory cgroup of one version.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// What `memory.stat` has of memory that the kernel takes back when there is no other.
    reclaimable: [&'static str; 3],
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file", "total_active_file", ""],
};

const V2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: ["inactive_file", "active_file", "slab_reclaimable"],
};

/// What is left below the lowest limit of the process's memory cgroup and those above it.
fn left_by_cgroups(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let hierarchies = groups.lines().filter_map(hierarchy);
    let left = hierarchies.filter_map(|(files, path)| {
        let mount = mounts.lines().filter_map(Mount::of);
        let mount = mount.into_iter().find(|mount| mount.is_of(files))?;
        left_from(root, files, &mount, path)
    });
    left.min()
}

/// The hierarchy of memory cgroups and the process's place in it that a line of `/proc/self/cgroup`
/// tells; `None`: it is about something else.
fn hierarchy(line: &str) -> Option<(&'static Files, &str)> {
    let (number, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    if controllers.split(',').any(|name| name == "memory") {
        return Some((&V1, path));
    }
    (number == "0" && controllers.is_empty()).then_some((&V2, path))
}

/// Where a hierarchy of cgroups is mounted.
struct Mount {
    /// The cgroup that is seen there, as `/proc/self/cgroup` would name it.
    group: PathBuf,
    point: PathBuf,
    is_v2: bool,
    has_memory: bool,
}

impl Mount {
    /// Of a line of `/proc/self/mountinfo` (proc(5)).
    fn of(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (group, point) = (unescape(place.next()?), unescape(place.next()?));
        let mut kind = kind.split(' ');
        let (file_system, _, options) = (kind.next()?, kind.next()?, kind.next()?);
        Some(Self {
            group: group.into(),
            point: point.into(),
            is_v2: file_system == "cgroup2",
            has_memory: file_system == "cgroup" && options.split(',').any(|it| it == "memory"),
        })
    }

    fn is_of(&self, files: &Files) -> bool {
        match std::ptr::eq(files, &V2) {
            true => self.is_v2,
            false => self.has_memory,
        }
    }
}

/// Characters that would end a field are written as three octal digits.
fn unescape(field: &str) -> String {
    let octals = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    octals
        .into_iter()
        .fold(field.to_owned(), |text, (octal, character)| {
            text.replace(octal, character)
        })
}

fn left_from(root: &Path, files: &Files, mount: &Mount, path: &str) -> Option<u64> {
    // A container may see its own cgroup only, under a name that is not the one it is mounted by.
    let below = Path::new(path).strip_prefix(&mount.group).ok();
    let below = below
        .filter(|below| !below.starts_with(".."))
        .unwrap_or(Path::new(""));
    let top = root.join(mount.point.strip_prefix("/").ok()?);
    let group = top.join(below);
    let group = if group.is_dir() { group } else { top.clone() };
    let groups = group
        .ancestors()
        .take_while(|group| group.starts_with(&top));
    groups.filter_map(|group| left_in(group, files)).min()
}

/// What is left in one cgroup; `None`: it has no limit.
fn left_in(group: &Path, files: &Files) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(group.join(file)).ok()?;
        text.trim().parse().ok()
    };
    // `max` is no number.
    let (limit, usage) = (number(files.limit)?, number(files.usage)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let reclaimable = stat.lines().filter_map(|line| {
        let (name, bytes) = line.split_once(' ')?;
        let counts = files.reclaimable.contains(&name);
        counts.then(|| bytes.trim().parse::<u64>().ok()).flatten()
    });
    let used = usage.saturating_sub(reclaimable.sum());
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A file system with the files that are looked at.
    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str, cgroup: &str, mountinfo: &str) -> Self {
            let unique = format!("katran-memory-{name}-{}", std::process::id());
            let machine = Self(std::env::temp_dir().join(unique));
            machine.write(
                "proc/meminfo",
                "MemTotal: 9 kB\nMemAvailable:  4096000 kB\n",
            );
            machine.write("proc/self/cgroup", cgroup);
            machine.write("proc/self/mountinfo", mountinfo);
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn available(&self) -> u64 {
            available_in(&self.0).unwrap()
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const V2_MOUNT: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn the_lowest_limit_up_the_tree_counts() {
        let machine = Machine::new("v2", "0::/a.slice/b.service\n", V2_MOUNT);
        assert_eq!(machine.available(), 4_096_000 * 1024);
        machine.write("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
        machine.write(
            "sys/fs/cgroup/a.slice/b.service/memory.current",
            "1048576\n",
        );
        assert_eq!(machine.available(), 4_096_000 * 1024);
        machine.write("sys/fs/cgroup/a.slice/memory.max", "104857600\n");
        machine.write("sys/fs/cgroup/a.slice/memory.current", "62914560\n");
        assert_eq!(machine.available(), 40 * MIB);
        let stat =
            "anon 1\ninactive_file 10485760\nactive_file 5242880\nslab_reclaimable 1048576\n";
        machine.write("sys/fs/cgroup/a.slice/memory.stat", stat);
        assert_eq!(machine.available(), 56 * MIB);
        machine.write("sys/fs/cgroup/a.slice/b.service/memory.max", "2097152\n");
        assert_eq!(machine.available(), MIB);
        // More than there may be, since the limit was lowered.
        machine.write(
            "sys/fs/cgroup/a.slice/b.service/memory.current",
            "3145728\n",
        );
        assert_eq!(machine.available(), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn the_root_of_a_namespace_is_its_cgroup() {
        // With a namespace of its own a container sees its cgroup as the root.
        let machine = Machine::new("namespace", "0::/\n", V2_MOUNT);
        machine.write("sys/fs/cgroup/memory.max", "10485760\n");
        machine.write("sys/fs/cgroup/memory.current", "2097152\n");
        assert_eq!(machine.available(), 8 * MIB);
        // A process that was put in from outside.
        machine.write("proc/self/cgroup", "0::/../elsewhere\n");
        assert_eq!(machine.available(), 8 * MIB);
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn the_first_version_counts_as_well() {
        let cgroup = "5:cpu,cpuacct:/docker/x\n4:hugetlb,memory:/docker/x y/z\n0::/docker/x\n";
        let mounts = "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 /docker/x\\040y /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let machine = Machine::new("v1", cgroup, mounts);
        assert_eq!(machine.available(), 4_096_000 * 1024);
        machine.write(
            "sys/fs/cgroup/memory/z/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        machine.write("sys/fs/cgroup/memory/z/memory.usage_in_bytes", "1\n");
        machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "20971520\n");
        machine.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "10485760\n");
        let stat = "inactive_file 7\ntotal_inactive_file 1048576\n";
        machine.write("sys/fs/cgroup/memory/memory.stat", stat);
        assert_eq!(machine.available(), 11 * MIB);
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn this_machine_has_memory() {
        assert!(available_memory().unwrap() > MIB);
    }
}
