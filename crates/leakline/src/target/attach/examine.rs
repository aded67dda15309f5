//! From a process id to a process that the agent can be brought into, or to the reason why it can't, before anything is
//! done to it.
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use procfs::process::Process;

use super::memory::{Library, Maps, Memory};
use crate::failure::{Exit, Failure};
use crate::target::python::{KNOWN, Mapped};
use crate::target::root::Root;

/// A process that looks as if it could be attached to.
pub struct Target {
    /// Process id.
    pub pid: u32,
    /// Whose it is.
    pub user: u32,
    /// That user's group.
    pub group: u32,
    /// The files that it sees.
    pub root: Root,
    /// What it has mapped.
    pub maps: Maps,
    /// glibc.
    pub c_library: Library,
    /// The program or the library that is CPython.
    pub python: Library,
    /// The signals that it has handlers for or that its main thread blocks, each a bit.
    pub signals: u64,
    /// A seccomp filter says which system calls it may make, and may kill it for others.
    pub is_filtered: bool,
    /// The agents that it has loaded already.
    pub agents: Vec<PathBuf>,
}

impl Target {
    /// Looks at the process, without touching it.
    pub fn examine(pid: u32) -> Result<Self, Failure> {
        let process = Process::new(pid as i32).map_err(|_| gone(pid))?;
        let status = process.status().map_err(|_| gone(pid))?;
        is_undisturbed(pid, &status)?;
        let user = status.euid;
        if !geteuid().is_root() && user != geteuid().as_raw() {
            let what = format!("process {pid} belongs to user {user}");
            return Err(Failure::new(Exit::Permission, what, "run leakline as that user or as root"));
        }
        is_x86_64(pid)?;
        let root = Root::of(pid).map_err(|_| forbidden(pid))?;
        let maps = Maps::of(pid).map_err(|_| forbidden(pid))?;
        let mapped = Mapped::of(pid)?;
        let unsupported = |what: String, next: &str| Err(Failure::new(Exit::Unsupported, what, next));
        if mapped.musl {
            return unsupported(format!("process {pid} uses musl; the agent needs glibc"), "run it on a glibc image");
        }
        let Some(c_library) = maps.library("libc.so.6").or_else(|| maps.library("libc-2.")) else {
            if maps.library("ld-linux").is_some() {
                let what = format!("process {pid} has only just started and has no C library yet");
                return unsupported(what, "try again");
            }
            let what = format!("process {pid} is linked statically: it has no loader that could load the agent");
            return unsupported(what, "see which processes are Pythons with `ps -ef`");
        };
        let executable = process.exe().map_err(|_| forbidden(pid))?;
        let python = maps.load(&executable).filter(is_python).or_else(|| maps.library("libpython3").filter(is_python));
        let Some(python) = python else {
            return unsupported(format!("process {pid} has no CPython in it"), "name a process that runs Python");
        };
        if let Some(minor) = mapped.minor.filter(|minor| !KNOWN.contains(minor)) {
            let known = format!("CPython 3.{} to 3.{}", KNOWN.start(), KNOWN.end());
            return unsupported(format!("process {pid} runs Python 3.{minor}"), &format!("{known} are supported"));
        }
        if let Some(allocator) = mapped.allocator.or_else(|| allocator(pid, &maps, &python, &c_library)) {
            let what = format!("{allocator} stands in for glibc's malloc in process {pid}");
            return unsupported(what, "start the server with `leakline run` instead");
        }
        let is_agent = |file: &&Path| Mapped::agent_name(file).is_some();
        let agents = maps.files().into_iter().filter(is_agent).map(Path::to_owned).collect();
        let group = status.egid;
        let signals = status.sigcgt | status.sigblk;
        let is_filtered = status.seccomp.is_some_and(|mode| mode != 0);
        Ok(Self { pid, user, group, root, maps, c_library, python, signals, is_filtered, agents })
    }
}

