//! The agent in every CPython that this machine has: Python programs that know what they keep run under it, and their
//! tables are compared with what they know.

#[path = "../pythons/mod.rs"]
mod pythons;
mod target;

use leakline_table::layout::{Loss, OWNER_NONE, OWNER_SETTLED, PHASE_SHIFT, Phase};
use leakline_table::reader::{Peer, RawSample};
use pythons::pythons;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use target::{Folder, Live, agent, fixture, live_by_function, said, under_agent};

/// Room for 65,536 samples. An interpreter that has started holds 15,000 to 40,000 blocks.
const LARGE_TABLE: (&str, &str) = ("LEAKLINE_TABLE_BYTES", "134217728");
const EXACT: (&str, &str) = ("LEAKLINE_INTERVAL", "1");
/// With a whole core to spend the interval stays between 4 and 64 KiB.
const SPENDTHRIFT: (&str, &str) = ("LEAKLINE_BUDGET", "1");

/// Copies a script into the folder, so that its path is not in ASCII, and runs it there.
fn run(python: &Path, script: &str, argument: &str, environment: &[(&str, &str)]) -> Ran {
    let folder = Folder::new();
    let path = folder.0.join(script);
    fs::copy(fixture(script), &path).unwrap();
    let mut command = under_agent(python, &folder.0);
    let said = said(command.arg(&path).arg(argument).envs(environment.iter().copied()));
    Ran { folder, path, said }
}

/// What is left of a script that ran.
struct Ran {
    folder: Folder,
    path: PathBuf,
    said: Vec<(String, f64)>,
}

impl Ran {
    fn live(&self) -> BTreeMap<String, Live> {
        let table = self.folder.table();
        assert_eq!(table.header.lost[Loss::Thinned as usize], 0, "the table is too small for this test");
        live_by_function(&table, &self.path)
    }
}

/// In exact mode nothing is estimated. What may differ are the objects that CPython took from its free lists, which
/// were allocated before, by somebody else: less than 200 of a kind.
#[test]
fn every_block_is_seen_once_where_all_are_sampled() {
    for python in pythons() {
        let ran = run(&python, "keep.py", "1000", &[EXACT, LARGE_TABLE]);
        let live = ran.live();
        let differences = differing(&ran.said, &live);
        assert!(differences.is_empty(), "{python:?}: {differences:#?}");
        compare_lines(&python, &ran.path, &live);
    }
}

/// A block that Python makes small may never have been pymalloc's, and where the header of its pool would be there may be
/// nothing.
#[test]
fn what_lies_before_a_mapping_is_not_read() {
    for python in pythons() {
        let ran = run(&python, "shrink.py", "", &[EXACT]);
        assert_eq!(ran.said, [("shrunk".to_owned(), 64.0)], "{python:?}");
    }
}

/// The kinds of which something else was seen than was said to be kept.
fn differing(said: &[(String, f64)], live: &BTreeMap<String, Live>) -> Vec<String> {
    const COUNT: f64 = 1000.0;
    let differs = |(kind, bytes): &(String, f64)| {
        let Some(found) = live.get(kind) else { return Some(format!("nothing of {kind} was seen")) };
        let reused = match kind.as_str() {
            "lists" | "dicts" | "buffers" => 200.0 * bytes / COUNT,
            _ => 0.0,
        };
        let range = bytes - reused - 100.0..=bytes + 0.01 * bytes + 600.0;
        let is_right = range.contains(&found.bytes) && found.variance == 0.0;
        (!is_right)
            .then(|| format!("{kind} keeps {bytes} bytes, {} ± {} were seen", found.bytes, found.variance.sqrt()))
    };
    said.iter().filter_map(differs).collect()
}

