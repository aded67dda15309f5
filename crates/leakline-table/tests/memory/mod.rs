//! A table that lies in memory instead of a file, so that a test can read while its writer lives, as the command reads
//! a table while the server runs.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use leakline_table::layout::LEAST_BYTES;
use leakline_table::reader::Snapshot;
use leakline_table::writer::{CodeKey, CodeText, Filter, Origin, Writer};
use std::alloc::{Layout, alloc_zeroed};

/// A table and its writer. Its memory is leaked: a test process is short-lived.
pub struct Table {
    start: *mut u8,
    bytes: usize,
    /// The addresses of sampled blocks.
    pub filter: &'static Filter,
    /// The writer half.
    pub writer: Writer<'static>,
}

impl Table {
    /// A table of the least size, which holds 512 samples. The seed decides whom thinning hits.
    pub fn new(seed: u64) -> Self {
        Self::with_bytes(LEAST_BYTES, seed)
    }

    /// A table of `bytes`.
    pub fn with_bytes(bytes: usize, seed: u64) -> Self {
        let filter: &'static Filter = Box::leak(Box::default());
        let origin = Origin {
            pid: 77,
            parent: 7,
            process_start_ticks: 7777,
            now_ns: seed,
            python_version: 0x030B_07F0,
            command: b"gunicorn\0app:app",
            interval_bytes: 4096.0,
        };
        let start = zeroed_pages(bytes);
        let private_bytes = Writer::private_bytes(bytes);
        // SAFETY: two new allocations of these lengths, which nobody else has and which are never given back.
        let (file, private) = unsafe {
            (
                std::slice::from_raw_parts_mut(start, bytes),
                std::slice::from_raw_parts_mut(zeroed_pages(private_bytes), private_bytes),
            )
        };
        let writer = Writer::create(file, private, filter, &origin).expect("the sizes fit");
        Self { start, bytes, filter, writer }
    }

    /// The file as it is now.
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: the memory lives on and this thread is not writing; the reader's mapping of a file is no different.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }.to_vec()
    }

    /// What a reader finds.
    pub fn snapshot(&self) -> Snapshot {
        let snapshot = Snapshot::read(&self.bytes()).expect("a table that was just written can be read");
        assert_eq!(snapshot.damaged_records, 0);
        snapshot
    }

    /// The id of a stack of one frame, in a function of that name.
    pub fn stack(&mut self, function: &str, line: u32) -> u32 {
        let key = CodeKey { address: 0x7000 + 0x100 * u64::from(line), fingerprint: function.len() as u64 };
        let text = CodeText { file: b"app.py", function: function.as_bytes(), line_table: b"\x01", first_line: line };
        let code = self.writer.known_code(key).unwrap_or_else(|| self.writer.code(key, &text));
        self.writer.stack(&[[code, 2 * line]])
    }
}

fn zeroed_pages(bytes: usize) -> *mut u8 {
    let layout = Layout::from_size_align(bytes, 4096).expect("a page is a power of two");
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc_zeroed(layout) };
    assert!(!start.is_null(), "out of memory");
    start
}
