//! Where CPython keeps what the agent reads, by version: small tables, checked against a known stack before they are
//! used (`install`).
//!
//! To add a version: read `PyThreadState` (Include/cpython/pystate.h), the frame (`PyFrameObject`, from 3.11 on
//! `_PyInterpreterFrame` in Include/internal/pycore_frame.h), `PyCodeObject` (Include/cpython/code.h), the string
//! (Include/cpython/unicodeobject.h), the collector's head (Include/internal/pycore_gc.h) and the key table
//! (Include/internal/pycore_dict.h); write a row; run the tests of the agent with that interpreter.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// How to find the innermost frame from a thread state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    /// `[thread + offset]` is the frame.
    Direct(usize),
    /// `[[thread + first] + second]` is the frame (`cframe->current_frame`).
    Through(usize, usize),
}

/// Where the C stack holds the frame of the evaluation loop that runs the innermost frame of Python.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loop {
    /// Each frame has a loop of its own, and nothing tells where: it is known by its code.
    ByCode,
    /// `[thread + offset]` is a part of it (`cframe`).
    Holds(usize),
    /// The innermost frame that is owned by C is a part of it.
    HoldsFrame,
}

/// How a frame says where its function is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Instruction {
    /// An `int` at the offset, in units of so many bytes; -1 before the function begins.
    Index(usize, u32),
    /// A pointer at the offset into the bytecode, which begins at the other offset of the code object.
    Pointer(usize, usize),
}

/// Offsets in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Minor version of Python 3.
    pub(crate) minor: u32,
    pub(crate) entry: Entry,
    /// Where a thread state has its context (`PyThreadState.context`).
    pub(crate) thread_context: usize,
    pub(crate) evaluator: Loop,
    pub(crate) frame_code: usize,
    pub(crate) frame_previous: usize,
    pub(crate) frame_instruction: Instruction,
    /// Where a frame says who owns it; frames owned by C (3, and 4 from 3.14 on) have no code of their own (3.12 and
    /// later).
    pub(crate) frame_owner: Option<usize>,
    pub(crate) code_first_line: usize,
    pub(crate) code_file: usize,
    /// `co_qualname`, before 3.11 `co_name`.
    pub(crate) code_function: usize,
    pub(crate) code_line_table: usize,
    /// Where a compact ASCII string's characters begin.
    pub(crate) string_ascii: usize,
    /// Where another compact string's characters begin.
    pub(crate) string_other: usize,
    /// Bytes of the collector's head in front of an object.
    pub(crate) collector_head: usize,
    /// Bytes of the smallest key table of a dict, which a free list takes.
    pub(crate) key_table: usize,
    /// Where the first entry's key is in such a table: after its head of 40 bytes (32 from 3.11 on), eight indices of a
    /// byte and, up to 3.10, the entry's hash.
    pub(crate) key_table_first_key: usize,
    /// Key tables have the form of 3.11 and later (`dk_log2_size`), and only those with string keys are parked.
    pub(crate) key_table_has_logs: bool,
    /// A parked object holds the address of the next one where its count of references was, and not zero.
    pub(crate) parked_are_chained: bool,
    /// Bytes of pymalloc's pools.
    pub(crate) pool: usize,
}

const PYTHON_3_8: Layout = Layout {
    minor: 8,
    entry: Entry::Direct(24),
    thread_context: 240,
    evaluator: Loop::ByCode,
    frame_code: 32,
    frame_previous: 24,
    frame_instruction: Instruction::Index(104, 1),
    frame_owner: None,
    code_first_line: 40,
    code_file: 104,
    code_function: 112,
    code_line_table: 120,
    string_ascii: 48,
    string_other: 72,
    collector_head: 16,
    key_table: 168,
    key_table_first_key: 56,
    key_table_has_logs: false,
    parked_are_chained: false,
    pool: 4096,
};

