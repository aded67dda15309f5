//! From the bytes of one of glibc's heaps to what malloc has given away there, and what it keeps.
//!
//! ```text
//! chunk   [previous size, if that is free][size | flags][payload …]       the next chunk follows at once
//! flags   1: the previous chunk is in use, 2: mapped by itself, 4: of another arena than the main one
//! heap    of another arena: at a multiple of 64 MiB
//!         [arena][previous heap][size]… the arena itself, in the first one; chunks
//! ```
//! (`struct malloc_chunk` in malloc/malloc.c, `heap_info` in malloc/arena.c; the same since glibc 2.3.) Blocks that a
//! thread keeps in its cache, or that wait in fastbins, look as if they were in use; malloc's own figures count the
//! former so, too.
use std::ops::Range;

use super::pages::Pages;
use super::remote::{PAGE, Remote};

const PREVIOUS_IN_USE: u64 = 1;
const MAPPED: u64 = 2;
const FLAGS: u64 = 7;
/// The least chunk, bytes.
const LEAST: u64 = 32;
/// `sizeof(struct malloc_chunk)`: what malloc_trim leaves of a free chunk.
const CHUNK_HEAD: u64 = 48;
/// Alignment of heaps of other arenas than the main one (`HEAP_MAX_SIZE`), bytes.
pub(super) const HEAP_ALIGNMENT: u64 = 64 << 20;
/// How far behind the beginning of a heap its first chunk may lie, bytes: `heap_info` and `malloc_state` are about 2,300.
const FIRST_CHUNK_WITHIN: u64 = 4096;
/// A place is where a chunk begins if so many chunks follow one another from there.
const CONVINCING: usize = 32;
/// Pages that are read at once.
const WINDOW: usize = 16;

/// What one walk along a heap has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Walked {
    /// Where the walk ended: the end of the heap, unless a chunk was broken, which another thread had changed meanwhile.
    pub(super) end: u64,
    /// Bytes of whole resident pages in free chunks: what malloc_trim gives back.
    pub(super) whole_pages: u64,
}

/// A chunk that is mapped by itself: its size, bytes, if `head` is the beginning of one at the beginning of a page.
pub(super) fn mapped_chunk(head: &[u8; 16]) -> Option<u64> {
    let [previous, size] = words(head);
    let bytes = size & !FLAGS;
    (previous == 0 && size & FLAGS == MAPPED && bytes >= PAGE && bytes.is_multiple_of(PAGE)).then_some(bytes)
}

/// What stands at the beginning of a heap of another arena than the main one.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeapHead {
    /// The heap that the arena itself lies in.
    pub(super) arena: u64,
    /// Bytes of the heap that are in use or were.
    pub(super) bytes: u64,
}

/// The head of the heap at `start`; `None` where there is no heap.
pub(super) fn heap_head(remote: &Remote, start: u64) -> Option<HeapHead> {
    let mut head = [0; 24];
    if remote.read(start, &mut head) < head.len() {
        return None;
    }
    let [arena, previous, bytes] = words(&head);
    let first = arena / HEAP_ALIGNMENT * HEAP_ALIGNMENT;
    let is_sound = arena != 0
        && (arena - first) < 128
        && previous.is_multiple_of(HEAP_ALIGNMENT)
        && (previous == 0) == (first == start)
        && (PAGE..=HEAP_ALIGNMENT).contains(&bytes)
        && bytes.is_multiple_of(PAGE);
    is_sound.then_some(HeapHead { arena: first, bytes })
}

fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u64; WORDS] {
    std::array::from_fn(|at| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * at..8 * at + 8]);
        u64::from_le_bytes(word)
    })
}

