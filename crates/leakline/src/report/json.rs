//! Turns an analysis into the report that programs read.
use std::collections::BTreeMap;

use super::ledger::Ledger;
use super::schema::{
    Basis, Beside, Call, Compared, Finding, Holder, Line, NativeCall, Process, Report, Route, Rss, Site, Socket,
    Target, Unattributed, Window,
};
use super::sentence::{balloon_summary, leak_summary, remedy, retained_summary};
use crate::analyze::decision::Garbage;
use crate::analyze::evidence::{Evidence, Frame, NativeFrame, Outcome, Peer, Phase, Worker};
use crate::analyze::{self, Analysis, Balloon, Blamed, Grown, Kind, Origin, Reached, Retained, SocketTotals, Taken};

/// The report as indented JSON.
pub fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).expect("strings, numbers and lists always have a JSON form")
}

impl Report {
    /// Puts an analysis beside the evidence that it was made from.
    pub fn new(evidence: &Evidence, analysis: &Analysis) -> Self {
        let span = analyze::span(evidence);
        let requests = evidence.workers.iter().map(|worker| worker.requests).sum();
        let mut findings: Vec<Finding> =
            analysis.findings.iter().map(leak).chain(analysis.balloons.iter().map(balloon)).collect();
        findings.extend(analysis.retained.iter().map(retained));
        let kept = |finding: &Finding| finding.retained_bytes.map(|bytes| bytes as f64);
        let cost = |finding: &Finding| kept(finding).or(finding.peak_bytes).unwrap_or(finding.live_bytes);
        findings.sort_by(|one, other| cost(other).total_cmp(&cost(one)));
        Self {
            schema: 1,
            target: target(evidence),
            window: Window {
                start: span.map(|span| span.start),
                seconds: span.map_or(0.0, |span| span.seconds),
                requests,
            },
            evidence: basis(evidence, analysis),
            rss: rss(evidence),
            findings,
            routes: analysis.routes.iter().map(route).collect(),
            unattributed: Unattributed {
                live_bytes: analysis.unattributed.live_bytes,
                allocated_bytes: analysis.unattributed.allocated_bytes,
            },
        }
    }
}

fn target(evidence: &Evidence) -> Target {
    let workers = || evidence.workers.iter();
    // The one that serves knows most about itself: a parent that only forks never learns which server it is.
    let told = |of: fn(&Worker) -> &String| {
        let knowing = workers().filter(|worker| !of(worker).is_empty());
        knowing.max_by_key(|worker| worker.requests).map(of).cloned().unwrap_or_default()
    };
    Target {
        pid: workers().next().map(|worker| worker.pid),
        command: told(|worker| &worker.command),
        python: told(|worker| &worker.python),
        server: told(|worker| &worker.server),
        workers: workers()
            .map(|worker| Process {
                pid: worker.pid,
                alive: worker.alive,
                killed: worker.killed,
                oom_kills: worker.oom_kills,
                requests: worker.requests,
                rss: worker.rss_bytes,
            })
            .collect(),
    }
}

fn basis(evidence: &Evidence, analysis: &Analysis) -> Basis {
    let mut lost = BTreeMap::new();
    for loss in evidence.workers.iter().flat_map(|worker| &worker.losses) {
        *lost.entry(loss.cause).or_default() += loss.count;
    }
    let samples: u64 = evidence.workers.iter().map(|worker| worker.samples_taken).sum();
    let of_all = |worker: &Worker| worker.interval_between(0.0, worker.requests as f64);
    let intervals = evidence.workers.iter().map(|worker| of_all(worker) * worker.samples_taken as f64);
    Basis {
        samples,
        mean_interval_bytes: if samples > 0 { intervals.sum::<f64>() / samples as f64 } else { 0.0 },
        lost,
        smallest_visible_bytes_per_request: analysis.smallest_visible,
    }
}

fn rss(evidence: &Evidence) -> Rss {
    let workers = || evidence.workers.iter();
    let any_lives = workers().any(|worker| worker.alive);
    let seen = || workers().filter(|worker| worker.alive || !any_lives);
    let ledger = Ledger::sum(seen().filter_map(|worker| worker.ledger.as_ref()));
    Rss {
        start: seen().map(|worker| worker.ticks.first().map_or(worker.rss_bytes, |tick| tick.rss_bytes)).sum(),
        now: seen().map(|worker| worker.rss_bytes).sum(),
        peak: workers().map(|worker| worker.rss_peak_bytes).sum(),
        limit: workers().filter_map(|worker| worker.limit_bytes).min(),
        trim_would_return: ledger.as_ref().map(|ledger| ledger.trim_would_return),
        earlier: seen().filter_map(earlier).reduce(|sum, bytes| sum + bytes),
        ledger,
    }
}

