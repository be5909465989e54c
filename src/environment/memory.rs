//! How much memory is available: what the machine has left, and what the process's memory cgroups
//! (version 1 and 2) allow. BPF maps count against the cgroup of the process that creates them.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::path::PathBuf;

use crate::sys::text::unescaped;

/// Memory that is available without swapping.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Available {
    pub(crate) bytes: u64,
    /// The file with the limit: the machine's, or that of a cgroup.
    pub(crate) limited_by: PathBuf,
}

impl Default for Available {
    /// No memory, from an unknown source.
    fn default() -> Self {
        Self {
            bytes: 0,
            limited_by: Path::new("/").join(MEMINFO),
        }
    }
}

/// The memory that is available now; `None` if `/proc` does not tell.
pub(crate) fn available_memory() -> Option<Available> {
    available_in(Path::new("/"))
}

/// The same for the machine whose file system begins at `root`.
fn available_in(root: &Path) -> Option<Available> {
    let of_machine = fs::read_to_string(root.join(MEMINFO)).ok();
    let of_machine = of_machine.and_then(|text| available_of_machine(&text));
    let of_machine = of_machine.map(|bytes| Available {
        bytes,
        limited_by: Path::new("/").join(MEMINFO),
    });
    of_machine.into_iter().chain(left_by_cgroups(root)).min()
}

const MEMINFO: &str = "proc/meminfo";

fn available_of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes.saturating_mul(1024))
}

/// The files of a memory cgroup of one version.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// The entries of `memory.stat` for memory that the kernel reclaims under pressure.
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

