//! Turns allocations, frees and requests into records of a table. One writer at a time: the agent holds its lock.
//!
//! Nothing here allocates, blocks or panics by design: all memory is given at the start, every index that was made here
//! is checked where it is used, and what has no room is counted as lost ([`Loss`]).
//!
//! - `names` interns strings, code objects, stacks, modules and routes.
//! - `samples` holds the live samples and finds them by address.
//! - `requests` follows requests from their beginning to their end, when their samples are settled.
//! - `places` knows how much of what a place allocates stays.
//! - `peaks` keeps what requests held at their highest.
//! - `sockets` counts what they exchanged, and with whom.

mod memory;
mod names;
mod peaks;
mod places;
mod requests;
mod samples;
mod sockets;
mod watch;

pub use memory::Filter;
pub use names::{CodeKey, CodeText};
pub use places::{MOST_SPARING, PLACES};
pub use requests::{Ending, IN_FLIGHT, Life, slot};
pub use samples::{Birth, Transit};
pub use sockets::Way;

use crate::layout::{
    self, COLLECTIONS, CollectionRecord, HEADER_BYTES, Header, LOSSES, Loss, MAGIC, PeakRecord, SectionEntry,
    SectionKind, SocketRecord, TICKS, TickRecord, VERSION,
};
use memory::Carver;
use names::Names;
use requests::Requests;
use samples::Samples;

/// Who writes: what the header says of the process.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'o> {
    /// The process.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// When it started, clock ticks since boot.
    pub process_start_ticks: u64,
    /// Now, ns since the Unix epoch.
    pub now_ns: u64,
    /// `PY_VERSION_HEX`.
    pub python_version: u32,
    /// The command line, words separated by NUL.
    pub command: &'o [u8],
    /// The mean distance between samples to begin with, bytes.
    pub interval_bytes: f64,
}

/// The process at one moment, as the agent sees it about once a second.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// ns since the Unix epoch.
    pub time_ns: u64,
    /// Resident set, bytes.
    pub rss_bytes: u64,
    /// The highest resident set so far, bytes.
    pub rss_peak_bytes: u64,
    /// The cyclic collector; `None` where it can't be asked.
    pub collector: Option<Collector>,
    /// Time spent in the agent's slow path so far, ns.
    pub agent_ns: u64,
}

/// The cyclic collector at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Collector {
    /// Runs over all generations so far.
    pub full_runs: u64,
    /// It is switched off.
    pub is_off: bool,
}

/// The writer half of a table.
pub struct Writer<'a> {
    header: &'a mut Header,
    names: Names<'a>,
    samples: Samples<'a>,
    requests: Requests<'a>,
    collections: &'a mut [CollectionRecord],
    ticks: &'a mut [TickRecord],
    peaks: &'a mut [PeakRecord],
    sockets: &'a mut [SocketRecord],
    /// Addresses of peers that were written down.
    peers: u32,
    filter: &'a Filter,
    random: Random,
}

impl<'a> Writer<'a> {
    /// Bytes of private memory that [`Writer::create`] wants for a file of this length.
    pub fn private_bytes(file_bytes: usize) -> usize {
        let directory = layout::directory(file_bytes);
        let samples = records(&directory, SectionKind::Samples);
        Samples::private_bytes(samples) + Names::private_bytes(samples) + Requests::private_bytes() + 4096
    }

    /// Lays a new table out in `file`, which must be zero and aligned to a page, with `private` (zero, as many bytes as
    /// [`Writer::private_bytes`] says) for what a reader has no use for. `None` where the sizes do not fit.
    pub fn create(file: &'a mut [u8], private: &'a mut [u8], filter: &'a Filter, origin: &Origin<'_>) -> Option<Self> {
        let file_bytes = file.len();
        if !(layout::LEAST_BYTES..=layout::MOST_BYTES).contains(&file_bytes) {
            return None;
        }
        let directory = layout::directory(file_bytes);
        let mut file = Carver::new(file);
        let header = file.take::<Header>(1)?.first_mut()?;
        debug_assert_eq!(size_of::<Header>(), HEADER_BYTES);
        let strings = file.section(&directory, SectionKind::Strings)?;
        let codes = file.section(&directory, SectionKind::Codes)?;
        let stacks = file.section(&directory, SectionKind::Stacks)?;
        let routes = file.section(&directory, SectionKind::Routes)?;
        let samples = file.section(&directory, SectionKind::Samples)?;
        let collections = file.section(&directory, SectionKind::Collections)?;
        let ticks = file.section(&directory, SectionKind::Ticks)?;
        let peaks = file.section(&directory, SectionKind::Peaks)?;
        let sockets = file.section(&directory, SectionKind::Sockets)?;
        let modules = file.section(&directory, SectionKind::Modules)?;

        let mut private = Carver::new(private);
        let count = samples.len();
        let mut writer = Self {
            header,
            names: Names::new(strings, codes, stacks, routes, modules, &mut private, count)?,
            samples: Samples::new(samples, &mut private)?,
            requests: Requests::new(&mut private, origin.now_ns)?,
            collections,
            ticks,
            peaks,
            sockets,
            peers: 0,
            filter,
            random: Random::new(origin.now_ns ^ u64::from(origin.pid) << 32),
        };
        filter.clear();
        writer.header.version = VERSION;
        writer.header.pid = origin.pid;
        writer.header.parent = origin.parent;
        writer.header.file_bytes = file_bytes as u64;
        writer.header.process_start_ticks = origin.process_start_ticks;
        writer.header.created_ns = origin.now_ns;
        writer.header.updated_ns = origin.now_ns;
        writer.header.python_version = origin.python_version;
        writer.header.interval_bytes = origin.interval_bytes;
        writer.header.tick_seconds = 1;
        writer.header.directory = directory;
        // Index 0 of codes, routes and modules stands for "none".
        writer.entry(SectionKind::Codes).used = 1;
        writer.entry(SectionKind::Routes).used = 1;
        writer.entry(SectionKind::Modules).used = 1;
        writer.header.command = writer.string(origin.command);
        writer.publish_names();
        // The magic comes last: a file without it is no table yet.
        writer.header.magic = MAGIC;
        Some(writer)
    }

