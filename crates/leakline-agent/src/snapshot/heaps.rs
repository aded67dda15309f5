//! Finds the chunks that glibc's malloc has given away, in the child that writes a snapshot, so that what one of them points
//! to counts only if something points to that chunk.
//!
//! ```text
//! chunk   [previous size, if that is free][size | flags][payload …]       the next chunk follows at once
//! flags   1: the previous chunk is in use, 2: mapped by itself, 4: of another arena than the main one
//! heap    of another arena: at a multiple of 64 MiB
//!         [arena][previous heap][size]… the arena itself, in the first one; chunks
//! ```
//! (`struct malloc_chunk` in malloc/malloc.c, `heap_info` in malloc/arena.c; the same since glibc 2.3.) Where what should be
//! a chunk is none, since another allocator is at work or a thread was just changing it, the rest of that heap is memory like
//! any other.

use super::memory::Growing;
use crate::python::word;

const PREVIOUS_IN_USE: usize = 1;
const MAPPED: usize = 2;
const FLAGS: usize = 7;
/// The least chunk, bytes; chunks are multiples of half of it.
const LEAST: usize = 32;
const STEP: usize = 16;
/// Bytes in front of what malloc returns.
const HEAD: usize = 16;
/// Alignment of heaps of other arenas than the main one (`HEAP_MAX_SIZE`), bytes.
const HEAP_ALIGNMENT: usize = 64 << 20;
/// How far behind the beginning of a heap its first chunk may lie, bytes: `heap_info` and `malloc_state` are about 2,300.
const FIRST_WITHIN: usize = 4096;
/// A place is where a chunk begins if so many chunks follow one another from there.
const CONVINCING: usize = 32;

/// A heap: where its chunks are.
#[derive(Clone, Copy)]
struct Heap {
    start: usize,
    end: usize,
    /// Its first word in [`Heaps::begins`].
    bits: usize,
}

/// All chunks that are in use.
pub(super) struct Heaps {
    /// By address.
    heaps: Growing<Heap>,
    /// A bit for each 16 bytes of every heap: a chunk that is in use begins here.
    begins: Growing<u64>,
    /// The same: something points to this chunk.
    reached: Growing<u64>,
    /// Chunks that were reached and not looked through yet: where their contents begin, and how long these are.
    pending: Growing<(usize, usize)>,
}

impl Heaps {
    pub(super) fn new() -> Self {
        Self { heaps: Growing::new(), begins: Growing::new(), reached: Growing::new(), pending: Growing::new() }
    }

    /// Notes the chunks of a stretch of memory, if it is one of malloc's heaps. Stretches come in the order of their
    /// addresses. `is_there` says whether a page has been written to: what guards a thread's stack looks like memory, and is
    /// none.
    ///
    /// # Safety
    /// It is readable, and nothing changes it.
    pub(super) unsafe fn note(&mut self, start: usize, end: usize, is_main: bool, is_there: impl Fn(usize) -> bool) {
        // SAFETY: the caller's promise, here and below.
        unsafe {
            if is_main {
                self.note_heap(start, end);
                return;
            }
            // Several heaps may lie in one stretch, each at a multiple of their alignment.
            let mut heap = start.next_multiple_of(HEAP_ALIGNMENT);
            while heap < end && end - heap >= 4096 {
                if !is_there(heap) {
                    heap += HEAP_ALIGNMENT;
                    continue;
                }
                let (arena, previous, bytes) = (word(heap), word(heap + 8), word(heap + 16));
                let first = arena / HEAP_ALIGNMENT * HEAP_ALIGNMENT;
                let is_sound = arena - first < 128
                    && previous.is_multiple_of(HEAP_ALIGNMENT)
                    && (previous == 0) == (first == heap)
                    && (4096..=HEAP_ALIGNMENT.min(end - heap)).contains(&bytes)
                    && bytes.is_multiple_of(4096);
                if arena != 0 && is_sound {
                    self.note_heap(heap, heap + bytes);
                }
                heap += HEAP_ALIGNMENT;
            }
        }
    }

