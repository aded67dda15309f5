//! mmap, mremap and munmap, put in front of the C library's: memory that libraries map for themselves, past malloc, as
//! allocators and runtimes of their own do. It is sampled as malloc's blocks are.
//!
//! What CPython and malloc map is not looked at, since the blocks that they cut it into are. A mapping may be given back in
//! pieces, or be lengthened, so those that were seen are kept in a list of what is left of each.

use super::native::{Next, next};
use crate::sampler::{self, LARGE};
use crate::{native, recorder};
use leakline_table::layout::Loss;
use leakline_table::writer::Writer;
use std::arch::naked_asm;
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

type Pointer = *mut c_void;

next! {
    MMAP resolve_mmap c"mmap": fn(at: Pointer, bytes: usize, protection: c_int, kind: c_int, file: c_int, offset: i64) -> Pointer;
    MREMAP resolve_mremap c"mremap": fn(start: Pointer, before: usize, bytes: usize, flags: c_int, to: Pointer) -> Pointer;
    MUNMAP resolve_munmap c"munmap": fn(start: Pointer, bytes: usize) -> c_int;
}

/// Bytes of a page: mappings are made of whole ones.
const PAGE: usize = 4096;
/// Mappings that are followed at once.
const MOST: usize = 2048;

/// What is left of each mapping that a library has made; the first `count` are in use.
struct Mappings {
    all: [(usize, usize); MOST],
    count: usize,
}

struct Shared(UnsafeCell<Mappings>);

// SAFETY: only reached through a Recorder, of which there is one at most.
unsafe impl Sync for Shared {}

static MAPPINGS: Shared = Shared(UnsafeCell::new(Mappings { all: [(0, 0); MOST], count: 0 }));
/// How many there are: without any, nothing that is unmapped is looked at.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Does something with the list and the table. Where the lock can't be had the loss is counted.
fn with<R>(act: impl FnOnce(&mut Mappings, &mut Writer<'static>) -> R) -> Option<R> {
    let mut recorder = recorder::surely_enter()?;
    // SAFETY: this thread holds the lock, and `act` is given no way to come back here.
    let mappings = unsafe { &mut *MAPPINGS.0.get() };
    let result = act(mappings, recorder.writer()?);
    COUNT.store(mappings.count, Ordering::Relaxed);
    Some(result)
}

impl Mappings {
    fn add(&mut self, range: Range<usize>, writer: &mut Writer<'_>) -> bool {
        let Some(place) = self.all.get_mut(self.count) else {
            writer.lose(Loss::MappingsLost);
            return false;
        };
        *place = (range.start, range.end);
        self.count += 1;
        true
    }

    fn remove(&mut self, at: usize) {
        self.count -= 1;
        self.all[at] = self.all[self.count];
    }

    /// Takes one off the list, if there is one that is just this.
    fn take(&mut self, range: &Range<usize>) -> bool {
        let at = self.all[..self.count].iter().position(|left| *left == (range.start, range.end));
        at.map(|at| self.remove(at)).is_some()
    }

    /// These addresses are about to be given back, or to be mapped anew.
    fn cut(&mut self, gone: &Range<usize>, writer: &mut Writer<'_>) {
        let mut at = 0;
        while at < self.count {
            let (start, end) = self.all[at];
            if end <= gone.start || gone.end <= start {
                at += 1;
                continue;
            }
            // At most one of the two is kept.
            let (front, rear) = (start..gone.start, gone.end..end);
            let rest = if front.is_empty() { rear.clone() } else { front.clone() };
            if rest.is_empty() {
                writer.died(start as u64);
                self.remove(at);
                continue;
            }
            if !front.is_empty() && !rear.is_empty() {
                writer.lose(Loss::MappingsLost);
            }
            if let Some(transit) = writer.depart(start as u64) {
                writer.arrive(transit, rest.start as u64, rest.len() as u64);
            }
            self.all[at] = (rest.start, rest.end);
            at += 1;
        }
    }
}

/// The pages of a mapping.
fn pages(start: Pointer, bytes: usize) -> Range<usize> {
    start as usize..(start as usize).saturating_add(bytes.checked_next_multiple_of(PAGE).unwrap_or(bytes))
}

/// These addresses are about to be given back, or to be mapped anew: whoever is given them next must not be taken for the
/// one who has them now.
fn gone(range: Range<usize>) {
    if COUNT.load(Ordering::Relaxed) != 0 && !range.is_empty() {
        with(|mappings, writer| mappings.cut(&range, writer));
    }
}

/// Is this memory to be written to, of no file, and not merely addresses that are set aside?
fn is_memory(protection: c_int, kind: c_int) -> bool {
    protection & libc::PROT_WRITE != 0 && kind & libc::MAP_ANONYMOUS != 0 && kind & libc::MAP_NORESERVE == 0
}

/// mmap, and who called it: a function with a seventh argument has it on the stack, just below which is where it returns to.
macro_rules! with_caller {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            // The stack is walked from within the call, so it must be known how to get past here.
            naked_asm!(
                ".cfi_startproc",
                "push qword ptr [rsp]",
                ".cfi_adjust_cfa_offset 8",
                "call {map}",
                "add rsp, 8",
                ".cfi_adjust_cfa_offset -8",
                "ret",
                ".cfi_endproc",
                map = sym map,
            )
        }
    )*};
}

