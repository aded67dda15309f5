//! From the file that an agent wrote, which is believed in nothing, to what the analysis is given.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use leakline_table::layout::{
    self, HEADER_BYTES, Header, MOST_BYTES, PEAK_BUCKETS, PeakRecord, SOCKET_BUCKETS, SocketRecord,
};
use leakline_table::reader::{self, Code, Module, RawFrame, RawRoute, RawSample, Refusal, Snapshot};

use crate::analyze::evidence::{
    Exchange, Exchanged, Frame, FullCollection, InFlight, Loss, NativeFrame, Outcome, Owner, Passed, Peak, Peer, Phase,
    Role, Route, RouteId, Sample, Served, Settled, StackId, Tick, Worker,
};
use crate::failure::{Exit, Failure};
use crate::printable::printable;
use crate::runs::TableFile;
use crate::symbols::native::{self, Function};
use crate::symbols::{self, Minor};
use crate::target::memory::Look;
use crate::target::{limit, memory};

/// Reads a table and asks the process, where it still runs, what its table can't know. `limit_bytes` is the limit that
/// was in force when the run began.
pub fn worker(table: &TableFile, limit_bytes: Option<u64>) -> Result<Worker, Failure> {
    // No more than the table says that it has: a file may be as long as it likes.
    let extent = reader::extent(&header(&table.path)?);
    let bytes = read(&table.path, extent.clamp(HEADER_BYTES as u64, MOST_BYTES as u64))?;
    let refuse = |refusal| refused(&table.path, &refusal);
    let header = reader::header(&bytes).map_err(refuse)?;
    let look = look(table, &header).or_else(|| table.last_look());
    let oom_kills = look.as_ref().and_then(|look| look.group.as_ref()?.kills_since());
    // A living process may see other files than we do under the same names.
    let root = match table.process.is_alive() {
        true => format!("/proc/{}/root", table.process.pid),
        false => "/".to_owned(),
    };
    let mut worker = decode_beside(&bytes, Path::new(&root), look.as_ref()).map_err(refuse)?;
    worker.pid = table.process.pid;
    worker.limit_bytes = limit_bytes;
    if let Some(resident) = table.process.resident() {
        (worker.alive, worker.killed) = (true, false);
        worker.rss_bytes = resident.now;
        worker.rss_peak_bytes = resident.peak;
        worker.limit_bytes = limit::of(table.process.pid).or(limit_bytes);
    } else {
        worker.oom_kills = oom_kills;
        // One look a second sees more than a table that is told at the end of requests.
        if let Some(ledger) = worker.ledger.as_ref().filter(|ledger| ledger.time > seconds(header.updated_ns)) {
            worker.rss_bytes = ledger.resident;
            worker.rss_peak_bytes = worker.rss_peak_bytes.max(ledger.resident);
        }
    }
    Ok(worker)
}

/// Looks at the memory of the process that writes a table; `None` where it has ended, or where we may not.
pub fn look(table: &TableFile, header: &Header) -> Option<Look> {
    let [_, minor, ..] = header.python_version.to_be_bytes();
    let look = memory::look(table.process.pid, minor)?;
    // A process that ended meanwhile may have left its id to another one.
    table.process.is_alive().then_some(look)
}

/// Reads a table's first page: enough to list it.
pub fn header(path: &Path) -> Result<Header, Failure> {
    let bytes = read(path, HEADER_BYTES as u64)?;
    reader::header(&bytes).map_err(|refusal| refused(path, &refusal))
}

/// What the bytes of a table say, as of a process that has ended. Its libraries are looked for below `root`.
pub fn decode(bytes: &[u8], root: &Path) -> Result<Worker, Refusal> {
    decode_beside(bytes, root, None)
}

