//! The command from outside: exit codes, signals, what `run` leaves behind, and bad input.
mod harness;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use harness::Tables;
use leakline::analyze::evidence::Evidence;
use leakline::report::{self, Printed, Report};
use leakline::{analyze, reader};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn run_exits_as_its_server_does() {
    let tables = Tables::new("exit");
    assert_eq!(tables.code(&["run", "--", "sh", "-c", "exit 7"]), 7);
    assert_eq!(tables.code(&["run", "--", "sh", "-c", "kill -9 $$"]), 128 + 9);
    assert_eq!(tables.code(&["run", "--", "python3", "-c", "raise SystemExit(9)"]), 9);
}

#[test]
fn a_server_that_cannot_be_started_leaves_a_clear_line_and_no_run() {
    let tables = Tables::new("start");
    let missing = tables.output(&["run", "--", "no-such-server", "--port", "1"]);
    assert_eq!(missing.status.code(), Some(127));
    assert_eq!(stderr(&missing).trim(), "leakline: no-such-server: command not found; check its name and $PATH");
    assert_eq!(tables.code(&["run", "--", "/etc/passwd"]), 126);
    assert_eq!(tables.runs(), Vec::<std::path::PathBuf>::new());
    assert_eq!(tables.code(&["run"]), 2);
}

/// The alarm ends a server that never gets its signal, and the test with it.
const WAITS_FOR_A_SIGNAL: &str = "
import signal, sys
signal.alarm(100)
for number in map(int, sys.argv[1:]):
    signal.signal(number, lambda number, frame: sys.exit(64 + number))
print('ready', flush=True)
while True:
    signal.pause()
";

#[test]
fn signals_reach_the_server() {
    let tables = Tables::new("signals");
    for wanted in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGTTIN] {
        let number = (wanted as i32).to_string();
        let mut run = tables.leakline(&["run", "--", "python3", "-c", WAITS_FOR_A_SIGNAL, &number]);
        let mut run = run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        signal::kill(Pid::from_raw(run.id() as i32), wanted).unwrap();
        assert_eq!(run.wait().unwrap().code(), Some(64 + wanted as i32), "{wanted}");
    }
}

/// Exits with the number of interrupts that it got, half a second after the first.
const COUNTS_INTERRUPTS: &str = "
import signal, sys, time
got = []
signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
print('ready', flush=True)
while not got:
    signal.pause()
end = time.monotonic() + 0.5
while time.monotonic() < end:
    time.sleep(0.1)
sys.exit(len(got))
";

#[test]
fn ctrl_c_in_a_terminal_is_delivered_once() {
    let tables = Tables::new("terminal");
    let mut terminal = Command::new("python3");
    terminal.args(["-c", harness::PRESSES_CTRL_C, harness::LEAKLINE, "--dir"]).arg(&tables.0);
    let status = terminal.args(["run", "--", "python3", "-c", COUNTS_INTERRUPTS]).status().unwrap();
    if status.code() == Some(77) {
        eprintln!("skipped: this machine has no pseudo-terminals");
        return;
    }
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_killed_server_leaves_a_report_and_only_its_owner_can_read_it() {
    let tables = Tables::new("killed");
    let run = tables.output(&["run", "--", "python3", "-c", "import os; os.kill(os.getpid(), 9)"]);
    assert_eq!(run.status.code(), Some(128 + 9), "{}", stderr(&run));
    assert!(stderr(&run).contains("killed with SIGKILL"), "{}", stderr(&run));

    let report = tables.output(&["report", "--json"]);
    assert_eq!(report.status.code(), Some(0), "{}", stderr(&report));
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!((&report["schema"], &report["target"]["workers"][0]["alive"]), (&1.into(), &false.into()));
    let listing: Value = serde_json::from_slice(&tables.output(&["list", "--json"]).stdout).unwrap();
    assert_eq!(listing["runs"][0]["exit_code"], 128 + 9);
    assert_eq!(listing["runs"][0]["tables"].as_array().unwrap().len(), 1);

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for run in tables.runs() {
        assert_eq!(mode(&run), 0o700);
        for file in fs::read_dir(run).unwrap().map(|file| file.unwrap().path()) {
            let is_table = file.extension().is_some_and(|extension| extension == "leakline");
            assert_eq!(mode(&file), if is_table { 0o400 } else { 0o600 }, "{}", file.display());
        }
    }
}

#[test]
fn a_server_may_be_started_in_a_folder_whose_name_is_no_text() {
    let tables = Tables::new("bytes");
    let at = tables.0.join(std::ffi::OsStr::from_bytes(b"\xff"));
    fs::create_dir(&at).unwrap();
    let run = tables.leakline(&["run", "--", "sh", "-c", "exit 3"]).current_dir(&at).output().unwrap();
    assert_eq!(run.status.code(), Some(3), "{}", stderr(&run));
}

#[test]
fn old_runs_make_room_for_new_ones() {
    let tables = Tables::new("keep");
    for _ in 0..4 {
        assert_eq!(tables.code(&["run", "--keep", "2", "--", "true"]), 0);
    }
    assert_eq!(tables.runs().len(), 2);
}

#[test]
fn what_is_not_there_is_said_and_has_its_exit_code() {
    let tables = Tables::new("nothing");
    assert_eq!(tables.code(&["list"]), 0);
    assert_eq!(tables.code(&["report"]), 4);
    assert_eq!(tables.code(&["report", &std::process::id().to_string()]), 4);
    assert_eq!(tables.code(&["report", tables.0.join("missing").to_str().unwrap()]), 4);
    assert_eq!(tables.code(&["report", "--fail-on", "nonsense"]), 2);
    // No process has the number 0 or a larger one than the kernel gives.
    assert_eq!(tables.code(&["doctor", "0"]), 7);
    assert_eq!(tables.code(&["doctor", "2147483647"]), 7);
}

#[test]
fn a_folder_that_is_not_ours_alone_is_refused() {
    let tables = Tables::new("foreign");
    let open = tables.0.join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let link = tables.0.join("link");
    symlink(&tables.0, &link).unwrap();
    for folder in [&open, &link] {
        let mut run = Command::new(harness::LEAKLINE);
        let run = run.arg("--dir").arg(folder).args(["run", "--", "true"]).status().unwrap();
        assert_eq!(run.code(), Some(6), "{}", folder.display());
        assert_eq!(tables.code(&["report", folder.to_str().unwrap()]), 6, "{}", folder.display());
    }
    // Only root can play two users.
    if nix::unistd::geteuid().is_root() {
        fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&open, Some(65534), None).unwrap();
        let refused = tables.output(&["report", open.to_str().unwrap()]);
        assert_eq!(refused.status.code(), Some(6));
        assert!(stderr(&refused).contains("it belongs to user 65534"), "{}", stderr(&refused));
    }
}