/// Walks along the chunks of a heap and notes in `pages` what is in use. `None` where there are no chunks: then it
/// belongs to somebody else. The main arena's last chunk, its top, is cut by malloc_trim; those of others are not.
pub(super) fn walk(remote: &Remote, heap: Range<u64>, pages: &mut Pages, is_main: bool) -> Option<Walked> {
    let mut chunks = Chunks { remote, pages, end: heap.end, window: vec![0; WINDOW * PAGE as usize], at: 0..0 };
    let candidates = (heap.start..heap.end.min(heap.start + FIRST_CHUNK_WITHIN)).step_by(16);
    let first = candidates.into_iter().find(|&candidate| chunks.is_first(candidate))?;
    // The arena's own bytes.
    let mut in_use = Vec::from_iter(std::iter::once(heap.start..first));
    let mut walked = Walked { end: first, whole_pages: 0 };
    let mut free_pages = Vec::new();
    // Whether a chunk is in use stands in the next one.
    while let Some(chunk) = chunks.chunk(walked.end) {
        let next = chunk.end;
        let is_used = match chunks.chunk(next) {
            Some(following) => following.previous_in_use,
            // The last one is the top, or a fence at the end of a heap that was full.
            None if next == heap.end => chunk.is_fence,
            // Broken: nothing is known of this chunk.
            None => break,
        };
        if is_used {
            // Most chunks are small and follow one another.
            match in_use.last_mut() {
                Some(last) if last.end == walked.end => last.end = next,
                _ => in_use.push(walked.end..next),
            }
        } else if next < heap.end {
            free_pages.push((walked.end + CHUNK_HEAD).next_multiple_of(PAGE)..next / PAGE * PAGE);
        } else if is_main {
            free_pages.push((walked.end + LEAST + 1).next_multiple_of(PAGE)..next / PAGE * PAGE);
        }
        walked.end = next;
        if walked.end >= heap.end {
            break;
        }
    }
    in_use.into_iter().for_each(|range| pages.use_up(range));
    walked.whole_pages = free_pages.into_iter().map(|range| pages.resident_bytes(range)).sum();
    Some(walked)
}

struct Chunk {
    end: u64,
    previous_in_use: bool,
    is_fence: bool,
}

/// Reads headers of chunks through a window of a few pages.
struct Chunks<'a> {
    remote: &'a Remote,
    pages: &'a Pages,
    end: u64,
    window: Vec<u8>,
    at: Range<u64>,
}

impl Chunks<'_> {
    fn is_first(&mut self, candidate: u64) -> bool {
        let mut at = candidate;
        for _ in 0..CONVINCING {
            match self.chunk(at) {
                Some(chunk) if chunk.end == self.end => return true,
                Some(chunk) => at = chunk.end,
                None => return false,
            }
        }
        true
    }

    /// The chunk at `address`, if it can be one.
    fn chunk(&mut self, address: u64) -> Option<Chunk> {
        let size = self.word(address.checked_add(8)?)?;
        let (bytes, left) = (size & !FLAGS, self.end.checked_sub(address)?);
        // A heap that was full ends in a chunk of 16 bytes and one of 0 (`sysmalloc`).
        let is_fence = bytes < LEAST && left <= LEAST;
        let is_sound = size & MAPPED == 0 && bytes.is_multiple_of(16) && bytes <= left && (bytes >= LEAST || is_fence);
        if !is_sound {
            return None;
        }
        let end = if is_fence { self.end } else { address + bytes };
        Some(Chunk { end, previous_in_use: size & PREVIOUS_IN_USE != 0, is_fence })
    }

    fn word(&mut self, address: u64) -> Option<u64> {
        if !address.is_multiple_of(8) || address + 8 > self.end {
            return None;
        }
        if !self.at.contains(&address) {
            let start = address / PAGE * PAGE;
            let pages = (0..WINDOW as u64).take_while(|page| self.pages.is_resident(start + page * PAGE)).count();
            let read = self.remote.read(start, &mut self.window[..pages * PAGE as usize]);
            self.at = start..start + read as u64 / 8 * 8;
        }
        let from = address.checked_sub(self.at.start)? as usize;
        self.at.contains(&address).then_some(())?;
        Some(u64::from_le_bytes(self.window.get(from..from + 8)?.try_into().ok()?))
    }
}
