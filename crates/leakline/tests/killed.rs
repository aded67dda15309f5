//! What is known of processes that did not end by themselves: that they were killed, by the kernel's OOM killer if it was
//! that, and what they held.
mod harness;

use std::fs;
use std::path::{Path, PathBuf};

use harness::Tables;
use serde_json::Value;

/// Runs a Python program under leakline; its exit code.
fn run(tables: &Tables, program: &str) -> i32 {
    tables.code(&["run", "--budget", "100", "--", "python3", "-c", program])
}

fn report(tables: &Tables) -> Value {
    serde_json::from_slice(&tables.output(&["report", "--json"]).stdout).unwrap()
}

fn processes(report: &Value) -> &[Value] {
    report["target"]["workers"].as_array().unwrap()
}

#[test]
fn who_ends_by_himself_was_not_killed() {
    let forks = "
import multiprocessing
worker = multiprocessing.get_context('fork').Process(target=lambda: [bytearray(1000) for _ in range(100000)])
worker.start()
worker.join()
";
    for (name, program, killed) in [
        ("returns", "pass", false),
        ("exits", "import sys; sys.exit(3)", false),
        ("leaves", "import os; os._exit(4)", false),
        ("exits-in-c", "import ctypes; ctypes.CDLL(None).exit(5)", false),
        ("forks", forks, false),
        ("is-killed", "import os; os.kill(os.getpid(), 9)", true),
        ("aborts", "import os; os.abort()", true),
    ] {
        let tables = Tables::new(name);
        run(&tables, program);
        let report = report(&tables);
        assert!(!processes(&report).is_empty(), "{name}");
        for process in processes(&report) {
            assert_eq!((&process["alive"], &process["killed"]), (&false.into(), &killed.into()), "{name}: {process:#}");
        }
    }
}

/// A control group of ours that may use 100 MB.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let name = format!("leakline-test-{}", std::process::id());
        let bytes = "100000000";
        for (root, limits) in [
            ("/sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]),
            ("/sys/fs/cgroup", ["memory.max", "memory.swap.max"]),
        ] {
            let folder = Path::new(root).join(&name);
            if fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Self(folder);
            // Without accounting of swap there is no second file.
            let limited = limits.map(|limit| fs::write(group.0.join(limit), bytes));
            if limited[0].is_ok() {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Waits until it has been looked at twice more, so that the second look has seen it here for sure, and then takes more
/// than it may.
const TAKES_TOO_MUCH: &str = "
import glob, os, time
held = [b'x' * 1000000 for _ in range(20)]
def looked_at():
    return [os.stat(look).st_mtime_ns for look in glob.glob(os.environ['LEAKLINE_TABLES'] + '/*.look')]
for _ in range(2):
    before = looked_at()
    while looked_at() == before:
        time.sleep(0.05)
while True:
    held.append(b'x' * 1000000)
";

#[test]
fn the_oom_killers_victim_is_known() {
    let Some(group) = Group::new() else {
        eprintln!("skipped: no control group with a memory limit can be made here");
        return;
    };
    let tables = Tables::new("oom");
    // `leakline run` itself stays outside, as it does when workers are limited; it could be the victim inside.
    let enters =
        format!("import os\nopen('{}/cgroup.procs', 'w').write(str(os.getpid()))\n{TAKES_TOO_MUCH}", group.0.display());
    assert_eq!(run(&tables, &enters), 128 + 9);
    let report = report(&tables);
    let [process] = processes(&report) else { panic!("there was one process") };
    assert_eq!((&process["killed"], &process["oom_kills"]), (&true.into(), &1.into()), "{process:#}");
    assert!(process["rss"].as_u64().is_some_and(|rss| rss > 20_000_000), "{process:#}");
    let ledger = &report["rss"]["ledger"];
    assert!(ledger["native_used"].as_u64().is_some_and(|used| used >= 20_000_000), "{ledger:#}");
    let page = String::from_utf8(tables.output(&["report"]).stdout).unwrap();
    assert!(page.contains("was killed when the kernel's OOM killer ended 1 process of its control group"), "{page}");
}
