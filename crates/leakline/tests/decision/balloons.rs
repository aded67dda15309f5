//! Balloons must be found and what is usual left in peace: made-up peaks of requests, one doubt at a time.
use leakline::analyze::evidence::{
    Evidence, Frame, FullCollection, Outcome, Owner, Peak, Phase, Route, RouteId, Sample, Served, Settled, StackId,
    Worker,
};
use leakline::analyze::{Balloon, findings};
use leakline::report::{Printed, Report, json, text};
use serde_json::Value;

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;

/// A worker with one route, whose requests are counted as the agent counts them.
struct Requests(Worker);

impl Requests {
    fn new() -> Self {
        let frame = |file: &str, function: &str, line| Frame { file: file.into(), function: function.into(), line };
        let stack = vec![
            frame("/venv/lib/python3.11/site-packages/boto/s3/key.py", "close", 358),
            frame("/srv/app.py", "drain", 12),
            frame("/venv/lib/python3.11/site-packages/gunicorn/workers/sync.py", "handle_request", 180),
        ];
        let route = Route { name: "GET /data/<id>".into(), served: [Served::default(); 3], durations: [0; 32] };
        Self(Worker {
            stacks: vec![stack],
            routes: vec![route],
            rss_bytes: 40 << 20,
            rss_peak_bytes: 1_100 << 20,
            ..Worker::default()
        })
    }

    /// `requests` more of these, each of which held `bytes` at its highest.
    fn and(mut self, requests: u64, outcome: Outcome, bytes: f64) -> Self {
        for _ in 0..requests {
            let served = &mut self.0.routes[0].served[outcome as usize];
            served.requests += 1;
            served.peak_bytes = served.peak_bytes.max(bytes);
            let bucket = (0..23).find(|power| bytes < KIB * (1u64 << power) as f64).unwrap_or(23);
            served.peaks[bucket] += 1;
            let request = Settled { route: RouteId(0), outcome, ordinal: served.requests };
            let after = self.0.requests;
            self.0.requests += 1;
            if bytes >= 256.0 * KIB {
                let (stack, phase) = (Some(StackId(0)), Phase::Closing);
                self.0.peaks.push(Peak {
                    request,
                    after,
                    bytes,
                    deviation: (64.0 * KIB * bytes).sqrt(),
                    top_bytes: bytes * 0.9,
                    stack,
                    phase,
                    left_bytes: 0.0,
                });
            }
        }
        self
    }

    /// So much of each peak was live when its request ended.
    fn leaving(mut self, bytes: f64) -> Self {
        self.0.peaks.iter_mut().for_each(|peak| peak.left_bytes = bytes);
        self
    }

    /// It was never freed.
    fn keeping(mut self, bytes: f64) -> Self {
        self = self.leaving(bytes);
        let sample = |peak: &Peak| Sample {
            stack: peak.stack,
            weight: bytes,
            size: 65_536,
            owner: Owner::Request(peak.request),
            born: peak.after,
            growth: false,
            recycled: false,
            phase: peak.phase,
            pins: false,
        };
        self.0.samples = self.0.peaks.iter().map(sample).collect();
        self
    }

    /// The collector has run over everything since.
    fn collected(mut self) -> Self {
        self.0.full_collections = vec![FullCollection { requests: self.0.requests }];
        self
    }

    /// One sample in so many bytes.
    fn interval(mut self, bytes: f64) -> Self {
        self.0.peaks.iter_mut().for_each(|peak| peak.deviation = (bytes * peak.bytes).sqrt());
        self
    }

    fn resident(mut self, bytes: f64) -> Self {
        self.0.rss_peak_bytes = bytes as u64;
        self
    }

    fn evidence(self) -> Evidence {
        Evidence { workers: vec![self.0] }
    }

    fn balloons(self) -> Vec<Balloon> {
        findings(&self.evidence()).balloons
    }
}

/// The download server of the story: downloads take next to nothing, aborted ones 1 GB.
fn downloads() -> Requests {
    Requests::new().and(40, Outcome::Ok, 300.0 * KIB).and(7, Outcome::Aborted, 1_000.0 * MIB).and(
        1,
        Outcome::Error,
        2.0 * KIB,
    )
}