/// The same beside what was seen of the process's memory.
fn decode_beside(bytes: &[u8], root: &Path, look: Option<&Look>) -> Result<Worker, Refusal> {
    let snapshot = Snapshot::read(bytes)?;
    let header = &snapshot.header;
    let requests = count(header.requests);
    let [major, minor, micro, _] = header.python_version.to_be_bytes();
    let routes: Vec<Route> = snapshot.routes.iter().map(route).collect();
    let mut ticks: Vec<Tick> = snapshot
        .ticks
        .iter()
        .map(|tick| Tick {
            time: seconds(tick.time_ns),
            requests: count(tick.requests),
            rss_bytes: count(tick.rss_bytes),
            interval_bytes: tick.interval_bytes,
        })
        .collect();
    ticks.sort_by(|one, other| one.time.total_cmp(&other.time));
    let damaged = (snapshot.damaged_records > 0).then_some(("damaged_records", snapshot.damaged_records));
    Ok(Worker {
        pid: header.pid,
        alive: false,
        killed: header.tells_end == 1 && header.ended_ns == 0,
        attached: header.tells_end == 0,
        oom_kills: None,
        python: format!("{major}.{minor}.{micro}"),
        server: printable(&snapshot.server),
        command: printable(&snapshot.command.split_terminator('\0').collect::<Vec<_>>().join(" ")),
        requests,
        stacks: stacks(&snapshot, minor),
        natives: natives(&snapshot, root),
        // CPython's own library is among them at the latest when something was sampled.
        walks_native: snapshot.modules.len() > 1,
        samples: snapshot.samples.iter().map(|raw| sample(raw, &routes, requests, look)).collect(),
        in_flight: snapshot.in_flight.iter().map(|(record, name)| in_flight(record, name, &snapshot)).collect(),
        addresses: snapshot.samples.iter().map(|raw| raw.record.address).collect(),
        exchanged: snapshot.sockets.iter().map(|(record, peer)| exchanged(record, peer)).collect(),
        peaks: snapshot.peaks.iter().filter_map(|(record, stack)| peak(record, *stack, &routes)).collect(),
        routes,
        full_collections: snapshot
            .collections
            .iter()
            .map(|collection| FullCollection { requests: count(collection.requests) })
            .collect(),
        collector_is_off: header.collector_is_off == 1,
        ticks,
        losses: snapshot.losses().chain(damaged).map(|(cause, n)| Loss { cause, count: count(n) }).collect(),
        samples_taken: count(header.samples_taken),
        interval_bytes: header.interval_bytes,
        unattributed_allocated_bytes: amount(header.unattributed_allocated_bytes),
        rss_bytes: count(header.rss_bytes),
        rss_peak_bytes: count(header.rss_peak_bytes),
        limit_bytes: None,
        ledger: look.map(|look| look.ledger.clone()),
    })
}

/// Frames repeat from stack to stack, and finding a line means walking the function's line table: each is resolved
/// once.
fn stacks(snapshot: &Snapshot, minor: Minor) -> Vec<Vec<Frame>> {
    let mut resolved: HashMap<(u32, Option<u32>), Frame> = HashMap::new();
    let mut resolve = |(code, instruction): (u32, Option<u32>)| {
        let said = &snapshot.codes[code as usize];
        resolved.entry((code, instruction)).or_insert_with(|| frame(said, instruction, minor)).clone()
    };
    let is_ours = |frame: &Frame| frame.file == SHIM;
    snapshot
        .stacks
        .iter()
        .map(|stack| {
            let frames = stack.iter().filter_map(|frame| frame.python()).map(&mut resolve);
            frames.filter(|frame| !is_ours(frame)).collect()
        })
        .collect()
}

/// The native frames of each stack. Each library's file is read once.
fn natives(snapshot: &Snapshot, root: &Path) -> Vec<Vec<NativeFrame>> {
    let mut addresses: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for frame in snapshot.stacks.iter().flatten() {
        if let RawFrame::Native { module, offset } = *frame {
            addresses.entry(module).or_default().insert(offset);
        }
    }
    let named = |(module, addresses): (&u32, &BTreeSet<u32>)| {
        (*module, native::functions(&snapshot.modules[*module as usize], root, addresses))
    };
    let functions: BTreeMap<u32, BTreeMap<u32, Vec<Function>>> = addresses.iter().map(named).collect();
    let resolve = |frame: &RawFrame| match *frame {
        RawFrame::Native { module, offset } => {
            native_frames(&snapshot.modules[module as usize], offset, functions[&module].get(&offset))
        }
        RawFrame::Python { .. } => vec![],
    };
    snapshot.stacks.iter().map(|stack| stack.iter().flat_map(resolve).collect()).collect()
}

/// An address as the frames that it stands for: one, or more where functions were inlined.
fn native_frames(module: &Module, address: u32, functions: Option<&Vec<Function>>) -> Vec<NativeFrame> {
    let role = match module.flags {
        flags if flags & layout::MODULE_INTERPRETER != 0 => Role::Interpreter,
        flags if flags & layout::MODULE_ALLOCATOR != 0 => Role::Allocator,
        _ => Role::Library,
    };
    let frame = |symbol, offset| NativeFrame { library: printable(&module.path), symbol, offset, role };
    match functions {
        Some(functions) => {
            functions.iter().map(|function| frame(Some(printable(&function.name)), function.offset)).collect()
        }
        None => vec![frame(None, address.into())],
    }
}

/// What the agent's own Python code calls its file: its frames are no part of the server's story.
const SHIM: &str = "<leakline>";

fn frame(code: &Code, instruction: Option<u32>, minor: Minor) -> Frame {
    let line = match instruction {
        Some(offset) => symbols::line(minor, &code.line_table, code.first_line, offset).unwrap_or(0),
        None => code.first_line,
    };
    Frame { file: printable(&code.file), function: printable(&code.function), line }
}

/// Index 0 of a table's routes collects the requests that got no route of their own.
fn route(raw: &RawRoute) -> Route {
    let served = |outcome: usize| Served {
        requests: count(raw.record.requests[outcome]),
        allocated_bytes: amount(raw.record.allocated_bytes[outcome]),
        peak_bytes: amount(raw.record.peak_bytes[outcome]),
        peaks: std::array::from_fn(|bucket| raw.record.peaks[outcome * PEAK_BUCKETS + bucket].into()),
    };
    Route {
        name: if raw.name.is_empty() { "(other routes)".to_owned() } else { printable(&raw.name) },
        served: [served(0), served(1), served(2)],
        durations: raw.record.durations.map(count),
    }
}

