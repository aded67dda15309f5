//! The bytes of a table file. Everything is little-endian and naturally aligned; offsets are from the start of the file.
//!
//! ```text
//! 0      Header (4096 bytes), the directory of sections in it
//! 4096   one section after the other, each aligned to 64 bytes:
//!        STRINGS      [len: u32][bytes][padding to 4]…      a StringId is an offset into it, 0 is none
//!        CODES        CodeRecord × n                        a CodeId is an index, 0 is none
//!        STACKS       [count: u32](frame) × count …         a StackId is a word's index, 0 is none
//!            frame of Python      [code: u32][instruction: u32]
//!            frame of native code [NATIVE | module: u32][offset: u32]
//!        ROUTES       RouteRecord × n                       a RouteId is an index, 0 is "no route"
//!        SAMPLES      SampleRecord × n
//!        COLLECTIONS  CollectionRecord × 64, a ring
//!        TICKS        TickRecord × 128
//!        PEAKS        PeakRecord × 64, of requests that have ended, and × 16, of some that are in flight
//!        SOCKETS      SocketRecord × n, a hash table: those in use lie anywhere
//!        MODULES      ModuleRecord × 512                    a ModuleId is an index, 0 is none
//! ```
//!
//! A reader skips sections whose kind it does not know, and refuses a header whose version is newer than its own.

/// The first eight bytes of every table.
pub const MAGIC: [u8; 8] = *b"LEAKLINE";
/// The version of the header. Raised only when an older reader would misread the file.
pub const VERSION: u32 = 1;
/// Bytes of the header, one page.
pub const HEADER_BYTES: usize = 4096;
/// The least file the writer lays out, in bytes.
pub const LEAST_BYTES: usize = 1 << 20;
/// The most, in bytes. Record indices stay far below 2^32.
pub const MOST_BYTES: usize = 1 << 30;
/// Entries of the ring of full collections.
pub const COLLECTIONS: usize = 64;
/// Entries of the history of ticks.
pub const TICKS: usize = 128;
/// Programs and libraries that native frames can lie in, and the one that stands for none.
pub const MODULES: usize = 512;
/// Marks the first word of a native frame in STACKS; the other bits are a ModuleId. The second word is the address less
/// where the module was loaded, so that it is the same in every process: the address as the module's own symbols state
/// it. It lies within the instruction that made the call.
pub const NATIVE: u32 = 1 << 31;
/// Peaks of single requests that are kept when these have ended.
pub const PEAKS: usize = 64;
/// Requests in flight whose peaks are shown, behind those.
pub const PEAKS_IN_FLIGHT: usize = 16;
/// Buckets of the histogram of request peaks: bucket `i` counts requests whose peak was below 2^i KiB.
pub const PEAK_BUCKETS: usize = 24;
/// Buckets of the histograms of what requests read and wrote: bucket `i` counts requests below 2^i bytes.
pub const SOCKET_BUCKETS: usize = 32;
/// Buckets of the histogram of request durations: bucket `i` counts requests below 2^i µs.
pub const DURATIONS: usize = 32;

/// What a section holds; the directory's `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SectionKind {
    /// Counted byte strings.
    Strings = 1,
    /// [`CodeRecord`]s.
    Codes = 2,
    /// Call stacks in words.
    Stacks = 3,
    /// [`RouteRecord`]s.
    Routes = 4,
    /// [`SampleRecord`]s.
    Samples = 5,
    /// [`CollectionRecord`]s.
    Collections = 6,
    /// [`TickRecord`]s.
    Ticks = 7,
    /// [`PeakRecord`]s.
    Peaks = 8,
    /// [`SocketRecord`]s.
    Sockets = 9,
    /// [`ModuleRecord`]s.
    Modules = 10,
}

/// Sections that this version writes, in file order.
pub const SECTIONS: [SectionKind; 10] = [
    SectionKind::Strings,
    SectionKind::Codes,
    SectionKind::Stacks,
    SectionKind::Routes,
    SectionKind::Samples,
    SectionKind::Collections,
    SectionKind::Ticks,
    SectionKind::Peaks,
    SectionKind::Sockets,
    SectionKind::Modules,
];

