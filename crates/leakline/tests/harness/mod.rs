//! From a command line to a server under `leakline run` that accepts connections on a port of its own, and from the
//! server's end to the report. Whatever happens to a test, its server ends with it.
#![allow(dead_code, reason = "every test binary uses a part of it")]
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use leakline::analyze::evidence::Worker;
use leakline::case::service;
use leakline::drive::plan::Plan;
use leakline::drive::tally::Tally;
use leakline::drive::{self, Server as Address};
use leakline::reader;
use leakline::runs::Runs;
use leakline::target::process::descendants;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;

pub mod victim;

/// The command under test.
pub const LEAKLINE: &str = env!("CARGO_BIN_EXE_leakline");
/// How long to wait for what takes a second, on a machine that is busy with something else. Never a measure.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs its arguments in a terminal of their own, presses Ctrl-C when they say that they are ready, and exits with
/// their exit code, or with 77 where there are no terminals.
pub const PRESSES_CTRL_C: &str = r"
import os, pty, signal, sys
signal.alarm(100)
try:
    pid, terminal = pty.fork()
except OSError:
    sys.exit(77)
if pid == 0:
    # Whoever runs the tests in the background may have it ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
said = b''
while b'ready' not in said:
    said += os.read(terminal, 1000)
os.write(terminal, b'\x03')
try:
    while os.read(terminal, 1000):
        pass
except OSError:
    pass
sys.exit(os.WEXITSTATUS(os.waitpid(pid, 0)[1]))
";

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A new, empty folder of this test, below cargo's folder for tests.
pub fn folder(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = format!("{}-{}-{number}", name.replace('/', "-"), std::process::id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The Python of this version (`3.8`, or `system`) with these requirements installed, or `None` when this machine has
/// no such CPython, or lacks what the case needs beside it, which is said.
pub fn python(version: &str, requirements: &Path) -> Option<PathBuf> {
    let setup = Command::new(root().join("scripts/setup")).arg(version).arg(requirements).output().unwrap();
    match setup.status.code() {
        Some(0) => Some(String::from_utf8(setup.stdout).unwrap().trim().into()),
        Some(3) => {
            eprintln!("skipped: there is no CPython {version} here");
            None
        }
        Some(4) => {
            eprint!("{}", String::from_utf8_lossy(&setup.stderr));
            None
        }
        _ => panic!("scripts/setup {version}: {}", String::from_utf8_lossy(&setup.stderr)),
    }
}

/// A free port of 127.0.0.1.
pub fn free_port() -> u16 {
    service::free_port().unwrap()
}

/// Builds the agent as released servers get it, unless that was done already.
pub fn build_agent() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        // target/debug/leakline looks for the agent in target/agent.
        let target = Path::new(LEAKLINE).ancestors().nth(2).unwrap();
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "leakline-agent", "--profile", "agent", "--target-dir"]).arg(target);
        assert!(build.current_dir(root()).status().unwrap().success(), "the agent can't be built");
    });
}

/// Whatever a server does, its resident memory is accounted for, but for three percent. (That it can be looked at where
/// processes may read their children's memory is held by `tests/ledger.rs`.)
pub fn adds_up(report: &Value) -> Result<(), String> {
    let ledger = &report["rss"]["ledger"];
    if ledger.is_null() {
        eprintln!("skipped: this machine lets nobody look at another process's memory");
        return Ok(());
    }
    match (ledger["residual"].as_i64(), ledger["resident"].as_u64()) {
        (Some(residual), Some(resident)) if residual.unsigned_abs() as f64 <= resident as f64 * 0.03 => Ok(()),
        _ => Err(format!("the ledger does not add up: {ledger:#}")),
    }
}

/// A folder of tables of one test, deleted at its end.
pub struct Tables(pub PathBuf);

impl Tables {
    /// A new one, and the agent for it.
    pub fn new(name: &str) -> Self {
        build_agent();
        let dir = folder(name).join("tables");
        fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
        Self(dir)
    }

    /// `leakline` with this folder and these arguments.
    pub fn leakline(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(LEAKLINE);
        command.arg("--dir").arg(&self.0).args(arguments).stdin(Stdio::null());
        command
    }

    /// What it says.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.leakline(arguments).output().unwrap()
    }

    /// The exit code.
    pub fn code(&self, arguments: &[&str]) -> i32 {
        self.output(arguments).status.code().unwrap()
    }

    /// The folders of runs.
    pub fn runs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }

    /// A run folder with one file that is named as a table.
    pub fn with_table(&self, bytes: &[u8]) -> PathBuf {
        let folder = self.0.join("run-1-1");
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder).unwrap();
        fs::write(folder.join("1-1.leakline"), bytes).unwrap();
        folder
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(self.0.parent().unwrap());
        }
    }
}

/// A server under `leakline run`.
pub struct Server {
    /// Its port of 127.0.0.1.
    pub port: u16,
    launcher: Child,
    /// Tables and log; deleted at the end of a test that did not fail.
    folder: PathBuf,
}

impl Server {
    /// Starts `command` in the folder `at`, and waits until it accepts connections on `port`.
    pub fn start(command: &[OsString], at: &Path, port: u16) -> Server {
        Server::start_with(&[], command, at, port)
    }

