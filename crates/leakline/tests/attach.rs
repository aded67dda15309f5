//! `leakline attach` and `detach` on servers that run: is the leak found as under `leakline run`, does no request fail, and is
//! nothing left behind?
mod harness;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use harness::Server;
use harness::victim::{Victim, leakline, maps, python, said};
use leakline::drive::plan::Plan;
use leakline::target::process::descendants;
use leakline_table::layout::{FLAG_SMALL, Loss, SampleRecord};
use leakline_table::reader::Snapshot;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
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
        harness::adds_up(&attached).unwrap();

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

/// A block that is older than the agent grows: what is added to it belongs to the request and the line that make it grow,
/// to the byte, and what it had before is said to be older.
#[test]
fn growth_of_blocks_that_were_there_before_is_that_of_the_requests_which_make_them_grow() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(server) = start("3.13", "cases/user-list", &format!("{} {{port}}", harness::root().join(GROWN).display()))
    else {
        return;
    };
    let sizes = || -> Vec<f64> { server.get("/sizes").split(' ').map(|bytes| bytes.parse().unwrap()).collect() };
    done(&server, &["attach", "--exact"]);
    // Whichever request lets it in.
    while server.report()["window"]["requests"] == 0 {
        server.get("/sizes");
    }
    let before = sizes();
    let both = "total = 1400\nconcurrency = 2\n[[route]]\npath = \"/rows\"\n[[route]]\npath = \"/text\"";
    server.drive_well(&Plan::parse(both).unwrap());
    let after = sizes();
    let report = server.report();
    for (at, (route, line)) in [("GET /rows", "the list grows"), ("GET /text", "the buffer grows")].iter().enumerate() {
        let added = after[at] - before[at];
        let routes = report["routes"].as_array().unwrap();
        let live = routes.iter().find(|known| known["route"] == *route).unwrap()["live_bytes"].as_f64().unwrap();
        // A request may leave a little in caches beside.
        assert!((live - added).abs() < added * 0.01 + 100e3, "{route} has added {added}: {report:#}");
        let source = std::fs::read_to_string(harness::root().join(GROWN)).unwrap();
        let line = 1 + source.lines().position(|text| text.ends_with(line)).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["kind"] == "leak" && finding["route"] == *route);
        let found = found.unwrap_or_else(|| panic!("{route} is no leak: {report:#}"));
        assert_eq!(found["application"]["line"], line, "{found:#}");
    }
    if !report["rss"]["ledger"].is_null() {
        // What is never touched again, what both had, and an interpreter with its modules.
        let earlier = report["rss"]["earlier"].as_f64().unwrap();
        let known = 30e6 + before[0] + before[1];
        assert!((known * 0.95..known + 40e6).contains(&earlier), "{known} were there: {report:#}");
    }
}

const GROWN: &str = "crates/leakline/tests/attach/grown.py";

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

/// The master and its worker are attached to, and a worker that takes that one's place has the agent from its parent.
#[test]
fn workers_that_are_forked_later_are_recorded() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(server) = start("3.11", "cases/user-list", "-m gunicorn --bind 127.0.0.1:{port} app:app") else { return };
    server.drive_well(&plan("/", 5, 0));
    let master = server.launcher();
    let first = descendants(master)[0];
    let attached = server.leakline(&["--json", "attach", &master.to_string()]);
    let told: Value = serde_json::from_slice(&attached.stdout).unwrap_or_else(|_| panic!("{}", said(&attached)));
    for (process, pid) in told["processes"].as_array().unwrap().iter().zip([master, first]) {
        assert!(process["pid"] == pid && process["stopped"].as_f64().is_some_and(|time| time > 0.0), "{told:#}");
    }
    nix::sys::signal::kill(Pid::from_raw(first as i32), Signal::SIGTERM).unwrap();
    let began = Instant::now();
    let later = loop {
        match descendants(master)[..] {
            [later] if later != first => break later,
            _ => assert!(began.elapsed() < Duration::from_secs(60), "{}", server.log()),
        }
        sleep(Duration::from_millis(20));
    };
    server.drive_well(&plan("/", 50, 0));
    // A client has its answer before its request has ended.
    loop {
        let report = server.report();
        let workers = report["target"]["workers"].as_array().unwrap();
        if workers.iter().any(|worker| worker["pid"] == later && worker["requests"] == 50) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{report:#}");
        sleep(Duration::from_millis(50));
    }
}