/// Why something was not recorded; index into [`Header::lost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Loss {
    /// Another thread held the table's lock for too long.
    Contention = 0,
    /// The section of strings was full: names are missing.
    StringsFull = 1,
    /// The section of code objects was full.
    CodesFull = 2,
    /// The section of stacks was full: samples without a stack.
    StacksFull = 3,
    /// More routes than the table holds; the rest are counted without a route of their own.
    RoutesFull = 4,
    /// More requests in flight than the agent follows.
    RequestsFull = 5,
    /// Samples given up, at random, to make room (the others' weights were raised for it).
    Thinned = 6,
    /// An address came back while its sample still stood: its free was not seen.
    FreeUnseen = 7,
    /// Samples whose Python frames could not be read.
    NoPythonStack = 8,
    /// Places of servers or frameworks that could not be instrumented.
    ShimFailures = 9,
    /// What a request exchanged with a peer, where there was no room to count it.
    SocketsFull = 10,
    /// More libraries than the table holds: native frames without one are left out.
    ModulesFull = 11,
    /// Native stacks that could not be followed: code without tables for unwinding, as it is made at run time.
    NativeStackCut = 12,
    /// Memory that libraries map: more mappings than the agent follows, or one that was cut in two, of which the rear
    /// part is followed no more.
    MappingsLost = 13,
    /// Samples of what runs in another interpreter than the main one: which requests it serves is not seen.
    OtherInterpreters = 14,
}

/// How many causes [`Header::lost`] has room for.
pub const LOSSES: usize = 16;

/// The names of the losses in reports, by [`Loss`].
pub const LOSS_NAMES: [&str; 15] = [
    "contention",
    "strings_full",
    "codes_full",
    "stacks_full",
    "routes_full",
    "requests_full",
    "thinned",
    "free_unseen",
    "no_python_stack",
    "shim_failures",
    "sockets_full",
    "modules_full",
    "native_stack_cut",
    "mappings_lost",
    "other_interpreters",
];

/// Makes a `repr(C)` record and its decoder from bytes, so that the reader needs no `unsafe` and both halves share one
/// list of fields. The size is asserted where the record is declared.
macro_rules! record {
    ($(#[$meta:meta])* $name:ident, $bytes:literal { $($(#[$doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub struct $name { $($(#[$doc])* pub $field: $type,)* }

        const _: () = assert!(std::mem::size_of::<$name>() == $bytes);

        impl $name {
            /// Bytes of one record.
            pub const BYTES: usize = $bytes;

            /// Reads a record from its bytes; `None` where there are too few.
            pub fn decode(bytes: &[u8]) -> Option<Self> {
                if bytes.len() < Self::BYTES {
                    return None;
                }
                Some(Self { $($field: <$type as $crate::layout::Field>::at(bytes, std::mem::offset_of!($name, $field)),)* })
            }
        }
    };
}

pub(crate) use record;

/// A type that stands in a record.
pub(crate) trait Field: Copy {
    /// Reads the value at `offset`; the caller has checked that the bytes are there.
    fn at(bytes: &[u8], offset: usize) -> Self;
}

macro_rules! field {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn at(bytes: &[u8], offset: usize) -> Self {
                let mut raw = [0; std::mem::size_of::<$type>()];
                let length = raw.len();
                raw.copy_from_slice(&bytes[offset..offset + length]);
                <$type>::from_le_bytes(raw)
            }
        }
    )*};
}

field!(u8, u32, u64, f32, f64);

impl<T: Field + Default, const N: usize> Field for [T; N] {
    fn at(bytes: &[u8], offset: usize) -> Self {
        let mut all = [T::default(); N];
        for (index, value) in all.iter_mut().enumerate() {
            *value = T::at(bytes, offset + index * std::mem::size_of::<T>());
        }
        all
    }
}

record! {
    /// An entry of the directory.
    SectionEntry, 32 {
        /// A [`SectionKind`], or one that this version does not know; 0 ends the directory.
        kind: u32,
        /// Version of the section's records.
        version: u32,
        /// Where the section starts, bytes from the start of the file.
        offset: u64,
        /// Its length, bytes.
        bytes: u64,
        /// Bytes of one record; 1 for byte arenas, 4 for word arenas.
        record_bytes: u32,
        /// How many records (bytes, words) have ever been in use: what lies behind is untouched.
        used: u32,
    }
}

/// Entries of the directory.
pub const DIRECTORY: usize = 16;

impl Field for SectionEntry {
    fn at(bytes: &[u8], offset: usize) -> Self {
        Self::decode(&bytes[offset..]).unwrap_or(Self::EMPTY)
    }
}

