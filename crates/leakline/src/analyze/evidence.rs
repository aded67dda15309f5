//! What the analysis is given: the samples, routes and history of each worker, with every stack already resolved to
//! files, functions and lines. Plain data, no I/O, no identifiers of a process's memory.
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// The outcome of a request, as far as the agent could tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The response was made and its status was below 500.
    Ok,
    /// The application raised an exception, or answered with 500 or above.
    Error,
    /// The client went away before the response was complete.
    Aborted,
}

impl Outcome {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Error, Self::Aborted];
}

/// What a request was doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Until its handler has returned the response.
    #[default]
    Handler,
    /// While the response's body is made and sent.
    Streaming,
    /// In `close()` of the response.
    Closing,
    /// Work that carries the request's context on after it has ended.
    After,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Handler, Self::Streaming, Self::Closing, Self::After];
}

/// One Python frame, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    /// The file as the code object names it.
    pub file: String,
    /// The function, qualified where the Python knows (3.11 and later).
    pub function: String,
    /// The line that was being run; 0 where the line table does not say.
    pub line: u32,
}

/// What a program or library is in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// It holds CPython itself.
    Interpreter,
    /// It provides malloc.
    Allocator,
    /// Anything else.
    Library,
}

/// One frame of native code, resolved as far as its file allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NativeFrame {
    /// The program's or library's file, as the process saw it.
    pub library: String,
    /// The function, demangled.
    pub symbol: Option<String>,
    /// Where in the function the call is, bytes; without a symbol, where in the library: the address that its own file
    /// states.
    pub offset: u64,
    /// What the library is.
    pub role: Role,
}

/// Index into [`Worker::stacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u32);

/// Index into [`Worker::routes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId(pub u32);

/// What a route's requests of one outcome have done so far in one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Served {
    /// Requests that ended this way.
    pub requests: u64,
    /// Estimated bytes that they allocated, freed since or not.
    pub allocated_bytes: f64,
    /// The most that one of them held at once, in estimated bytes.
    pub peak_bytes: f64,
    /// What they held at their highest, a histogram of powers of two: `peaks[i]` requests stayed below 2^i KiB (and not
    /// below 2^(i-1)); the last one has no upper bound.
    pub peaks: [u64; 24],
}

/// One route of one worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// `GET /data/<id>`
    pub name: String,
    /// By outcome, in the order of [`Outcome`].
    pub served: [Served; 3],
    /// Upper bounds of request durations, a histogram of powers of two: `durations[i]` requests took less than
    /// 2^i microseconds (and not less than 2^(i-1)).
    pub durations: [u64; 32],
}

/// The request that a sample belongs to, once that request has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settled {
    /// Its route.
    pub route: RouteId,
    /// How it ended.
    pub outcome: Outcome,
    /// It was the n-th request of this route and outcome in this worker, counted from 1: never more than
    /// [`Served::requests`] of that route and outcome.
    pub ordinal: u64,
}

/// Which request a sample belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Owner {
    /// Allocated for a request that has ended.
    Request(Settled),
    /// Allocated for a request that is being served at this moment.
    InFlight,
    /// Allocated outside of any request that the agent knows of: imports, other threads, servers' own work.
    Unattributed,
}

/// One live sample: bytes that were allocated, were picked by the sampler and are not freed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Where it was allocated. `None` where the stack could not be kept (see the losses), or cannot be trusted.
    pub stack: Option<StackId>,
    /// Unbiased estimate of the bytes that this sample stands for; at least [`Sample::size`].
    pub weight: f64,
    /// Bytes of the block, or, for growth, the bytes that realloc added.
    pub size: u64,
    /// Which request it belongs to.
    pub owner: Owner,
    /// How many requests of any route this worker had ended when the block was allocated.
    pub born: u64,
    /// Bytes added to an existing block by realloc.
    pub growth: bool,
    /// The block was handed out again by one of CPython's free lists: [`Owner`] is the request that revived it, or
    /// [`Owner::Unattributed`] where several were in flight and it could have been any of them. The stack is that of
    /// the block's first life, so it does not say where the bytes are held now: the untainted samples of the same size
    /// (and route and outcome, where these are known) are the better witnesses.
    pub recycled: bool,
    /// What its request was doing.
    pub phase: Phase,
    /// It lies in an area of memory that is mostly free, and keeps the allocator from giving that back.
    pub pins: bool,
}

