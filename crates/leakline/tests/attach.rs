//! `leakline attach` and `detach` on servers that run, and on whatever else somebody may name: is the leak found as under
//! `leakline run`, does no request fail, and is the process left as it was?
mod harness;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use harness::Server;
use leakline::drive::plan::Plan;
use leakline::target::process::descendants;
use leakline_table::layout::{FLAG_SMALL, Loss, SampleRecord};
use leakline_table::reader::Snapshot;
use nix::sys::ptrace;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;

/// A busy machine makes the sampler coarser, so servers don't run side by side.
static ALONE: Mutex<()> = Mutex::new(());

const PYTHONS: [&str; 4] = ["3.8", "3.11", "3.13", "system"];

/// So many requests, `rate` a second where that is not 0.
fn plan(path: &str, total: u64, rate: u64) -> Plan {
    let parameters = if path.contains("{number}") { "parameters = { number = \"1..100000\" }" } else { "" };
    let rate = if rate == 0 { String::new() } else { format!("rate = {rate}\n") };
    let text = format!("total = {total}\nconcurrency = 2\n{rate}[[route]]\npath = \"{path}\"\n{parameters}");
    Plan::parse(&text).unwrap()
}

/// Starts `python ARGUMENTS` in a folder, with `{port}` replaced; nothing where this machine has no such Python.
fn start(version: &str, folder: &str, arguments: &str) -> Option<Server> {
    let at = harness::root().join(folder);
    let python = harness::python(version, &at.join("requirements.txt"))?;
    let port = harness::free_port();
    let arguments = arguments.replace("{port}", &port.to_string());
    let command: Vec<OsString> =
        [python.into_os_string()].into_iter().chain(arguments.split(' ').map(Into::into)).collect();
    Some(Server::start_alone(&command, &at, port))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a command on the server's process tree, which has to do it.
fn done(server: &Server, arguments: &[&str]) {
    let pid = server.launcher().to_string();
    let output = server.leakline(&[arguments, &[&pid]].concat());
    assert_eq!(output.status.code(), Some(0), "leakline {arguments:?}: {}\n{}", said(&output), server.log());
}

/// Does it while requests are served, none of which may fail.
fn under_traffic(server: &Server, path: &str, act: impl FnOnce()) {
    std::thread::scope(|scope| {
        scope.spawn(|| server.drive_well(&plan(path, 150, 100)));
        sleep(Duration::from_millis(300));
        act();
    });
}

/// One leak is found: of this route, on the line that says so, and of so many bytes a request.
fn named(report: &Value, story: &Story) {
    let text = std::fs::read_to_string(harness::root().join(story.file)).unwrap();
    let line = 1 + text.lines().position(|line| line.contains(story.line)).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let leaks: Vec<_> = findings.iter().filter(|finding| finding["kind"] == "leak").collect();
    let [leak] = &leaks[..] else { panic!("not one leak: {report:#}") };
    let frame = &leak["application"];
    let name = Path::new(story.file).file_name().unwrap().to_str().unwrap();
    assert!(frame["file"].as_str().unwrap().ends_with(name) && frame["line"] == line, "{leak:#}");
    assert_eq!(leak["route"], story.route, "{leak:#}");
    // An estimate of 25 MB from samples 4 kB to 100 kB apart has a deviation of 7 % at most.
    let found = leak["bytes_per_request"].as_f64().unwrap();
    assert!((story.bytes / 2.0..story.bytes * 2.0).contains(&found), "{leak:#}");
}

/// What is kept, and how it is found.
struct Story<'s> {
    folder: &'s str,
    path: &'s str,
    route: &'s str,
    file: &'s str,
    line: &'s str,
    bytes: f64,
}

/// A list that has lived long before we come, and grows.
const USER_LIST: Story = Story {
    folder: "cases/user-list",
    path: "/",
    route: "GET /",
    file: "cases/user-list/fetchuserdata.py",
    line: "users_list.append",
    bytes: 40000.0,
};

const SHOP: Story = Story {
    folder: "crates/leakline/tests/outcomes",
    path: "/sell/{number}",
    route: "GET /sell/{number}",
    file: "crates/leakline/tests/outcomes/fastapi_shop.py",
    line: "kept.append(",
    bytes: 250_000.0,
};