impl Default for SectionEntry {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl SectionEntry {
    /// The entry that ends a directory.
    pub const EMPTY: Self = Self { kind: 0, version: 0, offset: 0, bytes: 0, record_bytes: 0, used: 0 };
}

record! {
    /// How the command asks the agent for a heap snapshot, which becomes a file beside the table, see [`crate::heap`]. The
    /// command writes `most_bytes` and `most_seconds`, raises `wanted` and wakes whoever waits for it (`futex`); the agent
    /// makes the snapshot, writes the rest, and `answered` last.
    SnapshotCall, 40 {
        /// 1 while somebody waits for a call.
        listening: u32,
        /// Raised by the command.
        wanted: u32,
        /// The call that was answered last.
        answered: u32,
        /// Why there is no snapshot, 0 where there is one: the exit code of the child that was to write it
        /// ([`crate::heap::Ending`]), 128 and the signal that ended it, or 256 and the error number of `clone`.
        error: u32,
        /// How long the server stood still, ns.
        pause_ns: u64,
        /// Bytes that the file may have.
        most_bytes: u64,
        /// Seconds that the child may take.
        most_seconds: u32,
        /// 1 while `leakline run`, which has seen the signal that ends the server, may be about to call: the process does
        /// not end before it is 0 again, for [`MOST_EXPECTED_MS`] at most.
        expected: u32,
    }
}

/// How long a process that ends waits for a call that it was told to expect, ms.
pub const MOST_EXPECTED_MS: u32 = 3000;

impl Field for SnapshotCall {
    fn at(bytes: &[u8], offset: usize) -> Self {
        Self::decode(&bytes[offset..]).unwrap_or(Self::NONE)
    }
}

impl SnapshotCall {
    const NONE: Self = Self {
        listening: 0,
        wanted: 0,
        answered: 0,
        error: 0,
        pause_ns: 0,
        most_bytes: 0,
        most_seconds: 0,
        expected: 0,
    };
}

record! {
    /// The first page of the file.
    Header, 4096 {
        /// [`MAGIC`].
        magic: [u8; 8],
        /// [`VERSION`].
        version: u32,
        /// The process that writes.
        pid: u32,
        /// The length of the file, bytes.
        file_bytes: u64,
        /// When the process started, clock ticks since boot (field 22 of `/proc/PID/stat`): with the pid it names a
        /// process for good.
        process_start_ticks: u64,
        /// When the table was made, ns since the Unix epoch.
        created_ns: u64,
        /// When the agent last wrote a tick, ns since the Unix epoch.
        updated_ns: u64,
        /// `PY_VERSION_HEX` of the interpreter.
        python_version: u32,
        /// The process's parent when the table was made.
        parent: u32,
        /// The server that the shim found, a string.
        server: u32,
        /// The command line, NUL-separated, a string.
        command: u32,
        /// The mean distance between samples in force, bytes, where what is allocated stays; elsewhere it is longer.
        interval_bytes: f64,
        /// Samples taken since the start.
        samples_taken: u64,
        /// Estimated bytes allocated in all.
        allocated_bytes: f64,
        /// Estimated bytes allocated outside of any request.
        unattributed_allocated_bytes: f64,
        /// Requests of any route that have ended.
        requests: u64,
        /// Requests in flight.
        requests_open: u64,
        /// Runs of the collector over all generations.
        full_collections: u64,
        /// Entries of TICKS in use.
        ticks: u32,
        /// Seconds that one tick stands for; doubles whenever the section is full.
        tick_seconds: u32,
        /// Resident set at the last tick, bytes.
        rss_bytes: u64,
        /// The highest resident set until the last tick, bytes.
        rss_peak_bytes: u64,
        /// Time that the agent's slow path has taken, ns.
        agent_ns: u64,
        /// Losses by [`Loss`].
        lost: [u64; 16],
        /// The sections.
        directory: [SectionEntry; 16],
        /// When the process ended by itself, or the agent left it, ns since the Unix epoch.
        ended_ns: u64,
        /// 1: every way to end by itself is seen, so a process that is gone and has not written `ended_ns` was killed.
        tells_end: u64,
        /// 1: at the last tick the collector was switched off, so that nobody frees garbage in cycles.
        collector_is_off: u64,
        /// Zero.
        reserved: [u64; 405],
        /// How the command asks for a heap snapshot.
        snapshot: SnapshotCall,
    }
}

record! {
    /// A code object: what a frame is called and how its lines are found.
    CodeRecord, 16 {
        /// `co_filename`, a string.
        file: u32,
        /// `co_qualname` where there is one (3.11 and later), else `co_name`; a string.
        function: u32,
        /// `co_linetable` (3.10 and later) or `co_lnotab`, verbatim; a string.
        line_table: u32,
        /// `co_firstlineno`.
        first_line: u32,
    }
}

/// [`ModuleRecord::flags`]: holds CPython itself.
pub const MODULE_INTERPRETER: u32 = 1;
/// [`ModuleRecord::flags`]: provides malloc.
pub const MODULE_ALLOCATOR: u32 = 2;

record! {
    /// A program or library that was loaded in the process.
    ModuleRecord, 16 {
        /// Where the loader found it, a string.
        path: u32,
        /// Its build-id, as many bytes as it has; a string.
        build_id: u32,
        /// [`MODULE_INTERPRETER`] and its like.
        flags: u32,
        /// Zero.
        reserved: u32,
    }
}

record! {
    /// A route and what its requests did, by outcome (ok, error, aborted).
    RouteRecord, 624 {
        /// `GET /data/<id>`, a string.
        name: u32,
        /// Zero.
        reserved: u32,
        /// Requests that ended.
        requests: [u64; 3],
        /// Estimated bytes that they allocated.
        allocated_bytes: [f64; 3],
        /// Histogram of their durations, see [`DURATIONS`].
        durations: [u64; 32],
        /// The highest peak of one request, bytes, by outcome.
        peak_bytes: [f64; 3],
        /// Histogram of the requests' peaks, see [`PEAK_BUCKETS`]; one after the other by outcome.
        peaks: [u32; 72],
    }
}

/// The phase of a request in which something was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Until the handler has returned its response.
    Handler = 0,
    /// While the response's body is made and sent.
    Streaming = 1,
    /// In `close()` of the response.
    Closing = 2,
    /// Work that carries the request's context on after it has ended.
    After = 3,
}