/// It says from time to time what there is, leaves, and reports.
#[test]
fn attaching_for_a_while_ends_with_the_report() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(server) = start("3.11", "cases/user-list", "-m gunicorn --bind 127.0.0.1:{port} app:app") else { return };
    server.drive_well(&plan("/", 5, 0));
    let pid = server.launcher().to_string();
    let output = std::thread::scope(|scope| {
        let command = scope.spawn(|| server.leakline(&["--json", "attach", "--budget", "20", "--for", "8s", &pid]));
        // Requests all the while, of which those count that come while the agent is there.
        while !command.is_finished() {
            server.drive_well(&plan("/", 50, 100));
        }
        command.join().unwrap()
    });
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let summaries = String::from_utf8(output.stderr).unwrap();
    let last = summaries.lines().last().unwrap();
    assert!(summaries.lines().all(|line| line.contains(" s left; ")), "{summaries}");
    assert!(last.contains(" requests, ") && last.contains("GET / leaves"), "{summaries}");
    named(&serde_json::from_slice(&output.stdout).unwrap(), &USER_LIST);
    // It has left.
    assert_eq!(server.leakline(&["detach", &pid]).status.code(), Some(9));
}

/// By a report that was asked of it, or by `--for`, which looks all the while.
#[test]
fn a_process_that_is_killed_is_known_as_it_was_seen_last() {
    let script = "held = b'x' * 30_000_000\nprint('ready')\nimport time\nwhile True: time.sleep(0.05)";
    let knows = |output: &Output| {
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)));
        assert_eq!(report["target"]["workers"][0]["alive"], false, "{report:#}");
        let used = report["rss"]["ledger"]["native_used"].as_u64();
        assert!(used.is_some_and(|used| used >= 30_000_000), "{report:#}");
    };
    let start = || Victim::python(&python(), script, &[]);
    let kill = |mut victim: Victim| {
        victim.signal(Signal::SIGKILL);
        victim.0.wait().unwrap();
    };

    let tables = harness::folder("killed");
    let victim = start();
    let pid = victim.pid().to_string();
    assert!(leakline(&tables, &["attach", &pid]).status.success());
    assert!(leakline(&tables, &["report", "--no-snapshot", &pid]).status.success());
    kill(victim);
    knows(&leakline(&tables, &["--json", "report", &pid]));

    let victim = start();
    let pid = victim.pid().to_string();
    std::thread::scope(|scope| {
        let attached = scope.spawn(|| leakline(&tables, &["--json", "attach", "--for", "1m", &pid]));
        let seen = |run: PathBuf| {
            let mut files = std::fs::read_dir(run).into_iter().flatten().flatten();
            files.any(|file| file.file_name().to_string_lossy().ends_with(".look"))
        };
        let runs = || std::fs::read_dir(tables.join("runs")).unwrap().flatten().map(|entry| entry.path());
        while runs().filter(|run| seen(run.clone())).count() < 2 {
            assert!(!attached.is_finished(), "it did not look");
            sleep(Duration::from_millis(50));
        }
        kill(victim);
        knows(&attached.join().unwrap());
    });
    std::fs::remove_dir_all(tables).unwrap();
}

/// Runs a command so that it sees an empty folder where the tests have theirs, but for the folders in it; and so on, as
/// `unshare` is told.
fn in_a_container(flags: &[&str], command: Vec<OsString>) -> Vec<OsString> {
    let script = "cd \"$0\" && folders=$(ls -d */) && mount -t tmpfs none . && cd \"$0\" && mkdir $folders && \
                  cd / && exec \"$@\"";
    let words = [&["unshare", "--mount"], flags, &["--", "sh", "-c", script]].concat();
    words.into_iter().map(OsString::from).chain([env!("CARGO_TARGET_TMPDIR").into()]).chain(command).collect()
}

