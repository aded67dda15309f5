//! Turns an analysis into the report that programs read: schema 1. Fields may be added to it, never changed.
//!
//! Sizes are bytes, times are seconds unless a name says otherwise; what is not known is null or empty.
use std::collections::BTreeMap;

use serde::Serialize;

use super::ledger::Ledger;
use crate::analyze::decision::Garbage;
use crate::analyze::evidence::{Evidence, Frame, NativeFrame, Outcome, Peer, Phase, Worker};
use crate::analyze::{
    self, After, Analysis, Balloon, Blamed, Grown, Kind, Origin, Reached, Remedy, Retained, SocketTotals, Taken,
};

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// 1.
    pub schema: u32,
    /// What was watched.
    pub target: Target,
    /// For how long.
    pub window: Window,
    /// What the findings rest on.
    pub evidence: Basis,
    /// Resident memory of all workers.
    pub rss: Rss,
    /// What was found, that which costs most first.
    pub findings: Vec<Finding>,
    /// What each route did.
    pub routes: Vec<Route>,
    /// What ran outside of requests.
    pub unattributed: Unattributed,
}

/// The server.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// The oldest process of the tree.
    pub pid: Option<u32>,
    /// Its command line.
    pub command: String,
    /// `3.11.7`
    pub python: String,
    /// `gunicorn`; empty until the first request.
    pub server: String,
    /// Its processes.
    pub workers: Vec<Process>,
}

/// One process.
#[derive(Clone, Debug, Serialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// It ran when its table was read.
    pub alive: bool,
    /// It has ended, and not by itself: a signal ended it.
    pub killed: bool,
    /// So many processes of its control group were killed by the kernel for want of memory when it ended; null where
    /// nobody counts, and while it runs.
    pub oom_kills: Option<u64>,
    /// Requests that it has answered.
    pub requests: u64,
    /// Its resident set, now or when it was last seen.
    pub rss: u64,
}

/// The time and the requests that the evidence spans.
#[derive(Clone, Debug, Serialize)]
pub struct Window {
    /// Seconds since the Unix epoch.
    pub start: Option<f64>,
    /// Its length.
    pub seconds: f64,
    /// Requests of all routes and workers.
    pub requests: u64,
}

/// What the findings rest on.
#[derive(Clone, Debug, Serialize)]
pub struct Basis {
    /// Samples taken, those that were freed too.
    pub samples: u64,
    /// One sample in so many bytes.
    pub mean_interval_bytes: f64,
    /// What was lost, by cause.
    pub lost: BTreeMap<&'static str, u64>,
    /// A leak of this size would have been found.
    pub smallest_visible_bytes_per_request: Option<f64>,
}

