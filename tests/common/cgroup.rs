//! A memory cgroup for a test, of whichever version the host has.
//!
//! A version 2 cgroup with processes cannot delegate the memory controller, so a test's group is
//! made below the nearest ancestor that does. There may be none: cgroups are read-only in many
//! containers.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// A memory cgroup. Dropping it returns the process to its former one.
pub(crate) struct Cgroup {
    group: PathBuf,
    own: PathBuf,
}

impl Cgroup {
    /// Makes one with a limit in bytes; the error says why it cannot.
    pub(crate) fn new(limit: u64) -> Result<Self, String> {
        let place = Place::of(Path::new("/"))?;
        let name = format!("katran-limits-{}", std::process::id());
        let group = place.parent.join(name);
        fs::create_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
        let cgroup = Self {
            group,
            own: place.own,
        };
        let file = cgroup.group.join(place.limit);
        fs::write(&file, limit.to_string())
            .map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(cgroup)
    }

    /// Moves this process into it.
    pub(crate) fn enter(&self) -> Result<(), String> {
        enter(&self.group)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.group
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let left = enter(&self.own).and_then(|()| {
            fs::remove_dir(&self.group)
                .map_err(|error| format!("{}: {error}", self.group.display()))
        });
        if let Err(error) = left {
            // Not a panic: the test itself may be failing.
            eprintln!("a cgroup is left behind: {error}");
        }
    }
}

fn enter(group: &Path) -> Result<(), String> {
    let processes = group.join("cgroup.procs");
    fs::write(&processes, "0").map_err(|error| format!("{}: {error}", processes.display()))
}

/// A process's place in the tree of memory cgroups, and where another one can be made.
pub(crate) struct Place {
    pub(crate) own: PathBuf,
    pub(crate) parent: PathBuf,
    /// The name of the file with the limit.
    pub(crate) limit: &'static str,
}

impl Place {
    /// This process's place, in the file system rooted at `root`; the error says why there is none.
    pub(crate) fn of(root: &Path) -> Result<Self, String> {
        let read = |path: &str| {
            let path = root.join(path);
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let groups = read("proc/self/cgroup")?;
        let mounts = read("proc/self/mountinfo")?;
        let of_v1 = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let is_memory = controllers.split(',').any(|it| it == "memory");
            is_memory.then_some(path)
        });
        let of_v2 = groups.lines().find_map(|line| line.strip_prefix("0::"));
        let path = of_v1.or(of_v2).ok_or("no memory cgroup")?;
        let mount = mounts.lines().find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let mut place = place.split(' ').skip(3);
            let (seen, point) = (place.next()?, place.next()?);
            let mut kind = kind.split(' ');
            let (kind, options) = (kind.next()?, kind.nth(1)?);
            let is_it = match of_v1 {
                Some(_) => kind == "cgroup" && options.split(',').any(|it| it == "memory"),
                None => kind == "cgroup2",
            };
            let below = Path::new(path).strip_prefix(seen).ok()?;
            let top = root.join(point.strip_prefix('/')?);
            is_it.then(|| (top.join(below), top))
        });
        let (own, top) = mount.ok_or_else(|| format!("{path} is not mounted"))?;
        if of_v1.is_some() {
            return Ok(Self {
                parent: own.clone(),
                own,
                limit: "memory.limit_in_bytes",
            });
        }
        let hands_on = |group: &&Path| {
            let handed_on = fs::read_to_string(group.join("cgroup.subtree_control"));
            handed_on.is_ok_and(|all| all.split_whitespace().any(|it| it == "memory"))
        };
        let mut above = own.ancestors().take_while(|group| group.starts_with(&top));
        let parent = above.find(hands_on).map(Path::to_owned);
        Ok(Self {
            parent: parent.ok_or_else(|| format!("none above {path} hands memory on"))?,
            own,
            limit: "memory.max",
        })
    }
}