/// What one request held at its highest; kept for the requests that held most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// The request, which has ended.
    pub request: Settled,
    /// How many requests of any route this worker had ended before.
    pub after: u64,
    /// Estimated bytes that were live at once.
    pub bytes: f64,
    /// The standard deviation of that estimate, bytes.
    pub deviation: f64,
    /// Of those, the bytes of the stack that had most, when the peak was last looked at.
    pub top_bytes: f64,
    /// That stack.
    pub stack: Option<StackId>,
    /// What the request was doing then.
    pub phase: Phase,
    /// Estimated bytes of the request that were live when it ended.
    pub left_bytes: f64,
}

/// A request that is being served, or was when its process ended, and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct InFlight {
    /// `GET /data/<id>`, or its path with numbers left out where no framework had named the route yet.
    pub route: String,
    /// What it was doing when it was looked at last.
    pub phase: Phase,
    /// Estimated bytes that it holds.
    pub bytes: f64,
    /// The standard deviation of that estimate, bytes.
    pub deviation: f64,
    /// Of those, the bytes of the stack that has most.
    pub top_bytes: f64,
    /// That stack.
    pub stack: Option<StackId>,
}

/// Who is at the other end of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// At this address: `127.0.0.1:3306`, `/run/mysqld/mysqld.sock`.
    At(String),
    /// All whom there was no room to tell apart.
    Other,
    /// The server's clients.
    Client,
}

/// Bytes that passed one way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Passed {
    /// Of all requests.
    pub bytes: u64,
    /// The most of one request.
    pub most: u64,
    /// Histogram of the requests: `requests[i]` had fewer bytes than 2^i (and no fewer than 2^(i-1)); the last one has no
    /// upper bound.
    pub requests: [u64; 32],
}

/// What some requests exchanged with one peer; counted, not sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Exchange {
    /// Requests that exchanged anything with it.
    pub requests: u64,
    /// From it.
    pub read: Passed,
    /// To it.
    pub written: Passed,
    /// Of the bytes read: those that were read after the request's client had left.
    pub read_after_client_left: u64,
    /// The same of the request that read most.
    pub most_after_client_left: u64,
}

/// What the requests of one route and outcome exchanged with one peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchanged {
    /// Their route.
    pub route: RouteId,
    /// How they ended.
    pub outcome: Outcome,
    /// With whom.
    pub peer: Peer,
    /// What they did.
    pub sum: Exchange,
}

/// A run of the cyclic collector over all generations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FullCollection {
    /// How many requests of any route this worker had ended by then.
    pub requests: u64,
}

/// The state of a worker at one moment; kept about once a second, thinned by doubling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tick {
    /// Seconds since the Unix epoch.
    pub time: f64,
    /// Requests of any route ended by then.
    pub requests: u64,
    /// Resident set, bytes.
    pub rss_bytes: u64,
    /// The mean distance between samples of that time, in bytes; of those that are left, where they were thinned since.
    pub interval_bytes: f64,
}

/// What was lost, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// `stacks_full`, `thinned`, …: as the table names it.
    pub cause: &'static str,
    /// How often.
    pub count: u64,
}

/// What an allocator has of the system, resident bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Given away.
    pub used: u64,
    /// Kept for later.
    pub free: u64,
}

impl AddAssign for Kept {
    fn add_assign(&mut self, other: Self) {
        self.used += other.used;
        self.free += other.free;
    }
}

/// Where a worker's resident memory was at one moment, bytes. Only resident pages count, also within blocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// When, seconds since the Unix epoch.
    pub time: f64,
    /// The resident set, as the kernel counts it.
    pub resident: u64,
    /// Small objects: pymalloc.
    pub python: Kept,
    /// Each arena of malloc.
    pub arenas: Vec<Kept>,
    /// Blocks that malloc has mapped by themselves, which are large. They are given back when they are freed.
    pub chunks: u64,
    /// Mapped directly, by libraries or by allocators that are not known.
    pub mapped: u64,
    /// Threads' stacks.
    pub stacks: u64,
    /// Programs and libraries, with their data.
    pub files: u64,
    /// Shared with other processes.
    pub shared: u64,
    /// leakline's own.
    pub agent: u64,
    /// What `malloc_trim(0)` would give back: the whole pages of free chunks.
    pub trim_would_return: u64,
}

impl Ledger {
    /// What malloc has of the system.
    pub fn native(&self) -> Kept {
        let mut sum = Kept { used: self.chunks, free: 0 };
        self.arenas.iter().for_each(|arena| sum += *arena);
        sum
    }

    /// What is missing from the parts, or is there twice: the process went on while it was looked at, and a heap that
    /// changed under the eye is in none of them.
    pub fn residual(&self) -> i64 {
        let allocators = [self.python, self.native()].iter().map(|kept| kept.used + kept.free).sum::<u64>();
        let others = self.mapped + self.stacks + self.files + self.shared + self.agent;
        self.resident as i64 - (allocators + others) as i64
    }
}