/// In the script the line that allocates bears its function's name.
fn compare_lines(python: &Path, script: &Path, live: &BTreeMap<String, Live>) {
    let text = fs::read_to_string(script).unwrap();
    let mut asked = Vec::new();
    for (function, found) in live {
        let mark = format!("# {function}");
        let Some(line) = text.lines().position(|line| line.ends_with(&mark)) else { continue };
        asked.extend(found.instructions.iter().map(|(offset, bytes)| (function, *offset, line + 1, *bytes)));
    }
    let mut answer = Command::new(python);
    answer.arg(fixture("lines.py")).arg(script);
    answer.args(asked.iter().map(|(function, offset, ..)| format!("{function}:{offset}")));
    let answer = answer.output().unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let lines = String::from_utf8(answer.stdout).unwrap();
    assert_eq!(lines.lines().count(), asked.len());
    let (mut right, mut all) = (0.0, 0.0);
    for ((.., line, bytes), answer) in asked.iter().zip(lines.lines()) {
        all += bytes;
        right += if answer == line.to_string() { *bytes } else { 0.0 };
    }
    // The integers that a range hands out come and go on the line above.
    assert!(right > 0.999 * all && all > 0.0, "{python:?}: {right} of {all} bytes are on the right lines");
}

/// Estimates lie within six of their own standard errors: of each kind in all interpreters together, and of all kinds
/// in each, also where most of what a line allocates is freed, so that it is sampled less. By chance one of these 19 does not
/// in 20 million runs. (One percent is allowed for free lists, as above.)
#[test]
fn estimates_are_unbiased_where_some_are_sampled() {
    let mut kinds = BTreeMap::<String, (f64, Live)>::new();
    for python in pythons() {
        let ran = run(&python, "keep.py", "20000", &[SPENDTHRIFT, LARGE_TABLE]);
        let live = ran.live();
        let (mut kept, mut seen) = (0.0, Live::default());
        for (kind, bytes) in ran.said.iter().filter(|(kind, _)| kind != "dropped") {
            let found = live.get(kind).cloned().unwrap_or_default();
            let (all_kept, all_seen) = kinds.entry(kind.clone()).or_default();
            for (kept, seen) in [(&mut kept, &mut seen), (all_kept, all_seen)] {
                *kept += bytes;
                seen.bytes += found.bytes;
                seen.variance += found.variance;
            }
        }
        assert!(seen.variance.sqrt() < 0.1 * kept, "{python:?}: hardly sampled");
        assert_estimate(&format!("{python:?}"), kept, &seen);
    }
    for (kind, (kept, seen)) in &kinds {
        assert_estimate(kind, *kept, seen);
    }
}

fn assert_estimate(what: &str, kept: f64, seen: &Live) {
    let allowed = 6.0 * seen.variance.sqrt() + 0.01 * kept;
    assert!((seen.bytes - kept).abs() < allowed, "{what}: {kept} bytes are kept, {} ± {allowed} were seen", seen.bytes);
}

/// What realloc adds is counted once: by certainty where the block is sampled, by chance where it is not, and never at
/// somebody else's cost.
#[test]
fn growth_is_counted_once() {
    for python in pythons() {
        for (allocator, overhead) in [("pymalloc", 0.0), ("malloc", 0.0), ("debug", 40.0)] {
            let environment = [EXACT, LARGE_TABLE, ("PYTHONMALLOC", allocator)];
            let ran = run(&python, "growth.py", "200", &environment);
            let live = ran.live();
            for (name, bytes) in &ran.said {
                let found = live.get(name).map_or(0.0, |live| live.bytes);
                // A list is two blocks, and its head may come from a free list; debug adds its fences to each.
                let range = bytes - 6000.0..=bytes * 1.01 + 6000.0 + 200.0 * 2.0 * overhead;
                assert!(range.contains(&found), "{python:?}, {allocator}: {name} has {bytes} bytes, {found} were seen");
            }
        }
    }
}

