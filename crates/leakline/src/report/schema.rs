//! The report that programs read: schema 1. Fields may be added to it, never changed; `docs/json.md` explains them.
//!
//! Sizes are bytes, times are seconds unless a name says otherwise; what is not known is null or empty.
use std::collections::BTreeMap;

use serde::Serialize;

use super::ledger::Ledger;

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
    /// `leak`, `garbage`, `cache`, `balloon` or `retained`
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
    /// Whether what a leak has left behind is garbage in cycles: `no`; `untested` where no full collection has met it and no
    /// heap snapshot tells; `yes` where one does, and if it is a leak all the same, the collector is switched off. Null for a
    /// balloon and for what is retained.
    pub garbage: Option<&'static str>,
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
    /// What that holds besides, most first.
    pub beside: Vec<Beside>,
    /// The share of it that is definitely lost: nothing points to it any more; null where no heap snapshot has told.
    pub definitely_lost: Option<f64>,
    /// What those requests exchanged over sockets, that which they read most from first.
    pub sockets: Vec<Socket>,
    /// When the living workers reach their limit at this rate.
    pub limit_reached_in_seconds: Option<f64>,
    /// The finding in one sentence.
    pub summary: String,
}

/// What the holder of a leak holds besides, that grows with the same requests.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// The line that allocates most of it.
    pub site: Option<Line>,
    /// What a request leaves behind, of any route where it was allocated outside of requests.
    pub bytes_per_request: f64,
    /// Lower bound of its 95 % interval.
    pub low: f64,
    /// Upper bound of its 95 % interval.
    pub high: f64,
    /// What has been left behind so far.
    pub live_bytes: f64,
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