#[test]
fn a_file_that_is_no_table_is_named_and_has_its_exit_code() {
    let tables = Tables::new("damaged");
    let mut random = fastrand::Rng::with_seed(5);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(10_000).collect();
    for bytes in [&b""[..], b"LEAKLINE", b"LEAKLINE\x01\0\0\0\0", &noise] {
        let folder = tables.with_table(bytes);
        let refused = tables.output(&["report", folder.to_str().unwrap()]);
        assert_eq!(refused.status.code(), Some(5), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("1-1.leakline"), "{}", stderr(&refused));
        assert_eq!(tables.code(&["list"]), 0);
    }
}

/// Answers 300 requests, each of which leaves 50 kB behind, with the server of the standard library and without a
/// connection; then it is killed.
const LEAKS: &str = "
import io, os
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import make_server
kept = []
def app(environ, start_response):
    kept.append(bytearray(50000))
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [b'ok']
server = make_server('127.0.0.1', 0, app)
for _ in range(300):
    environ = {'REQUEST_METHOD': 'GET', 'PATH_INFO': '/leak', 'SERVER_PROTOCOL': 'HTTP/1.0'}
    SimpleHandler(io.BytesIO(), io.BytesIO(), io.StringIO(), environ).run(server.get_app())
os.kill(os.getpid(), 9)
";

#[test]
fn a_real_table_is_reported_and_survives_any_damage() {
    let tables = Tables::new("real");
    let run = tables.output(&["run", "--budget", "100", "--table", "8", "--", "python3", "-c", LEAKS]);
    assert_eq!(run.status.code(), Some(128 + 9), "{}", stderr(&run));
    assert!(stderr(&run).contains("GET /leak"), "{}", stderr(&run));
    let found = tables.output(&["report", "--json", "--fail-on", "leak"]);
    assert_eq!(found.status.code(), Some(3), "{}", stderr(&found));
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found["findings"][0]["route"], "GET /leak", "{found:#}");

    let table = fs::read_dir(&tables.runs()[0]).unwrap().map(|file| file.unwrap().path());
    let table = table.filter(|path| path.extension().is_some_and(|extension| extension == "leakline"));
    let sound = fs::read(table.last().unwrap()).unwrap();
    let mut random = fastrand::Rng::with_seed(17);
    let mut readable = 0;
    for _ in 0..200 {
        let mut damaged = sound.clone();
        // Mostly in what is in use: the first page and the beginnings of sections.
        for _ in 0..random.usize(1..200) {
            let within = if random.bool() { 4096 } else { damaged.len() };
            damaged[random.usize(16..within)] = random.u8(..);
        }
        if random.u8(..) < 64 {
            damaged.truncate(random.usize(..damaged.len()));
        }
        let Ok(worker) = reader::decode(&damaged, Path::new("/")) else { continue };
        readable += 1;
        let evidence = Evidence { workers: vec![worker] };
        let report = Report::new(&evidence, &analyze::findings(&evidence));
        let text = report::text(&report, Printed { source: &|_, _| None, colour: false });
        assert!(!text.is_empty() && !report::json(&report).is_empty());
    }
    assert!(readable > 20, "only {readable} damaged tables were readable: the hard path was hardly visited");
}