/// The memory left below the lowest limit of the process's memory cgroup and its ancestors.
fn left_by_cgroups(root: &Path) -> Option<Available> {
    // Names of cgroups and mounts may not be UTF-8, so these two files are read as bytes.
    let groups = fs::read(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read(root.join("proc/self/mountinfo")).ok()?;
    let hierarchies = groups.split(|byte| *byte == b'\n').filter_map(hierarchy);
    let left = hierarchies.filter_map(|(files, path)| {
        let of_files = mounts.split(|byte| *byte == b'\n').filter_map(Mount::of);
        let of_files = of_files.filter(|mount| mount.is_of(files));
        // The mount that shows the process's own cgroup and most of its ancestors.
        let mount = of_files.min_by_key(|mount| match mount.below(path) {
            Some(_) => mount.group.components().count(),
            None => usize::MAX,
        })?;
        left_from(root, files, &mount, path)
    });
    left.min()
}

/// The hierarchy of memory cgroups, and the process's place in it, in a line of
/// `/proc/self/cgroup`; `None` if the line is about something else.
fn hierarchy(line: &[u8]) -> Option<(&'static Files, &Path)> {
    let mut fields = line.splitn(3, |byte| *byte == b':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let path = Path::new(OsStr::from_bytes(path));
    if controllers
        .split(|byte| *byte == b',')
        .any(|name| name == b"memory")
    {
        return Some((&V1, path));
    }
    (number == b"0" && controllers.is_empty()).then_some((&V2, path))
}

/// The mount of a cgroup hierarchy.
struct Mount {
    /// The cgroup at its root, as `/proc/self/cgroup` would name it.
    group: PathBuf,
    point: PathBuf,
    is_v2: bool,
    has_memory: bool,
}

impl Mount {
    /// Parses a line of `/proc/self/mountinfo` (proc(5)).
    fn of(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ').skip(3);
        let mut path = || Some(PathBuf::from(OsString::from_vec(unescaped(words.next()?))));
        let (group, point) = (path()?, path()?);
        let mut kind = words.skip_while(|word| *word != b"-").skip(1);
        let (file_system, _, options) = (kind.next()?, kind.next()?, kind.next()?);
        let mut options = options.split(|byte| *byte == b',');
        Some(Self {
            group,
            point,
            is_v2: file_system == b"cgroup2",
            has_memory: file_system == b"cgroup" && options.any(|it| it == b"memory"),
        })
    }

    /// A cgroup's path below the mount's root; `None` if it is elsewhere.
    fn below<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let below = path.strip_prefix(&self.group).ok();
        below.filter(|below| !below.starts_with(".."))
    }

    fn is_of(&self, files: &Files) -> bool {
        match std::ptr::eq(files, &V2) {
            true => self.is_v2,
            false => self.has_memory,
        }
    }
}

fn left_from(root: &Path, files: &Files, mount: &Mount, path: &Path) -> Option<Available> {
    // A container may see only its own cgroup, under a name that differs from the mounted one.
    let below = mount.below(path).unwrap_or(Path::new(""));
    let top = root.join(mount.point.strip_prefix("/").ok()?);
    let group = top.join(below);
    let group = if group.is_dir() { group } else { top.clone() };
    let groups = group
        .ancestors()
        .take_while(|group| group.starts_with(&top));
    let left = groups.filter_map(|group| {
        let inside = group.strip_prefix(root).ok()?;
        Some(Available {
            bytes: left_in(group, files)?,
            limited_by: Path::new("/").join(inside).join(files.limit),
        })
    });
    left.min()
}

/// The memory left in one cgroup; `None` without a limit.
fn left_in(group: &Path, files: &Files) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(group.join(file)).ok()?;
        text.trim().parse().ok()
    };
    // `max` is not a number.
    let (limit, usage) = (number(files.limit)?, number(files.usage)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let reclaimable = stat.lines().filter_map(|line| {
        let (name, bytes) = line.split_once(' ')?;
        let counts = files.reclaimable.contains(&name);
        counts.then(|| bytes.trim().parse::<u64>().ok()).flatten()
    });
    let used = reclaimable.fold(usage, u64::saturating_sub);
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate;

    const MIB: u64 = 1 << 20;

    /// A file system with the files that matter.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(cgroup: &str, mountinfo: &str) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            machine.write(
                "proc/meminfo",
                "MemTotal: 9 kB\nMemAvailable:  4096000 kB\n",
            );
            machine.write("proc/self/cgroup", cgroup);
            machine.write("proc/self/mountinfo", mountinfo);
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn available(&self) -> u64 {
            available_in(self.0.path()).unwrap().bytes
        }

        fn limited_by(&self) -> String {
            let available = available_in(self.0.path()).unwrap();
            available.limited_by.to_string_lossy().into_owned()
        }
    }

    const V2_MOUNT: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn the_lowest_limit_up_the_tree_counts() {
        let machine = Machine::new("0::/a.slice/b.service\n", V2_MOUNT);
        assert_eq!(machine.available(), 4_096_000 * 1024);
        assert_eq!(machine.limited_by(), "/proc/meminfo");
        machine.write("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
        machine.write(
            "sys/fs/cgroup/a.slice/b.service/memory.current",
            "1048576\n",
        );
        assert_eq!(machine.available(), 4_096_000 * 1024);
        machine.write("sys/fs/cgroup/a.slice/memory.max", "104857600\n");
        machine.write("sys/fs/cgroup/a.slice/memory.current", "62914560\n");
        assert_eq!(machine.available(), 40 * MIB);
        assert_eq!(
            machine.limited_by(),
            "/sys/fs/cgroup/a.slice/memory.max",
            "the limit, not the cgroup of the process"
        );
        let stat =
            "anon 1\ninactive_file 10485760\nactive_file 5242880\nslab_reclaimable 1048576\n";
        machine.write("sys/fs/cgroup/a.slice/memory.stat", stat);
        assert_eq!(machine.available(), 56 * MIB);
        machine.write("sys/fs/cgroup/a.slice/b.service/memory.max", "2097152\n");
        assert_eq!(machine.available(), MIB);
        // More than the limit, which was lowered.
        machine.write(
            "sys/fs/cgroup/a.slice/b.service/memory.current",
            "3145728\n",
        );
        assert_eq!(machine.available(), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn the_root_of_a_namespace_is_its_cgroup() {
        // In its own namespace, a container sees its cgroup as the root.
        let machine = Machine::new("0::/\n", V2_MOUNT);
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
        let machine = Machine::new(cgroup, mounts);
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
        assert_eq!(
            machine.limited_by(),
            "/sys/fs/cgroup/memory/memory.limit_in_bytes"
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn the_mount_that_shows_the_process_s_own_cgroup_counts() {
        let mount = |group: &str, point: &str| {
            format!("30 23 0:26 {group} {point} rw - cgroup2 cgroup2 rw\n")
        };
        let mounts = [
            mount("/other", "/mnt/other"),
            mount("/a/b", "/mnt/own"),
            mount("/a", "/mnt/above"),
            mount("/a/bc", "/mnt/namesake"),
        ];
        let machine = Machine::new("0::/a/b\n", &mounts.concat());
        for (group, limit) in [
            ("mnt/other", 1),
            ("mnt/own", 8),
            ("mnt/above", 4),
            ("mnt/above/b", 8),
            ("mnt/namesake", 1),
        ] {
            machine.write(&format!("{group}/memory.max"), &(limit * MIB).to_string());
            machine.write(&format!("{group}/memory.current"), "0\n");
        }
        assert_eq!(machine.available(), 4 * MIB);
        assert_eq!(machine.limited_by(), "/mnt/above/memory.max");
        // In a cgroup namespace there may be only a foreign name: use the first mount.
        machine.write("proc/self/cgroup", "0::/elsewhere\n");
        assert_eq!(machine.available(), MIB);
        assert_eq!(machine.limited_by(), "/mnt/other/memory.max");
    }

    /// Names that are not UTF-8, others' or the cgroup's own, hide no limit.
    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn names_may_be_any_bytes() {
        let machine = Machine::new("", "");
        let put = |path: &str, bytes: &[u8]| fs::write(machine.0.path().join(path), bytes).unwrap();
        let foreign = b"40 23 0:27 / /mnt/\xff\\040\xfe rw - tmpfs tmpfs rw\n";
        put(
            "proc/self/mountinfo",
            &[foreign, V2_MOUNT.as_bytes(), foreign].concat(),
        );
        put("proc/self/cgroup", b"0::/a\xff.slice\n");
        machine.write("sys/fs/cgroup/memory.max", "10485760\n");
        machine.write("sys/fs/cgroup/memory.current", "0\n");
        assert_eq!(machine.available(), 10 * MIB);
        let group = machine.0.path().join("sys/fs/cgroup");
        let group = group.join(OsStr::from_bytes(b"a\xff.slice"));
        fs::create_dir(&group).unwrap();
        fs::write(group.join("memory.max"), "5242880\n").unwrap();
        fs::write(group.join("memory.current"), "0\n").unwrap();
        assert_eq!(machine.available(), 5 * MIB);
    }

    #[test]
    fn numbers_beyond_all_memory_stay_so() {
        let most = u64::MAX;
        let meminfo = format!("MemAvailable: {most} kB\n");
        assert_eq!(available_of_machine(&meminfo), Some(most));
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn reclaimable_memory_beyond_what_is_used_is_no_more_than_that() {
        let machine = Machine::new("0::/\n", V2_MOUNT);
        machine.write("sys/fs/cgroup/memory.max", "10485760\n");
        machine.write("sys/fs/cgroup/memory.current", "2097152\n");
        let stat = format!("inactive_file {0}\nactive_file {0}\n", u64::MAX);
        machine.write("sys/fs/cgroup/memory.stat", &stat);
        assert_eq!(machine.available(), 10 * MIB);
    }

    /// Whatever the files contain, there is an answer; and as long as the machine's own file is
    /// intact, the answer does not exceed it.
    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn mutated_files_are_no_trouble() {
        const FILES: [(&str, &str); 5] = [
            ("proc/self/cgroup", "5:cpu:/a\n4:hugetlb,memory:/a\n0::/a\n"),
            (
                "proc/self/mountinfo",
                "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n\
                 35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
            ),
            ("sys/fs/cgroup/a/memory.max", "104857600\n"),
            ("sys/fs/cgroup/a/memory.current", "62914560\n"),
            (
                "sys/fs/cgroup/a/memory.stat",
                "anon 1\ninactive_file 10485760\nactive_file 5\n",
            ),
        ];
        let machine = Machine::new("", "");
        for (path, text) in FILES {
            machine.write(path, text);
        }
        let expected = machine.available();
        assert_eq!(expected, 50 * MIB + 5);
        mutate::cases(1_000, |rng| {
            let (path, text) = FILES[rng.usize(0..FILES.len())];
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..rng.u32(1..4) {
                mutate::text(rng, &mut bytes);
            }
            fs::write(machine.0.path().join(path), bytes).unwrap();
            assert!(machine.available() <= 4_096_000 * 1024);
            machine.write(path, text);
            assert_eq!(machine.available(), expected);
        });
        mutate::cases(5_000, |rng| {
            let mut bytes = b"MemTotal: 9 kB\nMemAvailable:  4096000 kB\n".to_vec();
            mutate::text(rng, &mut bytes);
            let text = String::from_utf8_lossy(&bytes);
            let told = available_of_machine(&text);
            assert!(told.is_none_or(|bytes| bytes % 1024 == 0 || bytes == u64::MAX));
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn this_machine_has_memory() {
        assert!(available_memory().unwrap().bytes > MIB);
    }
}
