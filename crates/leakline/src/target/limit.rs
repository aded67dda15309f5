//! From a process to the number of bytes at which the kernel would kill it, and to the counter of those that it has
//! killed.
//!
//! ```text
//! version 2   /sys/fs/cgroup/GROUP/memory.max                     memory.events        oom_kill N
//! version 1   /sys/fs/cgroup/memory/GROUP/memory.limit_in_bytes   memory.oom_control   oom_kill N
//! ```
//! (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.)
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use procfs::process::Process;
use procfs::{Current, Meminfo, ProcessCGroup};

use crate::reader;

const ROOT: &str = "/sys/fs/cgroup";

/// The smallest memory limit over the process: those of its control groups, version 2 or 1, and the machine's memory.
pub fn of(pid: u32) -> Option<u64> {
    let machine = Meminfo::current().ok().map(|memory| memory.mem_total);
    limits(&groups(pid)).chain(machine).min()
}

/// The file that counts the processes of its control group that the kernel has killed for want of memory.
pub fn oom_counter(pid: u32) -> Option<PathBuf> {
    counter(&groups(pid))
}

/// How many that are by now. The file's name may have been read from a look that anybody wrote.
pub fn oom_kills(counter: &Path) -> Option<u64> {
    /// The kernel's counters take less than one page.
    const MOST: u64 = 1 << 16;
    let mut text = String::new();
    reader::open(counter).ok()?.take(MOST).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The share of memory that is free, by the limit that leaves least: what the kernel can take back at once counts as free.
pub fn headroom(pid: u32) -> Option<f64> {
    let machine = Meminfo::current().ok().and_then(|memory| Some((memory.mem_available?, memory.mem_total)));
    let group = |group: Group| {
        let (limit, folder) = (number(&group.limit)?, group.limit.parent()?);
        let used = ["memory.current", "memory.usage_in_bytes"].iter().find_map(|name| number(&folder.join(name)))?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let idle = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
        Some((limit.saturating_sub(used.saturating_sub(idle.unwrap_or(0))), limit))
    };
    let free = groups(pid).into_iter().filter_map(group).chain(machine);
    free.filter(|(_, all)| *all > 0).map(|(free, all)| free as f64 / all as f64).min_by(f64::total_cmp)
}

/// A control group's files that speak of memory; some may not be there.
#[derive(Debug)]
struct Group {
    limit: PathBuf,
    counter: PathBuf,
}

/// The control groups of a process, each with all groups around it, from its own up to the root.
fn groups(pid: u32) -> Vec<Group> {
    let groups = Process::new(pid as i32).and_then(|process| process.cgroups());
    groups.into_iter().flatten().flat_map(|group| of_group(Path::new(ROOT), &group)).collect()
}

fn of_group(root: &Path, group: &ProcessCGroup) -> Vec<Group> {
    let (root, limit, counter) = if group.hierarchy == 0 {
        (root.to_owned(), "memory.max", "memory.events")
    } else if group.controllers.iter().any(|controller| controller == "memory") {
        (root.join("memory"), "memory.limit_in_bytes", "memory.oom_control")
    } else {
        return vec![];
    };
    // Inside a container the path may be the host's, of which only the root is mounted: files that are not there are
    // passed over.
    let folders = Path::new(group.pathname.trim_start_matches('/')).ancestors().map(|part| root.join(part));
    folders.map(|folder| Group { limit: folder.join(limit), counter: folder.join(counter) }).collect()
}

/// `max` and missing files are no limit. Version 1 says "none" with a number beyond any machine's memory.
fn limits(groups: &[Group]) -> impl Iterator<Item = u64> + '_ {
    groups.iter().filter_map(|group| number(&group.limit))
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The innermost group's that has one.
fn counter(groups: &[Group]) -> Option<PathBuf> {
    groups.iter().map(|group| &group.counter).find(|counter| oom_kills(counter).is_some()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of control groups that we made up.
    struct Made(PathBuf);

    impl Made {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("leakline-groups-{name}-{}", std::process::id()));
            for (file, text) in files {
                let file = root.join(file);
                fs::create_dir_all(file.parent().expect("a file lies in a folder")).expect("a folder can be made");
                fs::write(file, text).expect("a file can be written");
            }
            Self(root)
        }

        fn groups(&self, hierarchy: u32, controllers: &[&str], path: &str) -> Vec<Group> {
            let controllers = controllers.iter().map(|&controller| controller.to_owned()).collect();
            of_group(&self.0, &ProcessCGroup { hierarchy, controllers, pathname: path.to_owned() })
        }
    }

    impl Drop for Made {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn version_2_has_the_smallest_limit_of_all_groups_around() {
        let made = Made::new(
            "2",
            &[
                ("shop/memory.max", "500000000\n"),
                ("shop/web/memory.max", "max\n"),
                ("shop/web/memory.events", "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"),
            ],
        );
        let groups = made.groups(0, &[], "/shop/web");
        assert_eq!(limits(&groups).min(), Some(500_000_000));
        let counter = counter(&groups).expect("there is one");
        assert_eq!((counter.clone(), oom_kills(&counter)), (made.0.join("shop/web/memory.events"), Some(2)));
    }

    #[test]
    fn version_1_is_mounted_by_controller() {
        let made = Made::new(
            "1",
            &[
                ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory/shop/memory.limit_in_bytes", "300000000\n"),
                ("memory/shop/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"),
            ],
        );
        let groups = made.groups(4, &["cpu", "memory"], "/shop");
        assert_eq!(limits(&groups).min(), Some(300_000_000));
        assert_eq!(counter(&groups).and_then(|counter| oom_kills(&counter)), Some(5));
        assert!(made.groups(3, &["cpuset"], "/shop").is_empty());
    }

    #[test]
    fn a_containers_own_root_stands_for_the_hosts_path() {
        let made = Made::new("container", &[("memory.max", "1000\n"), ("memory.events", "oom_kill 0\n")]);
        let groups = made.groups(0, &[], "/docker/0123abcd");
        assert_eq!(limits(&groups).collect::<Vec<_>>(), [1000]);
        assert_eq!(counter(&groups), Some(made.0.join("memory.events")));
    }

    #[test]
    fn where_there_are_no_groups_there_is_no_limit() {
        let made = Made::new("none", &[]);
        let groups = made.groups(0, &[], "/");
        assert_eq!((limits(&groups).next(), counter(&groups)), (None, None));
    }
}
