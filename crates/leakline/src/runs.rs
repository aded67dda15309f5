//! The folder that tables live in: one folder a run, in it one table a process and `run.json`.
//!
//! ```text
//! <dir>/agent-0123456789abcdef.so
//! <dir>/run-1795270000-4711/run.json
//! <dir>/run-1795270000-4711/4712-815.leakline      process id and start, see `Identity`
//! <dir>/run-1795270000-4711/4712-815.look          see `watch`
//! ```
//!
//! Names, paths and code in here are of interest to others, and the agent is loaded from here into servers: so the
//! folder must be ours alone.
use std::fs;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};
use crate::reader;
use crate::target::process::{self, Identity};

mod upkeep;
mod watch;

pub use watch::{Watch, look};

const RECORD: &str = "run.json";
/// No command line is longer, bytes. (`ARG_MAX` is 2 MiB; JSON may write a byte in six.)
const MOST_RECORD: u64 = 16 << 20;
/// How the names of tables end.
pub const TABLE: &str = "leakline";

/// The folder of all runs.
#[derive(Clone, Debug)]
pub struct Runs {
    dir: PathBuf,
}

/// One start of a server, and the tables that its processes wrote.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its folder.
    pub folder: PathBuf,
    /// What `leakline run` wrote down; absent in a folder of tables that came from elsewhere.
    pub record: Option<Record>,
    /// The process that the record calls the server, by the id that it has for us.
    pub server: Option<Identity>,
    /// Its tables, in the order in which their processes started.
    pub tables: Vec<TableFile>,
}

/// A table's place and the process that writes it, by the id that it has for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFile {
    /// The file.
    pub path: PathBuf,
    /// The process that writes or wrote it.
    pub process: Identity,
}

/// `run.json`: what `leakline run` knows of the server that it starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The command line of the server.
    pub argv: Vec<String>,
    /// Where it was started, as far as the path is UTF-8.
    pub cwd: String,
    /// Seconds since the Unix epoch.
    pub started: f64,
    /// Seconds since the Unix epoch; null while it runs, or where `leakline run` itself was killed.
    pub ended: Option<f64>,
    /// The exit code that `leakline run` passed on.
    pub exit_code: Option<u8>,
    /// Process id of `leakline run` itself, by which a shell knows the server.
    pub launcher: u32,
    /// Process id of the server; 0 for the moment before it is started.
    pub pid: u32,
    /// When it started, see [`Identity::start_ticks`].
    pub start_ticks: u64,
    /// The bytes at which the kernel would kill it, as known at the start.
    pub limit_bytes: Option<u64>,
    /// The server ran before the run: `leakline attach` began it.
    #[serde(default)]
    pub attached: bool,
    /// The namespace that the server's process ids belong to, here and in the names of tables, see
    /// [`process::namespace`].
    #[serde(default)]
    pub pid_namespace: Option<u64>,
}

impl Runs {
    /// `$LEAKLINE_DIR`, else `$XDG_RUNTIME_DIR/leakline`, else `/tmp/leakline-UID`.
    pub fn default_dir() -> PathBuf {
        let of = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        of("LEAKLINE_DIR")
            .or_else(|| of("XDG_RUNTIME_DIR").map(|dir| dir.join("leakline")))
            .unwrap_or_else(|| PathBuf::from(format!("/tmp/leakline-{}", geteuid())))
    }

