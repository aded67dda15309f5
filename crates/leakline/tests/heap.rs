//! Heap snapshots of real servers: the same objects as the interpreter counts from inside, the holders that the server's
//! own file names, and not one request less well served.
mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use harness::{LEAKLINE, Server};
use leakline::drive::plan::Plan;
use leakline::heap::summary;
use leakline::runs::Runs;
use leakline::target::snapshot;
use leakline_table::heap::Heap;
use serde_json::Value;

/// A busy machine makes the sampler coarser, so servers don't run side by side.
static ALONE: Mutex<()> = Mutex::new(());

/// Those that `cases/healthy/arrays` has numpy for.
const NUMPY: [&str; 2] = ["3.9", "3.13"];
const PYTHONS: [&str; 8] = ["3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "system"];

fn heap(server: &Server, arguments: &[&str]) -> Value {
    let mut command = Command::new(LEAKLINE);
    let output = command.arg("--dir").arg(server.tables()).args(["--json", "heap"]).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "leakline heap {arguments:?}: {said}\n{}", server.log());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Starts `holders.py` with a Python that has what a case of that version needs; it needs none of it, and looks at numpy's
/// arrays where these are there.
fn holders(version: &str, words: &[&str]) -> Option<Server> {
    let case = if NUMPY.contains(&version) { "healthy/arrays" } else { "user-list" };
    let python = harness::python(version, &harness::root().join("cases").join(case).join("requirements.txt"))?;
    let port = harness::free_port();
    let folder = harness::root().join("crates/leakline/tests/heap");
    let command = [python.into_os_string(), "holders.py".into(), port.to_string().into()];
    let command: Vec<_> = command.into_iter().chain(words.iter().map(Into::into)).collect();
    Some(Server::start(&command, &folder, port))
}

#[test]
fn a_snapshot_has_the_objects_that_the_interpreter_has_and_says_who_holds_them() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for version in PYTHONS {
        let Some(server) = holders(version, &[]) else { continue };
        let folder = harness::folder("heap");
        let file = folder.join("saved.heap");
        // What the first request leaves for those to come is counted by the second.
        server.get("/types");
        let counted: BTreeMap<String, i64> = serde_json::from_str(&server.get("/types")).unwrap();
        let sizes: Sizes = serde_json::from_str(&server.get("/sizes")).unwrap();
        let pid = server.launcher().to_string();
        let summary = heap(&server, &[&pid, "--save", file.to_str().unwrap()]);
        assert!(summary["pause_seconds"].as_f64().unwrap() > 0.0);
        server.get("/");

        let graph = leakline::heap::open(&file).unwrap();
        let snapshot = &graph.heap;
        assert_eq!(snapshot.header.requests, 3);
        let interpreters = if version == "3.7" { 1 } else { 2 };
        assert_eq!(
            (snapshot.header.interpreters, snapshot.header.interpreters_left_out),
            (interpreters, 0),
            "{version}"
        );
        compare_counts(version, &counted, snapshot);
        compare_with_ledger(version, &summary["python_blocks"]);
        compare_sizes(version, &sizes, snapshot);
        check_compactness(snapshot, fs::metadata(&file).unwrap().len());
        let source = fs::read_to_string(harness::root().join("crates/leakline/tests/heap/holders.py")).unwrap();
        let mut wrong = vec![];
        for held in source.lines().filter_map(|line| line.trim().strip_prefix("# held: ")) {
            let (of, text) = held.split_once(' ').unwrap();
            if of == "InInterpreter" && interpreters == 1 {
                continue;
            }
            let holders = summary::holders_of_type(&graph, of);
            let found = holders.first().map_or("nobody", |held| &held.text);
            if !found.contains(text) {
                wrong.push(format!("{version}: {of} is held by {found:?}, and not by {text:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        fs::remove_dir_all(&folder).unwrap();
    }
}

/// One after the other, each with a thousand objects more in a list and five hundred entries more in a cache.
#[test]
fn two_snapshots_show_what_has_grown_and_one_object_who_holds_it() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(server) = holders("3.13", &[]) else { return };
    let folder = harness::folder("heap");
    let pid = server.launcher().to_string();
    let files = ["before.heap", "after.heap"].map(|name| folder.join(name).to_str().unwrap().to_owned());
    for file in &files {
        server.get("/grow");
        heap(&server, &[&pid, "--save", file]);
    }
    let difference = heap(&server, &["--diff", &files[0], &files[1]]);
    let change = |key: &str, what: &str| {
        let changes = difference[key].as_array().unwrap();
        let change = changes.iter().find(|change| change["what"] == what);
        let change = change.unwrap_or_else(|| panic!("{what} is missing: {difference:#}"));
        (change["objects"].as_i64().unwrap(), change["bytes"].as_i64().unwrap())
    };
    // Beside a list of 200 items each has its attributes.
    let list_bytes = |objects: i64| (objects * 200 * 8)..(objects * 200 * 11);
    assert_eq!(change("types", "InList").0, 1000);
    assert_eq!(change("types", "Price").0, 500);
    for (holder, objects) in
        [("module __main__ → orders", 1000), ("functools.lru_cache(maxsize=None) on __main__.price → dict", 500)]
    {
        let (more, bytes) = change("holders", holder);
        assert_eq!(more, 0, "{holder} is one, before and after");
        assert!(list_bytes(objects).contains(&bytes), "{bytes} bytes more are held by {holder}");
    }

    let sizes: Sizes = serde_json::from_str(&server.get("/sizes")).unwrap();
    let held = |address: &str| heap(&server, &[&files[1], "--object", address])["held_by"].clone();
    let deep = held(&format!("{:#x}", sizes["bytearray"].0[0]));
    assert_eq!(deep[0]["text"], "module __main__ → sizes['bytearray']: bytearray");
    assert_eq!(deep[0]["retained_bytes"], sizes["bytearray"].1);
    assert_eq!(held("0x10"), serde_json::json!([]));
    fs::remove_dir_all(&folder).unwrap();
}

/// The types of which objects come and go with requests are allowed a few.
fn compare_counts(version: &str, counted: &BTreeMap<String, i64>, snapshot: &Heap) {
    let mut found: BTreeMap<&str, i64> = BTreeMap::new();
    for object in snapshot.objects.iter().filter(|object| object.is_tracked) {
        let name = &snapshot.types[object.of as usize];
        *found.entry(name.rsplit('.').next().unwrap()).or_default() += 1;
    }
    assert!(counted.len() > 50 && counted["dict"] > 300);
    for (name, &count) in counted {
        let found = found.get(name.as_str()).copied().unwrap_or(0);
        assert!((found - count).abs() <= 10 + count / 100, "{version}: {found} of {name}, and not {count}");
    }
}

/// What pymalloc has given away, as it is read from outside, is objects and their buffers, but for what the interpreter and its
/// modules keep beside (shared keys, the insides of code objects and modules).
fn compare_with_ledger(version: &str, blocks: &Value) {
    let (Some(used), Some(of_objects)) = (blocks["used"].as_f64(), blocks["of_objects"].as_f64()) else {
        eprintln!("skipped: this machine lets nobody look at another process's memory");
        return;
    };
    assert!((0.85 * used..1.01 * used).contains(&of_objects), "{version}: {of_objects} of {used} bytes are objects");
}

/// By name: where objects are, and how many bytes they have together.
type Sizes = BTreeMap<String, (Vec<u64>, u64)>;

/// Each object is as large as `sys.getsizeof` says, which counts the collector's head where there is one, and each instance
/// with its attributes as what was allocated for it.
fn compare_sizes(version: &str, sizes: &Sizes, snapshot: &Heap) {
    let of_numpy = if NUMPY.contains(&version) { 2 } else { 0 };
    assert_eq!(sizes.len(), 28 + of_numpy);
    for (name, (addresses, bytes)) in sizes {
        let bytes_at = |address: &u64| {
            let object = snapshot.objects.iter().find(|object| object.address == *address);
            let object = object.unwrap_or_else(|| panic!("{version}: the {name} is missing"));
            object.bytes + object.buffers.iter().map(|buffer| buffer.bytes).sum::<u64>()
        };
        assert_eq!(addresses.iter().map(bytes_at).sum::<u64>(), *bytes, "{version}: bytes of the {name}");
    }
}

fn check_compactness(snapshot: &Heap, bytes: u64) {
    let most = 40 * snapshot.header.objects + 12 * snapshot.header.edges;
    assert!(bytes <= most, "{bytes} bytes for {} objects", snapshot.header.objects);
}

/// Threads, greenlets and tasks.
#[test]
fn a_loop_of_snapshots_under_load_fails_no_request() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let folder = harness::root().join("crates/leakline/tests/heap");
    for (version, arguments) in [
        ("3.8", "gunicorn --worker-class gthread --threads 4 --bind 127.0.0.1:{port} guest:app"),
        ("3.13", "gunicorn --worker-class gevent --bind 127.0.0.1:{port} guest:app"),
        ("3.13", "uvicorn --log-level warning --port {port} guest:asgi"),
    ] {
        let Some(python) = harness::python(version, &folder.join("requirements.txt")) else { continue };
        let port = harness::free_port();
        let arguments = format!("-m {arguments}").replace("{port}", &port.to_string());
        let command: Vec<_> =
            [python.into_os_string()].into_iter().chain(arguments.split(' ').map(Into::into)).collect();
        let server = Server::start(&command, &folder, port);
        server.get("/");
        let before = leakline::target::process::descendants(server.launcher());
        let plan = Plan::parse("total = 200\nrate = 100\nconcurrency = 4\n[[route]]\npath = \"/\"").unwrap();
        std::thread::scope(|scope| {
            let snapshots = scope.spawn(|| {
                for _ in 0..5 {
                    heap(&server, &[&server.launcher().to_string(), "--despite-limits"]);
                }
            });
            while !snapshots.is_finished() {
                server.drive_well(&plan);
            }
            snapshots.join().unwrap();
        });
        let left = leakline::target::process::descendants(server.launcher());
        assert_eq!(left, before, "nothing that the snapshots made is left below the server: {arguments}");
    }
}

/// Starts `guest.py`.
fn guest(version: &str) -> Option<Server> {
    let folder = harness::root().join("crates/leakline/tests/heap");
    let python = harness::python(version, &harness::root().join("cases/user-list/requirements.txt"))?;
    let port = harness::free_port();
    Some(Server::start(&[python.into_os_string(), "guest.py".into(), port.to_string().into()], &folder, port))
}

#[test]
fn a_server_does_not_notice_the_copy() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for version in ["3.8", "3.11", "3.12", "3.13"] {
        let Some(server) = guest(version) else { continue };
        server.get("/");
        let before: Value = serde_json::from_str(&server.get("/")).unwrap();
        assert_eq!((&before["signals"], &before["waited"]), (&0.into(), &"none".into()), "{before}");
        for _ in 0..3 {
            let taken = heap(&server, &[&server.launcher().to_string(), "--despite-limits"]);
            let after: Value = serde_json::from_str(&server.get("/")).unwrap();
            assert_eq!(after, before, "{version}");
            // The second interpreter has a GIL of its own from 3.12 on: what it does can't be looked at, which is said.
            let expected = if ["3.8", "3.11"].contains(&version) { (2, 0) } else { (1, 1) };
            let looked_at = (&taken["interpreters"], &taken["interpreters_left_out"]);
            assert_eq!(looked_at, (&expected.0.into(), &expected.1.into()), "{version}");
        }
    }
}

/// A copy that can't go on, because nobody opens the pipe that stands where its file should be, is ended when its time is up,
/// and with its server.
#[test]
fn a_copy_ends_in_time_and_with_its_server() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(server) = guest("3.11") else { return };
    server.get("/");
    let run = Runs::open(&server.tables()).and_then(|runs| runs.latest()).unwrap();
    let table = run.tables.iter().find(|table| table.process.is_alive()).unwrap();
    let pipe = snapshot::path(table).with_extension("heap.part");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    // Where the server does not get a core for seconds, the call itself is not answered in time.
    wait_for(|| {
        let failure = snapshot::take(table, 1).unwrap_err().to_string();
        assert!(["its time was up", "has not answered"].iter().any(|why| failure.contains(why)), "{failure}");
        failure.contains("its time was up").then_some(())
    });
    server.get("/");

    let copies = || leakline::target::process::descendants(table.process.pid);
    assert!(copies().is_empty());
    let copy = std::thread::scope(|scope| {
        scope.spawn(|| snapshot::take(table, 100).unwrap_err());
        let copy = wait_for(|| copies().first().copied());
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(table.process.pid as i32), nix::sys::signal::SIGKILL)
            .unwrap();
        copy
    });
    wait_for(|| (!Path::new("/proc").join(copy.to_string()).exists()).then_some(()));
}