/// [`SampleRecord::flags`]: where the [`Phase`] stands, two bits.
pub const PHASE_SHIFT: u8 = 5;

/// [`SampleRecord::owner`]: allocated outside of any request.
pub const OWNER_NONE: u8 = 0;
/// [`SampleRecord::owner`]: allocated for a request that is in flight.
pub const OWNER_IN_FLIGHT: u8 = 1;
/// [`SampleRecord::owner`]: allocated for a request that has ended.
pub const OWNER_SETTLED: u8 = 2;

/// [`SampleRecord::flags`]: bytes that realloc added to an existing block.
pub const FLAG_GROWTH: u8 = 1;
/// [`SampleRecord::flags`]: revived from a free list; the stack is the first life's.
pub const FLAG_RECYCLED: u8 = 2;
/// [`SampleRecord::flags`]: lies dead on one of CPython's free lists; not live.
pub const FLAG_PARKED: u8 = 4;
/// [`SampleRecord::flags`]: served by pymalloc, so it may be an object that a free list takes.
pub const FLAG_SMALL: u8 = 8;
/// [`SampleRecord::flags`]: from Python's allocator of objects, so that what it holds may be read as an object.
pub const FLAG_OBJECT: u8 = 16;

record! {
    /// A sampled block (or growth of a block) that has not been freed.
    SampleRecord, 64 {
        /// 0: not in use. Written last when a sample is made, first when it goes.
        live: u32,
        /// A StackId.
        stack: u32,
        /// Where the block lies; 0 for growth, which belongs to another sample's block.
        address: u64,
        /// Bytes of the block, or bytes added.
        size: u64,
        /// Unbiased estimate of the bytes it stands for.
        weight: f64,
        /// Its request was the n-th of its route and outcome, from 1; as long as that is in flight, a number from 1 that no
        /// other one in flight has.
        ordinal: u64,
        /// Requests of any route that had ended when it was allocated.
        born: u64,
        /// A RouteId.
        route: u32,
        /// Outcome: 0 ok, 1 error, 2 aborted.
        outcome: u8,
        /// Who it belongs to, [`OWNER_NONE`] and its like.
        owner: u8,
        /// [`FLAG_GROWTH`] and its like.
        flags: u8,
        /// How often it has been looked at since its request ended.
        looks: u8,
        /// What the block held when it was first looked at, see the agent's `life`.
        mark: u64,
    }
}

/// The variance of what a sample of `size` bytes stands for, bytes squared. A block of z bytes that is sampled with the chance p
/// stands for w = z / p of them, and w² (1 - p) estimates the variance of that (Horvitz and Thompson 1952).
pub fn variance(size: u64, weight: f64) -> f64 {
    weight * (weight - size as f64).max(0.0)
}

record! {
    /// A run of the cyclic collector over all generations.
    CollectionRecord, 16 {
        /// Requests of any route that had ended.
        requests: u64,
        /// When it was noticed, ns since the Unix epoch.
        time_ns: u64,
    }
}

