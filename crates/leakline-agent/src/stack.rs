//! The calling thread's stack as the table keeps it: native code first, as far as the interpreter, then Python.
//!
//! Most stacks have been there before. Between two samples a server's own work has pushed our tables out of the processor's
//! caches, and what a sample costs is mostly what it has to fetch from memory again: so a stack that was seen is known by one
//! look at one place, and only a new one is walked and written down frame by frame.

use crate::native::{self, Chain, Here};
use crate::python::{self, api::ThreadState};
use crate::recorder::Recorder;
use leakline_table::layout::Loss;
use leakline_table::writer::Writer;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

/// A stack that was written down.
#[derive(Clone, Copy)]
struct Seen {
    /// Of its frames of Python, and how far it is to their loop.
    key: u64,
    /// Its id in the table, 0 for none.
    id: u32,
    /// Its native code.
    chain: Chain,
}

/// Stacks that are remembered, a handful under keys that fall together: one line of Python may lead to many allocations in
/// native code, which have a key in common.
const SEEN: usize = 512;
const TOGETHER: usize = 4;

/// Two lines of the cache each. They are aligned here and not one by one: a local copy would make `record` align its own frame,
/// and nothing could be remembered of what lies at no constant distance.
#[repr(align(64))]
struct Shared(UnsafeCell<[[Seen; TOGETHER]; SEEN]>);

const _: () = assert!(size_of::<Seen>() == 128);

// SAFETY: only touched by the holder of the recorder's lock.
unsafe impl Sync for Shared {}

/// Costs memory where it is written to, and nothing before.
static SHARED: Shared = Shared(UnsafeCell::new([[Seen { key: 0, id: 0, chain: Chain::NONE }; TOGETHER]; SEEN]));
/// Counts the tables of this process. It is part of the keys.
static TABLE: AtomicU32 = AtomicU32::new(0);

/// A new table knows neither the stacks nor the modules.
pub(crate) fn forget(held: &Recorder) {
    native::forget_ids(held);
    TABLE.fetch_add(1, Ordering::Relaxed);
}

/// Writes the stack into the table and returns its id, 0 where there is none. `thread` is `None` for a thread that is not
/// Python's.
///
/// # Safety
/// The thread state is the calling thread's own. The caller holds the recorder's lock, of which the writer is the proof.
#[inline(never)]
pub(crate) unsafe fn record(writer: &mut Writer<'_>, thread: Option<ThreadState>) -> u32 {
    // SAFETY: the caller's promise.
    let here = Here::new(thread.map_or(native::Evaluator::None, |thread| unsafe { python::evaluator(thread) }));
    let key = here.distance().zip(thread).map(|(distance, thread)| {
        let seed = native::mix(
            distance,
            u64::from(TABLE.load(Ordering::Relaxed)) << 32 | u64::from(native::modules_removed()),
        );
        // SAFETY: as above.
        unsafe { python::key(thread, seed) }
    });
    let Some(key) = key else {
        // SAFETY: as above.
        return unsafe { walk(writer, thread, &here).0 };
    };
    // SAFETY: the caller holds the lock, and nothing that is called meanwhile comes back here.
    let together = unsafe { &mut (&mut *SHARED.0.get())[key as usize % SEEN] };
    if let Some(seen) = together.iter().find(|seen| seen.key == key && seen.id != 0 && here.holds(&seen.chain)) {
        return seen.id;
    }
    // SAFETY: as above.
    let (id, chain) = unsafe { walk(writer, thread, &here) };
    if let Some(chain) = chain {
        // The oldest one makes room.
        together.rotate_right(1);
        together[0] = Seen { key, id, chain };
    }
    id
}

/// Walks the stack from frame to frame.
///
/// # Safety
/// As for [`record`].
#[inline(never)]
unsafe fn walk(writer: &mut Writer<'_>, thread: Option<ThreadState>, here: &Here) -> (u32, Option<Chain>) {
    let mut frames = [[0; 2]; native::DEPTH + python::DEPTH];
    let (first, rest) = frames.split_first_chunk_mut().expect("it is longer");
    let outside = here.segment(writer, first);
    // Python's frames follow the native ones, so what these leave free is closed up.
    let inside = match thread {
        // SAFETY: the caller's promise.
        Some(thread) => unsafe { python::frames(writer, thread, rest.first_chunk_mut().expect("it is as long")) },
        None => 0,
    };
    if thread.is_some() && inside == 0 {
        writer.lose(Loss::NoPythonStack);
    }
    frames.copy_within(native::DEPTH..native::DEPTH + inside, outside.depth);
    (writer.stack(&frames[..outside.depth + inside]), outside.chain.filter(|_| inside > 0))
}
