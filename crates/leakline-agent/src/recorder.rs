//! The one lock of the agent, and the writer behind it.
//!
//! Who holds a [`Recorder`] holds the lock: it is the proof that no other thread writes and that this thread is not
//! inside the recorder already. Nobody waits long for it: an allocation that cannot be recorded at once is counted as
//! lost, and a free that cannot be recorded is left in a small list that the next holder works off first.

mod gate;

use crate::{clock, table};
use gate::Gate;
use leakline_table::layout::Loss;
use leakline_table::writer::{Filter, Writer};
use std::cell::UnsafeCell;
use std::sync::atomic::{self, AtomicU64, AtomicUsize, Ordering};

/// The addresses of sampled blocks; asked by the hooks without the lock.
pub(crate) static FILTER: Filter = Filter::new();

/// The lock, with room for frees that happen while another thread holds it for long.
static GATE: Gate<64> = Gate::new();

/// How often a thread looks whether the lock is free: some 20 to 100 µs, longer than the recorder ever works unless
/// its thread was descheduled.
const PATIENCE: u32 = 2000;

struct Shared(UnsafeCell<Option<Writer<'static>>>);

// SAFETY: only the holder of the lock touches the cell.
unsafe impl Sync for Shared {}

static WRITER: Shared = Shared(UnsafeCell::new(None));

/// Time that the slow path has taken, ticks: for samples, and for frees of blocks that only might have been sampled. These
/// come by the samples that live, however many are taken now.
static SPENT: AtomicU64 = AtomicU64::new(0);
static SPENT_ON_STRANGERS: AtomicU64 = AtomicU64::new(0);

/// The right to record.
pub(crate) struct Recorder {
    /// When it was got, ticks, if it is for a sample.
    entered: Option<u64>,
    /// What is spent is added there.
    spent: &'static AtomicU64,
}

/// An entry that took longer, ticks (some 25 µs), is taken to have been interrupted: on a machine with more to do than
/// cores, a thread loses its core for milliseconds, and sampling that waits takes nothing from the server.
const LONGEST_ENTRY: u64 = 1 << 16;

fn untimed() -> Option<u64> {
    None
}

fn timed() -> Option<u64> {
    Some(clock::ticks())
}

fn this_thread() -> usize {
    // SAFETY: has no preconditions. Never 0 with glibc: it is the address of the thread's control block.
    unsafe { libc::pthread_self() as usize }
}

/// The lock, unless this thread holds it already or another one does not let go of it.
pub(crate) fn enter() -> Option<Recorder> {
    or_lost(acquire(timed))
}

/// Counts the loss, where another thread has the lock.
fn or_lost(recorder: Option<Recorder>) -> Option<Recorder> {
    if recorder.is_none() && !GATE.is_held_by(this_thread()) {
        GATE.lose();
    }
    recorder
}

/// `clock` tells when sampling began, and nothing for what is no sampling: no interval would lower what requests and sockets
/// cost.
fn acquire(clock: fn() -> Option<u64>) -> Option<Recorder> {
    if !GATE.enter(this_thread(), PATIENCE) {
        return None;
    }
    let mut recorder = Recorder { entered: clock(), spent: &SPENT };
    recorder.catch_up();
    Some(recorder)
}

/// Does something with the table, unless there is none or the lock cannot be had at once.
pub(crate) fn write<R>(act: impl FnOnce(&mut Writer<'static>) -> R) -> Option<R> {
    or_lost(acquire(untimed))?.writer().map(act)
}

/// The lock, for what must not be lost, such as the beginning and the end of a request: where another thread was
/// descheduled with it, that is given the time to go on.
pub(crate) fn surely_enter() -> Option<Recorder> {
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        if let Some(recorder) = acquire(untimed) {
            return Some(recorder);
        }
        // SAFETY: has no preconditions.
        unsafe { libc::sched_yield() };
    }
    // Only what was given up is a loss.
    GATE.lose();
    None
}

/// Does something with the table that must not be lost.
pub(crate) fn surely_write(act: impl FnOnce(&mut Writer<'static>)) {
    if let Some(mut recorder) = surely_enter() {
        if let Some(writer) = recorder.writer() {
            act(writer);
        }
    }
}

/// A block that may be sampled is about to be freed. Must come before the block is really freed: after that its
/// address may belong to another thread's new block.
#[cold]
pub(crate) fn freed(address: usize) {
    if let Some(mut recorder) = acquire(timed) {
        if !recorder.writer().is_some_and(|writer| writer.died(address as u64)) {
            recorder.spent = &SPENT_ON_STRANGERS;
        }
        return;
    }
    if !GATE.is_held_by(this_thread()) {
        GATE.leave_free(address as u64);
    }
}

/// Time that samples have taken so far, ns.
pub(crate) fn spent_on_samples_ns() -> u64 {
    clock::ns_of(SPENT.load(Ordering::Relaxed))
}

/// Time that the slow path has taken so far, ns.
pub(crate) fn spent_ns() -> u64 {
    spent_on_samples_ns() + clock::ns_of(SPENT_ON_STRANGERS.load(Ordering::Relaxed))
}

impl Recorder {
    /// The table's writer; `None` where there is no table (yet), or it is not mapped in this copy of its process.
    pub(crate) fn writer(&mut self) -> Option<&mut Writer<'static>> {
        // SAFETY: a Recorder exists once at most, and it is borrowed for as long as the writer is.
        unsafe { (*WRITER.0.get()).as_mut() }.filter(|_| table::is_mapped())
    }

    /// Puts another writer in place, or none. What the last one wrote stays in its file.
    pub(crate) fn install(&mut self, writer: Option<Writer<'static>>) {
        // SAFETY: as above. The old writer only borrowed its memory: nothing is dropped that could go wrong.
        unsafe { *WRITER.0.get() = writer }
    }

    /// Ends the recording: the table stays as it is, and frees are no longer looked at.
    pub(crate) fn close(&mut self) {
        self.install(None);
        FILTER.clear();
    }

    #[inline]
    fn catch_up(&mut self) {
        if GATE.has_work() {
            self.work_off();
        }
    }

    #[cold]
    fn work_off(&mut self) {
        let mut writer = self.writer();
        // Without a table, too: an address that stayed would end a block of the next one's.
        let lost = GATE.work_off(|address| {
            if let Some(writer) = &mut writer {
                writer.died(address);
            }
        });
        if let Some(writer) = writer {
            for _ in 0..lost {
                writer.lose(Loss::Contention);
            }
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(entered) = self.entered {
            self.spent.fetch_add(clock::ticks().saturating_sub(entered).min(LONGEST_ENTRY), Ordering::Relaxed);
        }
        GATE.leave();
    }
}

/// The thread that forks and holds the lock meanwhile, 0 for none.
static FORKING: AtomicUsize = AtomicUsize::new(0);

/// Takes the lock for the time of a fork, unless it cannot be had.
pub(crate) fn hold() {
    if let Some(recorder) = enter() {
        FORKING.store(this_thread(), Ordering::Relaxed);
        std::mem::forget(recorder);
    }
}

/// Ends [`hold`] in the parent.
pub(crate) fn let_go() {
    if FORKING.load(Ordering::Relaxed) == this_thread() {
        FORKING.store(0, Ordering::Relaxed);
        drop(Recorder { entered: None, spent: &SPENT });
    }
}

/// In a forked child: forgets the parent's table and whoever held the lock, since only this thread lives on.
pub(crate) fn begin_anew() {
    FORKING.store(0, Ordering::Relaxed);
    GATE.seize(this_thread());
    let mut recorder = Recorder { entered: None, spent: &SPENT };
    recorder.install(None);
    FILTER.clear();
}
