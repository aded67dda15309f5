//! The bytes of a heap snapshot: every object of a Python at one moment, with what it refers to.
//!
//! ```text
//! 0      HeapHeader (128 bytes); `complete` is written last
//! 128    object, object, …, 0, lost, lost, …, 0
//!
//! object    what + 1        what it has, see `HAS_…`, `IS_…`, BUFFERS_SHIFT      (0 would end the stream)
//!           address         the distance to the last object's address, in units of 8 bytes, zigzag
//!           type            an index; the next one that is not in use yet is followed by its name
//!           references      ob_refcnt; 0 for an immortal object
//!           bytes           of the object itself, what stands in front of its address included
//!           front           of these, the bytes in front of its address (the collector's head, managed dicts)
//!           [length]        items that it holds
//!           [bound]         items that it holds at most
//!           [label]         what it is called: a module's, class's or function's name
//!           buffers         each: distance of its address to the object's, zigzag, then its bytes
//!           edges
//! edges     0               no more edges
//!           1 target run    `run + 1` times in a row the same object, without a name
//!           2 most          the last edge's name is one of LIMITED, and this is the number that it leads to
//!           name + 3 target an attribute, key or variable; the next name that is not in use yet is followed by its text
//! target    the distance to the last target's address in this object, in units of 8 bytes, zigzag; the first one to the
//!           object's own
//! lost      a sampled block that nothing points to: the distance to the last one's address, in units of 8 bytes; the first
//!           one to 0
//! ```
//!
//! Numbers are unsigned LEB128 (seven bits a byte, the lowest first, the eighth says that more follow); zigzag maps 0, -1,
//! 1, -2 to 0, 1, 2, 3. Texts are a number of bytes and the bytes.

mod read;
mod write;

pub use read::{Edge, Heap, HeapObject, Limit, header};
pub use write::{Buffer, Encoder, Name, ObjectHead, Sink, TypeName};

/// The first eight bytes of every snapshot.
pub const MAGIC: [u8; 8] = *b"LEAKHEAP";
/// Raised when an older reader would misread the file.
pub const VERSION: u32 = 3;

/// [`ObjectHead::length`] is there.
pub const HAS_LENGTH: u64 = 1;
/// [`ObjectHead::bound`] is there.
pub const HAS_BOUND: u64 = 2;
/// [`ObjectHead::label`] is there.
pub const HAS_LABEL: u64 = 4;
/// The collector tracks the object.
pub const IS_TRACKED: u64 = 8;
/// The object is a class.
pub const IS_CLASS: u64 = 16;
/// Where the number of buffers begins.
pub const BUFFERS_SHIFT: u32 = 5;
/// Buffers that an object has at most.
pub const MOST_BUFFERS: usize = 2;
/// Bytes of a name or label at most; what is longer is cut.
pub const TEXT_BYTES: usize = 120;

/// Names of an attribute (or of a module's variable) that says how many items the attribute beside it holds at most: caches
/// that are written in Python. These are the only numbers of the server's that a snapshot holds.
pub const LIMITED: [(&str, &str); 7] = [
    // cachetools.Cache
    ("_Cache__maxsize", "_Cache__data"),
    // Django's django.core.cache.backends.locmem
    ("_max_entries", "_cache"),
    // SQLAlchemy's sqlalchemy.util.LRUCache (which lets itself grow half as large again), and Jinja's jinja2.utils.LRUCache
    ("capacity", "_data"),
    ("capacity", "_mapping"),
    // The standard library's re, and urllib.parse until 3.10
    ("_MAXCACHE", "_cache"),
    ("_MAXCACHE2", "_cache2"),
    ("MAX_CACHE_SIZE", "_parse_cache"),
];

/// What came of the search for sampled blocks that nothing points to; [`HeapHeader::search`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Search {
    /// The samples, or the list of what the process has mapped, could not be read.
    Impossible = 0,
    /// All memory was looked through.
    Done = 1,
    /// There was too much memory for the time.
    OutOfTime = 2,
}

/// How the child that writes a snapshot ends; its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// The snapshot is there.
    Done = 0,
    /// Its file could not be made.
    NoFile = 10,
    /// It would have become larger than it may.
    TooLarge = 11,
    /// The file could not be written to its end.
    NotWritten = 12,
    /// There was no memory for the child's own notes.
    NoMemory = 13,
}

crate::layout::record! {
    /// The beginning of the file.
    HeapHeader, 128 {
        /// [`MAGIC`].
        magic: [u8; 8],
        /// [`VERSION`].
        version: u32,
        /// The process.
        pid: u32,
        /// When it started, clock ticks since boot.
        process_start_ticks: u64,
        /// When the snapshot was taken, ns since the Unix epoch.
        taken_ns: u64,
        /// Requests of any route that had ended by then.
        requests: u64,
        /// `PY_VERSION_HEX` of the interpreter.
        python_version: u32,
        /// 1 when all has been written.
        complete: u32,
        /// Objects in the stream.
        objects: u64,
        /// Edges in the stream, those in runs counted singly.
        edges: u64,
        /// Bytes of the stream.
        stream_bytes: u64,
        /// Names that had no room, so that edges go without.
        names_dropped: u64,
        /// Bytes of the collector's head.
        collector_head: u64,
        /// Processor time that it took to find and write the objects, ns.
        walk_ns: u64,
        /// Was there a search for blocks that nothing points to: a [`Search`].
        search: u64,
        /// Sampled blocks that were searched for.
        searched: u64,
        /// Of these, those that nothing points to.
        lost: u64,
        /// Interpreters whose objects are in the stream; 0 where an older agent wrote it.
        interpreters: u32,
        /// Interpreters with a GIL of their own, whose objects are not: they may change at any moment.
        interpreters_left_out: u32,
    }
}
