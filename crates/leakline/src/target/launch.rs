//! From a command line to a running server under the agent, and from its end to an exit code.
//!
//! The server stays in our process group, so that it keeps the terminal. While it runs we only wait, for its end and
//! for signals that are meant for it.
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{self, SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::failure::{Exit, Failure};

/// The signals that a server may be sent by somebody who takes us for it: gunicorn alone knows eight of them.
const FORWARDED: [Signal; 10] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGALRM,
];

/// Those of them that end most servers.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT];

/// Variables, by name.
pub type Environment = Vec<(&'static str, OsString)>;

/// What the agent is told: how to record, and where to.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The agent's file.
    pub agent: PathBuf,
    /// The run's folder, in which each process makes its table.
    pub tables: PathBuf,
    /// Bytes of a table.
    pub table_bytes: u64,
    /// The share of one core that recording may take.
    pub budget: f64,
    /// Record every allocation instead of a sample.
    pub exact: bool,
    /// Walk native code, too.
    pub native: bool,
}

impl Recording {
    /// The environment variables that say so, for a server that would otherwise be started with ours.
    pub fn environment(&self) -> Result<Environment, Failure> {
        let run = self.tables.file_name().unwrap_or_default();
        let mut variables = vec![
            ("LD_PRELOAD", preload(&self.agent, std::env::var_os("LD_PRELOAD"))?),
            ("LEAKLINE_RUN", run.to_owned()),
            ("LEAKLINE_TABLES", self.tables.clone().into()),
            ("LEAKLINE_TABLE_BYTES", self.table_bytes.to_string().into()),
            ("LEAKLINE_BUDGET", self.budget.to_string().into()),
        ];
        if self.exact {
            variables.push(("LEAKLINE_INTERVAL", "1".into()));
        }
        if !self.native {
            variables.push(("LEAKLINE_NATIVE", "0".into()));
        }
        Ok(variables)
    }
}

/// The value of `LD_PRELOAD` that loads `agent` before what is preloaded already. The loader splits it at spaces and
/// colons and knows no quotes, so there are paths that it can't be given.
fn preload(agent: &Path, present: Option<OsString>) -> Result<OsString, Failure> {
    if agent.as_os_str().as_encoded_bytes().iter().any(|byte| b" :".contains(byte)) {
        return Err(Failure::new(
            Exit::Error,
            format!("the loader cannot be told of {}: its path has a space or a colon", agent.display()),
            "choose another place with --dir",
        ));
    }
    let mut value = agent.as_os_str().to_owned();
    if let Some(present) = present.filter(|present| !present.is_empty()) {
        value.push(":");
        value.push(present);
    }
    Ok(value)
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Code(i32),
    /// It was killed.
    Signal(Signal),
}

impl Ended {
    /// The exit code that stands for this end, as shells say it.
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code as u8,
            Self::Signal(signal) => 128 + signal as u8,
        }
    }
}

/// A server that we started and have to wait for.
pub struct Server {
    pid: Pid,
    signals: SignalFd,
}

impl Server {
    /// Starts `command` with `environment` added to our own.
    pub fn start(command: &[OsString], environment: &[(&'static str, OsString)]) -> Result<Self, Failure> {
        // Somebody who ignores SIGCHLD, as some supervisors do, would have the kernel throw the exit code away.
        // SAFETY: the default action runs no code of ours.
        unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }.map_err(no_signals)?;
        // Signals are blocked before the server exists, so that none that is meant for it kills us instead.
        let mut mask = FORWARDED.into_iter().collect::<SigSet>();
        mask.add(Signal::SIGCHLD);
        let ours = SigSet::thread_get_mask().map_err(no_signals)?;
        mask.thread_block().map_err(no_signals)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).map_err(no_signals)?;

        let program = &command[0];
        let mut server = Command::new(program);
        server.args(&command[1..]).envs(environment.iter().map(|(name, value)| (name, value)));
        // The server gets the mask that we were given.
        // SAFETY: between fork and exec this makes one system call and touches no memory but its own stack.
        unsafe { server.pre_exec(move || ours.thread_set_mask().map_err(std::io::Error::from)) };
        let child = server.spawn().map_err(|error| not_started(program, &error))?;
        Ok(Self { pid: Pid::from_raw(child.id() as i32), signals })
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Waits for the server's end and passes signals on to it until then. The first one that ends servers is passed on when
    /// `before_end` is done.
    pub fn wait(self, before_end: impl FnOnce()) -> Result<Ended, Failure> {
        let mut before_end = Some(before_end);
        loop {
            if let Some(ended) = self.reap()? {
                return Ok(ended);
            }
            let received = match self.signals.read_signal() {
                Ok(Some(received)) => received,
                Ok(None) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(no_signals(error)),
            };
            let Ok(signal) = Signal::try_from(received.ssi_signo as i32) else { continue };
            // The kernel itself sends signals of the terminal, to the whole foreground group: the server has it
            // already. What the server sends to its group is not meant to come back to it either.
            let by_terminal = received.ssi_code == libc::SI_KERNEL;
            let by_server = received.ssi_pid == self.pid();
            if ENDING.contains(&signal) && !by_server {
                before_end.take().into_iter().for_each(|before_end| before_end());
            }
            if signal != Signal::SIGCHLD && !by_terminal && !by_server {
                // A server that ended in between is reaped in the next round.
                let _ = signal::kill(self.pid, signal);
            }
        }
    }

    /// Collects every child that has ended: as the first process of a container we inherit orphans.
    fn reap(&self) -> Result<Option<Ended>, Failure> {
        let mut ended = None;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.pid => ended = Some(Ended::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.pid => ended = Some(Ended::Signal(signal)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(ended),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(no_signals(error)),
            }
        }
    }
}

fn no_signals(error: Errno) -> Failure {
    Failure::new(Exit::Error, format!("cannot wait for signals: {error}"), "please report this")
}

fn not_started(program: &OsStr, error: &std::io::Error) -> Failure {
    let name = program.to_string_lossy();
    match error.kind() {
        ErrorKind::NotFound if name.contains('/') => Failure::new(
            Exit::CommandNotFound,
            format!("{name}: no such file, or the interpreter in its first line is missing"),
            "check the path",
        ),
        ErrorKind::NotFound => {
            Failure::new(Exit::CommandNotFound, format!("{name}: command not found"), "check its name and $PATH")
        }
        _ => {
            Failure::new(Exit::NotExecutable, format!("{name}: cannot be run: {error}"), "check that it is executable")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_preloaded_already_stays_and_comes_after_the_agent() {
        let agent = Path::new("/run/leakline/agent.so");
        assert_eq!(preload(agent, None).unwrap(), "/run/leakline/agent.so");
        assert_eq!(preload(agent, Some("".into())).unwrap(), "/run/leakline/agent.so");
        assert_eq!(preload(agent, Some("libjemalloc.so.2".into())).unwrap(), "/run/leakline/agent.so:libjemalloc.so.2");
    }

    #[test]
    fn a_path_that_the_loader_would_split_is_refused() {
        assert!(preload(Path::new("/tmp/my tables/agent.so"), None).is_err());
        assert!(preload(Path::new("/tmp/a:b/agent.so"), None).is_err());
    }
}
