//! Heap snapshots of real servers: the same objects as the interpreter counts from inside, the holders that the server's
//! own file names, and not one request less well served.
mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use harness::{LEAKLINE, Server};
use leakline::drive::plan::Plan;
use leakline::heap::summary;
use leakline_table::heap::Heap;
use serde_json::Value;

/// A busy machine makes the sampler coarser, so servers don't run side by side.
static ALONE: Mutex<()> = Mutex::new(());

const PYTHONS: [&str; 8] = ["3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "system"];

fn heap(server: &Server, arguments: &[&str]) -> Value {
    let mut command = Command::new(LEAKLINE);
    let output = command.arg("--dir").arg(server.tables()).args(["--json", "heap"]).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "leakline heap {arguments:?}: {said}\n{}", server.log());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Starts `holders.py` with a Python that has what a case of that version needs; it needs none of it.
fn holders(version: &str) -> Option<Server> {
    let python = harness::python(version, &harness::root().join("cases/user-list/requirements.txt"))?;
    let port = harness::free_port();
    let folder = harness::root().join("crates/leakline/tests/heap");
    let command = [python.into_os_string(), "holders.py".into(), port.to_string().into()];
    Some(Server::start(&command, &folder, port))
}

#[test]
fn a_snapshot_has_the_objects_that_the_interpreter_has_and_says_who_holds_them() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for version in PYTHONS {
        let Some(server) = holders(version) else { continue };
        let folder = harness::folder("heap");
        let file = folder.join("saved.heap");
        let counted: BTreeMap<String, i64> = serde_json::from_str(&server.get("/types")).unwrap();
        let sizes: BTreeMap<String, (u64, u64)> = serde_json::from_str(&server.get("/sizes")).unwrap();
        let pid = server.launcher().to_string();
        let summary = heap(&server, &[&pid, "--save", file.to_str().unwrap()]);
        assert!(summary["pause_seconds"].as_f64().unwrap() > 0.0);
        server.get("/");

        let snapshot = Heap::read(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(snapshot.header.requests, 2);
        compare_counts(version, &counted, &snapshot);
        compare_with_ledger(version, &summary["python_blocks"]);
        compare_sizes(version, &sizes, &snapshot);
        check_compactness(&snapshot, fs::metadata(&file).unwrap().len());
        let source = fs::read_to_string(harness::root().join("crates/leakline/tests/heap/holders.py")).unwrap();
        let graph = leakline::heap::open(&file).unwrap();
        let mut wrong = vec![];
        for held in source.lines().filter_map(|line| line.trim().strip_prefix("# held: ")) {
            let (of, text) = held.split_once(' ').unwrap();
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

/// Each object is as large as `sys.getsizeof` says, which counts the collector's head where there is one.
fn compare_sizes(version: &str, sizes: &BTreeMap<String, (u64, u64)>, snapshot: &Heap) {
    assert_eq!(sizes.len(), 9);
    for (name, &(address, bytes)) in sizes {
        let object = snapshot.objects.iter().find(|object| object.address == address);
        let object = object.unwrap_or_else(|| panic!("{version}: the {name} is missing"));
        let found = object.bytes + object.buffers.iter().map(|buffer| buffer.bytes).sum::<u64>();
        assert_eq!(found, bytes, "{version}: bytes of the {name}");
    }
}

fn check_compactness(snapshot: &Heap, bytes: u64) {
    let most = 40 * snapshot.header.objects + 12 * snapshot.header.edges;
    assert!(bytes <= most, "{bytes} bytes for {} objects", snapshot.header.objects);
}

#[test]
fn a_loop_of_snapshots_under_load_fails_no_request() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let cases = harness::root().join("cases/user-list");
    for version in ["3.8", "3.13"] {
        let Some(python) = harness::python(version, &cases.join("requirements.txt")) else { continue };
        let port = harness::free_port();
        let bind = format!("127.0.0.1:{port}");
        let arguments = ["-m", "gunicorn", "--worker-class", "gthread", "--threads", "4", "--bind", &bind, "app:app"];
        let command: Vec<_> = [python.into_os_string()].into_iter().chain(arguments.map(Into::into)).collect();
        let server = Server::start(&command, &cases, port);
        server.get("/");
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
        no_child_is_left(server.launcher());
    }
}

/// CPython warns of a fork in a process with threads since 3.12, and rightly so. The server has one beside its main thread.
#[test]
fn whoever_forks_does_so_without_the_agents_thread() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for version in ["3.8", "3.13", "system"] {
        let Some(server) = holders(version) else { continue };
        let folder = harness::folder("heap");
        for turn in 0..5 {
            assert_eq!(server.get("/fork"), "[2, 1]", "{version}, fork {turn}");
        }
        heap(&server, &[&server.launcher().to_string(), "--save", folder.join("saved.heap").to_str().unwrap()]);
        assert_eq!(server.get("/fork"), "[2, 1]", "{version}, after a snapshot");
        fs::remove_dir_all(&folder).unwrap();
    }
}

/// Nothing that the snapshots made is left below the server but the server.
fn no_child_is_left(launcher: u32) {
    let state =
        |pid: u32| fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    let below = leakline::target::process::descendants(launcher);
    assert_eq!(
        below.len(),
        2,
        "gunicorn and its worker: {:?}",
        below.iter().map(|pid| state(*pid)).collect::<Vec<_>>()
    );
}