    unsafe fn note_heap(&mut self, start: usize, end: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut candidates = (start..end.min(start + FIRST_WITHIN)).step_by(STEP);
            let Some(first) = candidates.find(|first| is_first(*first, end)) else { return };
            let bits = self.begins.len();
            let words = (end - first).div_ceil(64 * STEP);
            self.begins.extend_zeroed(words);
            self.reached.extend_zeroed(words);
            let mut at = first;
            // Whether a chunk is in use stands in the next one; the last one is the top, which is free.
            while let Some(bytes) = chunk(at, end) {
                let next = at + bytes;
                if next == end {
                    at = end;
                    break;
                }
                if chunk(next, end).is_none() {
                    break;
                }
                if word(next + 8) & PREVIOUS_IN_USE != 0 {
                    let bit = (at - first) / STEP;
                    self.begins[bits + bit / 64] |= 1 << (bit % 64);
                }
                at = next;
            }
            self.heaps.push(Heap { start: first, end: at, bits });
        }
    }

    /// The heap that an address lies in, else what there is up to the next one.
    pub(super) fn behind(&self, address: usize) -> (bool, usize) {
        let next = self.heaps.partition_point(|heap| heap.end <= address);
        match self.heaps.get(next) {
            Some(heap) if heap.start <= address => (true, heap.end),
            Some(heap) => (false, heap.start),
            None => (false, usize::MAX),
        }
    }

    /// The bit of the chunk in use that an address lies in: its place, and where the chunk begins.
    #[inline]
    fn chunk_at(&self, address: usize) -> Option<(usize, u64, usize)> {
        let heap = self.heaps.get(self.heaps.partition_point(|heap| heap.end <= address))?;
        if address < heap.start {
            return None;
        }
        let bit = (address - heap.start) / STEP;
        let mut at = heap.bits + bit / 64;
        // The nearest beginning at or below it.
        let mut found = self.begins[at] & (u64::MAX >> (63 - bit % 64));
        while found == 0 {
            if at == heap.bits {
                return None;
            }
            at -= 1;
            found = self.begins[at];
        }
        let bit = found.ilog2() as usize;
        Some((at, 1 << bit, heap.start + ((at - heap.bits) * 64 + bit) * STEP))
    }

    /// A word may point into a chunk, which is then to be looked through, too.
    ///
    /// # Safety
    /// As for [`Heaps::note`].
    #[inline]
    pub(super) unsafe fn reach(&mut self, address: usize) {
        let Some((at, bit, start)) = self.chunk_at(address) else { return };
        if self.reached[at] & bit != 0 {
            return;
        }
        // SAFETY: the beginning of a chunk.
        let bytes = unsafe { word(start + 8) } & !FLAGS;
        // A free chunk may follow the one that was found. The last word of a chunk is the first of the next one.
        if address - start < bytes + 8 {
            self.reached[at] |= bit;
            self.pending.push((start + HEAD, bytes - 8));
        }
    }

    /// The next chunk to be looked through: where its contents begin and end.
    pub(super) fn next(&mut self) -> Option<(usize, usize)> {
        self.pending.pop().map(|(start, bytes)| (start, start + bytes))
    }

    /// Does anything point to the chunk that this block is? `None` where it is none.
    pub(super) fn is_reached(&self, block: usize) -> Option<bool> {
        let (at, bit, start) = self.chunk_at(block)?;
        (start + HEAD == block).then_some(self.reached[at] & bit != 0)
    }
}

/// # Safety
/// Readable memory up to `end`.
unsafe fn is_first(candidate: usize, end: usize) -> bool {
    let mut at = candidate;
    for _ in 0..CONVINCING {
        // SAFETY: the caller's promise.
        match unsafe { chunk(at, end) } {
            Some(bytes) if at + bytes == end => return true,
            Some(bytes) => at += bytes,
            None => return false,
        }
    }
    true
}

/// The bytes of the chunk at an address, if it can be one.
///
/// # Safety
/// Readable memory up to `end`.
unsafe fn chunk(at: usize, end: usize) -> Option<usize> {
    if end - at < LEAST {
        return None;
    }
    // SAFETY: the caller's promise.
    let size = unsafe { word(at + 8) };
    let bytes = size & !FLAGS;
    (size & MAPPED == 0 && bytes.is_multiple_of(STEP) && (LEAST..=end - at).contains(&bytes)).then_some(bytes)
}