    /// The runs in `dir`, which need not exist: then there are none.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        match check_ours(dir) {
            Err(Refusal::Missing) => {}
            Err(Refusal::Because(failure)) => return Err(failure),
            Ok(()) => {}
        }
        Ok(Self { dir: std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()) })
    }

    /// Makes `dir` where it is missing.
    pub fn create(dir: &Path) -> Result<Self, Failure> {
        make_folder(dir)?;
        Self::open(dir)
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder of a new run, whose server is about to be started.
    pub fn begin(&self, argv: Vec<String>, limit_bytes: Option<u64>) -> Result<Run, Failure> {
        let cwd = std::env::current_dir().unwrap_or_default();
        self.make(argv, &cwd, limit_bytes, None)
    }

    /// Makes the folder of a new run, whose server, process `pid`, runs already, in the folder `cwd`.
    pub fn begin_attached(
        &self,
        argv: Vec<String>,
        cwd: &Path,
        limit_bytes: Option<u64>,
        pid: u32,
    ) -> Result<Run, Failure> {
        self.make(argv, cwd, limit_bytes, Some(pid))
    }

    fn make(
        &self,
        argv: Vec<String>,
        cwd: &Path,
        limit_bytes: Option<u64>,
        attached: Option<u32>,
    ) -> Result<Run, Failure> {
        let started = now();
        let launcher = std::process::id();
        let folder = self.dir.join(format!("run-{}-{launcher}", started as u64));
        make_folder(&folder)?;
        let record = Record {
            argv,
            cwd: cwd.to_string_lossy().into_owned(),
            started,
            ended: None,
            exit_code: None,
            launcher,
            pid: 0,
            start_ticks: 0,
            limit_bytes,
            attached: attached.is_some(),
            pid_namespace: attached.map_or_else(process::own_namespace, process::namespace),
        };
        let run = Run { folder, record: Some(record), server: None, tables: Vec::new() };
        match run.record.iter().try_for_each(|record| record.write(&run.folder)) {
            Ok(()) => Ok(run),
            Err(failure) => {
                run.delete();
                Err(failure)
            }
        }
    }

    /// Every run, the latest first.
    pub fn all(&self) -> Vec<Run> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut runs: Vec<Run> = entries
            .map(|entry| entry.path())
            .filter(|path| started_by_name(path).is_some())
            .filter_map(|path| Run::open(&path).ok())
            .collect();
        runs.sort_by_key(|run| std::cmp::Reverse((started_by_name(&run.folder), run.folder.clone())));
        runs
    }

    /// The latest run.
    pub fn latest(&self) -> Result<Run, Failure> {
        self.all().into_iter().next().ok_or_else(|| {
            Failure::new(
                Exit::NoTable,
                format!("there is no run in {}", self.dir.display()),
                "start your server with `leakline run -- COMMAND`, or name the folder with --dir",
            )
        })
    }

    /// The latest run that `pid` belongs to: as a process that wrote a table, as the server, as `leakline run`, or as
    /// an ancestor of one of them that still runs.
    pub fn of_pid(&self, pid: u32) -> Result<Run, Failure> {
        self.all().into_iter().find(|run| run.holds(pid)).ok_or_else(|| {
            Failure::new(
                Exit::NoTable,
                format!("no run in {} knows process {pid}", self.dir.display()),
                "see which runs there are with `leakline list`",
            )
        })
    }

    /// Deletes ended runs until at most `keep` are left.
    pub fn prune(&self, keep: usize) {
        for run in self.all().iter().skip(keep).filter(|run| !run.is_alive()) {
            // A run that can't be deleted now is tried again by the next one.
            let _ = fs::remove_dir_all(&run.folder);
        }
    }
}

impl Run {
    /// The tables in `folder`, which must be ours, wherever it is.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        match check_ours(folder) {
            Ok(()) => {}
            Err(Refusal::Because(failure)) => return Err(failure),
            Err(Refusal::Missing) => {
                let what = format!("there is no folder {}", folder.display());
                return Err(Failure::new(Exit::NoTable, what, "see which runs there are with `leakline list`"));
            }
        }
        let entries = fs::read_dir(folder).map_err(|error| Failure::io("read", folder, &error))?;
        let record = reader::open(&folder.join(RECORD)).ok();
        let record: Option<Record> =
            record.and_then(|file| serde_json::from_reader(BufReader::new(file.take(MOST_RECORD))).ok());
        let elsewhere = record.as_ref().and_then(|record| record.pid_namespace);
        let elsewhere = elsewhere.filter(|namespace| process::own_namespace() != Some(*namespace));
        let known = elsewhere.map(process::of_namespace).unwrap_or_default();
        let by_us = |process: Identity| known.get(&process).copied().unwrap_or(process);
        let tables = entries.flatten().filter_map(|entry| TableFile::from_path(entry.path()));
        let mut tables: Vec<TableFile> =
            tables.map(|table| TableFile { process: by_us(table.process), ..table }).collect();
        tables.sort_by_key(|table| (table.process.start_ticks, table.process.pid));
        let server = record.as_ref().map(|record| by_us(Identity { pid: record.pid, start_ticks: record.start_ticks }));
        Ok(Self { folder: folder.to_owned(), record, server, tables })
    }

    /// The folder's name, by which `list` knows the run.
    pub fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The server has been started.
    pub fn started_as(&mut self, server: Identity) -> Result<(), Failure> {
        self.server = Some(server);
        let server = process::in_its_namespace(server);
        self.update(|record| (record.pid, record.start_ticks) = (server.pid, server.start_ticks))
    }

    /// The server has ended.
    pub fn ended_with(&mut self, exit_code: u8) -> Result<(), Failure> {
        self.update(|record| (record.ended, record.exit_code) = (Some(now()), Some(exit_code)))
    }

    /// The agent has left the server, which goes on.
    pub fn left(&mut self) -> Result<(), Failure> {
        self.update(|record| record.ended = Some(now()))
    }

    /// A process of it still runs.
    pub fn is_alive(&self) -> bool {
        self.processes().any(Identity::is_alive)
    }

    /// Deletes it.
    pub fn delete(self) {
        // The folder of a command that could not be started: nothing is lost if it stays.
        let _ = fs::remove_dir_all(&self.folder);
    }

    fn processes(&self) -> impl Iterator<Item = Identity> {
        self.server.into_iter().chain(self.tables.iter().map(|table| table.process))
    }

    fn holds(&self, pid: u32) -> bool {
        self.record.as_ref().is_some_and(|record| record.launcher == pid)
            || self.processes().any(|process| process.pid == pid)
            || self
                .processes()
                .filter(|process| process.is_alive())
                .any(|process| process::ancestors(process.pid).contains(&pid))
    }

    fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), Failure> {
        match &mut self.record {
            Some(record) => {
                change(record);
                record.write(&self.folder)
            }
            None => Ok(()),
        }
    }
}

