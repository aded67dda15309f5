//! Free memory that is kept must be told where it is much, and only there: made-up ledgers, one doubt at a time.
use leakline::analyze::evidence::{
    Evidence, Frame, Kept, Ledger, Outcome, Owner, Peak, Phase, Route, RouteId, Sample, Served, Settled, StackId,
    Worker,
};
use leakline::analyze::{Remedy, Retained, findings};
use leakline::report::{Printed, Report, json, text};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A worker of 60 MiB, whose main arena keeps so many MiB besides, after an export of 200 MiB.
fn worker(main_mib: u64) -> Worker {
    let frame = |file: &str, function: &str, line| Frame { file: file.into(), function: function.into(), line };
    let mut served = Served { requests: 100, ..Served::default() };
    // 95 requests stay below 1 MiB, five reach 200.
    (served.peaks[10], served.peaks[18]) = (95, 5);
    let request = Settled { route: RouteId(0), outcome: Outcome::Ok, ordinal: 90 };
    let peak = Peak {
        request,
        after: 89,
        bytes: (200 * MIB) as f64,
        deviation: MIB as f64,
        top_bytes: (200 * MIB) as f64,
        stack: Some(StackId(0)),
        phase: Phase::Handler,
        left_bytes: 0.0,
    };
    let sample = |pins| Sample {
        stack: Some(StackId(0)),
        weight: 50_000.0,
        size: 16_000,
        owner: Owner::Request(request),
        born: 89,
        growth: false,
        recycled: false,
        phase: Phase::Handler,
        pins,
    };
    Worker {
        alive: true,
        requests: 100,
        stacks: vec![vec![frame("/venv/lib/python3.11/json.py", "dump", 3), frame("/srv/app.py", "export", 12)]],
        routes: vec![Route {
            name: "GET /export".into(),
            served: [served, Served::default(), Served::default()],
            durations: [0; 32],
        }],
        samples: vec![sample(true), sample(true), sample(false)],
        peaks: vec![peak],
        ledger: Some(Ledger {
            resident: (60 + main_mib) * MIB,
            arenas: vec![Kept { used: 20 * MIB, free: main_mib * MIB }],
            files: 40 * MIB,
            trim_would_return: main_mib * MIB,
            ..Ledger::default()
        }),
        ..Worker::default()
    }
}

fn found(workers: Vec<Worker>) -> Option<Retained> {
    findings(&Evidence { workers }).retained
}

fn ledger(worker: &mut Worker) -> &mut Ledger {
    worker.ledger.as_mut().unwrap()
}

#[test]
fn what_is_kept_is_told_with_what_took_it_and_what_lies_between() {
    let found = found(vec![worker(150)]).unwrap();
    assert_eq!((found.bytes, found.resident_bytes, found.remedies), (150 * MIB, 210 * MIB, vec![Remedy::Trim]));
    assert_eq!(found.after.map(|after| after.route).as_deref(), Some("GET /export"));
    assert_eq!((found.samples, found.pinning_bytes), (2, 100_000.0));
    assert_eq!(found.pinned_by[0].site.function, "export");
}

#[test]
fn a_little_that_is_kept_is_no_finding() {
    assert_eq!(found(vec![worker(31)]), None);
    // Enough bytes, but a small share.
    let mut large = worker(60);
    ledger(&mut large).resident = 400 * MIB;
    assert_eq!(found(vec![large]), None);
    let mut unknown = worker(150);
    unknown.ledger = None;
    assert_eq!(found(vec![unknown]), None);
    assert_eq!(found(vec![]), None);
}

#[test]
fn what_ordinary_requests_take_again_is_no_finding() {
    let mut always = worker(150);
    let peaks = &mut always.routes[0].served[0].peaks;
    (peaks[10], peaks[18]) = (85, 15);
    assert_eq!(found(vec![always]), None);
}

#[test]
fn a_small_peak_explains_nothing() {
    let mut other = worker(150);
    other.peaks[0].bytes = (20 * MIB) as f64;
    assert_eq!(found(vec![other]).unwrap().after, None);
}

#[test]
fn remedies_fit_where_it_is_kept() {
    let remedies = |change: &dyn Fn(&mut Ledger)| {
        let mut worker = worker(150);
        change(ledger(&mut worker));
        found(vec![worker]).unwrap().remedies
    };
    let holes = remedies(&|ledger| ledger.trim_would_return = 10 * MIB);
    assert_eq!(holes, [Remedy::OtherAllocator]);
    let threads = remedies(&|ledger| {
        ledger.arenas = vec![Kept { used: MIB, free: 10 * MIB }; 12];
        ledger.trim_would_return = 10 * MIB;
    });
    assert_eq!(threads, [Remedy::FewerArenas]);
    let objects = remedies(&|ledger| {
        (ledger.python.free, ledger.arenas[0].free, ledger.trim_would_return) = (140 * MIB, 10 * MIB, 9 * MIB);
    });
    assert_eq!(objects, [Remedy::LessAtOnce]);
}

#[test]
fn workers_that_live_count_and_the_dead_only_among_themselves() {
    let dead = Worker { alive: false, ..worker(150) };
    assert_eq!(found(vec![dead.clone(), worker(10)]), None);
    assert_eq!(found(vec![dead.clone(), dead]).unwrap().workers, 2);
    assert_eq!(found(vec![worker(150), worker(100)]).unwrap().bytes, 250 * MIB);
}

#[test]
fn it_is_told_to_people_and_to_programs() {
    let evidence = Evidence { workers: vec![worker(150)] };
    let report = Report::new(&evidence, &findings(&evidence));
    let page = text(&report, Printed { source: &|_, _| None, colour: false });
    for part in [
        "RETAINED: 157 MB of 220 MB resident are free memory, and no leak",
        "after    GET /export, of which one request held 210 MB at once",
        "between  100 kB that live, of /srv/app.py:12 in export (100 %)",
        "malloc_trim(0) after such requests: it would return 157 MB now",
        "Next: if the resident set is too large, try what helps",
    ] {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    assert!(page.lines().all(|line| line.chars().count() <= 100), "{page}");
    let report: Value = serde_json::from_str(&json(&report)).unwrap();
    let finding = &report["findings"][0];
    assert_eq!((&finding["kind"], &finding["origin"]), (&"retained".into(), &"native".into()));
    assert_eq!((&finding["retained_bytes"], &finding["bytes_per_request"]), (&(150 * MIB).into(), &Value::Null));
    let ledger = &report["rss"]["ledger"];
    for field in
        "resident time python_used python_free native_used native_free mapped stacks files shared agent residual \
                  arenas"
            .split(' ')
    {
        assert!(!ledger[field].is_null(), "{field} is not in {ledger:#}");
    }
    assert_eq!((&ledger["native_free"], &ledger["residual"]), (&(150 * MIB).into(), &0.into()));
}