with_caller! {
    /// See mmap(2).
    mmap
    /// The same by the name that it has for large files.
    mmap64
}

unsafe extern "C" fn map(
    at: Pointer,
    bytes: usize,
    protection: c_int,
    kind: c_int,
    file: c_int,
    offset: i64,
    caller: usize,
) -> Pointer {
    if kind & libc::MAP_FIXED != 0 {
        gone(pages(at, bytes));
    }
    // SAFETY: the caller's own call, handed on; so everywhere below.
    let start = unsafe { MMAP.get()(at, bytes, protection, kind, file, offset) };
    if start != libc::MAP_FAILED
        && is_memory(protection, kind)
        && sampler::is_running()
        && native::is_of_an_allocator(caller) == Some(false)
    {
        let range = pages(start, bytes);
        if with(|mappings, writer| mappings.add(range.clone(), writer)) == Some(true) && LARGE.pass(range.len()) {
            sampler::large(range.start, range.len());
        }
    }
    start
}

/// See mremap(2), whose last argument is there only where `flags` say so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mremap(start: Pointer, before: usize, bytes: usize, flags: c_int, to: Pointer) -> Pointer {
    if flags & libc::MREMAP_FIXED != 0 {
        gone(pages(to, bytes));
    }
    let range = pages(start, before);
    let stays = flags & libc::MREMAP_DONTUNMAP != 0;
    // Off the list before the call: after it the old addresses may be another thread's.
    let is_followed =
        !stays && COUNT.load(Ordering::Relaxed) != 0 && with(|mappings, _| mappings.take(&range)) == Some(true);
    if !is_followed {
        if !stays {
            // Of a part that may be moved away nothing more is known than that.
            gone(range);
        }
        // SAFETY: as in `map`.
        return unsafe { MREMAP.get()(start, before, bytes, flags, to) };
    }
    let transit = sampler::depart(range.start);
    // SAFETY: as in `map`.
    let moved = unsafe { MREMAP.get()(start, before, bytes, flags, to) };
    let is_moved = moved != libc::MAP_FAILED;
    let now = if is_moved { pages(moved, bytes) } else { range.clone() };
    with(|mappings, writer| mappings.add(now.clone(), writer));
    let added = now.len().saturating_sub(range.len());
    match transit {
        Some(transit) if is_moved => sampler::arrive(transit, now.start, now.len()),
        Some(transit) => sampler::stay(transit, now.start),
        None if added > 0 && LARGE.pass(added) => sampler::large_growth(now.start, added, now.len()),
        None => {}
    }
    moved
}

/// See munmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(start: Pointer, bytes: usize) -> c_int {
    gone(pages(start, bytes));
    // SAFETY: as in `map`.
    unsafe { MUNMAP.get()(start, bytes) }
}

/// In a forked child: what it inherits is not followed, as no block is that was there before its table.
pub(crate) fn begin_anew() {
    // SAFETY: the child has one thread, which is in fork.
    unsafe { (*MAPPINGS.0.get()).count = 0 };
    COUNT.store(0, Ordering::Relaxed);
}