/// Attaches to a server at work, finds its leak, leaves it, and comes again.
fn check(versions: &[&str], arguments: &str, story: &Story) {
    for version in versions {
        // A server that failed must not keep the others from running.
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(server) = start(version, story.folder, arguments) else { continue };
        // Its worker has started.
        server.drive_well(&plan(story.path, 5, 0));
        // Few requests and dense samples. (A list grows by an eighth of its length at a time, so that the leak of one that is
        // long already shows late.)
        under_traffic(&server, story.path, || done(&server, &["attach", "--budget", "20"]));
        server.drive_well(&plan(story.path, 600, 0));
        let attached = server.report();
        named(&attached, story);

        under_traffic(&server, story.path, || done(&server, &["detach"]));
        let left = server.report();
        named(&left, story);
        server.drive_well(&plan(story.path, 50, 0));
        assert_eq!(server.report()["window"]["requests"], left["window"]["requests"], "nothing is recorded any more");

        under_traffic(&server, story.path, || done(&server, &["attach", "--budget", "20"]));
        server.drive_well(&plan(story.path, 250, 0));
        let again = server.report();
        let route = again["routes"].as_array().unwrap().iter().find(|route| route["route"] == story.route);
        let number = |key: &str| route.unwrap_or_else(|| panic!("{again:#}"))[key].as_f64().unwrap();
        assert!(number("requests") >= 250.0 && number("live_bytes") > 1e6, "{again:#}");
    }
}

#[test]
fn gunicorn_sync() {
    check(&PYTHONS, "-m gunicorn --bind 127.0.0.1:{port} app:app", &USER_LIST);
}

#[test]
fn gunicorn_threads() {
    check(&["3.8", "3.13"], "-m gunicorn --threads 4 --bind 127.0.0.1:{port} app:app", &USER_LIST);
}

#[test]
fn flask_run() {
    check(&["3.11", "system"], "-m flask --app app run --port {port}", &USER_LIST);
}

#[test]
fn uvicorn() {
    let arguments = "-m uvicorn --http h11 --port {port} --log-level critical fastapi_shop:app";
    check(&["3.11", "3.13"], arguments, &SHOP);
}

/// A process that ends with the test.
struct Victim(Child);

