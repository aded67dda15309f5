//! From a process id to what `/proc` knows of the process.
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use procfs::process::{MemoryMaps, Process, Stat};
use procfs::{FromRead, ProcResult};

/// One process, told apart from a later one with the same id by the moment it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Clock ticks between the machine's start and the process's, field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
}

impl Identity {
    /// The process that has this id now.
    pub fn of(pid: u32) -> Option<Self> {
        stat(pid).map(|stat| Self { pid, start_ticks: stat.starttime })
    }

    /// It still runs. A zombie has ended: its memory is gone.
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.starttime == self.start_ticks && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Resident set in bytes, now and at its highest, of a process that still runs.
    pub fn resident(self) -> Option<Resident> {
        let status = Process::new(self.pid as i32).ok()?.status().ok()?;
        if !self.is_alive() {
            return None;
        }
        Some(Resident { now: status.vmrss? * 1024, peak: status.vmhwm? * 1024 })
    }
}

/// What is mapped in a process, by its `maps` or `smaps`.
pub fn mappings(process: &Process, file: &str) -> ProcResult<MemoryMaps> {
    let mut text = Vec::new();
    process.open_relative(file)?.read_to_end(&mut text)?;
    mappings_in(&text)
}

/// The same by the kernel's words. procfs takes a path that begins with `/SYSV` for System V's shared memory, and panics where
/// no key of eight digits follows; but any file may be called so. A second slash leads to the same file.
pub fn mappings_in(text: &[u8]) -> ProcResult<MemoryMaps> {
    let mut lines = String::new();
    for line in String::from_utf8_lossy(text).lines() {
        let (before, path) = line.split_at(line.find(" /").map_or(line.len(), |at| at + 1));
        let key = path.strip_prefix("/SYSV").map(|rest| rest.as_bytes().get(..8).unwrap_or_default());
        let is_file = key.is_some_and(|key| key.len() < 8 || !key.iter().all(u8::is_ascii_hexdigit));
        lines.extend([before, if is_file { "/" } else { "" }, path, "\n"]);
    }
    MemoryMaps::from_read(lines.as_bytes())
}

/// The namespace of process ids that a process lives in, by the number of its file; `None` where we may not look.
pub fn namespace(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|file| file.ino())
}

/// Our own.
pub fn own_namespace() -> Option<u64> {
    namespace(std::process::id())
}

/// A process as it knows itself: in a container its id is another than ours for it.
pub fn in_its_namespace(process: Identity) -> Identity {
    let status = Process::new(process.pid as i32).and_then(|process| process.status()).ok();
    let inner = status.and_then(|status| status.nspid?.last().copied());
    Identity { pid: inner.map_or(process.pid, |pid| pid as u32), ..process }
}

/// The processes of a namespace that run, from what they know themselves as to what we know them as.
pub fn of_namespace(namespace: u64) -> HashMap<Identity, Identity> {
    let processes = procfs::process::all_processes().into_iter().flatten().flatten();
    let there = processes.map(|process| process.pid as u32).filter(|&pid| self::namespace(pid) == Some(namespace));
    there.filter_map(Identity::of).map(|process| (in_its_namespace(process), process)).collect()
}

/// Resident set of a process, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    /// `VmRSS`
    pub now: u64,
    /// `VmHWM`
    pub peak: u64,
}

/// The process's ancestors, nearest first, without the process itself.
pub fn ancestors(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut current = pid;
    while let Some(parent) = stat(current).map(|stat| stat.ppid as u32) {
        // Processes come and go while we climb: a parent seen twice would be an id that was given again.
        if parent == 0 || found.contains(&parent) {
            break;
        }
        found.push(parent);
        current = parent;
    }
    found
}

/// The processes that `pid` started, and those that they started.
pub fn descendants(pid: u32) -> Vec<u32> {
    let processes = procfs::process::all_processes().into_iter().flatten().flatten();
    processes.map(|process| process.pid as u32).filter(|&process| ancestors(process).contains(&pid)).collect()
}

fn stat(pid: u32) -> Option<Stat> {
    Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()
}
