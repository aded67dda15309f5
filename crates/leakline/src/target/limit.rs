//! From a process to the number of bytes at which the kernel would kill it.
use std::path::{Path, PathBuf};

use procfs::process::Process;
use procfs::{Current, Meminfo};

/// The smallest memory limit over the process: those of its control groups, version 2 or 1, and the machine's memory.
pub fn of(pid: u32) -> Option<u64> {
    let machine = Meminfo::current().ok().map(|memory| memory.mem_total);
    control_groups(pid).into_iter().flat_map(|file| read(&file)).chain(machine).min()
}

/// The files that may hold a limit: one for each group from the process's own up to the root.
fn control_groups(pid: u32) -> Vec<PathBuf> {
    let Ok(groups) = Process::new(pid as i32).and_then(|process| process.cgroups()) else { return Vec::new() };
    let mut files = Vec::new();
    for group in groups {
        let (root, file) = if group.hierarchy == 0 {
            ("/sys/fs/cgroup", "memory.max")
        } else if group.controllers.iter().any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        // Inside a container the path may be the host's, of which only the root is mounted: files that are not there
        // are passed over.
        let own = group.pathname.trim_start_matches('/');
        files.extend(Path::new(own).ancestors().map(|part| Path::new(root).join(part).join(file)));
    }
    files
}

/// `max` and missing files are no limit. Version 1 says "none" with a number beyond any machine's memory.
fn read(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}