/// May this user make namespaces at all, and does this kernel have them?
fn has_namespaces(flags: &[&str]) -> bool {
    let tried = Command::new("unshare").args(["--mount"]).args(flags).arg("true").output();
    let has = tried.as_ref().is_ok_and(|output| output.status.success());
    if !has {
        eprintln!("skipped: unshare --mount {flags:?}: {tried:?}");
    }
    has
}

/// A server with files and process ids of its own: the tables lie in its files, and it has our ids in the report.
#[test]
fn a_server_in_a_container_is_attached_to_from_outside() {
    let flags = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    if !has_namespaces(&flags) {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let at = harness::root().join("cases/user-list");
    let Some(python) = harness::python("3.11", &at.join("requirements.txt")) else { return };
    let port = harness::free_port();
    let arguments = format!("-m gunicorn --chdir {} --bind 127.0.0.1:{port} app:app", at.display());
    let command = [python.into_os_string()].into_iter().chain(arguments.split(' ').map(OsString::from)).collect();
    let server = Server::start_alone(&in_a_container(&flags, command), &at, port);
    server.drive_well(&plan("/", 5, 0));
    // The first process in there is gunicorn's master, and the second its worker.
    let inside = descendants(server.launcher());
    let (master, worker) = (inside[0].to_string(), u64::from(inside[1]));
    let attached = server.leakline(&["attach", "--budget", "20", &master]);
    assert_eq!(attached.status.code(), Some(0), "{}", said(&attached));
    server.drive_well(&plan("/", 600, 0));
    let report = server.leakline(&["report", "--json", &master]);
    assert!(report.status.success(), "{}", said(&report));
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    named(&report, &USER_LIST);
    let workers = report["target"]["workers"].as_array().unwrap();
    let served = workers.iter().find(|process| process["requests"] != 0).unwrap();
    assert!(served["pid"] == worker && served["alive"] == true, "{report:#}");
    // Who holds it is known from a snapshot that the worker has taken of itself, and its memory from outside.
    let leak = report["findings"].as_array().unwrap().iter().find(|finding| finding["kind"] == "leak").unwrap();
    assert!(leak["holder"]["text"].as_str().is_some_and(|text| text.contains("users_list")), "{leak:#}");
    assert!(!report["rss"]["ledger"].is_null(), "{report:#}");
    let nothing_here = std::fs::read_dir(server.tables()).map_or(0, |entries| entries.count());
    assert_eq!(nothing_here, 0, "its tables lie where it can write");
    let detached = server.leakline(&["detach", &master]);
    assert_eq!(detached.status.code(), Some(0), "{}", said(&detached));
    let ended = server.leakline(&["report", "--json", &worker.to_string()]);
    assert!(ended.status.success(), "{}", said(&ended));
}

/// Each in namespaces of its own, or in another root.
#[test]
fn a_process_apart_is_attached_to_and_left() {
    let tables = harness::folder("apart");
    let script =
        "kept = []\nprint('ready')\nwhile True:\n    input()\n    kept.append(b'x' * 4_000_000)\n    print('kept')";
    let root = tables.join("root");
    std::fs::create_dir(&root).unwrap();
    let chroot = format!("mount --rbind / {0} && exec chroot {0} \"$@\"", root.display());
    let apart: [(&[&str], Option<&str>); 5] = [
        (&["--net"], None),
        (&["--user", "--map-root-user"], None),
        (&["--pid", "--fork", "--kill-child"], None),
        (&["--uts", "--ipc", "--cgroup"], None),
        (&["--mount"], Some(&chroot)),
    ];
    for (flags, within) in apart {
        if !has_namespaces(flags) {
            continue;
        }
        let mut command = Command::new("unshare");
        command.args(flags).arg("--");
        if let Some(within) = within {
            command.args(["sh", "-c", within, "sh"]);
        }
        let mut victim = Victim::start(command.arg(python()).args(["-u", "-c", script]));
        victim.line();
        // Itself, or its child where unshare has forked.
        let pid = descendants(victim.pid()).first().copied().unwrap_or(victim.pid());
        let done = |arguments: &[&str]| {
            let output = leakline(&tables, &[arguments, &[&pid.to_string()]].concat());
            assert_eq!(output.status.code(), Some(0), "{flags:?}: {}", said(&output));
            output
        };
        done(&["attach", "--exact"]);
        for _ in 0..3 {
            victim.say("");
            victim.line();
        }
        let report: Value = serde_json::from_slice(&done(&["report", "--json"]).stdout).unwrap();
        let process = &report["target"]["workers"][0];
        assert!(process["pid"] == pid && process["alive"] == true, "{flags:?}: {report:#}");
        // The first line may be what lets the agent in.
        let live = report["unattributed"]["live_bytes"].as_f64().unwrap();
        assert!((8e6..13e6).contains(&live), "{flags:?}: {report:#}");
        done(&["detach"]);
        victim.say("");
        victim.line();
    }
    std::fs::remove_dir_all(tables).unwrap();
}

/// The disk on which the agent and the tables would lie has no room for the agent, or for the agent only. Where room is made
/// afterwards the process is attached to.
#[test]
fn a_full_disk_refuses_an_attach_and_leaves_the_process_at_work() {
    if !has_namespaces(&[]) {
        return;
    }
    let tables = harness::folder("full-disk");
    // Wakes up all the time, so that the agent is let in at once, and makes its table.
    let script = "import select, sys\nprint('ready')\nwhile True:\n    \
        if select.select([sys.stdin], [], [], 0.01)[0]:\n        input()\n        \
        print(len([bytearray(5000) for _ in range(1000)]))";
    for (room, why) in [("64k", "No space left on device"), ("8m", "no room for its table on the disk")] {
        let mount = format!("mount -t tmpfs -o size={room} none {} && exec \"$@\"", tables.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", &mount, "sh"]).arg(python()).args(["-u", "-c", script]);
        let mut victim = Victim::start(&mut command);
        victim.line();
        let pid = victim.pid().to_string();
        let refused = leakline(&tables, &["attach", &pid]);
        assert_eq!(refused.status.code(), Some(1), "{room}: {}", said(&refused));
        assert!(said(&refused).contains(why), "{room}: {}", said(&refused));
        assert!(said(&refused).contains("make room, or choose another place with --dir"), "{room}: {}", said(&refused));
        for _ in 0..3 {
            victim.say("");
            assert_eq!(victim.line().trim(), "1000", "{room}");
        }
        let remount = ["-m", "-t", &pid, "mount", "-o", "remount,size=1g"];
        assert!(Command::new("nsenter").args(remount).arg(&tables).status().unwrap().success());
        for act in ["attach", "detach"] {
            let done = leakline(&tables, &[act, &pid]);
            assert_eq!(done.status.code(), Some(0), "{room}, then {act}: {}", said(&done));
            victim.say("");
            assert_eq!(victim.line().trim(), "1000", "{room}, then {act}");
        }
    }
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

/// It may not send itself the signal by which calls tell that they have come back, and would be killed for it; or it may
/// map no code, and is told so before anything is done. Others have taken from it what they like.
#[test]
fn a_process_whose_system_calls_are_filtered_is_attached_to_or_goes_on() {
    let tables = harness::folder("filtered");
    // The filter's instructions (linux/filter.h): load the call's number, or the low half of its argument of number 2; go on
    // so many further where it is equal, or has these bits; return what is done about it.
    let script = "import ctypes, struct, sys, time\n\
        load, equal, has, end = 0x20, 0x15, 0x45, 0x06\n\
        kill, refuse, allow = 0x80000000, 0x50001, 0x7fff0000\n\
        rules = {'no-signal': [(load, 0, 0, 0), (equal, 0, 1, 234), (end, 0, 0, kill), (end, 0, 0, allow)],\n\
          'no-code': [(load, 0, 0, 0), (equal, 0, 3, 9), (load, 0, 0, 32), (has, 0, 1, 4), (end, 0, 0, refuse), (end, 0, 0, allow)]}\n\
        code = b''.join(struct.pack('HBBI', *rule) for rule in rules[sys.argv[1]])\n\
        code = ctypes.create_string_buffer(code, len(code))\n\
        filter = ctypes.create_string_buffer(struct.pack('HxxxxxxP', len(code) // 8, ctypes.addressof(code)))\n\
        c = ctypes.CDLL(None, use_errno=True)\n\
        assert c.prctl(38, 1, 0, 0, 0) == 0 and c.prctl(22, 2, filter, 0, 0) == 0\n\
        print('ready')\n\
        while True: time.sleep(0.01)";
    let victim = Victim::python(&python(), script, &["no-signal".as_ref()]);
    for command in ["attach", "detach", "attach", "detach"] {
        let output = leakline(&tables, &[command, &victim.pid().to_string()]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }
    let mut victim = Victim::python(&python(), script, &["no-code".as_ref()]);
    let output = leakline(&tables, &["attach", &victim.pid().to_string()]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("it can map no page near its C library; it goes on as it was"), "{}", said(&output));
    victim.is_untouched();
    assert!(victim.0.try_wait().unwrap().is_none());
    std::fs::remove_dir_all(tables).unwrap();
}

/// What is shown as living lives, and in sum it is as much as there is: nobody's malloc or free was missed, be it the C
/// library's own, by a pointer that was looked up before we came, by a library that was loaded after that, or C++'s.
#[test]
fn whoever_frees_a_block_is_seen() {
    churn(60_000, &["--budget", "100"]);
}

/// The same for as long as scripts/attach-long has time: 10 million operations, each of them recorded.
#[test]
#[ignore = "takes minutes"]
fn ten_million_operations_of_eight_threads_leave_what_the_table_says() {
    churn(1_250_000, &["--exact"]);
}

/// Makes so many operations in each of 8 threads, and compares what they have kept with the table.
fn churn(rounds: u64, effort: &[&str]) {
    const THREADS: &str = "8";
    let script = "import ctypes, sys\nearly = ctypes.CDLL(sys.argv[1])\nearly.remember.restype = ctypes.c_void_p\n\
        free = ctypes.c_void_p(early.remember())\nprint('ready')\ninput()\n\
        threads, rounds = int(sys.argv[3]), ctypes.c_long(int(sys.argv[4]))\n\
        failed = ctypes.CDLL(sys.argv[2]).churn(threads, rounds, sys.argv[5].encode(), free)\n\
        print('failed' if failed else 'done')\ninput()";
    let tables = harness::folder("churn");
    let [early, late] = ["early.so", "late.so"].map(|name| tables.join(name));
    let source = harness::root().join("crates/leakline/tests/attach/churn.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-w", "-fno-builtin", "-shared", "-fPIC", "-o"]).arg(&early).arg(source);
    assert!(compiler.args(["-ldl", "-lpthread"]).status().unwrap().success(), "cc, which Rust links with, fails");
    std::fs::copy(&early, &late).unwrap();
    let truth = tables.join("truth");
    let rounds = rounds.to_string();
    let arguments = [early.as_os_str(), late.as_os_str(), THREADS.as_ref(), rounds.as_ref(), truth.as_os_str()];
    let mut churning = Victim::python(&python(), script, &arguments);
    let runs = tables.join("runs");
    let pid = churning.pid().to_string();
    let attached = leakline(&tables, &[&["attach"], effort, &[&pid]].concat());
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
    let taken = table.header.samples_taken;
    assert!(gone.len() as u64 <= lost && lost < taken / 10, "{lost} of {taken} were lost; gone: {gone:x?}");
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

/// Who tidies up has deleted the agent's file and the tables: it can be left and come back to all the same.
#[test]
fn an_agent_whose_file_is_deleted_is_found() {
    let tables = harness::folder("deleted");
    let victim = Victim::python(&python(), "import time\nprint('ready')\nwhile True: time.sleep(0.01)", &[]);
    let pid = victim.pid().to_string();
    let code = |act: &str| leakline(&tables, &[act, &pid]).status.code();
    assert_eq!(code("attach"), Some(0));
    std::fs::remove_dir_all(tables.join("runs")).unwrap();
    assert_eq!(code("attach"), Some(9), "it is being recorded");
    assert_eq!(code("detach"), Some(0));
    assert_eq!(["attach", "detach"].map(code), [Some(0); 2]);
    let libraries =
        maps(victim.pid()).lines().filter(|line| line.contains("/agent-") && line.contains(" r-xp ")).count();
    assert_eq!(libraries, 1, "{}", maps(victim.pid()));
    std::fs::remove_dir_all(tables).unwrap();
}

/// What happens while a server is attached to or detached from, before one of the command's requests to trace it or to
/// write to its memory, which are all that is done to it.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    /// The command is killed by SIGKILL.
    CommandKilled,
    /// Somebody stops the server, and lets it go on a few requests later.
    ServerStopped,
    /// The system refuses that request.
    RequestRefused,
}
use Disturbance::{CommandKilled, RequestRefused, ServerStopped};

#[test]
fn a_server_that_is_disturbed_in_the_midst_goes_on() {
    // Of some 100 to 130 requests to attach, and 30 to 40 to detach.
    disturbed_in_the_midst(CommandKilled, "3.11", SERVES, [&[40, 90], &[20]]);
    disturbed_in_the_midst(ServerStopped, "3.13", SERVES, [&[60], &[10]]);
    disturbed_in_the_midst(CommandKilled, "3.11", COMPUTES, [&[70], &[15]]);
}

/// The same before each request, for as long as scripts/attach-long has time.
#[test]
#[ignore = "takes minutes"]
fn a_server_that_is_disturbed_before_any_request_goes_on() {
    let any: Vec<usize> = (1..1000).collect();
    for disturbance in [CommandKilled, ServerStopped, RequestRefused] {
        for (version, script) in [("3.11", SERVES), ("3.13", SERVES), ("3.11", COMPUTES)] {
            disturbed_in_the_midst(disturbance, version, script, [&any; 2]);
        }
    }
}

/// Answers whoever asks, in threads, and waits with a timeout; other threads allocate.
const SERVES: &str = "
import http.server, threading, time
def allocate():
    while True:
        time.sleep(0.0001)
        kept = [bytearray(5000) for _ in range(20)]
for _ in range(2): threading.Thread(target=allocate, daemon=True).start()
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'answered')
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Answers)
print(server.server_address[1])
server.serve_forever(0.05)";

/// Is always in the interpreter's loop, with numbers in the registers that XSAVE saves.
const COMPUTES: &str = "
def total():
    total = 0.1
    for number in range(2000): total = total * 0.999 + number * 0.3
    return total
print(0)
first = total()
while total() == first: pass";

/// Disturbs an attach before each of the first of these requests, and a detach before each of the second, as long as there
/// are so many.
fn disturbed_in_the_midst(disturbance: Disturbance, version: &str, script: &str, requests: [&[usize]; 2]) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(python) = harness::python(version, &harness::root().join("cases/user-list/requirements.txt")) else {
        return;
    };
    let tables = harness::folder(&format!("disturbed-{disturbance:?}"));
    for (command, requests) in ["attach", "detach"].into_iter().zip(requests) {
        let disturbed = requests.iter().take_while(|request| {
            // Each time anew: a server loads the agent once.
            let mut server = Victim::start(Command::new(&python).args(["-u", "-c", script]));
            let port: u16 = server.line().parse().unwrap();
            let what = format!("{version}, {command}, {disturbance:?} before request {request}, {script}");
            let pid = server.pid().to_string();
            let code = |arguments: &[&str]| {
                let output = leakline(&tables, &[arguments, &[&pid]].concat());
                (output.status.code(), said(&output))
            };
            if command == "detach" {
                let attached = code(&["attach"]);
                assert_eq!(attached.0, Some(0), "{what}: {attached:?}");
            }
            if !disturbed_before(&tables, command, server.pid(), disturbance, **request) {
                return false;
            }
            for _ in 0..3 {
                assert!(server.0.try_wait().unwrap().is_none(), "{what}: it has ended");
                assert!(port == 0 || answers(port), "{what}: no answer");
            }
            // What it was told to call may take a while.
            let began = Instant::now();
            let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            while !status().contains("SigBlk:\t0000000000000000") {
                assert!(began.elapsed() < Duration::from_secs(60), "{what}: {}", status());
                sleep(Duration::from_millis(5));
            }
            // Whether it had come in, or left, before the disturbance.
            let left = code(&["detach"]);
            assert!(matches!(left.0, Some(0 | 9)), "{what}: {left:?}");
            for again in ["attach", "detach"] {
                let done = code(&[again]);
                assert_eq!(done.0, Some(0), "{what}, then {again}: {done:?}");
            }
            assert!(server.0.try_wait().unwrap().is_none(), "{what}: it has ended later");
            assert!(port == 0 || answers(port), "{what}: no answer later");
            true
        });
        let disturbed = disturbed.count();
        eprintln!("{version}: {command}: {disturbance:?} {disturbed} times");
        assert!(disturbed > 0, "{version}: {command} ended before the first request");
    }
    std::fs::remove_dir_all(tables).unwrap();
}