    /// The mean distance between samples in force, bytes. Raised here when the table thins what it holds.
    pub fn interval_bytes(&self) -> f64 {
        self.header.interval_bytes
    }

    /// Sets the mean distance between samples, bytes.
    pub fn set_interval_bytes(&mut self, interval: f64) {
        self.header.interval_bytes = interval;
    }

    /// The mean distance between samples of blocks of `bytes` at a place, bytes: longer where little of what the place
    /// allocates stays.
    pub fn interval_at(&self, place: u16, bytes: f64) -> f64 {
        self.samples.places.interval(place, bytes, self.header.interval_bytes)
    }

    /// How many times longer [`Writer::interval_at`] may become: from 1, where no sample has to be spared, to
    /// [`MOST_SPARING`], at first.
    pub fn spare(&mut self, most: f64) {
        self.samples.places.spare(most);
    }

    /// Names the server; the first name stays.
    pub fn name_server(&mut self, name: &[u8]) {
        if self.header.server == 0 {
            self.header.server = self.string(name);
            self.publish_names();
        }
    }

    /// Requests of any route that have ended.
    pub fn requests(&self) -> u64 {
        self.header.requests
    }

    /// From now on [`Writer::ended`] will be called, whichever way the process ends by itself.
    pub fn tells_end(&mut self) {
        self.header.tells_end = 1;
    }

    /// The process ends by itself, or the agent leaves it; the first moment stays.
    pub fn ended(&mut self, now_ns: u64) {
        if self.header.ended_ns == 0 {
            self.header.ended_ns = now_ns;
        }
    }

    /// Counts a loss.
    pub fn lose(&mut self, cause: Loss) {
        self.lose_many(cause, 1);
    }

    fn lose_many(&mut self, cause: Loss, count: u64) {
        const { assert!(layout::LOSS_NAMES.len() <= LOSSES) };
        self.header.lost[cause as usize] += count;
    }

    /// Writes down the process's state. Full collections that happened since the last moment are noted with the number
    /// of requests that had ended. When the history is full, every second tick goes and ticks come half as often.
    pub fn tick(&mut self, moment: &Moment) {
        let requests = self.header.requests;
        let full_runs = moment.collector.map_or(0, |collector| collector.full_runs);
        while self.header.full_collections < full_runs {
            let record = CollectionRecord { requests, time_ns: moment.time_ns };
            // More runs than the ring has entries would only overwrite one another.
            let behind = full_runs - self.header.full_collections;
            self.header.full_collections += behind.saturating_sub(COLLECTIONS as u64).max(1);
            let at = (self.header.full_collections - 1) as usize % COLLECTIONS;
            if let Some(slot) = self.collections.get_mut(at) {
                *slot = record;
            }
            self.entry(SectionKind::Collections).used = self.header.full_collections.min(COLLECTIONS as u64) as u32;
        }
        if let Some(collector) = moment.collector {
            self.header.collector_is_off = u64::from(collector.is_off);
        }
        self.header.updated_ns = moment.time_ns;
        self.header.rss_bytes = moment.rss_bytes;
        self.header.rss_peak_bytes = self.header.rss_peak_bytes.max(moment.rss_peak_bytes);
        self.header.agent_ns = moment.agent_ns;

        let used = self.header.ticks as usize;
        let last = used.checked_sub(1).and_then(|at| self.ticks.get(at)).map_or(0, |tick| tick.time_ns);
        // A fifth of a second of slack: ticks come with requests, not with a clock.
        let due = last + u64::from(self.header.tick_seconds) * 1_000_000_000 - 200_000_000;
        if used > 0 && moment.time_ns < due {
            return;
        }
        if used == TICKS {
            for kept in 0..TICKS / 2 {
                self.ticks[kept] = self.ticks[2 * kept];
            }
            self.header.ticks = TICKS as u32 / 2;
            self.header.tick_seconds *= 2;
        }
        let at = self.header.ticks as usize;
        if let Some(tick) = self.ticks.get_mut(at) {
            *tick = TickRecord {
                time_ns: moment.time_ns,
                requests,
                rss_bytes: moment.rss_bytes,
                interval_bytes: self.header.interval_bytes,
            };
            self.header.ticks += 1;
        }
        self.entry(SectionKind::Ticks).used = self.header.ticks;
    }

