//! `leakline doctor`: from this machine, or one process on it, to what would work here, what would not, and why.
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use clap::Args;
use leakline_table::attachment::State;
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::Serialize;

use super::{Global, print};
use crate::failure::{Exit, Failure};
use crate::printable::printable;
use crate::runs::{Run, Runs};
use crate::target::agent::Source;
use crate::target::attach::{self, examine::Target};
use crate::target::launch::Recording;
use crate::target::python::{KNOWN, Mapped};

/// Say what would work here, and what not, and why
///
/// Starts every Python that it finds, for a moment and under the agent, to see that it records. With PID it looks at that
/// process instead, without touching it.
#[derive(Debug, Args)]
pub struct Doctor {
    /// A process to look at
    pid: Option<u32>,
}

#[derive(Serialize)]
struct Examination {
    works: bool,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    of: String,
    verdict: Verdict,
    detail: String,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    /// It works, but not in every way, or it was not tried.
    Doubtful,
    Bad,
}

impl Doctor {
    /// Prints what was found. Exits with 1 when leakline can't work here.
    pub fn carry_out(self, global: &Global) -> Result<ExitCode, Failure> {
        let checks = match self.pid {
            Some(pid) => process(pid)?,
            None => machine(global),
        };
        let works = checks.iter().all(|check| check.verdict != Verdict::Bad);
        let examination = Examination { works, checks };
        print(&if global.json { super::json(&examination) } else { examination.text() })?;
        Ok(if works { Exit::Done } else { Exit::Error }.into())
    }
}

impl Examination {
    fn text(&self) -> String {
        let width = self.checks.iter().map(|check| check.of.len()).max().unwrap_or(0);
        let lines = self.checks.iter().map(|check| {
            let verdict = match check.verdict {
                Verdict::Good => "ok ",
                Verdict::Doubtful => " ? ",
                Verdict::Bad => "NO ",
            };
            format!("{verdict} {:width$}  {}\n", printable(&check.of), printable(&check.detail))
        });
        lines.collect()
    }
}

impl Check {
    fn new(of: impl Into<String>, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { of: of.into(), verdict, detail: detail.into() }
    }

    fn by(of: &str, works: bool, detail: impl Into<String>) -> Self {
        Self::new(of, if works { Verdict::Good } else { Verdict::Bad }, detail)
    }
}

fn machine(global: &Global) -> Vec<Check> {
    let mut checks = vec![system()];
    match tables(global).and_then(|runs| Ok((Source::find()?.install(runs.dir())?, runs))) {
        Ok((agent, runs)) => {
            checks.push(Check::by("tables", true, runs.dir().display().to_string()));
            checks.push(loads(&agent));
            let pythons = pythons();
            if pythons.is_empty() {
                checks.push(Check::new("python", Verdict::Doubtful, "none in $PATH, and pyenv has none"));
            }
            checks.extend(pythons.iter().map(|python| records(python, &agent, &runs)));
        }
        Err(failure) => checks.push(Check::by("tables", false, failure.to_string())),
    }
    checks
}

fn system() -> Check {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // SAFETY: glibc returns a constant string that lives as long as the process.
    let glibc = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) }.to_string_lossy();
    let machine = std::env::consts::ARCH;
    Check::by("machine", machine == "x86_64", format!("{machine}, Linux {}, glibc {glibc}", kernel.trim()))
}

fn tables(global: &Global) -> Result<Runs, Failure> {
    let runs = Runs::create(&global.dir())?;
    if statvfs(runs.dir()).is_ok_and(|mount| mount.flags().contains(FsFlags::ST_NOEXEC)) {
        let what = format!("{} is on a file system from which no code may be loaded", runs.dir().display());
        return Err(Failure::new(Exit::Error, what, "choose another place with --dir"));
    }
    Ok(runs)
}

/// The loader complains, and goes on, when it can't load what it is told to preload.
fn loads(agent: &Path) -> Check {
    match Command::new("true").env("LD_PRELOAD", agent).output() {
        Ok(output) if output.status.success() && output.stderr.is_empty() => {
            Check::by("agent", true, agent.display().to_string())
        }
        Ok(output) => Check::by("agent", false, complaint(&output)),
        Err(error) => Check::by("agent", false, format!("cannot run `true`: {error}")),
    }
}