/// Asks until there is an answer.
fn wait_for<T>(ask: impl Fn() -> Option<T>) -> T {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        match ask() {
            Some(answer) => return answer,
            None => assert!(Instant::now() < patience, "waited too long"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// CPython warns of a fork in a process with threads since 3.12, and rightly so. The server has one beside its main thread.
#[test]
fn whoever_forks_does_so_without_the_agents_thread() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for version in ["3.8", "3.13", "system"] {
        let Some(server) = holders(version, &["alone"]) else { continue };
        let folder = harness::folder("heap");
        for turn in 0..5 {
            assert_eq!(server.get("/fork"), "[2, 1]", "{version}, fork {turn}");
        }
        heap(&server, &[&server.launcher().to_string(), "--save", folder.join("saved.heap").to_str().unwrap()]);
        assert_eq!(server.get("/fork"), "[2, 1]", "{version}, after a snapshot");
        fs::remove_dir_all(&folder).unwrap();
    }
}

/// A terminal sends Ctrl-C to the server and to `leakline run` at once. On a machine with much to do the snapshot may not be
/// ready in the few seconds that it has then, so it may take another try.
#[test]
fn ctrl_c_in_a_terminal_leaves_a_report_with_a_holder() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let requirements = harness::root().join("cases/user-list/requirements.txt");
    let Some(python) = harness::python("3.11", &requirements) else { return };
    let script = harness::root().join("crates/leakline/tests/heap/interrupted.py");
    harness::build_agent();
    let mut holders = vec![];
    for _ in 0..3 {
        let folder = harness::folder("interrupted");
        let tables = folder.join("tables");
        let mut terminal = Command::new("python3");
        terminal.args(["-c", harness::PRESSES_CTRL_C, LEAKLINE, "--dir"]).arg(&tables);
        terminal.args(["run", "--budget", "20", "--"]).arg(&python).arg(&script).arg(&tables);
        let status = terminal.status().unwrap();
        if status.code() == Some(77) {
            eprintln!("skipped: this machine has no pseudo-terminals");
            return;
        }
        assert_eq!(status.code(), Some(0));
        let report = Command::new(LEAKLINE).arg("--dir").arg(&tables).args(["report", "--json"]).output().unwrap();
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let holder = report["findings"][0]["holder"]["text"].as_str().unwrap_or("nobody").to_owned();
        if holder.contains("module __main__ → orders: list[") {
            return;
        }
        holders.push(holder);
    }
    panic!("it is held by {holders:?}");
}