/// The same by chance. A block that has not been sampled grows unseen; it stays so over k mean intervals with the chance
/// exp(-k), so 16 intervals are allowed beside the standard errors of what was sampled.
#[test]
fn growth_is_estimated_without_bias() {
    for python in pythons() {
        let ran = run(&python, "growth.py", "1000", &[SPENDTHRIFT, LARGE_TABLE]);
        let live = ran.live();
        for (name, bytes) in &ran.said {
            let found = live.get(name).cloned().unwrap_or_default();
            let allowed = 6.0 * found.variance.sqrt() + 16.0 * 65536.0;
            let off = found.bytes - bytes;
            assert!(off.abs() < allowed, "{python:?}: {name} has {bytes} bytes, {} ± {allowed} were seen", found.bytes);
        }
    }
}

#[test]
fn each_process_has_its_own_table() {
    for python in pythons() {
        let ran = run(&python, "fork.py", "", &[SPENDTHRIFT, ("LEAKLINE_TABLE_BYTES", "16777216")]);
        let parent = ran.said[0].1 as u32;
        let mut processes: Vec<u32> = ran.said.iter().map(|(_, pid)| *pid as u32).collect();
        processes.sort();
        let tables = ran.folder.tables();
        let pids: Vec<u32> = tables.iter().map(|table| table.header.pid).collect();
        assert_eq!((pids.len(), &pids), (13, &processes), "{python:?}: one table for each process");
        let mut by_children = Live::default();
        for table in &tables {
            let is_parent = table.header.pid == parent;
            assert!(is_parent || table.header.parent == parent);
            let live = live_by_function(table, &ran.path);
            let (keeps, other) = ("parent_keeps", "child_keeps");
            let (keeps, other) = if is_parent { (keeps, other) } else { (other, keeps) };
            assert!(!live.contains_key(other), "{python:?}: a process shows what another one keeps");
            let found = &live[keeps];
            if is_parent {
                assert_estimate(&format!("{python:?}'s parent"), 8000.0 * 1033.0, found);
            } else {
                by_children.bytes += found.bytes;
                by_children.variance += found.variance;
            }
        }
        assert_estimate(&format!("{python:?}'s children"), 12.0 * 4000.0 * 1033.0, &by_children);
    }
}

/// Of the system call the agent is not told. The copy finds no table mapped, and goes on without; what it forks has one.
#[test]
fn copies_that_nobody_announces_are_unharmed() {
    for python in pythons() {
        let ran = run(&python, "cloned.py", "", &[SPENDTHRIFT]);
        let pid = ran.said[0].1 as u32;
        let tables = ran.folder.tables();
        assert_eq!(tables.len(), 2, "{python:?}");
        for table in &tables {
            let live = live_by_function(table, &ran.path);
            assert!(
                (live["keeps"].bytes > 0.0) && (table.header.pid == pid || table.header.parent != pid),
                "{python:?}"
            );
        }
    }
}

#[test]
fn programs_that_are_started_leave_no_table() {
    for python in pythons() {
        let ran = run(&python, "spawn.py", "", &[EXACT]);
        assert_eq!(ran.folder.table().header.pid, ran.said[0].1 as u32, "{python:?}");
    }
}

#[test]
fn threads_allocate_at_the_same_time() {
    for python in pythons() {
        let ran = run(&python, "threads.py", "", &[EXACT, LARGE_TABLE]);
        let bytes = ran.said[0].1;
        let found = ran.live()["keeps"].bytes;
        // A thread that lost its processor in the middle of a record makes others lose some of theirs, which is counted.
        let lost = ran.folder.table().header.lost[Loss::Contention as usize] as f64 * 3000.0;
        assert!((found - bytes).abs() < 0.01 * bytes + lost, "{python:?}: {bytes} bytes are kept, {found} were seen");
    }
}

/// From 3.12 on each interpreter has a GIL of its own, so that they are in the hooks at the same time.
#[test]
fn other_interpreters_allocate_at_the_same_time() {
    for python in pythons() {
        let ran = run(&python, "threads.py", "interpreters", &[SPENDTHRIFT, LARGE_TABLE]);
        assert_eq!(ran.said.len(), 1);
        assert!(ran.folder.table().header.samples_taken > 100);
    }
}