/// Resident memory.
#[derive(Clone, Debug, Serialize)]
pub struct Rss {
    /// Of the workers that `now` is of, when their first request had ended; of those that have served none, as now.
    pub start: u64,
    /// Of the living workers, or of the dead ones when they were last seen if none lives.
    pub now: u64,
    /// The sum of the workers' highest.
    pub peak: u64,
    /// The limit that would kill them.
    pub limit: Option<u64>,
    /// Where it is, or was when it was last looked at; null where nobody could look.
    pub ledger: Option<Ledger>,
    /// What `malloc_trim(0)` would give back.
    pub trim_would_return: Option<u64>,
    /// Of what is in use, that which was allocated before the agent came, with what the allocators add to blocks; null where
    /// nobody could look, and where the agent was there from the beginning.
    pub earlier: Option<u64>,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// `leak`, `cache`, `balloon` or `retained`
    pub kind: &'static str,
    /// `python`, `native` or `mixed`
    pub origin: &'static str,
    /// False for a leak that is `native` as far as the samples tell, which are too far apart to show objects that may hold
    /// it; and for one that is `python` since native code was left out of stacks. Null for other kinds.
    pub origin_is_certain: Option<bool>,
    /// `GET /data/<id>`; null for several routes, and for what runs outside of requests.
    pub route: Option<String>,
    /// All routes whose requests leak, the busiest first; empty for what runs outside of requests.
    pub routes: Vec<String>,
    /// `any`, `ok`, `error` or `aborted`.
    pub outcome: &'static str,
    /// `any`, `handler`, `streaming`, `closing` or `after`.
    pub phase: &'static str,
    /// What a request leaves behind; null for a balloon.
    pub bytes_per_request: Option<f64>,
    /// Lower bound of the 95 % interval of a leak's `bytes_per_request`, or a balloon's `peak_bytes`.
    pub low: f64,
    /// Its upper bound.
    pub high: f64,
    /// What has been left behind so far; of a balloon, what still lives of the requests that held most.
    pub live_bytes: f64,
    /// What of `peak_bytes` was live when the request ended and waited for the collector; null for a leak.
    pub left_bytes: Option<f64>,
    /// The most that one request held at once; null for a leak. Of what is retained, the request that explains it.
    pub peak_bytes: Option<f64>,
    /// Free memory that the allocators keep, resident bytes; null for a leak or a balloon.
    pub retained_bytes: Option<u64>,
    /// Of the resident sets of so many bytes; null for a leak or a balloon.
    pub resident_bytes: Option<u64>,
    /// Of what is retained, Python's small objects'.
    pub retained_by_python: Option<u64>,
    /// What can be done about memory that is retained, the best first.
    pub remedies: Vec<String>,
    /// The highest resident set of the balloon's process; null for a leak.
    pub rss_peak: Option<u64>,
    /// The process that was killed in the midst of the request; null where the request ended and gave the memory back, and for
    /// a leak.
    pub killed: Option<u32>,
    /// A request is counted as one that balloons if it held so many bytes at once; null for a leak.
    pub level_bytes: Option<u64>,
    /// Half of the requests that a balloon's are compared with held less than so many bytes; null for a leak.
    pub usual_bytes: Option<u64>,
    /// The route's requests by outcome, for comparison; empty for a leak where all had the same.
    pub outcomes: Vec<Compared>,
    /// 0 to 1.
    pub confidence: f64,
    /// Live samples that a leak rests on; null for a balloon.
    pub samples: Option<usize>,
    /// Requests of the route and outcome.
    pub requests: u64,
    /// Cyclic garbage that was not collected yet is ruled out; false for a balloon that was not given back yet while no full
    /// collection has run; null for any other.
    pub collected: Option<bool>,
    /// The line that allocates.
    pub site: Option<Line>,
    /// The innermost line of the application's own code.
    pub application: Option<Line>,
    /// From the allocator outwards: native code first, where a library has a part in it, then lines of Python.
    pub stack: Vec<Call>,
    /// All lines that allocate a part worth naming, with their shares.
    pub sites: Vec<Site>,
    /// The library that takes the memory, else the package that the allocating line is in, where it isn't the
    /// application's own.
    pub library: Option<String>,
    /// The function of a library to blame, where one takes the memory.
    pub blamed: Option<NativeCall>,
    /// What holds the memory; null for other findings than leaks, and where no heap snapshot has told.
    pub holder: Option<Holder>,
    /// The share of it that is definitely lost: nothing points to it any more; null where no heap snapshot has told.
    pub definitely_lost: Option<f64>,
    /// What those requests exchanged over sockets, that which they read most from first.
    pub sockets: Vec<Socket>,
    /// When the living workers reach their limit at this rate.
    pub limit_reached_in_seconds: Option<f64>,
    /// The finding in one sentence.
    pub summary: String,
}

/// What the requests of one outcome did.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// `ok`, `error` or `aborted`.
    pub outcome: &'static str,
    /// How many there were.
    pub requests: u64,
    /// What each leaves behind; null for a balloon, and where there were too few to tell.
    pub bytes_per_request: Option<f64>,
    /// Lower bound of its 95 % interval.
    pub low: Option<f64>,
    /// Upper bound of its 95 % interval.
    pub high: Option<f64>,
    /// How many held `level_bytes` at once; null for a leak.
    pub reached: Option<u64>,
}