/// What a worker that was attached to has in use and was never seen to be allocated.
fn earlier(worker: &Worker) -> Option<u64> {
    let ledger = worker.ledger.as_ref().filter(|_| worker.attached)?;
    let used = ledger.python.used + ledger.native().used + ledger.mapped;
    let seen: f64 = worker.samples.iter().map(|sample| sample.weight).sum();
    Some(used.saturating_sub(seen as u64))
}

fn leak(finding: &analyze::Finding) -> Finding {
    let is_own = finding.site == finding.application;
    Finding {
        kind: match finding.kind {
            Kind::Leak => "leak",
            Kind::Cache => "cache",
            Kind::Garbage => "garbage",
        },
        origin: match finding.origin {
            Origin::Python => "python",
            Origin::Native => "native",
            Origin::Mixed => "mixed",
        },
        origin_is_certain: Some(finding.origin_is_certain),
        route: Some(&finding.routes).filter(|routes| routes.len() == 1).map(|routes| routes[0].clone()),
        routes: finding.routes.clone(),
        outcome: finding.outcome.map_or("any", outcome),
        phase: finding.phase.map_or("any", phase),
        bytes_per_request: Some(finding.rate.bytes),
        low: finding.rate.low,
        high: finding.rate.high,
        live_bytes: finding.live_bytes,
        left_bytes: None,
        peak_bytes: None,
        retained_bytes: None,
        resident_bytes: None,
        retained_by_python: None,
        remedies: vec![],
        rss_peak: None,
        killed: None,
        level_bytes: None,
        usual_bytes: None,
        outcomes: finding.outcomes.iter().map(grown).collect(),
        confidence: finding.confidence(),
        samples: Some(finding.samples),
        requests: finding.requests,
        collected: Some(finding.garbage == Garbage::RuledOut),
        garbage: Some(match finding.garbage {
            Garbage::RuledOut => "no",
            Garbage::Seen | Garbage::Collected => "yes",
            Garbage::Untested => "untested",
        }),
        site: finding.site.as_ref().map(line),
        application: finding.application.as_ref().map(line),
        stack: stack(&finding.native, &finding.stack),
        sites: finding.sites.iter().map(|share| Site { line: line(&share.site), share: share.share }).collect(),
        library: library(finding.blamed.as_ref(), finding.site.as_ref().filter(|_| !is_own)),
        blamed: finding.blamed.as_ref().map(blamed),
        holder: finding.holder.as_ref().map(holder),
        beside: finding.beside.iter().map(beside).collect(),
        definitely_lost: finding.lost,
        sockets: finding.sockets.iter().map(socket).collect(),
        limit_reached_in_seconds: finding.limit_reached_in_seconds,
        summary: leak_summary(finding),
    }
}

fn balloon(balloon: &Balloon) -> Finding {
    let is_own = balloon.site == balloon.application;
    let of_outcome =
        balloon.outcomes.iter().filter(|reached| balloon.outcome.is_none_or(|only| only == reached.outcome));
    let site = balloon.site.as_ref().map(line);
    Finding {
        kind: "balloon",
        origin: match balloon.blamed.as_ref().map(|blamed| blamed.taken) {
            None | Some(Taken::ByPython) => "python",
            Some(Taken::ThroughPython) => "mixed",
            Some(Taken::ByItself) => "native",
        },
        origin_is_certain: None,
        route: Some(balloon.route.clone()),
        routes: vec![balloon.route.clone()],
        outcome: balloon.outcome.map_or("any", outcome),
        phase: phase(balloon.phase),
        bytes_per_request: None,
        low: balloon.low,
        high: balloon.high,
        live_bytes: balloon.live_bytes,
        left_bytes: Some(balloon.left_bytes),
        peak_bytes: Some(balloon.peak_bytes),
        retained_bytes: None,
        resident_bytes: None,
        retained_by_python: None,
        remedies: vec![],
        rss_peak: Some(balloon.rss_peak_bytes),
        killed: balloon.killed,
        level_bytes: Some(balloon.level_bytes),
        usual_bytes: Some(balloon.usual_bytes),
        outcomes: balloon.outcomes.iter().map(reached).collect(),
        confidence: balloon.confidence,
        samples: None,
        requests: of_outcome.map(|reached| reached.requests).sum(),
        collected: balloon.waits.then_some(false),
        garbage: None,
        sites: site.iter().map(|line| Site { line: line.clone(), share: balloon.share }).collect(),
        site,
        application: balloon.application.as_ref().map(line),
        stack: stack(&balloon.native, &balloon.stack),
        library: library(balloon.blamed.as_ref(), balloon.site.as_ref().filter(|_| !is_own)),
        blamed: balloon.blamed.as_ref().map(blamed),
        holder: None,
        beside: vec![],
        definitely_lost: None,
        sockets: balloon.sockets.iter().map(socket).collect(),
        limit_reached_in_seconds: None,
        summary: balloon_summary(balloon),
    }
}