#[test]
fn what_only_aborted_requests_take_is_told_with_the_others_beside() {
    let [balloon] = &downloads().balloons()[..] else { panic!("{:?}", downloads().balloons()) };
    assert_eq!((balloon.outcome, balloon.phase), (Some(Outcome::Aborted), Phase::Closing));
    assert_eq!(balloon.peak_bytes, 1_000.0 * MIB);
    assert!(balloon.low < balloon.peak_bytes && balloon.peak_bytes < balloon.high, "{balloon:?}");
    assert_eq!((balloon.level_bytes, balloon.usual_bytes), (256 << 20, 512 << 10));
    let counts: Vec<_> = balloon.outcomes.iter().map(|one| (one.outcome, one.requests, one.reached)).collect();
    assert_eq!(counts, [(Outcome::Ok, 40, 0), (Outcome::Error, 1, 0), (Outcome::Aborted, 7, 7)]);
    assert!(balloon.confidence > 0.98 && balloon.live_bytes == 0.0, "{balloon:?}");
    assert!(balloon.application.as_ref().is_some_and(|line| line.function == "drain"), "{balloon:?}");
}

#[test]
fn a_few_requests_that_take_much_are_told_whatever_their_outcome() {
    let requests = Requests::new().and(97, Outcome::Ok, 2.0 * MIB).and(3, Outcome::Ok, 400.0 * MIB);
    let [balloon] = &requests.balloons()[..] else { panic!("not one") };
    assert_eq!((balloon.outcome, balloon.outcomes[0].reached, balloon.usual_bytes), (None, 3, 4 << 20));
}

#[test]
fn workers_are_counted_together() {
    let worker = || Requests::new().and(10, Outcome::Ok, 300.0 * KIB).and(1, Outcome::Error, 300.0 * MIB).0;
    let balloons = findings(&Evidence { workers: vec![worker(), worker()] }).balloons;
    let [balloon] = &balloons[..] else { panic!("{balloons:?}") };
    assert_eq!(balloon.outcome, Some(Outcome::Error));
    assert_eq!((balloon.outcomes[1].requests, balloon.outcomes[1].reached), (2, 2));
}

#[test]
fn what_is_usual_is_no_balloon() {
    let usual = [
        (
            "small",
            Requests::new().and(50, Outcome::Ok, 2.0 * KIB).and(3, Outcome::Aborted, 12.0 * MIB).resident(30.0 * MIB),
        ),
        ("always much", Requests::new().and(60, Outcome::Ok, 400.0 * MIB)),
        ("failures end early", Requests::new().and(60, Outcome::Ok, 400.0 * MIB).and(9, Outcome::Error, 9.0 * KIB)),
        ("all outcomes alike", Requests::new().and(60, Outcome::Ok, 300.0 * MIB).and(9, Outcome::Aborted, 400.0 * MIB)),
        ("four times as much", Requests::new().and(60, Outcome::Ok, 60.0 * MIB).and(2, Outcome::Ok, 250.0 * MIB)),
        ("start-up", Requests::new().and(1, Outcome::Ok, 400.0 * MIB).and(60, Outcome::Ok, 9.0 * KIB)),
        (
            "one aborted, few others",
            Requests::new().and(5, Outcome::Ok, 9.0 * KIB).and(1, Outcome::Aborted, 400.0 * MIB),
        ),
        ("a tenth of the process", downloads().resident(10_000.0 * MIB)),
        ("never resident", downloads().resident(500.0 * MIB)),
        ("not over", downloads().keeping(800.0 * MIB).collected()),
        (
            "fills a cache",
            Requests::new().and(60, Outcome::Ok, 9.0 * KIB).and(2, Outcome::Error, 600.0 * MIB).keeping(600.0 * MIB),
        ),
        (
            "may be noise",
            Requests::new()
                .and(60, Outcome::Ok, 9.0 * KIB)
                .and(2, Outcome::Error, 40.0 * MIB)
                .interval(16.0 * MIB)
                .resident(90.0 * MIB),
        ),
    ];
    for (why, requests) in usual {
        assert_eq!(requests.balloons(), [], "{why}");
    }
}