/// What requests exchanged with one peer, in bytes that were counted and not sampled.
#[derive(Clone, Debug, Serialize)]
pub struct Socket {
    /// `127.0.0.1:3306`, the path of a Unix socket, `client` for the server's own clients, `other` for the rest.
    pub peer: String,
    /// Requests that exchanged anything with it.
    pub requests: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Of those, the bytes that were read after the request's client had left.
    pub after_client_left: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// The most that one request read.
    pub most_read: u64,
    /// What that request read after its client had left.
    pub most_after_client_left: u64,
    /// The most that one request wrote.
    pub most_written: u64,
    /// Half of the requests that these are compared with read less; 0 where half read nothing.
    pub usual_read: u64,
    /// Half of them wrote less; 0 where half wrote nothing.
    pub usual_written: u64,
}

/// An entry of a stack.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Call {
    /// Native code.
    Native(NativeCall),
    /// A line of Python.
    Python(Line),
}

/// A place in native code.
#[derive(Clone, Debug, Serialize)]
pub struct NativeCall {
    /// The library's file, as the process saw it.
    pub library: String,
    /// The function, demangled; null where the file does not say.
    pub symbol: Option<String>,
    /// Where the call is in the function; in the library where the function is not known.
    pub offset: u64,
}

/// The container that holds what a leak has left behind.
#[derive(Clone, Debug, Serialize)]
pub struct Holder {
    /// The way to it, the root first.
    pub path: Vec<String>,
    /// The same in one line.
    pub text: String,
    /// The share of what was found in the snapshot that it holds, 0 to 1.
    pub share: f64,
    /// What it will hold when it is full; null where nothing bounds it.
    pub bound_bytes: Option<f64>,
}

/// A line of Python.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// As the code object names it.
    pub file: String,
    /// The function.
    pub function: String,
    /// 0 where the line table does not say.
    pub line: u32,
}

/// A line that allocates, and its share of the finding.
#[derive(Clone, Debug, Serialize)]
pub struct Site {
    /// The line.
    #[serde(flatten)]
    pub line: Line,
    /// 0 to 1.
    pub share: f64,
}

/// One route.
#[derive(Clone, Debug, Serialize)]
pub struct Route {
    /// `GET /data/<id>`
    pub route: String,
    /// All of them.
    pub requests: u64,
    /// Those that were answered below 500.
    pub ok: u64,
    /// Those that raised, or were answered with 500 or above.
    pub error: u64,
    /// Those whose client went away.
    pub aborted: u64,
    /// What they allocated, freed since or not.
    pub allocated_bytes: f64,
    /// What of it lives.
    pub live_bytes: f64,
    /// The most that one of them held at once.
    pub peak_bytes: f64,
    /// Half of them took no longer; an upper bound, at most twice too high.
    pub p50_ms: Option<f64>,
    /// 99 of 100 took no longer; likewise.
    pub p99_ms: Option<f64>,
    /// What they exchanged over sockets, that which they read most from first.
    pub sockets: Vec<Socket>,
}

/// What ran outside of requests.
#[derive(Clone, Debug, Serialize)]
pub struct Unattributed {
    /// What of it lives.
    pub live_bytes: f64,
    /// What was allocated, freed since or not.
    pub allocated_bytes: f64,
}

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
        confidence: finding.confidence,
        samples: Some(finding.samples),
        requests: finding.requests,
        collected: Some(finding.garbage == Garbage::RuledOut),
        site: finding.site.as_ref().map(line),
        application: finding.application.as_ref().map(line),
        stack: stack(&finding.native, &finding.stack),
        sites: finding.sites.iter().map(|share| Site { line: line(&share.site), share: share.share }).collect(),
        library: library(finding.blamed.as_ref(), finding.site.as_ref().filter(|_| !is_own)),
        blamed: finding.blamed.as_ref().map(blamed),
        holder: finding.holder.as_ref().map(holder),
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
        sites: site.iter().map(|line| Site { line: line.clone(), share: balloon.share }).collect(),
        site,
        application: balloon.application.as_ref().map(line),
        stack: stack(&balloon.native, &balloon.stack),
        library: library(balloon.blamed.as_ref(), balloon.site.as_ref().filter(|_| !is_own)),
        blamed: balloon.blamed.as_ref().map(blamed),
        holder: None,
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
        sites: retained.pinned_by.iter().map(|share| Site { line: line(&share.site), share: share.share }).collect(),
        library: library(None, retained.stack.first()),
        blamed: None,
        site,
        application,
        stack: stack(&[], &retained.stack),
        holder: None,
        definitely_lost: None,
        sockets: vec![],
        limit_reached_in_seconds: None,
        summary: retained_summary(retained),
    }
}