/// One worker process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Worker {
    /// Its process id.
    pub pid: u32,
    /// It still ran when the table was read.
    pub alive: bool,
    /// It has ended, and not by itself: a signal ended it. Never said where the agent came later and can't tell.
    pub killed: bool,
    /// It ran before the agent came, or its parent did.
    pub attached: bool,
    /// How many processes of its control group the kernel killed for want of memory between the last look at it and its
    /// end, or shortly after; `None` where nobody counts, and while it runs.
    pub oom_kills: Option<u64>,
    /// `3.11.7`
    pub python: String,
    /// `gunicorn`, `werkzeug`, …; empty until the first request.
    pub server: String,
    /// The command line.
    pub command: String,
    /// Requests of any route that have ended.
    pub requests: u64,
    /// Stacks of Python, innermost frame first; empty for threads that run none.
    pub stacks: Vec<Vec<Frame>>,
    /// The native code that ran inside of the innermost frame of each stack, innermost frame first; empty where that was
    /// CPython's own, and missing behind the last one that is known.
    pub natives: Vec<Vec<NativeFrame>>,
    /// Native code was looked at. Otherwise nobody knows what libraries took.
    pub walks_native: bool,
    /// Routes.
    pub routes: Vec<Route>,
    /// Live samples.
    pub samples: Vec<Sample>,
    /// Where each of them lies in the process's memory, 0 where that is not known; empty where nobody needs it. The
    /// analysis doesn't: a heap snapshot is asked whose memory it is.
    pub addresses: Vec<u64>,
    /// The requests that held most at once.
    pub peaks: Vec<Peak>,
    /// Requests that hold much and have not ended; some, where there are many.
    pub in_flight: Vec<InFlight>,
    /// What requests exchanged over sockets.
    pub exchanged: Vec<Exchanged>,
    /// The collector's full runs, oldest first; the latest 64 at most.
    pub full_collections: Vec<FullCollection>,
    /// The collector was switched off when it was last asked: nobody frees garbage in cycles.
    pub collector_is_off: bool,
    /// History, oldest first.
    pub ticks: Vec<Tick>,
    /// Losses by cause, only those that happened.
    pub losses: Vec<Loss>,
    /// Samples taken since the start, freed ones too.
    pub samples_taken: u64,
    /// The mean distance between samples in force now, in bytes.
    pub interval_bytes: f64,
    /// Estimated bytes allocated outside of any request.
    pub unattributed_allocated_bytes: f64,
    /// Resident set now (or when last seen), bytes.
    pub rss_bytes: u64,
    /// The highest resident set, bytes.
    pub rss_peak_bytes: u64,
    /// The memory limit that would kill it (cgroup's or the host's), bytes, where one is known.
    pub limit_bytes: Option<u64>,
    /// Where its resident memory is (or was when it was last looked at).
    pub ledger: Option<Ledger>,
}

impl Worker {
    /// The mean distance between samples, in bytes, over the requests `from < n <= to` of any route: it follows what samples
    /// may cost, and so goes up and down.
    ///
    /// It is the mean over requests that tells how much is known of them. Where each leaves b bytes, those that were sampled
    /// every R bytes leave b / R samples of the weight R, so that the independent survivors (Σw)² / Σw² of n requests are n b
    /// over the mean of R.
    pub fn interval_between(&self, from: f64, to: f64) -> f64 {
        let ticks = self.ticks.iter().map(|tick| (tick.requests, tick.interval_bytes));
        let (mut before, mut requests, mut intervals) = (from, 0.0, 0.0);
        for (until, interval) in ticks.chain([(self.requests, self.interval_bytes)]) {
            let until = (until as f64).min(to);
            let between = (until - before).max(0.0);
            requests += between;
            intervals += between * interval;
            before = before.max(until);
        }
        if requests > 0.0 { intervals / requests } else { self.interval_bytes }
    }

    /// The native code and the lines of Python of a stack; nothing where it is not known.
    pub fn calls(&self, stack: Option<StackId>) -> (Vec<NativeFrame>, Vec<Frame>) {
        let Some(StackId(stack)) = stack else { return (vec![], vec![]) };
        let native = self.natives.get(stack as usize).cloned();
        (native.unwrap_or_default(), self.stacks.get(stack as usize).cloned().unwrap_or_default())
    }
}

/// Everything that a report is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Every worker of the process tree, the living and the dead. Ordinals are counted in each by itself.
    pub workers: Vec<Worker>,
}