    /// The same, with options for `leakline run`.
    pub fn start_with(options: &[String], command: &[OsString], at: &Path, port: u16) -> Server {
        Server::start_beside(None, options, command, at, port)
    }

    /// The same, where the user preloads another allocator.
    pub fn start_beside(
        allocator: Option<&Path>,
        options: &[String],
        command: &[OsString],
        at: &Path,
        port: u16,
    ) -> Server {
        build_agent();
        let folder = folder("server");
        let mut launcher = Command::new(LEAKLINE);
        launcher.arg("--dir").arg(folder.join("tables")).arg("run").args(options).arg("--").args(command);
        launcher.envs(allocator.map(|allocator| ("LD_PRELOAD", allocator)));
        Server::launch(launcher, folder, at, port)
    }

    /// The same, but by itself: `leakline attach` may come to it later. Its process is its own launcher.
    pub fn start_alone(command: &[OsString], at: &Path, port: u16) -> Server {
        build_agent();
        let mut launcher = Command::new(&command[0]);
        launcher.args(&command[1..]);
        Server::launch(launcher, folder("server"), at, port)
    }

    fn launch(mut launcher: Command, folder: PathBuf, at: &Path, port: u16) -> Server {
        let log = File::create(folder.join("log")).unwrap();
        let launcher = launcher
            .current_dir(at)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Server { port, launcher, folder };
        server.wait(|server| match server.launcher.try_wait().unwrap() {
            Some(status) => panic!("the server ended with {status} before it accepted a connection:\n{}", server.log()),
            None => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(),
        });
        server
    }

    /// Everything that the server and `leakline run` have written.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("log")).unwrap()).into_owned()
    }

    /// Runs leakline with the server's folder of tables.
    pub fn leakline(&self, arguments: &[&str]) -> Output {
        Command::new(LEAKLINE).arg("--dir").arg(self.folder.join("tables")).args(arguments).output().unwrap()
    }

    /// Process id of `leakline run`.
    pub fn launcher(&self) -> u32 {
        self.launcher.id()
    }

    /// The folder of tables.
    pub fn tables(&self) -> PathBuf {
        self.folder.join("tables")
    }

    /// Makes the traffic of a plan.
    pub fn drive(&self, plan: &Plan) -> Tally {
        let address = Address { host: Ipv4Addr::LOCALHOST.to_string(), port: self.port };
        plan.check().unwrap();
        drive::run(&address, plan, |_| {}).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// Makes the traffic of a plan, each request of which has to be answered with 200, whether the client then stays or
    /// leaves.
    pub fn drive_well(&self, plan: &Plan) {
        let sum = self.drive(plan).sum();
        let well: u64 = [&sum.statuses, &sum.left].into_iter().filter_map(|by_status| by_status.get(&200)).sum();
        assert_eq!(well, plan.total, "statuses {:?}, failures {:?}\n{}", sum.statuses, sum.failures, self.log());
    }

    /// The body of one answer.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_else(|| panic!("no answer: {answer}"))
    }

    /// The report as it stands, from the tables.
    pub fn report(&self) -> Value {
        let report = self.leakline(&["report", "--json", &self.launcher.id().to_string()]);
        let said = String::from_utf8_lossy(&report.stderr);
        assert!(report.status.success(), "leakline report: {said}\n{}", self.log());
        serde_json::from_slice(&report.stdout).unwrap()
    }

    /// What its tables say of each process.
    pub fn workers(&self) -> Vec<Worker> {
        let run = Runs::open(&self.folder.join("tables")).and_then(|runs| runs.latest()).unwrap();
        run.tables.iter().map(|table| reader::worker(table, None).unwrap()).collect()
    }

    /// Whether `leakline report --fail-on KIND` fails, with the exit code that says so.
    pub fn fails_on(&self, kind: &str) -> bool {
        let report = self.leakline(&["report", "--fail-on", kind, &self.launcher.id().to_string()]);
        match report.status.code() {
            Some(0) => false,
            Some(3) => true,
            code => panic!("leakline report --fail-on {kind}: {code:?}\n{}", String::from_utf8_lossy(&report.stderr)),
        }
    }

    /// Ends the server as a deployment does, and reports.
    pub fn stop(mut self) -> Value {
        self.terminate();
        self.report()
    }

    /// Ends the server as a deployment does; the exit status is that of `leakline run`.
    pub fn terminate(&mut self) -> ExitStatus {
        // It may end in between: then there is no one to be told.
        let _ = signal::kill(Pid::from_raw(self.launcher.id() as i32), Signal::SIGTERM);
        self.wait(|server| server.launcher.try_wait().unwrap().is_some());
        self.launcher.wait().unwrap()
    }

    fn wait(&mut self, done: impl Fn(&mut Server) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "waited too long for the server\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.launcher.try_wait() {
            // The server first: an orphan could no longer be told from somebody else's process.
            for pid in descendants(self.launcher.id()) {
                let _ = signal::kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            let _ = self.launcher.kill();
            let _ = self.launcher.wait();
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