/// Not one byte is missing or too many, on whatever thread it passed, and whose it was is known without the GIL.
#[test]
fn bytes_over_sockets_are_counted_by_request_and_peer() {
    for python in pythons() {
        let ran = run(&python, "sockets.py", "", &[]);
        let table = ran.folder.table();
        let mut found = BTreeMap::new();
        let mut for_nobody = 0;
        for (record, peer) in &table.sockets {
            let route = table.routes[record.route as usize].name.trim_start_matches("GET ");
            let peer = match peer {
                Peer::Client => "client",
                Peer::At(address) => address,
                Peer::Other => "others",
            };
            for (way, bytes) in ["read", "written"].into_iter().zip(record.bytes) {
                if bytes > 0 {
                    found.insert(format!("{way}|{route}|{}|{peer}", record.outcome), bytes as f64);
                }
            }
            for_nobody += record.read_after_client_left;
        }
        // How much the server sent to those who left, it cannot know.
        found.retain(|key, _| !key.starts_with("written|/drain/<id>|2|client"));
        let said: BTreeMap<String, f64> = ran.said.into_iter().collect();
        // Where a thread lost its processor for long with the lock, another one lost what it was about to count.
        let lost = table.header.lost[Loss::Contention as usize] as f64 * 4e6;
        assert!(found.keys().eq(said.keys()), "{python:?}: found {found:?}, and it was {said:?}");
        for ((key, found), said) in found.iter().zip(said.values()) {
            assert!((found - said).abs() <= lost, "{python:?}: {key}: {found}, and it was {said}");
        }
        assert!((for_nobody as f64 - 9e6).abs() <= lost, "{python:?}: {for_nobody} for nobody");
    }
}