fn retained(retained: &Retained) -> Finding {
    let site = retained.stack.first().map(line);
    let application = retained.pinned_by.first().map(|share| line(&share.site));
    let route = retained.after.as_ref().map(|after| after.route.clone());
    Finding {
        kind: "retained",
        origin: if retained.python_bytes * 2 > retained.bytes { "python" } else { "native" },
        origin_is_certain: None,
        routes: route.iter().cloned().collect(),
        route,
        outcome: "any",
        phase: "any",
        bytes_per_request: None,
        low: retained.bytes as f64,
        high: retained.bytes as f64,
        live_bytes: retained.pinning_bytes,
        left_bytes: None,
        peak_bytes: retained.after.as_ref().map(|after| after.bytes),
        retained_bytes: Some(retained.bytes),
        resident_bytes: Some(retained.resident_bytes),
        retained_by_python: Some(retained.python_bytes),
        remedies: retained.remedies.iter().map(|&of| remedy(of, retained)).collect(),
        rss_peak: None,
        killed: None,
        level_bytes: None,
        usual_bytes: None,
        outcomes: vec![],
        confidence: 1.0,
        samples: Some(retained.samples),
        requests: retained.requests,
        collected: None,
        garbage: None,
        sites: retained.pinned_by.iter().map(|share| Site { line: line(&share.site), share: share.share }).collect(),
        library: library(None, retained.stack.first()),
        blamed: None,
        site,
        application,
        stack: stack(&[], &retained.stack),
        holder: None,
        beside: vec![],
        definitely_lost: None,
        sockets: vec![],
        limit_reached_in_seconds: None,
        summary: retained_summary(retained),
    }
}

fn beside(beside: &analyze::Beside) -> Beside {
    let analyze::Beside { rate, live_bytes, .. } = *beside;
    let site = beside.site.as_ref().map(line);
    Beside { site, bytes_per_request: rate.bytes, low: rate.low, high: rate.high, live_bytes }
}

fn holder(holder: &analyze::Holder) -> Holder {
    Holder {
        path: holder.path.clone(),
        text: holder.text.clone(),
        share: holder.share,
        bound_bytes: holder.bound_bytes,
    }
}

fn grown(grown: &Grown) -> Compared {
    Compared {
        outcome: outcome(grown.outcome),
        requests: grown.requests,
        bytes_per_request: grown.rate.map(|rate| rate.bytes),
        low: grown.rate.map(|rate| rate.low),
        high: grown.rate.map(|rate| rate.high),
        reached: None,
    }
}

fn reached(reached: &Reached) -> Compared {
    Compared {
        outcome: outcome(reached.outcome),
        requests: reached.requests,
        bytes_per_request: None,
        low: None,
        high: None,
        reached: Some(reached.reached),
    }
}

fn socket(totals: &SocketTotals) -> Socket {
    let sum = &totals.sum;
    Socket {
        peer: match &totals.peer {
            Peer::At(address) => address.clone(),
            Peer::Other => "other".to_owned(),
            Peer::Client => "client".to_owned(),
        },
        requests: sum.requests,
        bytes_read: sum.read.bytes,
        after_client_left: sum.read_after_client_left,
        bytes_written: sum.written.bytes,
        most_read: sum.read.most,
        most_after_client_left: sum.most_after_client_left,
        most_written: sum.written.most,
        usual_read: totals.usual_read,
        usual_written: totals.usual_written,
    }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Error => "error",
        Outcome::Aborted => "aborted",
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Handler => "handler",
        Phase::Streaming => "streaming",
        Phase::Closing => "closing",
        Phase::After => "after",
    }
}

