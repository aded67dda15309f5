//! What went wrong, in one line that says what happened, on what, and what to do next, and the exit code that says it
//! to a script.
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;

/// The exit codes of the command, but for `run`, which otherwise keeps those of the server that it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what was asked.
    Done = 0,
    /// It could not, for a reason that has no code of its own.
    Error = 1,
    /// The arguments make no sense; clap exits with the same code.
    Usage = 2,
    /// `report --fail-on` found what it was told to look for.
    Found = 3,
    /// There is no such run, or it holds no table.
    NoTable = 4,
    /// The file is no table, or is damaged.
    Damaged = 5,
    /// The folder or the process belongs to somebody else.
    Permission = 6,
    /// There is no such process, or no longer.
    Gone = 7,
    /// The process can't be attached to, whoever tries.
    Unsupported = 8,
    /// `attach`: the process is attached to already. `detach`: it is not.
    Already = 9,
    /// `run`: the command is there and cannot be run, as shells say it.
    NotExecutable = 126,
    /// `run`: there is no such command, as shells say it.
    CommandNotFound = 127,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// An error that ends the command.
#[derive(Debug)]
pub struct Failure {
    what: String,
    next: String,
    no_room: bool,
    /// What the command exits with.
    pub exit: Exit,
}

impl Failure {
    /// `what` happened, on what; `next` is the step to take, an instruction in lower case.
    pub fn new(exit: Exit, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: next.into(), no_room: false, exit }
    }

    /// An operation on `path` that the system refused.
    pub fn io(doing: &str, path: &Path, error: &io::Error) -> Self {
        let (exit, next) = match error.kind() {
            ErrorKind::PermissionDenied => (Exit::Permission, "run as the user who owns it"),
            _ if is_no_room(error) => (Exit::Error, "make room, or choose another place with --dir"),
            _ => (Exit::Error, "check the path, or choose another place with --dir"),
        };
        let what = format!("cannot {doing} {}: {error}", path.display());
        Self { no_room: is_no_room(error), ..Self::new(exit, what, next) }
    }

    /// The disk is full, or can't be written to at all: a state of the machine, not a mistake of the user's.
    pub fn is_no_room(&self) -> bool {
        self.no_room
    }
}

fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.next)
    }
}