/// A library that tells the time for others allocates with its lock taken: its malloc must not ask it for the time.
#[test]
fn a_library_that_tells_the_time_is_not_asked_within_itself() {
    let folder = Folder::new();
    let library = folder.0.join("clock.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(fixture("clock.c"));
    assert!(compiler.status().unwrap().success(), "cc, which Rust links with, fails");
    let both = format!("{}:{}", agent().display(), library.display());
    let script = "import os, time\nfor _ in range(300): time.time()\nchild = os.fork()\ntime.time()\n\
                  if child: print('child', os.waitpid(child, 0)[1])";
    for python in pythons() {
        let mut command = under_agent(&python, &folder.0);
        let said = said(command.args(["-c", script]).envs([EXACT, ("LD_PRELOAD", &*both)]));
        assert_eq!(said, [("child".to_owned(), 0.0)], "{python:?}");
    }
}

/// Results, errno, signals, cancelled threads: calls on sockets are as they are without the agent.
#[test]
fn calls_on_sockets_are_what_they_were() {
    let folder = Folder::new();
    let library = folder.0.join("sockets.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(fixture("sockets.c")).arg("-lpthread");
    assert!(compiler.status().unwrap().success(), "cc, which Rust links with, fails");
    for python in pythons() {
        let script = "import ctypes, sys; print('line', ctypes.CDLL(sys.argv[1]).check())";
        for command in [&mut Command::new(&python), &mut under_agent(&python, &folder.0)] {
            let said = said(command.args(["-c", script]).arg(&library));
            assert_eq!(said, [("line".to_owned(), 0.0)], "{python:?}: a line of sockets.c");
        }
    }
}

/// The context in which a request has ended holds its handle on, and stands for no request; copies of it still do, and keep
/// standing for theirs when the next request has taken its place.
#[test]
fn what_a_server_does_between_requests_is_no_requests() {
    for python in pythons() {
        let ran = run(&python, "worker.py", "", &[EXACT, LARGE_TABLE]);
        let table = ran.folder.table();
        assert_eq!(table.server, "gunicorn", "{python:?}");
        let requests: BTreeMap<&str, [u64; 3]> =
            table.routes.iter().map(|route| (&*route.name, route.record.requests)).collect();
        let served = ["first", "copied", "plain", "changed", "held", "last", "kafe", "failing", "raising", "hook"];
        assert_eq!(requests.len(), 2 + served.len(), "{python:?}: {requests:?}");
        assert_eq!(requests["GET /task"], [300, 0, 0], "{python:?}");
        for path in served {
            let outcomes = if matches!(path, "failing" | "raising") { [0, 1, 0] } else { [1, 0, 0] };
            assert_eq!(requests.get(&*format!("GET /{path}")), Some(&outcomes), "{python:?}: {path}");
        }
        // The last one calls the hook, which sets the variable.
        for (function, route) in [
            ("request_keeps", "GET /first"),
            ("server_keeps", ""),
            ("task_keeps", "GET /first"),
            ("copy_works", "GET /copied"),
            ("changed_one_works", "GET /changed"),
            ("begins", "GET /task"),
        ] {
            let is_of_function = |sample: &&RawSample| {
                let frames = sample.stack.map_or(&[][..], |stack| &table.stacks[stack as usize]);
                frames
                    .iter()
                    .filter_map(|frame| frame.python())
                    .any(|(code, _)| table.codes[code as usize].function.ends_with(function))
            };
            let owner = if route.is_empty() { OWNER_NONE } else { OWNER_SETTLED };
            let blocks: Vec<(u8, &str)> = table
                .samples
                .iter()
                .filter(is_of_function)
                .map(|sample| (sample.record.owner, &*table.routes[sample.record.route as usize].name))
                .collect();
            assert!(blocks.len() >= 300, "{python:?}: {function} keeps 300 blocks, {} were seen", blocks.len());
            // What CPython makes for a function that it runs for the first time is nobody's, and other requests begin there, too.
            let others = blocks.iter().filter(|found| **found != (owner, route)).count();
            assert!(others <= usize::from(function == "begins") * 30, "{python:?}: {function} {blocks:?}");
        }
    }
}

/// What a WSGI application does and gives is what it would be without the agent, and each of its requests ends as it did.
#[test]
fn applications_end_as_they_do() {
    for python in pythons() {
        let ran = run(&python, "wsgi.py", "", &[]);
        let table = ran.folder.table();
        assert_eq!(table.header.lost[Loss::ShimFailures as usize], 0, "{python:?}");
        let found: Vec<(&str, [u64; 3])> =
            table.routes.iter().skip(1).map(|route| (&*route.name, route.record.requests)).collect();
        let expected = [
            ("GET /mount/here", [1, 0, 0]),
            ("GET /sized", [1, 0, 0]),
            ("GET /unsized", [1, 0, 0]),
            ("GET /late", [1, 0, 0]),
            // 404 and 5, 503 and 599.
            ("GET /status/<id>", [2, 2, 0]),
            ("GET /status/name", [0, 1, 0]),
            ("GET /recovers", [0, 1, 0]),
            ("GET /raises/call", [0, 1, 0]),
            ("GET /raises/body", [0, 1, 0]),
            ("GET /raises/close", [0, 1, 0]),
            ("GET /raises/none", [0, 1, 0]),
            ("GET /raises/start", [0, 1, 0]),
            ("GET /after", [1, 0, 0]),
            ("GET /early", [1, 0, 0]),
            ("GET /gone/BrokenPipeError", [0, 0, 1]),
            ("GET /gone/ConnectionResetError", [0, 0, 1]),
            ("GET /gone/ValueError", [0, 1, 0]),
            ("GET /dropped/list", [1, 0, 0]),
            ("GET /dropped/generator", [1, 0, 0]),
            ("GET /dropped/after", [1, 0, 0]),
            ("GET /file", [1, 0, 0]),
            ("GET /layers", [1, 0, 0]),
            ("GET /café", [1, 0, 0]),
            ("GET /bytes/\u{fffd}", [1, 0, 0]),
            ("GET ", [1, 0, 0]),
            ("GET /freed", [102, 0, 0]),
        ];
        assert_eq!(found, expected, "{python:?}");
    }
}

/// What an ASGI application does and gets is what it would be without the agent, and each of its requests ends as it did.
#[test]
fn asynchronous_applications_end_as_they_do() {
    for python in pythons() {
        let ran = run(&python, "exchange.py", "", &[EXACT]);
        let table = ran.folder.table();
        assert_eq!(table.header.lost[Loss::ShimFailures as usize], 0, "{python:?}");
        let ended = |name: &str| {
            let route = table.routes.iter().find(|route| route.name == name);
            route.unwrap_or_else(|| panic!("{python:?}: no {name}")).record.requests
        };
        let found: Vec<(&str, [u64; 3])> =
            table.routes.iter().skip(1).map(|route| (&*route.name, ended(&route.name))).collect();
        let expected = [
            ("GET /whole", [1, 0, 0]),
            ("GET /raises", [0, 1, 0]),
            ("GET /fails", [0, 1, 0]),
            ("GET /returns", [1, 0, 0]),
            ("GET /at-once", [0, 1, 0]),
            ("GET /awaitable", [1, 0, 0]),
            ("GET /waits", [0, 0, 1]),
            ("GET /swallows", [1, 0, 0]),
            ("GET /early", [0, 0, 1]),
            ("GET /all", [1, 0, 0]),
            ("GET /nonsense", [1, 0, 0]),
            ("WS /socket", [1, 0, 0]),
            ("GET /hand", [2, 0, 0]),
            ("GET /dropped", [0, 0, 3]),
            ("GET /grasped", [1, 0, 0]),
            ("GET /freed", [54, 0, 0]),
        ];
        assert_eq!(found, expected, "{python:?}");
        for (function, phase) in
            [("handler_keeps", Phase::Handler), ("streaming_keeps", Phase::Streaming), ("after_keeps", Phase::After)]
        {
            let is_of_function = |sample: &&RawSample| {
                let frames = sample.stack.map_or(&[][..], |stack| &table.stacks[stack as usize]);
                let mut codes = frames.iter().filter_map(|frame| frame.python());
                codes.any(|(code, _)| table.codes[code as usize].function.ends_with(function))
            };
            let phases: Vec<u8> = table
                .samples
                .iter()
                .filter(is_of_function)
                .map(|sample| sample.record.flags >> PHASE_SHIFT & 3)
                .collect();
            // One request, and a WebSocket, whose messages are no response.
            let right = phases.iter().filter(|found| **found == phase as u8).count();
            // Of 400; a few are lost, and counted, where another of the agent's threads has the lock.
            assert!(right >= 360, "{python:?}: {function} {phases:?}");
        }
    }
}

#[test]
fn a_table_outlives_a_kill() {
    for python in pythons() {
        let folder = Folder::new();
        let script =
            "import time\nkept = [bytes(1000) for _ in range(3000)]\nprint('ready', flush=True)\ntime.sleep(300)";
        let mut server =
            under_agent(&python, &folder.0).args(["-c", script]).envs([EXACT]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
        assert_eq!(line, "ready\n");
        let table = folder.table();
        let bytes: f64 = table.samples.iter().map(|sample| sample.record.weight).sum();
        assert!(bytes > 3000.0 * 1033.0, "{python:?}: {bytes} bytes");
        assert!(table.command.contains("import time"));
        assert_eq!(table.header.pid, server.id());
    }
}

/// What a program says and how it ends, when it would keep something.
fn program_that_keeps(python: &Path, tables: &Path) -> Command {
    let mut command = under_agent(python, tables);
    let script = "import subprocess, sys
kept = [bytes(1000) for _ in range(1000)]
subprocess.check_call([sys.executable, '-c', 'bytes(1000)'])
print('served')
sys.exit(7)";
    command.args(["-c", script]);
    command
}

/// Runs a program whose agent can't start: it must end as it would have, and say why, once for itself and its children.
fn runs_without_agent(command: &mut Command, reason: &str) {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{command:?}: {errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), "served");
    assert!(errors.starts_with("leakline: the server runs without the agent: "), "{command:?}: {errors:?}");
    assert!(errors.contains(reason) && errors.lines().count() == 1, "{command:?}: {errors:?}");
}

#[test]
fn a_folder_that_takes_no_table_leaves_the_server_unharmed() {
    for python in pythons() {
        let folder = Folder::new();
        runs_without_agent(&mut program_that_keeps(&python, &folder.0.join("none")), "does not exist");
        let file = folder.0.join("file");
        fs::write(&file, "").unwrap();
        runs_without_agent(&mut program_that_keeps(&python, &file), "LEAKLINE_TABLES");
        let mut bounds = program_that_keeps(&python, &folder.0);
        runs_without_agent(bounds.env("LEAKLINE_TABLE_BYTES", "4096"), "LEAKLINE_TABLE_BYTES");
        assert!(folder.tables().is_empty());
    }
}

/// On a disk of 256 KiB, which is mounted for the program alone and goes with it.
#[test]
fn a_full_disk_leaves_the_server_unharmed() {
    use std::os::unix::process::CommandExt;
    for python in pythons() {
        let folder = Folder::new();
        let mut command = program_that_keeps(&python, &folder.0);
        let place = std::ffi::CString::new(folder.0.to_str().unwrap()).unwrap();
        // SAFETY: system calls with C strings that live on, between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let flags = libc::MS_REC | libc::MS_PRIVATE;
                let none = c"none".as_ptr();
                let mounted = libc::unshare(libc::CLONE_NEWNS) == 0
                    && libc::mount(none, c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null()) == 0
                    && libc::mount(none, place.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=256k".as_ptr().cast()) == 0;
                if mounted { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            })
        };
        if let Err(error) = command.output() {
            eprintln!("skipped: this user may not mount a small disk: {error}");
            return;
        }
        runs_without_agent(&mut command, "no room");
    }
}

/// Builds the program that poses as a Python of some version, or as none.
fn native_program(folder: &Folder, version: Option<&str>) -> PathBuf {
    let program = folder.0.join("program");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-w", "-rdynamic", "-o"]).arg(&program).arg(fixture("native.c"));
    compiler.args(version.map(|version| format!("-DVERSION=\"{version} (main)\"")));
    assert!(compiler.args(["-ldl", "-lpthread"]).status().unwrap().success(), "cc, which Rust links with, fails");
    program
}

#[test]
fn a_python_that_is_not_known_is_refused_by_name_and_runs_on() {
    for version in ["2.7.18", "3.6.15", "3.15.0a1", "3.13.0 experimental free-threading build", "oops"] {
        let folder = Folder::new();
        let output = under_agent(native_program(&folder, Some(version)), &folder.0).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*output.stdout), (Some(7), &b"untouched\n"[..]), "{errors}");
        let name = version.split(' ').next().unwrap();
        assert!(errors.starts_with("leakline: ") && errors.trim_end().ends_with(name), "{version}: {errors:?}");
        assert_eq!(errors.lines().count(), 1);
        assert!(folder.tables().is_empty());
    }
}

#[test]
fn a_program_that_is_no_python_is_left_alone() {
    let folder = Folder::new();
    let program = native_program(&folder, None);
    for command in [&mut Command::new(&program), &mut under_agent(&program, &folder.0)] {
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*output.stdout, &*errors), (Some(7), &b"untouched\n"[..], ""));
    }
    assert!(folder.tables().is_empty());
    // Preloaded without leakline, the agent does nothing.
    let python = &pythons()[0];
    let output = Command::new(python).args(["-c", "print(1)"]).env("LD_PRELOAD", agent()).output().unwrap();
    assert_eq!((&*output.stdout, &*output.stderr), (&b"1\n"[..], &b""[..]));
}