/// A traceback is part of a cycle: what failing requests took is there until the collector comes, and adds up.
#[test]
fn what_waits_for_the_collector_adds_up() {
    let failing =
        || Requests::new().and(60, Outcome::Ok, 9.0 * KIB).and(12, Outcome::Error, 64.0 * MIB).resident(700.0 * MIB);
    assert_eq!(failing().balloons(), []);
    let [balloon] = &failing().leaving(64.0 * MIB).balloons()[..] else { panic!("not one") };
    assert_eq!((balloon.outcome, balloon.left_bytes, balloon.live_bytes), (Some(Outcome::Error), 64.0 * MIB, 0.0));
}

/// Until it has come, nobody knows; that is told.
#[test]
fn what_no_collection_has_met_is_told_as_waiting_for_one() {
    let failing = || {
        let requests = Requests::new().and(60, Outcome::Ok, 9.0 * KIB).and(12, Outcome::Error, 64.0 * MIB);
        requests.resident(900.0 * MIB).keeping(64.0 * MIB)
    };
    let evidence = failing().evidence();
    let analysis = findings(&evidence);
    let [balloon] = &analysis.balloons[..] else { panic!("{:?}", analysis.balloons) };
    assert_eq!((balloon.outcome, balloon.waits, balloon.live_bytes), (Some(Outcome::Error), true, 12.0 * 64.0 * MIB));
    assert_eq!(balloon.confidence, 0.9);
    let page = text(&Report::new(&evidence, &analysis), Printed { source: &|_, _| None, colour: false });
    for part in ["takes 67.1 MB at once, only when it fails", "not given back yet: no full collection", "gc.collect()"]
    {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    assert_eq!(failing().collected().balloons(), []);
}

#[test]
fn evidence_that_makes_no_sense_is_survived() {
    let mut worker = downloads().0;
    worker.interval_bytes = f64::NAN;
    for (peak, bytes) in worker.peaks.iter_mut().zip([f64::NAN, f64::INFINITY, -1.0, 0.0]) {
        (peak.bytes, peak.top_bytes, peak.left_bytes) = (bytes, bytes, bytes);
        (peak.request.route, peak.stack) = (RouteId(peak.request.ordinal as u32 % 2), Some(StackId(9)));
    }
    worker.routes[0].served[0].peaks = [u64::from(u32::MAX); 24];
    let _ = findings(&Evidence { workers: vec![worker] });
}

#[test]
fn a_balloon_is_told_to_people_and_to_programs() {
    let evidence = downloads().evidence();
    let report = Report::new(&evidence, &findings(&evidence));
    let page = text(&report, Printed { source: &|_, _| None, colour: false });
    for part in [
        "BALLOON: GET /data/<id> takes 1.0 GB at once, only when the client goes away",
        "by one request while it closes the response, given back when it ends)",
        "/srv/app.py:12 in drain",
        "→ boto/s3/key.py:358 in close",
        "reached  268 MB by 0 of 40 ok, 0 of 1 error, 7 of 7 aborted",
        "half of the others stayed below 524 kB",
        "NO LEAK FOUND",
    ] {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    assert!(page.lines().count() <= 40 && page.lines().all(|line| line.chars().count() <= 100), "{page}");
    let report: Value = serde_json::from_str(&json(&report)).unwrap();
    let finding = &report["findings"][0];
    let facts = ["kind", "route", "outcome", "phase", "library"].map(|fact| finding[fact].as_str().unwrap_or_default());
    assert_eq!(facts, ["balloon", "GET /data/<id>", "aborted", "closing", "boto"]);
    assert_eq!(finding["peak_bytes"], 1_000.0 * MIB);
    assert!(finding["bytes_per_request"].is_null() && finding["requests"] == 7, "{finding:#}");
    assert_eq!(report["routes"][0]["peak_bytes"], 1_000.0 * MIB);
}