impl Record {
    fn write(&self, folder: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self).expect("strings and numbers always have a JSON form");
        write_whole(&folder.join(RECORD), &text)
    }
}

impl TableFile {
    /// A file named `PID-START.leakline`.
    pub fn from_path(path: PathBuf) -> Option<Self> {
        if path.extension()? != TABLE {
            return None;
        }
        let (pid, start_ticks) = path.file_stem()?.to_str()?.split_once('-')?;
        let process = Identity { pid: pid.parse().ok()?, start_ticks: start_ticks.parse().ok()? };
        Some(Self { path, process })
    }

    /// Opens the table for writing. The agent makes it read-only, so that nobody shortens by mistake what a server has
    /// mapped: whoever is not root changes its mode for a moment.
    pub fn open_for_writing(&self) -> io::Result<fs::File> {
        const TRIES: usize = 10;
        // Links are not followed, nor is waited for pipes: what lies there may be another file by now.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let open = || fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path);
        let is_denied =
            |file: &io::Result<fs::File>| file.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
        let mut file = open();
        // Again, since another command may have finished in between.
        for _ in 0..TRIES {
            if !is_denied(&file) {
                break;
            }
            let table = reader::open(&self.path)?;
            table.set_permissions(fs::Permissions::from_mode(0o600))?;
            file = open();
            table.set_permissions(fs::Permissions::from_mode(0o400))?;
        }
        file
    }
}

/// Seconds since the Unix epoch.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// Writes `path` so that nobody ever sees half of it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let unfinished = path.with_extension(format!("{}.part", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&unfinished, path));
    written.map_err(|error| {
        // What could not be written whole is not worth keeping, least of all on a full disk.
        let _ = fs::remove_file(&unfinished);
        Failure::io("write", path, &error)
    })
}

fn make_folder(folder: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Failure::io("make the folder", folder, &error))
}

/// The second at which the run of this name began.
fn started_by_name(folder: &Path) -> Option<u64> {
    let (started, launcher) = folder.file_name()?.to_str()?.strip_prefix("run-")?.split_once('-')?;
    launcher.parse::<u32>().ok()?;
    started.parse().ok()
}

enum Refusal {
    Missing,
    Because(Failure),
}

/// A folder that others can write to could make us load their agent, or read a table that they made up.
fn check_ours(folder: &Path) -> Result<(), Refusal> {
    let metadata = fs::symlink_metadata(folder).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Refusal::Missing,
        _ => Refusal::Because(Failure::io("look at", folder, &error)),
    })?;
    let refuse = |exit, why: String, next: &str| {
        Err(Refusal::Because(Failure::new(exit, format!("refusing {}: {why}", folder.display()), next)))
    };
    if metadata.is_symlink() {
        return refuse(Exit::Permission, "it is a symbolic link".into(), "name the folder that it points to");
    }
    if !metadata.is_dir() {
        return refuse(Exit::Error, "it is no folder".into(), "name a folder");
    }
    if metadata.uid() != geteuid().as_raw() {
        let next = "run as that user, or choose another place with --dir";
        return refuse(Exit::Permission, format!("it belongs to user {}", metadata.uid()), next);
    }
    if metadata.mode() & 0o077 != 0 {
        let why = format!("others may enter it (mode {:04o})", metadata.mode() & 0o7777);
        return refuse(
            Exit::Permission,
            why,
            "if it is for tables alone, run `chmod 700` on it, else choose another place",
        );
    }
    Ok(())
}