    fn entry(&mut self, kind: SectionKind) -> &mut SectionEntry {
        // SECTIONS lists the kinds in the order of their numbers, from 1.
        &mut self.header.directory[kind as usize - 1]
    }

    /// The id of a code object that was written down before.
    pub fn known_code(&self, key: CodeKey) -> Option<u32> {
        self.names.known_code(key)
    }

    /// Writes a code object down. Returns 0 where there is no room, and counts the loss.
    pub fn code(&mut self, key: CodeKey, text: &CodeText<'_>) -> u32 {
        let id = self.names.code(key, text).unwrap_or_else(|full| {
            self.lose(full);
            0
        });
        self.publish_names();
        id
    }

    /// The id of a program or library, given its path, its build-id and `MODULE_INTERPRETER` and its like. Returns 0
    /// where there is no room, and counts the loss.
    pub fn module(&mut self, path: &[u8], build_id: &[u8], flags: u32) -> u32 {
        let id = self.names.module(path, build_id, flags).unwrap_or_else(|full| {
            self.lose(full);
            0
        });
        self.publish_names();
        id
    }

    /// The id of a stack, the innermost frame first: (code, instruction) for a frame of Python, (`NATIVE` | module,
    /// offset) for one of native code. Returns 0 where there is no room, and counts the loss.
    pub fn stack(&mut self, frames: &[[u32; 2]]) -> u32 {
        if frames.is_empty() {
            return 0;
        }
        let id = self.names.stack(frames).unwrap_or_else(|| {
            self.lose(Loss::StacksFull);
            0
        });
        let used = self.names.used().stacks;
        self.entry(SectionKind::Stacks).used = used;
        id
    }

    /// Interns a string and counts the loss when there is no room.
    fn string(&mut self, bytes: &[u8]) -> u32 {
        self.names.string(bytes).unwrap_or_else(|| {
            self.lose(Loss::StringsFull);
            0
        })
    }

    /// Tells readers how far the sections of names are filled.
    fn publish_names(&mut self) {
        let used = self.names.used();
        self.entry(SectionKind::Strings).used = used.strings;
        self.entry(SectionKind::Codes).used = used.codes;
        self.entry(SectionKind::Stacks).used = used.stacks;
        self.entry(SectionKind::Routes).used = used.routes;
        self.entry(SectionKind::Modules).used = used.modules;
    }
}

fn records(directory: &[SectionEntry], kind: SectionKind) -> usize {
    directory[kind as usize - 1].bytes as usize / directory[kind as usize - 1].record_bytes as usize
}

/// xorshift64*, for coin flips and distances: fast, small, and good enough for sampling (Vigna 2016).
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator from a seed; any seed will do.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Exponential with mean 1. The logarithm is taken apart into that of a power of two and that of a number m in
    /// [1, 2), which is the series 2 (s + s³/3 + s⁵/5 + …) of s = (m - 1) / (m + 1): the library's own is seldom in the
    /// processor's caches when a sample is drawn.
    pub fn exponential(&mut self) -> f64 {
        const MANTISSA: u32 = f64::MANTISSA_DIGITS - 1;
        let unit = self.unit().to_bits();
        let power = 1023 - (unit >> MANTISSA) as i64;
        let m = f64::from_bits(unit & ((1 << MANTISSA) - 1) | 1023 << MANTISSA);
        let s = (m - 1.0) / (m + 1.0);
        let series = (0..10).rev().fold(0.0, |sum, term| sum * s * s + 1.0 / f64::from(2 * term + 1));
        (power as f64 * std::f64::consts::LN_2 - 2.0 * s * series).max(0.0)
    }

    /// True half of the time.
    pub fn coin(&mut self) -> bool {
        self.bits() >> 63 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn exponential_numbers_are_logarithms_of_uniform_ones() {
        let (mut one, mut other) = (Random::new(7), Random::new(7));
        for _ in 0..100_000 {
            let (exponential, expected) = (one.exponential(), -other.unit().ln());
            assert!((exponential - expected).abs() < 1e-9, "{exponential} is not {expected}");
        }
    }
}