const PYTHON_3_11: Layout = Layout {
    minor: 11,
    entry: Entry::Through(56, 8),
    thread_context: 224,
    evaluator: Loop::Holds(56),
    frame_code: 32,
    frame_previous: 48,
    frame_instruction: Instruction::Pointer(56, 184),
    frame_owner: None,
    code_first_line: 72,
    code_file: 112,
    code_function: 128,
    code_line_table: 136,
    key_table: 120,
    key_table_first_key: 40,
    key_table_has_logs: true,
    pool: 16384,
    ..PYTHON_3_8
};

const PYTHON_3_12: Layout = Layout {
    minor: 12,
    entry: Entry::Through(56, 0),
    thread_context: 208,
    frame_code: 0,
    frame_previous: 8,
    frame_instruction: Instruction::Pointer(56, 192),
    frame_owner: Some(70),
    code_first_line: 68,
    string_ascii: 40,
    string_other: 56,
    ..PYTHON_3_11
};

const PYTHON_3_13: Layout = Layout {
    minor: 13,
    entry: Entry::Direct(72),
    evaluator: Loop::HoldsFrame,
    frame_instruction: Instruction::Pointer(56, 200),
    ..PYTHON_3_12
};

static LAYOUTS: [Layout; 8] = [
    // The collector's head was a union with a long double; code objects had no positional-only arguments.
    Layout {
        minor: 7,
        thread_context: 256,
        code_first_line: 36,
        code_file: 96,
        code_function: 104,
        code_line_table: 112,
        collector_head: 32,
        ..PYTHON_3_8
    },
    PYTHON_3_8,
    Layout { minor: 9, ..PYTHON_3_8 },
    Layout {
        minor: 10,
        evaluator: Loop::Holds(48),
        frame_instruction: Instruction::Index(96, 2),
        pool: 16384,
        ..PYTHON_3_8
    },
    PYTHON_3_11,
    PYTHON_3_12,
    PYTHON_3_13,
    Layout {
        minor: 14,
        frame_instruction: Instruction::Pointer(56, 208),
        frame_owner: Some(74),
        parked_are_chained: true,
        ..PYTHON_3_13
    },
];

static CHOSEN: AtomicPtr<Layout> = AtomicPtr::new(std::ptr::null_mut());
static VERSION: AtomicU32 = AtomicU32::new(0);

/// Chooses the layout by what `Py_GetVersion` says, such as `3.11.7 (main, …)`.
pub(super) fn choose(version: &str) -> Result<(), &'static str> {
    if version.contains("free-threading") {
        return Err("a free-threaded Python is not supported: ");
    }
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<u32>().ok());
    let (Some(3), Some(minor), micro) = (numbers.next(), numbers.next(), numbers.next().unwrap_or(0)) else {
        return Err("this Python's version is not known: ");
    };
    let Some(layout) = LAYOUTS.iter().find(|layout| layout.minor == minor) else {
        return Err("CPython 3.7 to 3.14 is supported, and this is ");
    };
    CHOSEN.store(std::ptr::from_ref(layout).cast_mut(), Ordering::Relaxed);
    VERSION.store(3 << 24 | minor << 16 | micro << 8 | 0xF0, Ordering::Relaxed);
    Ok(())
}

/// `PY_VERSION_HEX`, taken for a final release.
pub(crate) fn version() -> u32 {
    VERSION.load(Ordering::Relaxed)
}

/// The layout of the Python that we are in; 3.8's before one is chosen.
pub(super) fn chosen() -> &'static Layout {
    // SAFETY: null or an element of the static table.
    unsafe { CHOSEN.load(Ordering::Relaxed).as_ref() }.unwrap_or(&LAYOUTS[1])
}

/// Bytes of pymalloc's pools; a power of two.
pub(crate) fn pool_bytes() -> usize {
    chosen().pool
}

/// Bytes of the collector's head in front of an object.
pub(crate) fn collector_head() -> usize {
    chosen().collector_head
}