impl Victim {
    fn start(command: &mut Command) -> Victim {
        harness::build_agent();
        Victim(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Runs Python, and waits until it says a line.
    fn python(python: &Path, script: &str, arguments: &[&OsStr]) -> Victim {
        let mut victim = Victim::start(Command::new(python).args(["-u", "-c", script]).args(arguments));
        victim.line();
        victim
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let output = self.0.stdout.as_mut().unwrap();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).unwrap(), 1, "it ended");
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    fn say(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// It runs as it did: no agent is in it, and nobody traces it.
    fn is_untouched(&self) {
        assert!(!maps(self.pid()).contains("/agent-"), "{}", maps(self.pid()));
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0"), "{status}");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn maps(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default()
}

/// leakline with tables in a folder of this test.
fn leakline(tables: &Path, arguments: &[&str]) -> Output {
    Command::new(harness::LEAKLINE).arg("--dir").arg(tables.join("runs")).args(arguments).output().unwrap()
}

fn attach(tables: &Path, pid: u32) -> Output {
    leakline(tables, &["attach", "--budget", "100", &pid.to_string()])
}

fn python() -> PathBuf {
    harness::python("3.11", &harness::root().join("cases/user-list/requirements.txt"))
        .or_else(|| harness::python("system", &harness::root().join("cases/user-list/requirements.txt")))
        .expect("some Python is here")
}

/// What must be refused, with this exit code and a word of the reason; the process is left as it was.
fn refused(tables: &Path, victim: &Victim, code: i32, why: &str) {
    let output = attach(tables, victim.pid());
    assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    assert!(said(&output).contains(why), "{}", said(&output));
    assert_eq!(said(&output).lines().count(), 1, "{}", said(&output));
    victim.is_untouched();
    assert_eq!(leakline(tables, &["report", &victim.pid().to_string()]).status.code(), Some(4), "no run is left");
}

#[test]
fn what_cannot_be_attached_to_is_named_and_left_as_it_was() {
    let tables = harness::folder("refused");
    let no_python = Victim::start(Command::new("sleep").arg("300"));
    while !maps(no_python.pid()).contains("libc.so") {
        sleep(Duration::from_millis(5));
    }
    refused(&tables, &no_python, 8, "no CPython");
    let detached = leakline(&tables, &["detach", &no_python.pid().to_string()]);
    assert_eq!(detached.status.code(), Some(8), "{}", said(&detached));
    no_python.signal(Signal::SIGSTOP);
    while !std::fs::read_to_string(format!("/proc/{}/stat", no_python.pid())).unwrap().contains(") T ") {
        sleep(Duration::from_millis(5));
    }
    refused(&tables, &no_python, 1, "is stopped");
    drop(no_python);

    // Nobody has waited for it.
    let mut ended = Victim::start(&mut Command::new("true"));
    while !std::fs::read_to_string(format!("/proc/{}/stat", ended.pid())).unwrap().contains(") Z ") {
        sleep(Duration::from_millis(5));
    }
    refused(&tables, &ended, 7, "has ended");
    ended.0.wait().unwrap();
    let gone = attach(&tables, ended.pid());
    assert_eq!((gone.status.code(), said(&gone).contains("there is no process")), (Some(7), true), "{}", said(&gone));

    let idle = Victim::python(&python(), "print('ready'); input()", &[]);
    ptrace::seize(Pid::from_raw(idle.pid() as i32), ptrace::Options::empty()).unwrap();
    let output = attach(&tables, idle.pid());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("is being traced"), "{}", said(&output));
    assert!(!maps(idle.pid()).contains("/agent-"));
    drop(idle);

    let elsewhere = Victim::start(Command::new("unshare").args(["--mount", "sleep", "300"]));
    let is_there = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default() == "sleep\n";
    let mut elsewhere = Some(elsewhere);
    while let Some(victim) = elsewhere.as_mut() {
        if victim.0.try_wait().unwrap().is_some() {
            eprintln!("skipped: this user may make no mount namespace");
            elsewhere = None;
        } else if is_there(victim.pid()) {
            refused(&tables, victim, 8, "other files");
            elsewhere = None;
        }
    }

    std::fs::remove_dir_all(tables).unwrap();
}

/// The agent itself says no, when it is loaded already: it has to go again.
#[test]
fn a_python_that_is_not_known_gets_rid_of_the_agent_again() {
    let tables = harness::folder("unknown");
    let source = tables.join("unknown.c");
    let text = "#include <unistd.h>\nint Py_IsInitialized(void) { return 1; }\n\
        const char *Py_GetVersion(void) { return \"2.7.18 (main)\"; }\nint main(void) { write(1, \"\\n\", 1); for (;;) pause(); }";
    std::fs::write(&source, text).unwrap();
    let program = tables.join("unknown");
    let compiled = Command::new("cc").args(["-w", "-rdynamic", "-o"]).arg(&program).arg(&source).status().unwrap();
    assert!(compiled.success(), "cc, which Rust links with, fails");
    let mut unknown = Victim::start(&mut Command::new(&program));
    unknown.line();
    let before = maps(unknown.pid());
    refused(&tables, &unknown, 8, "2.7.18");
    // The loader may have made its heap meanwhile, and nothing else.
    let new: Vec<_> = maps(unknown.pid()).lines().filter(|line| !before.contains(*line)).map(str::to_owned).collect();
    assert!(new.iter().all(|line| line.contains("[heap]") || line.contains("[stack]")), "{new:#?}");
    std::fs::remove_dir_all(tables).unwrap();
}

#[test]
fn a_process_is_attached_to_once_at_a_time() {
    let tables = harness::folder("once");
    let idle = Victim::python(&python(), "print('ready')\nimport time\nwhile True: time.sleep(0.05)", &[]);
    let pid = idle.pid().to_string();
    let code = |arguments: &[&str]| {
        let output = leakline(&tables, arguments);
        (output.status.code(), said(&output))
    };
    assert_eq!(code(&["detach", &pid]).0, Some(9));
    // Its main thread waits with a timeout, for long: the second time the kernel names another system call.
    let asleep = Victim::python(&python(), "import select\nprint('ready')\nselect.poll().poll(300000)", &[]);
    for command in ["attach", "detach", "attach", "detach"] {
        let output = code(&[command, &asleep.pid().to_string()]);
        assert!(output.0 == Some(0) && output.1.contains("wakes up"), "{output:?}");
    }
    for _ in 0..2 {
        let first = code(&["attach", &pid]);
        assert_eq!(first.0, Some(0), "{first:?}");
        let second = code(&["attach", &pid]);
        assert!(second.0 == Some(9) && second.1.contains("is being recorded"), "{second:?}");
        assert!(code(&["doctor", &pid]).1.contains("attached"));
        assert!(code(&["list"]).1.lines().next().unwrap().contains("attached"));
        let left = code(&["detach", &pid]);
        assert_eq!(left.0, Some(0), "{left:?}");
        assert_eq!(code(&["detach", &pid]).0, Some(9));
        assert!(code(&["list"]).1.lines().next().unwrap().contains("detached"));
    }

    let mut run = Command::new(harness::LEAKLINE);
    run.arg("--dir").arg(tables.join("runs")).args(["run", "--"]).arg(python()).args([
        "-u",
        "-c",
        "print('ready'); input()",
    ]);
    let mut run = Victim::start(&mut run);
    run.line();
    let server = descendants(run.pid())[0].to_string();
    assert_eq!(code(&["attach", &server]).0, Some(9));
    assert_eq!(code(&["detach", &server]).0, Some(9));
    run.say("");
    run.0.wait().unwrap();
    std::fs::remove_dir_all(tables).unwrap();
}

/// The main thread never waits; the others wait for it to let go of the GIL.
#[test]
fn a_process_that_never_waits_is_attached_to() {
    let tables = harness::folder("busy");
    let script = "import threading\ndef spin():\n    while True: pass\n\
        threading.Thread(target=spin, daemon=True).start()\nprint('ready')\nspin()";
    for script in [script, "print('ready')\nwhile True: pass"] {
        let busy = Victim::python(&python(), script, &[]);
        for command in ["attach", "detach"] {
            let output = leakline(&tables, &[command, &busy.pid().to_string()]);
            assert_eq!(output.status.code(), Some(0), "{}", said(&output));
            assert!(!said(&output).contains("wakes up"), "{}", said(&output));
        }
    }
    std::fs::remove_dir_all(tables).unwrap();
}

/// Who may not trace a process is told so.
#[test]
fn somebody_elses_process_is_refused() {
    let tables = harness::folder("foreign");
    let idle = Victim::python(&python(), "print('ready'); input()", &[]);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can play two users");
        return;
    }
    let mut command = Command::new(harness::LEAKLINE);
    command.args(["--dir", "/nonexistent", "attach", &idle.pid().to_string()]).uid(65534).gid(65534);
    match command.output() {
        Ok(output) => {
            assert_eq!(output.status.code(), Some(6), "{}", said(&output));
            assert!(said(&output).contains("belongs to user 0"), "{}", said(&output));
        }
        Err(error) => eprintln!("skipped: nobody may not run the command where it lies: {error}"),
    }
    idle.is_untouched();
    std::fs::remove_dir_all(tables).unwrap();
}

/// What is shown as living lives, and in sum it is as much as there is: nobody's malloc or free was missed.
#[test]
fn whoever_frees_a_block_is_seen() {
    const THREADS: &str = "8";
    const ROUNDS: &str = "60000";
    let script = "import ctypes, sys\nprint('ready')\ninput()\n\
        failed = ctypes.CDLL(sys.argv[1]).churn(int(sys.argv[2]), ctypes.c_long(int(sys.argv[3])), sys.argv[4].encode())\n\
        print('failed' if failed else 'done')\ninput()";
    let tables = harness::folder("churn");
    let library = tables.join("churn.so");
    let source = harness::root().join("crates/leakline/tests/attach/churn.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-w", "-fno-builtin", "-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    assert!(compiler.args(["-ldl", "-lpthread"]).status().unwrap().success(), "cc, which Rust links with, fails");
    let truth = tables.join("truth");
    let arguments = [library.as_os_str(), THREADS.as_ref(), ROUNDS.as_ref(), truth.as_os_str()];
    let mut churning = Victim::python(&python(), script, &arguments);
    let runs = tables.join("runs");
    let attached = attach(&tables, churning.pid());
    assert_eq!(attached.status.code(), Some(0), "{}", said(&attached));
    churning.say("");
    assert_eq!(churning.line(), "done");
    let detached = leakline(&tables, &["detach", &churning.pid().to_string()]);
    assert_eq!(detached.status.code(), Some(0), "{}", said(&detached));

    let run = std::fs::read_dir(&runs).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let is_table = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "leakline");
    let table = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path()).find(is_table).unwrap();
    let table = Snapshot::read(&std::fs::read(table).unwrap()).unwrap();
    let truth = std::fs::read_to_string(truth).unwrap();
    let truth: BTreeMap<u64, u64> = truth
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(address, bytes)| (address.parse().unwrap(), bytes.parse().unwrap()))
        .collect();
    let kept: f64 = truth.values().map(|bytes| *bytes as f64).sum();
    let (mut found, mut variance, mut count, mut gone) = (0.0, 0.0, 0, Vec::new());
    // Our threads are none of Python's, and nobody else's are at work.
    let is_pythons = |stack: u32| table.stacks[stack as usize].iter().any(|frame| frame.python().is_some());
    let ours = table.samples.iter().filter(|sample| !sample.stack.is_some_and(is_pythons));
    for sample in ours.map(|sample| &sample.record).filter(|sample| sample.flags & FLAG_SMALL == 0) {
        // What a block has grown by has no address of its own.
        let whole = truth.get(&sample.address).copied();
        let is_live = sample.address == 0 || whole.is_some_and(|whole| sample.size <= whole);
        if !is_live {
            gone.push((sample.address, sample.size, whole));
            continue;
        }
        found += sample.weight;
        variance += sample.weight * (sample.weight - sample.size as f64).max(0.0);
        count += 1;
    }
    assert!(count > 100, "hardly sampled: {count}");
    let is_mapping = |block: &SampleRecord| block.address != 0 && (block.address | block.size).is_multiple_of(4096);
    assert!(table.samples.iter().any(|sample| is_mapping(&sample.record)), "what libraries map is not seen");
    // What a thread could not record because another one was descheduled with the lock is counted.
    let lost = table.header.lost[Loss::Contention as usize];
    assert!(gone.len() as u64 <= lost && lost < table.header.samples_taken / 10, "{lost} were lost; gone: {gone:x?}");
    // Six standard errors, and what was lost.
    let allowed = 6.0 * variance.sqrt() + 0.1 * kept;
    assert!((found - kept).abs() < allowed, "{kept} bytes are kept, {found} ± {allowed} were seen in {count} samples");
    std::fs::remove_dir_all(tables).unwrap();
}