fn answers(port: u16) -> bool {
    let mut answer = String::new();
    let asked = TcpStream::connect(("127.0.0.1", port)).and_then(|mut connection| {
        connection.set_read_timeout(Some(Duration::from_secs(20)))?;
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        connection.read_to_string(&mut answer)
    });
    asked.is_ok() && answer.ends_with("answered")
}

/// Runs leakline, and disturbs it before it makes its request of this number to trace a process or to write to its memory.
/// False where it has ended before.
fn disturbed_before(tables: &Path, act: &str, server: u32, disturbance: Disturbance, number: usize) -> bool {
    /// So many requests later a server that was stopped goes on.
    const WHILE: usize = 8;
    let mut command = Command::new(harness::LEAKLINE);
    command.arg("--dir").arg(tables.join("runs")).args([act, &server.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: a system call between fork and exec.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    #[expect(clippy::zombie_processes, reason = "whoever traces it waits for it by its id")]
    let child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    waitpid(pid, None).unwrap();
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL).unwrap();
    let send = |to: Pid, signal: Signal| nix::sys::signal::kill(to, signal).unwrap();
    let server = Pid::from_raw(server as i32);
    let mut requests = 0;
    let mut signal = None;
    loop {
        ptrace::syscall(pid, signal.take()).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => break,
            WaitStatus::Stopped(_, other) => signal = Some(other),
            _ => {}
        }
        let Ok(mut registers) = ptrace::getregs(pid) else { continue };
        let begins = registers.rax == -i64::from(libc::ENOSYS) as u64;
        if !begins || !matches!(registers.orig_rax as i64, libc::SYS_ptrace | libc::SYS_pwrite64) {
            continue;
        }
        requests += 1;
        match disturbance {
            Disturbance::CommandKilled if requests == number => {
                send(pid, Signal::SIGKILL);
                waitpid(pid, None).unwrap();
                break;
            }
            Disturbance::RequestRefused if requests == number => {
                // No call has this number, and what is in rax is its answer.
                registers.orig_rax = u64::MAX;
                registers.rax = -i64::from(libc::EIO) as u64;
                ptrace::setregs(pid, registers).unwrap();
            }
            Disturbance::ServerStopped if requests == number => send(server, Signal::SIGSTOP),
            Disturbance::ServerStopped if requests == number + WHILE => send(server, Signal::SIGCONT),
            _ => {}
        }
    }
    if matches!(disturbance, Disturbance::ServerStopped) {
        send(server, Signal::SIGCONT);
    }
    requests >= number
}