fn line(frame: &Frame) -> Line {
    Line { file: frame.file.clone(), function: frame.function.clone(), line: frame.line }
}

fn blamed(blamed: &Blamed) -> NativeCall {
    NativeCall { library: blamed.library.clone(), symbol: blamed.symbol.clone(), offset: blamed.offset }
}

fn stack(native: &[NativeFrame], python: &[Frame]) -> Vec<Call> {
    let native = native.iter().map(|frame| NativeCall {
        library: frame.library.clone(),
        symbol: frame.symbol.clone(),
        offset: frame.offset,
    });
    native.map(Call::Native).chain(python.iter().map(line).map(Call::Python)).collect()
}

/// `libpdfium.so`, or the package of the line that allocates.
fn library(blamed: Option<&Blamed>, site: Option<&Frame>) -> Option<String> {
    blamed.map(|blamed| blamed.library_name().to_owned()).or_else(|| package(&site?.file))
}

/// `codetiming` of `/venv/lib/python3.11/site-packages/codetiming/_timers.py`.
fn package(file: &str) -> Option<String> {
    let packages = ["/site-packages/", "/dist-packages/"];
    let (_, inside) = packages.iter().find_map(|packages| file.rsplit_once(packages))?;
    let name = inside.split('/').next()?;
    Some(name.trim_end_matches(".py").to_owned())
}

fn route(totals: &analyze::RouteTotals) -> Route {
    let [ok, error, aborted] = totals.requests;
    Route {
        route: totals.route.clone(),
        requests: ok + error + aborted,
        ok,
        error,
        aborted,
        allocated_bytes: totals.allocated_bytes,
        live_bytes: totals.live_bytes,
        peak_bytes: totals.peak_bytes,
        p50_ms: totals.p50_ms,
        p99_ms: totals.p99_ms,
        sockets: totals.sockets.iter().map(socket).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::evidence::{self, Owner, Phase, Sample, Tick, Worker};

    #[test]
    fn memory_at_first_is_that_of_the_processes_whose_memory_is_told_now() {
        let tick = |rss_bytes| Tick { time: 1.0, requests: 1, rss_bytes, interval_bytes: 4096.0 };
        let worker = |alive, first: Option<u64>, rss_bytes| {
            let ticks = first.map(tick).into_iter().collect();
            Worker { alive, ticks, rss_bytes, ..Worker::default() }
        };
        let (ended, serving, master) =
            (worker(false, Some(30), 90), worker(true, Some(40), 70), worker(true, None, 20));
        let both = rss(&Evidence { workers: vec![ended.clone(), serving, master] });
        assert_eq!((both.start, both.now), (60, 90));
        let last = rss(&Evidence { workers: vec![ended] });
        assert_eq!((last.start, last.now), (30, 90));
    }

    #[test]
    fn what_was_there_before_the_agent_came_is_told_of_those_that_were_attached_to() {
        let of = |used| evidence::Ledger { chunks: used, mapped: 5, ..evidence::Ledger::default() };
        let sample = |weight| Sample {
            stack: None,
            weight,
            size: 10,
            owner: Owner::Unattributed,
            born: 0,
            growth: false,
            recycled: false,
            phase: Phase::Handler,
            pins: false,
        };
        let worker = |attached, ledger: Option<evidence::Ledger>| {
            let samples = vec![sample(20.0), sample(10.0)];
            Worker { alive: true, attached, ledger, samples, ..Worker::default() }
        };
        let told = |workers| rss(&Evidence { workers }).earlier;
        assert_eq!(told(vec![worker(true, Some(of(100))), worker(true, Some(of(30))), worker(true, None)]), Some(80));
        assert_eq!(told(vec![worker(true, Some(of(1)))]), Some(0), "an estimate may be too high");
        assert_eq!(told(vec![worker(false, Some(of(100)))]), None);
        assert_eq!(told(vec![worker(true, None)]), None);
    }
}