/// The file that stands in for glibc's malloc, by where the interpreter's calls of it lead. Those that the loader has not
/// looked up yet lead back to the interpreter's own file.
fn allocator(pid: u32, maps: &Maps, python: &Library, c_library: &Library) -> Option<String> {
    let malloc = python.malloc(&Memory::open(pid).ok()?)?;
    let file = maps.file_at(malloc)?;
    let is_known = file == c_library.file || Mapped::agent_name(file).is_some();
    let is_to_be_looked_up = file == python.file && python.address("malloc").is_none();
    (!is_known && !is_to_be_looked_up).then(|| file.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

fn is_python(library: &Library) -> bool {
    library.address("Py_IsInitialized").is_some()
}

/// There is no such process, or no longer.
pub fn gone(pid: u32) -> Failure {
    Failure::new(Exit::Gone, format!("there is no process {pid}"), "check the process id")
}

/// The kernel does not let us trace it.
pub fn forbidden(pid: u32) -> Failure {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let (why, next) = what_would_let_us(scope.trim(), geteuid().is_root());
    let what = format!("the kernel does not let us trace process {pid}{why}");
    Failure::new(Exit::Permission, what, format!("{next} (docs/permissions.md)"))
}

/// Why not, as far as Yama's scope tells, and the next step.
fn what_would_let_us(scope: &str, are_root: bool) -> (&'static str, &'static str) {
    match scope {
        "3" => {
            (" (kernel.yama.ptrace_scope is 3, until the next boot)", "start the server with `leakline run` instead")
        }
        "1" if !are_root => {
            (" (kernel.yama.ptrace_scope is 1)", "run leakline as root, or `sysctl kernel.yama.ptrace_scope=0`")
        }
        "2" if !are_root => (" (kernel.yama.ptrace_scope is 2)", "run leakline as root"),
        _ if !are_root => ("", "run leakline as root"),
        _ => (
            ", though we are root",
            "give leakline CAP_SYS_PTRACE: `docker run --cap-add SYS_PTRACE`, in Kubernetes securityContext.capabilities",
        ),
    }
}

fn is_undisturbed(pid: u32, status: &procfs::process::Status) -> Result<(), Failure> {
    if status.tracerpid != 0 {
        let what = format!("process {pid} is being traced by process {}", status.tracerpid);
        return Err(Failure::new(Exit::Error, what, "end that debugger or tracer first"));
    }
    match status.state.chars().next() {
        Some('Z' | 'X') => {
            let what = format!("process {pid} has ended; its parent has not taken notice yet");
            Err(Failure::new(Exit::Gone, what, "name a process that runs"))
        }
        Some('T') => {
            let next = format!("let it go on first with `kill -CONT {pid}`");
            Err(Failure::new(Exit::Error, format!("process {pid} is stopped"), next))
        }
        _ => Ok(()),
    }
}

fn is_x86_64(pid: u32) -> Result<(), Failure> {
    /// Where ELF says of how many bits it is and for which machine (elf.h).
    const CLASS: usize = 4;
    const MACHINE: usize = 18;
    let mut header = [0; 20];
    let mut executable = fs::File::open(format!("/proc/{pid}/exe")).map_err(|_| forbidden(pid))?;
    executable.read_exact(&mut header).map_err(|_| gone(pid))?;
    let machine = u16::from_le_bytes([header[MACHINE], header[MACHINE + 1]]);
    match (header[CLASS], machine) {
        (2, 62) => Ok(()),
        (1, _) => {
            Err(Failure::new(Exit::Unsupported, format!("process {pid} is a 32-bit program"), "the agent needs x86-64"))
        }
        _ => Err(Failure::new(
            Exit::Unsupported,
            format!("process {pid} is no x86-64 program"),
            "the agent needs x86-64",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::what_would_let_us;

    /// This machine has one scope at most, and a test may not change it.
    #[test]
    fn who_may_not_trace_is_told_what_helps_under_each_scope_of_yamas() {
        let has = |scope, are_root, why: &str, next: &str| {
            let told = what_would_let_us(scope, are_root);
            assert!(told.0.contains(why) && told.1.contains(next), "{scope:?}, {are_root}: {told:?}");
        };
        has("1", false, "scope is 1", "as root, or `sysctl kernel.yama.ptrace_scope=0`");
        has("2", false, "scope is 2", "run leakline as root");
        has("", false, "", "run leakline as root");
        for are_root in [false, true] {
            has("3", are_root, "scope is 3", "start the server with `leakline run` instead");
        }
        for scope in ["", "0", "1", "2"] {
            has(scope, true, "though we are root", "CAP_SYS_PTRACE");
        }
    }
}
