//! What the command and an agent that it has brought into a running process tell each other: one structure in the agent's
//! memory, found by its name ([`SYMBOL`]), which the command reads and writes from outside while the process is stopped.
//!
//! ```text
//!    0  version       4   of this structure
//!    4  state         4   `State`; written by the agent
//!    8  next        264   where each of `FUNCTIONS` goes on below our hook; written by the command
//!  272  stubs         8   the page of jumps that the command has made in the process, 0 before it has
//!  280  table_bytes   8   ┐
//!  288  budget        8   │ how to record, see the agent's `config`; written by the command. `budget` is the bits of
//!  296  exact         8   │ an f64
//!  304  native        8   │
//!  312  tables     1024   ┘ a path that ends with NUL
//! 1336  reason      256   why the agent refused, ends with NUL; written by the agent
//! ```

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// The name under which the agent exports its [`Attachment`].
pub const SYMBOL: &str = "leakline_attachment";

/// By which an agent and a command know that they mean the same structure and the same functions: its generation, and its
/// bytes, which change with [`FUNCTIONS`].
pub const VERSION: u32 = 1 << 16 | size_of::<Attachment>() as u32;

/// The C library's functions in front of which the agent puts its hooks, in the order of [`Attachment::next`].
pub const FUNCTIONS: [&str; 33] = [
    "malloc",
    "calloc",
    "realloc",
    "free",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
    "malloc_usable_size",
    "mmap",
    "mremap",
    "munmap",
    "recv",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "read",
    "readv",
    "send",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "write",
    "writev",
    "sendfile",
    "sendfile64",
    "splice",
    "close",
    "connect",
    "accept",
    "accept4",
    "syscall",
];

/// Bytes of [`Attachment::tables`].
pub const TABLES_BYTES: usize = 1024;
/// Bytes of [`Attachment::reason`].
pub const REASON_BYTES: usize = 256;
/// The one reason that says nothing about the process: the same may be asked again when there is room.
pub const NO_ROOM: &str = "no room for its table on the disk";

/// What an agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// It was loaded and has done nothing yet.
    Loaded = 0,
    /// It came in with the program's start (`leakline run`), and stays until its end.
    Preloaded = 1,
    /// It has asked the interpreter to let it in.
    Asked = 2,
    /// It records.
    Recording = 3,
    /// It records no more, and has asked the interpreter to take its hooks out.
    Leaving = 4,
    /// Its hooks are out.
    Left = 5,
    /// It did not get in, for the reason given.
    Refused = 6,
}

impl State {
    /// The state of this number.
    pub fn from_number(number: u32) -> Option<Self> {
        use State::*;
        [Loaded, Preloaded, Asked, Recording, Leaving, Left, Refused].into_iter().find(|state| *state as u32 == number)
    }
}

/// See the drawing above.
#[repr(C)]
pub struct Attachment {
    /// [`VERSION`]
    pub version: u32,
    /// A [`State`].
    pub state: AtomicU32,
    /// Addresses of code.
    pub next: [AtomicU64; FUNCTIONS.len()],
    /// An address.
    pub stubs: AtomicU64,
    /// Bytes of a table.
    pub table_bytes: AtomicU64,
    /// Bits of an f64: the share of one core that recording may take.
    pub budget: AtomicU64,
    /// 1: record every allocation.
    pub exact: AtomicU64,
    /// 1: walk native code, too.
    pub native: AtomicU64,
    /// The folder for the tables, as the process sees it.
    pub tables: UnsafeCell<[u8; TABLES_BYTES]>,
    /// Why the agent refused.
    pub reason: UnsafeCell<[u8; REASON_BYTES]>,
}

// SAFETY: `tables` is written from outside while all threads that could read it are stopped, and `reason` by the one
// thread that refuses, before the state tells so.
unsafe impl Sync for Attachment {}

const _: () = assert!(size_of::<Attachment>() == 1592);
const _: () = assert!(std::mem::offset_of!(Attachment, next) == 8);
const _: () = assert!(std::mem::offset_of!(Attachment, stubs) == 272);
const _: () = assert!(std::mem::offset_of!(Attachment, table_bytes) == 280);
const _: () = assert!(std::mem::offset_of!(Attachment, tables) == 312);
const _: () = assert!(std::mem::offset_of!(Attachment, reason) == 1336);

impl Attachment {
    /// That of an agent which has just been loaded.
    pub const fn new() -> Self {
        Self {
            version: VERSION,
            state: AtomicU32::new(State::Loaded as u32),
            next: [const { AtomicU64::new(0) }; FUNCTIONS.len()],
            stubs: AtomicU64::new(0),
            table_bytes: AtomicU64::new(0),
            budget: AtomicU64::new(0),
            exact: AtomicU64::new(0),
            native: AtomicU64::new(0),
            tables: UnsafeCell::new([0; TABLES_BYTES]),
            reason: UnsafeCell::new([0; REASON_BYTES]),
        }
    }
}

impl Default for Attachment {
    fn default() -> Self {
        Self::new()
    }
}
