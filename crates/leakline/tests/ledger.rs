//! Programs with holes in their memory are looked at from outside, and the ledger is compared with what their own
//! allocators say, and with what malloc_trim really gives back.
mod harness;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use leakline::analyze::evidence::{Evidence, Worker};
use leakline::analyze::{self, Remedy};
use leakline::target::memory;

/// What an interpreter allocates between its answer and our look, and what it frees, bytes.
const MEANWHILE: f64 = 256e3;

fn near(what: &str, found: u64, said: f64, within: f64) {
    let found = found as f64;
    let allowed = said * within + MEANWHILE;
    assert!((found - said).abs() <= allowed, "{what}: {found} were seen, and it says {said} (± {allowed})");
}

fn check(version: &str, threads: usize) {
    let folder = harness::root().join("crates/leakline/tests");
    let Some(python) = harness::python(version, &folder.join("servers/requirements.txt")) else { return };
    let mut program = Command::new(python)
        .arg(folder.join("ledger/keeps.py"))
        .arg(threads.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let mut said =
        || -> Vec<f64> { lines.next().unwrap().unwrap().split(' ').map(|number| number.parse().unwrap()).collect() };
    let [minor, python_used, native_used, native_free] = said()[..] else { panic!("three numbers were to come") };
    let ledger = memory::look(program.id(), minor as u8).expect("a child may be looked at").ledger;
    program.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    let [returned] = said()[..] else { panic!("one number was to come") };
    // The program ends when there is nothing more to read.
    drop(program.stdin.take());
    assert!(program.wait().unwrap().success());

    let of = |what: &str| format!("{what} on {version} with {threads} threads, {ledger:?}");
    near(&of("python used"), ledger.python.used, python_used, 0.01);
    let native = ledger.native();
    near(&of("native used"), native.used, native_used, 0.01);
    // Of what is free, the ends of arenas have never been touched: 128 KiB at most each.
    let untouched = (ledger.arenas.len() * 131_072) as f64;
    near(&of("native free"), native.free, native_free - untouched / 2.0, untouched / native_free);
    assert!(ledger.arenas.len() > threads, "{}", of("too few arenas"));
    assert!(ledger.python.free > 10_000_000 && native.free > 10_000_000, "{}", of("no holes"));
    near(&of("malloc_trim"), ledger.trim_would_return, returned, 0.01);
    assert!(ledger.residual().unsigned_abs() < ledger.resident / 100, "{}", of("the residual"));
    assert!(ledger.files > 1_000_000 && ledger.stacks > 10_000, "{}", of("files and stacks"));
}

#[test]
fn the_ledger_agrees_with_the_allocators() {
    check("3.8", 0);
    check("3.11", 2);
    check("3.13", 3);
    check("system", 7);
}

/// What a program that keeps free memory is advised to do, and its resident bytes.
fn advice(way: &str, environment: &[(&str, &str)]) -> Option<(Vec<Remedy>, f64)> {
    let folder = harness::root().join("crates/leakline/tests");
    let python = harness::python("3.11", &folder.join("servers/requirements.txt"))?;
    let mut program = Command::new(python)
        .arg(folder.join("ledger/kept.py"))
        .arg(way)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let resident = BufReader::new(program.stdout.take().unwrap()).lines().next().unwrap().unwrap().parse().unwrap();
    let ledger = memory::look(program.id(), 11).expect("a child may be looked at").ledger;
    drop(program.stdin.take());
    program.wait().unwrap();
    let worker = Worker { alive: true, ledger: Some(ledger), ..Worker::default() };
    let found = analyze::findings(&Evidence { workers: vec![worker] });
    Some((found.retained.map_or(vec![], |retained| retained.remedies), resident))
}

#[test]
fn what_helps_is_named_by_where_memory_is_kept() {
    let Some((threads, resident)) = advice("threads", &[]) else { return };
    assert!(threads.contains(&Remedy::FewerArenas), "{threads:?}");
    let (_, followed) = advice("threads", &[("MALLOC_ARENA_MAX", "2")]).unwrap();
    assert!(followed < resident * 0.6, "{followed} bytes resident with two arenas, {resident} without");
    let (holes, _) = advice("holes", &[]).unwrap();
    assert_eq!(holes, [Remedy::OtherAllocator]);
    let (objects, _) = advice("objects", &[]).unwrap();
    assert_eq!(objects, [Remedy::LessAtOnce]);
}

/// Processor time of this thread, ms.
fn busy_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

/// Prints what a look costs: `cargo test -p leakline --release --test ledger -- --ignored --nocapture`.
#[test]
#[ignore = "measures time for ARCHITECTURE.md"]
fn cost() {
    const KEEPS: &str = "
import sys
kept = [b'x' * (700 + n % 99) for n in range(int(sys.argv[1]) // 1100)] + [(n,) for n in range(int(sys.argv[1]) // 300)]
print(flush=True)
sys.stdin.readline()
";
    let requirements = harness::root().join("crates/leakline/tests/servers/requirements.txt");
    let python = harness::python("3.13", &requirements).expect("this machine has CPython 3.13");
    for bytes in [20_000_000, 100_000_000, 500_000_000] {
        let mut command = Command::new(&python);
        command.args(["-c", KEEPS, &bytes.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn().unwrap();
        BufReader::new(program.stdout.take().unwrap()).lines().next();
        let mut looks: Vec<(f64, u64)> = (0..9)
            .map(|_| {
                let before = busy_ms();
                let ledger = memory::look(program.id(), 13).expect("a child may be looked at").ledger;
                (busy_ms() - before, ledger.resident / 1_000_000)
            })
            .collect();
        looks.sort_by(|one, other| one.0.total_cmp(&other.0));
        println!("{:.1} ms of processor time for {} MB resident", looks[4].0, looks[4].1);
        drop(program.stdin.take());
        program.wait().unwrap();
    }
}