/// `routes` was read a moment before: what has happened in between is seen by the next reader.
fn sample(raw: &RawSample, routes: &[Route], requests: u64, look: Option<&Look>) -> Sample {
    let record = &raw.record;
    let owner = match record.owner {
        layout::OWNER_NONE => Owner::Unattributed,
        layout::OWNER_SETTLED => {
            settled(record.route, record.outcome, record.ordinal, routes).map_or(Owner::InFlight, Owner::Request)
        }
        _ => Owner::InFlight,
    };
    let size = count(record.size);
    Sample {
        stack: raw.stack.map(StackId),
        weight: amount(record.weight).max(size as f64),
        size,
        owner,
        born: record.born.min(requests),
        growth: record.flags & layout::FLAG_GROWTH != 0,
        recycled: record.flags & layout::FLAG_RECYCLED != 0,
        phase: Phase::ALL[(record.flags >> layout::PHASE_SHIFT & 3) as usize],
        pins: look.is_some_and(|look| look.pins(record.address)),
    }
}

/// The peak of a request that `routes`, read a moment before, know to have ended.
fn peak(record: &PeakRecord, stack: Option<u32>, routes: &[Route]) -> Option<Peak> {
    Some(Peak {
        request: settled(record.route, record.outcome, record.ordinal, routes)?,
        after: count(record.requests),
        bytes: amount(record.bytes),
        deviation: amount(record.deviation.into()),
        top_bytes: amount(record.top_bytes),
        stack: stack.map(StackId),
        phase: Phase::ALL[record.phase as usize],
        left_bytes: amount(record.left_bytes),
    })
}

/// What a request in flight holds now; at its highest it may have held more.
fn in_flight(record: &PeakRecord, name: &str, snapshot: &Snapshot) -> InFlight {
    let (mut stacks, mut variance): (HashMap<Option<u32>, f64>, f64) = Default::default();
    let is_of_it =
        |raw: &&RawSample| raw.record.owner == layout::OWNER_IN_FLIGHT && raw.record.ordinal == record.ordinal;
    for raw in snapshot.samples.iter().filter(is_of_it) {
        let weight = amount(raw.record.weight);
        *stacks.entry(raw.stack).or_default() += weight;
        variance += layout::variance(raw.record.size, weight);
    }
    let top = stacks.iter().max_by(|one, other| one.1.total_cmp(other.1));
    InFlight {
        route: printable(name),
        phase: Phase::ALL[record.phase as usize],
        bytes: stacks.values().sum(),
        deviation: variance.sqrt(),
        top_bytes: top.map_or(0.0, |(_, bytes)| *bytes),
        stack: top.and_then(|(stack, _)| *stack).map(StackId),
    }
}

fn exchanged(record: &SocketRecord, peer: &reader::Peer) -> Exchanged {
    let passed = |way: usize| Passed {
        bytes: count(record.bytes[way]),
        most: count(record.most_bytes[way]),
        requests: std::array::from_fn(|bucket| record.histograms[way * SOCKET_BUCKETS + bucket].into()),
    };
    Exchanged {
        route: RouteId(record.route),
        outcome: Outcome::ALL[record.outcome as usize],
        peer: match peer {
            reader::Peer::Client => Peer::Client,
            reader::Peer::At(address) => Peer::At(printable(address)),
            reader::Peer::Other => Peer::Other,
        },
        sum: Exchange {
            requests: count(record.requests),
            read: passed(0),
            written: passed(1),
            read_after_client_left: count(record.read_after_client_left),
            most_after_client_left: count(record.most_after_client_left),
        },
    }
}

/// The n-th request of a route and outcome, where such requests have ended.
fn settled(route: u32, outcome: u8, ordinal: u64, routes: &[Route]) -> Option<Settled> {
    let outcome = Outcome::ALL[outcome as usize];
    let ended = routes.get(route as usize)?.served[outcome as usize].requests;
    (ended > 0).then(|| Settled { route: RouteId(route), outcome, ordinal: ordinal.clamp(1, ended) })
}

/// A counter that is larger than anything that ever happened is cut, so that sums of counters stay in range.
fn count(value: u64) -> u64 {
    value.min(1 << 50)
}

/// The same for estimates, which besides may be no number at all.
fn amount(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, (1u64 << 50) as f64) }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn refused(path: &Path, refusal: &Refusal) -> Failure {
    let next = match refusal {
        Refusal::Newer { .. } => "read it with the leakline that wrote it",
        _ => "leave it out, or record a new one with `leakline run`",
    };
    Failure::new(Exit::Damaged, format!("{}: {refusal}", path.display()), next)
}

/// The first `most` bytes of the file, or fewer where it is shorter.
fn read(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    open(path)
        .and_then(|file| file.take(most).read_to_end(&mut bytes))
        .map_err(|error| Failure::io("read", path, &error))?;
    Ok(bytes)
}

/// Opens a file whose name may be anybody's choice: links are not followed, and what is no file is refused rather than
/// waited for.
pub fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}