fn remedy(remedy: Remedy, retained: &Retained) -> String {
    let trim = super::text::size(retained.trim_would_return as f64);
    match remedy {
        Remedy::Trim => format!("ctypes.CDLL(None).malloc_trim(0) after such requests: it would return {trim} now"),
        Remedy::FewerArenas => format!("MALLOC_ARENA_MAX=2: there are {} arenas", retained.arenas),
        Remedy::OtherAllocator => {
            "jemalloc by LD_PRELOAD, with MALLOC_CONF=background_thread:true,dirty_decay_ms:1000: the holes are small"
                .to_owned()
        }
        Remedy::LessAtOnce => {
            "less at once, or a process of its own for it: pymalloc gives no arena back in which an object lives"
                .to_owned()
        }
    }
}

fn retained_summary(retained: &Retained) -> String {
    let (bytes, resident) =
        (super::text::size(retained.bytes as f64), super::text::size(retained.resident_bytes as f64));
    let after = match &retained.after {
        Some(After { route, bytes }) => {
            format!(" after a request of {route} that took {} at once", super::text::size(*bytes))
        }
        None => String::new(),
    };
    format!("{bytes} of {resident} resident are free memory that the allocators keep{after}; it is no leak.")
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

fn condition(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        None => "",
        Some(Outcome::Ok) => " that succeeds",
        Some(Outcome::Error) => " that fails",
        Some(Outcome::Aborted) => " whose client goes away",
    }
}

fn place(blamed: Option<&Blamed>, application: Option<&Frame>, site: Option<&Frame>) -> String {
    let line = application.or(site);
    let line = line.map_or(String::new(), |line| format!(", at {}:{} in {}", line.file, line.line, line.function));
    let taker = |blamed: &Blamed| {
        let function = blamed.symbol.as_ref().map_or(String::new(), |symbol| format!(" by {symbol}"));
        format!(", taken in {}{function}", blamed.library_name())
    };
    line + &blamed.filter(|blamed| blamed.taken != Taken::ByPython).map_or(String::new(), taker)
}

fn balloon_summary(balloon: &Balloon) -> String {
    let bytes = super::text::size(balloon.peak_bytes);
    let condition = condition(balloon.outcome);
    let place = place(balloon.blamed.as_ref(), balloon.application.as_ref(), balloon.site.as_ref());
    if balloon.waits {
        return format!(
            "A request of {}{condition} took {bytes} at once, and has not given it back as no full collection has run since{place}.",
            balloon.route
        );
    }
    if let Some(pid) = balloon.killed {
        return format!(
            "A request of {} held {bytes} when process {pid} was killed in the midst of it{place}.",
            balloon.route
        );
    }
    format!("A request of {}{condition} took {bytes} at once and gave it back{place}.", balloon.route)
}

fn leak_summary(finding: &analyze::Finding) -> String {
    let condition = condition(finding.outcome);
    let who = match &finding.routes[..] {
        [] => "work outside of requests".to_owned(),
        [route] => format!("every request of {route}{condition}"),
        [busiest, others @ ..] => format!("every request of {busiest} and {} other routes{condition}", others.len()),
    };
    let bytes = super::text::size(finding.rate.bytes);
    let place = place(finding.blamed.as_ref(), finding.application.as_ref(), finding.site.as_ref());
    let per = if finding.routes.is_empty() { " per request served" } else { "" };
    let mut sentence = format!("{who} leaves {bytes}{per} behind{place}");
    sentence[..1].make_ascii_uppercase();
    sentence + "."
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