/// Again and again, while requests are served: none fails, no file stays open, no table stays mapped.
#[test]
fn coming_and_going_leaves_nothing_behind() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let arguments = "-m gunicorn --threads 4 --bind 127.0.0.1:{port} app:app";
    let Some(server) = start("3.11", "cases/user-list", arguments) else { return };
    server.drive_well(&plan("/", 10, 0));
    let worker = descendants(server.launcher())[0];
    let files = || std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap().count();
    let before = files();
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| server.drive_well(&plan("/", 1500, 150)));
        let mut cycles = 0;
        while !traffic.is_finished() {
            done(&server, &["attach"]);
            done(&server, &["detach"]);
            cycles += 1;
        }
        assert!(cycles > 1);
    });
    // A connection of the last request may still be closing.
    assert!(files() <= before + 2, "{before} files were open, and {} are", files());
    // A thread of the agent's takes its page along when it ends.
    let began = Instant::now();
    while maps(worker).contains(".leakline") {
        assert!(began.elapsed() < Duration::from_secs(60), "a table is still mapped: {}", maps(worker));
        sleep(Duration::from_millis(20));
    }
    let maps = maps(worker);
    let libraries = maps.lines().filter(|line| line.contains("/agent-") && line.contains(" r-xp ")).count();
    assert_eq!(libraries, 1, "{maps}");
}