record! {
    /// The process at one moment.
    TickRecord, 32 {
        /// ns since the Unix epoch.
        time_ns: u64,
        /// Requests of any route that had ended.
        requests: u64,
        /// Resident set, bytes.
        rss_bytes: u64,
        /// The sampling interval in force, bytes; doubled whenever the table was thinned since, as the weights of that
        /// time's samples are.
        interval_bytes: f64,
    }
}

record! {
    /// What one request held at its highest, for the requests that held most.
    PeakRecord, 64 {
        /// Estimated bytes that were live at the peak; 0 where the record is not in use.
        bytes: f64,
        /// Of those, the bytes of the stack that had most.
        top_bytes: f64,
        /// That stack, a StackId.
        top_stack: u32,
        /// A RouteId; 0 where the request is in flight.
        route: u32,
        /// The request was the n-th of its route and outcome; of one in flight, what its samples have there.
        ordinal: u64,
        /// Requests of any route that had ended by then.
        requests: u64,
        /// Estimated bytes of the request that were still live when it ended.
        left_bytes: f64,
        /// Outcome: 0 ok, 1 error, 2 aborted.
        outcome: u8,
        /// The [`Phase`] at the peak.
        phase: u8,
        /// Zero.
        reserved: [u8; 2],
        /// Standard deviation of `bytes`, bytes.
        deviation: f32,
        /// Of a request in flight: its route, as far as that is known, a string. 0 where the request has ended.
        name: u32,
    }
}

/// [`SocketRecord::peer`]: the clients of the server.
pub const PEER_CLIENT: u32 = 0;
/// [`SocketRecord::peer`]: all peers that there was no room to tell apart.
pub const PEER_OTHER: u32 = u32::MAX;

record! {
    /// What the requests of one route and outcome exchanged with one peer. Where there are two numbers, the first is what
    /// was read, and the second what was written.
    SocketRecord, 328 {
        /// Requests that exchanged anything with it.
        requests: u64,
        /// Bytes in all.
        bytes: [u64; 2],
        /// Bytes that were read after the request's client had left.
        read_after_client_left: u64,
        /// The most of one request, bytes.
        most_bytes: [u64; 2],
        /// Of the request that read most: what it read after its client had left, bytes.
        most_after_client_left: u64,
        /// The peer's address, a string, or [`PEER_CLIENT`] or [`PEER_OTHER`].
        peer: u32,
        /// A RouteId.
        route: u32,
        /// 0: not in use.
        live: u32,
        /// Outcome: 0 ok, 1 error, 2 aborted.
        outcome: u8,
        /// Zero.
        reserved: [u8; 3],
        /// Histograms of the bytes by request, see [`SOCKET_BUCKETS`]: of those read, then of those written.
        histograms: [u32; 64],
    }
}

/// Where the sections of a file of `file_bytes` lie. Shares of the file: strings 1/8, codes 1/16, stacks 1/2, routes
/// 1/32, samples 1/32, sockets 1/128; what is left over stays a hole.
pub fn directory(file_bytes: usize) -> [SectionEntry; DIRECTORY] {
    let mut entries = [SectionEntry::EMPTY; DIRECTORY];
    let mut offset = HEADER_BYTES;
    for (entry, kind) in entries.iter_mut().zip(SECTIONS) {
        let (bytes, record_bytes) = match kind {
            SectionKind::Strings => (file_bytes / 8, 1),
            SectionKind::Codes => (file_bytes / 16, CodeRecord::BYTES),
            SectionKind::Stacks => (file_bytes / 2, 4),
            SectionKind::Routes => (file_bytes / 32, RouteRecord::BYTES),
            SectionKind::Samples => (file_bytes / 32, SampleRecord::BYTES),
            SectionKind::Collections => (COLLECTIONS * CollectionRecord::BYTES, CollectionRecord::BYTES),
            SectionKind::Ticks => (TICKS * TickRecord::BYTES, TickRecord::BYTES),
            SectionKind::Peaks => ((PEAKS + PEAKS_IN_FLIGHT) * PeakRecord::BYTES, PeakRecord::BYTES),
            SectionKind::Sockets => (file_bytes / 128, SocketRecord::BYTES),
            SectionKind::Modules => (MODULES * ModuleRecord::BYTES, ModuleRecord::BYTES),
        };
        let bytes = bytes / record_bytes * record_bytes;
        *entry = SectionEntry {
            kind: kind as u32,
            version: 1,
            offset: offset as u64,
            bytes: bytes as u64,
            record_bytes: record_bytes as u32,
            used: 0,
        };
        offset = (offset + bytes).next_multiple_of(64);
    }
    entries
}