/// Every Python in `$PATH` and among pyenv's, each once.
fn pythons() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let pyenv = std::env::var_os("PYENV_ROOT").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".pyenv"))
    });
    let versions = pyenv.and_then(|root| root.join("versions").read_dir().ok()).into_iter().flatten().flatten();
    let folders = std::env::split_paths(&path).chain(versions.map(|version| version.path().join("bin")));
    let found: BTreeSet<PathBuf> = folders
        // What is in there are scripts that choose a Python, not Pythons.
        .filter(|folder| !folder.ends_with("shims"))
        .filter_map(|folder| folder.join("python3").canonicalize().ok())
        .collect();
    found.into_iter().collect()
}

/// Starts the interpreter under the agent and looks for its table.
fn records(python: &Path, agent: &Path, runs: &Runs) -> Check {
    let of = python.display().to_string();
    let tried = runs.begin(vec![of.clone()], None).and_then(|run| {
        let recording = Recording {
            agent: agent.to_owned(),
            tables: run.folder.clone(),
            table_bytes: 1 << 20,
            budget: 0.003,
            exact: false,
            native: true,
        };
        let script = "import platform; print(platform.python_implementation(), platform.python_version())";
        let output = recording.environment().map(|environment| {
            let mut command = Command::new(python);
            command.args(["-I", "-S", "-c", script]).envs(environment).output()
        });
        let tables = Run::open(&run.folder).map_or(0, |run| run.tables.len());
        run.delete();
        Ok((output?, tables))
    });
    match tried {
        Ok((Ok(output), tables)) if output.status.success() => {
            let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            match tables {
                0 if output.stderr.is_empty() => Check::new(of, Verdict::Doubtful, format!("{version}: not recorded")),
                0 => Check::new(of, Verdict::Doubtful, format!("{version}: {}", complaint(&output))),
                _ => Check::new(of, Verdict::Good, format!("{version} is recorded")),
            }
        }
        Ok((Ok(output), _)) => Check::by(&of, false, format!("{}: {}", output.status, complaint(&output))),
        Ok((Err(error), _)) => Check::new(of, Verdict::Doubtful, format!("cannot be run: {error}")),
        Err(failure) => Check::by(&of, false, failure.to_string()),
    }
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("it failed and said nothing").to_owned()
}

fn process(pid: u32) -> Result<Vec<Check>, Failure> {
    let mapped = Mapped::of(pid)?;
    let linked = if mapped.shared { "as a shared library" } else { "as one executable" };
    let mut checks = vec![match mapped.minor {
        Some(minor) => Check::by("python", KNOWN.contains(&minor), format!("CPython 3.{minor}, built {linked}")),
        // As uWSGI may be, which is linked to Python and called otherwise.
        None if Target::examine(pid).is_ok() => Check::by("python", true, "CPython, as a part of another program"),
        None => Check::by("python", false, "no CPython 3 is mapped by this process"),
    }];
    checks.push(match mapped.musl {
        false => Check::by("C library", true, "glibc"),
        true => Check::by("C library", false, "musl; the agent needs glibc"),
    });
    checks.push(match mapped.allocator {
        None => Check::by("allocator", true, "glibc's own"),
        Some(name) => Check::new(
            "allocator",
            Verdict::Doubtful,
            format!("{name}: `leakline run` works with it, `leakline attach` does not"),
        ),
    });
    if let Some(value) = environment(pid, "PYTHONMALLOC") {
        checks.push(Check::new(
            "PYTHONMALLOC",
            Verdict::Doubtful,
            format!("{value}: Python's own allocator is not in use"),
        ));
    }
    checks.push(match mapped.agent {
        true => Check::by("recording", true, "the agent is in it; see `leakline report`"),
        false => Check::new("recording", Verdict::Doubtful, "not recorded"),
    });
    checks.push(attachable(pid));
    Ok(checks)
}

/// What `leakline attach` would find, without touching anything.
fn attachable(pid: u32) -> Check {
    match Target::examine(pid) {
        Ok(target) => match attach::state(&target) {
            Some(State::Preloaded) => Check::by("attach", true, "not needed: `leakline run` has started it"),
            Some(State::Asked | State::Recording) => Check::by("attach", true, "attached"),
            Some(State::Refused) => Check::by("attach", false, "tried, and the agent refused; try again to see why"),
            _ => Check::by("attach", true, format!("`leakline attach {pid}` should work")),
        },
        Err(failure) => Check::new("attach", Verdict::Doubtful, failure.to_string()),
    }
}

/// A variable that the process was started with.
fn environment(pid: u32, name: &str) -> Option<String> {
    let variables = procfs::process::Process::new(pid as i32).ok()?.environ().ok()?;
    let value = variables.get(std::ffi::OsStr::from_bytes(name.as_bytes()))?;
    Some(value.to_string_lossy().into_owned())
}
