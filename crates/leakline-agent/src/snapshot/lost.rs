//! Turns the sampled blocks and all memory of a process into those blocks that nothing points to: nobody can free them any
//! more.
//!
//! The search is conservative, as that of collectors for C is: each aligned word of each page that the process has written
//! to counts as a pointer, whether it is one or not, and one to anywhere within a block keeps it. But where glibc's malloc
//! keeps its chunks (`heaps`), only those count that something points to: a structure that is lost loses what it points to,
//! and freed memory holds nothing. Not seen is what a thread has in a register alone, and memory that processes share under
//! a name.
//!
//! The agent's own notes have addresses of all sampled blocks: its table is no part of the copy, its variables and what the
//! child itself has mapped and put on its stack are passed over.

use super::heaps::Heaps;
use super::memory::Growing;
use crate::clock;
use crate::python::word;
use leakline_table::heap::Search;
use leakline_table::layout::{FLAG_PARKED, HEADER_BYTES, Header, OWNER_IN_FLIGHT, SampleRecord, SectionKind};
use std::ffi::CStr;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Pages that are asked for and looked through at once.
const AT_ONCE: usize = 512;
/// Bytes that a line of `/proc/self/maps` needs at most: a path of 4,096 (PATH_MAX), and 73 before it.
const LINE: usize = 2 * PAGE;
/// Bits of the filter, one for each page of memory; pages that are so many apart share one. It has to stay in the
/// processor's cache.
const FILTER_BITS: usize = 1 << 20;
/// Stretches of memory that are noted at most; Linux lets a process have 65,530 unless it is told otherwise.
const MOST_AREAS: usize = 1 << 17;

/// A sampled block.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    bytes: usize,
    is_pointed_to: bool,
}

/// The sampled blocks of a process.
pub(super) struct Blocks {
    /// By address.
    blocks: Growing<Block>,
    /// The pages that blocks lie on.
    filter: Growing<u64>,
    /// All memory that is looked through, by address.
    areas: Growing<(usize, usize)>,
    /// Where the main one of malloc's heaps begins.
    main_heap: usize,
    heaps: Heaps,
    /// Both the blocks and the memory are known.
    is_noted: bool,
    search: Search,
}

impl Blocks {
    /// Notes the blocks and where all memory is. To be called before the child maps anything else.
    ///
    /// `stack` is where the child's own part of the stack ends, upwards.
    pub(super) fn note(table: &CStr, requests: u64, stack: usize) -> Self {
        let mut noted = Self {
            blocks: Growing::new(),
            filter: Growing::new(),
            areas: Growing::new(),
            main_heap: 0,
            heaps: Heaps::new(),
            is_noted: false,
            search: Search::Impossible,
        };
        // It must not move while what is mapped is read.
        noted.areas.reserve(MOST_AREAS);
        noted.is_noted = noted.read_samples(table, requests).is_some() && noted.read_areas(stack).is_some();
        noted
    }

    /// Notes the samples of requests that have ended, or of none: what a request in flight has in hand may lie in a register.
    /// The file is the parent's, which goes on: what has been born since the copy was made is told by its request.
    fn read_samples(&mut self, table: &CStr, requests: u64) -> Option<()> {
        let file = ReadOnly::open(table)?;
        let mut header = [0; HEADER_BYTES];
        file.read(0, &mut header);
        let header = Header::decode(&header)?;
        let samples = header.directory.iter().find(|section| section.kind == SectionKind::Samples as u32)?;
        let mut records = [0; 64 * SampleRecord::BYTES];
        let end = u64::from(samples.used) * SampleRecord::BYTES as u64;
        for at in (0..end.min(samples.bytes)).step_by(records.len()) {
            let read = file.read(samples.offset + at, &mut records);
            for record in records[..read].chunks_exact(SampleRecord::BYTES).filter_map(SampleRecord::decode) {
                let is_old = record.owner != OWNER_IN_FLIGHT && record.born <= requests;
                if record.live != 0 && record.address != 0 && is_old && record.flags & FLAG_PARKED == 0 {
                    let (start, bytes) = (record.address as usize, (record.size as usize).max(1));
                    self.blocks.push(Block { start, bytes, is_pointed_to: false });
                }
            }
        }
        self.blocks.sort_unstable_by_key(|block| block.start);
        self.filter.extend_zeroed(FILTER_BITS / 64);
        for block in self.blocks.iter() {
            let last = (block.start.saturating_add(block.bytes - 1)) / PAGE;
            for page in (block.start / PAGE..=last).take(FILTER_BITS) {
                self.filter[page % FILTER_BITS / 64] |= 1 << (page % 64);
            }
        }
        Some(())
    }

    /// Notes what is mapped, from `/proc/self/maps`: memory that belongs to this process alone, or has no name.
    fn read_areas(&mut self, stack: usize) -> Option<()> {
        let file = ReadOnly::open(c"/proc/self/maps")?;
        let own = [
            own_library(),
            (stack.saturating_sub(super::STACK_BYTES), stack),
            self.blocks.area(),
            self.filter.area(),
            self.areas.area(),
        ];
        let mut lines = Lines { file, buffer: [0; LINE], from: 0, to: 0 };
        while let Some(line) = lines.next() {
            let Some((start, end)) = area(line) else { continue };
            if line.ends_with(b"[heap]") {
                // Where it grew after a fork it is two mappings, and a chunk may lie in both.
                match self.areas.last_mut().filter(|(first, behind)| *first == self.main_heap && *behind == start) {
                    Some((_, behind)) => {
                        *behind = end;
                        continue;
                    }
                    None => self.main_heap = start,
                }
            }
            // What remains of it without our own: each of those cuts a piece out at most once.
            let mut from = start;
            while from < end {
                let inside = own.iter().find(|(first, behind)| (*first..*behind).contains(&from));
                if let Some((_, behind)) = inside {
                    from = behind.next_multiple_of(8);
                    continue;
                }
                let next = own.iter().map(|(first, _)| *first).filter(|first| *first > from).min();
                let to = next.map_or(end, |next| end.min(next));
                if self.areas.len() == MOST_AREAS {
                    return None;
                }
                self.areas.push((from, to));
                from = to;
            }
        }
        (!self.areas.is_empty()).then_some(())
    }

    /// Looks through all memory until a moment of [`clock::monotonic_ns`].
    ///
    /// # Safety
    /// This process has one thread, and what was mapped when the areas were noted still is.
    pub(super) unsafe fn search(&mut self, until_ns: u64) {
        // SAFETY: the caller's promise.
        self.search = unsafe { self.search_all(until_ns) };
        for block in self.blocks.iter_mut() {
            if let Some(is_reached) = self.heaps.is_reached(block.start) {
                block.is_pointed_to = is_reached;
            }
        }
    }

    /// # Safety
    /// As for [`Blocks::search`].
    unsafe fn search_all(&mut self, until_ns: u64) -> Search {
        let pages = ReadOnly::open(c"/proc/self/pagemap").map(Pages);
        let Some(pages) = pages.filter(|_| self.is_noted) else { return Search::Impossible };
        for at in 0..self.areas.len() {
            let (start, end) = self.areas[at];
            let is_there = |address| pages.of(address, address + 1).is_some_and(|there| there[0]);
            // SAFETY: the caller's promise.
            unsafe { self.heaps.note(start, end, start == self.main_heap, is_there) };
        }
        for at in 0..self.areas.len() {
            let (mut from, end) = self.areas[at];
            while from < end {
                let (is_heap, until) = self.heaps.behind(from);
                let to = end.min(until);
                if is_heap {
                    from = to;
                    continue;
                }
                let to = to.min((from / PAGE + AT_ONCE) * PAGE);
                let Some(is_there) = pages.of(from, to) else { return Search::Impossible };
                for (page, _) in (from / PAGE..).zip(is_there).filter(|(_, is_there)| *is_there) {
                    // SAFETY: the caller's promise.
                    unsafe { self.search_words(from.max(page * PAGE), to.min((page + 1) * PAGE)) };
                }
                from = to;
                // What that leads to in malloc's heaps.
                loop {
                    if clock::monotonic_ns() > until_ns {
                        return Search::OutOfTime;
                    }
                    let Some((from, to)) = self.heaps.next() else { break };
                    // SAFETY: a chunk lies within the areas.
                    unsafe { self.search_words(from, to) };
                }
            }
        }
        Search::Done
    }

    /// # Safety
    /// Readable memory, aligned to eight bytes at both ends; else as for [`Blocks::search`].
    unsafe fn search_words(&mut self, from: usize, to: usize) {
        let Self { blocks, filter, heaps, .. } = self;
        let (blocks, filter): (&mut [Block], &[u64]) = (blocks, filter);
        for place in (from..to).step_by(8) {
            // SAFETY: the caller's promise.
            unsafe {
                let word = word(place);
                if filter[word / PAGE % FILTER_BITS / 64] & 1 << (word / PAGE % 64) != 0 {
                    point(blocks, word, place);
                }
                heaps.reach(word);
            }
        }
    }

    /// What came of the search.
    pub(super) fn outcome(&self) -> Search {
        self.search
    }

    /// How many were searched for.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The addresses of those that nothing points to; none where not all memory was looked through.
    pub(super) fn lost(&self) -> impl Iterator<Item = u64> {
        let is_known = self.search == Search::Done;
        // Two samples may stand for one address for a moment, and all blocks are aligned to eight.
        let all = self.blocks.iter().filter(move |block| is_known && !block.is_pointed_to && block.start % 8 == 0);
        let mut last = 0;
        all.map(|block| block.start as u64).filter(move |address| std::mem::replace(&mut last, *address) != *address)
    }
}

/// `/proc/self/pagemap`
struct Pages(ReadOnly);

impl Pages {
    /// Which of the pages from `from` to `to`, [`AT_ONCE`] of them at most, have been written to; `None` where it can't be
    /// told.
    fn of(&self, from: usize, to: usize) -> Option<[bool; AT_ONCE]> {
        /// Documentation/admin-guide/mm/pagemap.rst: bits of a page's entry.
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        let mut entries = [0; AT_ONCE * 8];
        let wanted = (to.div_ceil(PAGE) - from / PAGE) * 8;
        let read = self.0.read((from / PAGE * 8) as u64, &mut entries[..wanted]);
        let (entries, _) = entries.as_chunks();
        let is_there = |at: usize| u64::from_le_bytes(entries[at]) & (PRESENT | SWAPPED) != 0;
        (read == wanted).then(|| std::array::from_fn(is_there))
    }
}

/// A word at `place` may point into a block.
fn point(blocks: &mut [Block], word: usize, place: usize) {
    let behind = blocks.partition_point(|block| block.start <= word);
    let Some(block) = behind.checked_sub(1).map(|at| &mut blocks[at]) else { return };
    if word - block.start < block.bytes && place.wrapping_sub(block.start) >= block.bytes {
        block.is_pointed_to = true;
    }
}

/// The bytes of this library, its variables included.
fn own_library() -> (usize, usize) {
    unsafe extern "C" {
        /// Where a library begins and ends, as the linker says.
        static __ehdr_start: u8;
        static _end: u8;
    }
    (&raw const __ehdr_start as usize, &raw const _end as usize)
}

/// Where a line of `/proc/self/maps` says that memory lies, if it may hold pointers:
/// `7f5c0a400000-7f5c0a600000 rw-p 00000000 00:00 0      /dev/zero (deleted)`.
fn area(line: &[u8]) -> Option<(usize, usize)> {
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let (range, rights) = (words.next()?, words.next()?);
    let path = words.nth(3).unwrap_or_default();
    let is_private = rights.get(3) == Some(&b'p');
    // What the kernel itself maps, and devices, are no memory; `/dev/zero` is what has no name and is shared.
    let is_memory = match path {
        b"/dev/zero" => true,
        _ => is_private && !path.starts_with(b"[v") && !path.starts_with(b"/dev/"),
    };
    let dash = range.iter().position(|byte| *byte == b'-')?;
    let number = |digits: &[u8]| usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let (start, end) = (number(&range[..dash])?, number(&range[dash + 1..])?);
    (is_memory && rights.first() == Some(&b'r')).then_some((start, end))
}

/// A file's lines, of which the longest has one byte less than [`LINE`].
struct Lines {
    file: ReadOnly,
    buffer: [u8; LINE],
    from: usize,
    to: usize,
}

impl Lines {
    fn next(&mut self) -> Option<&[u8]> {
        loop {
            let rest = &self.buffer[self.from..self.to];
            if let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                let line = self.from..self.from + length;
                self.from += length + 1;
                return Some(&self.buffer[line]);
            }
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            match self.file.read_next(&mut self.buffer[self.to..]) {
                0 => return None,
                read => self.to += read,
            }
        }
    }
}

/// A file that is read by system calls.
struct ReadOnly(i32);

impl ReadOnly {
    fn open(path: &CStr) -> Option<Self> {
        // SAFETY: a C string.
        let descriptor = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        (descriptor >= 0).then_some(Self(descriptor))
    }

    /// Returns how much there was, 0 where it can't be read.
    fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        // SAFETY: a buffer of known length.
        let read = unsafe { libc::pread(self.0, into.as_mut_ptr().cast(), into.len(), offset as libc::off_t) };
        read.max(0) as usize
    }

    fn read_next(&self, into: &mut [u8]) -> usize {
        // SAFETY: as above.
        unsafe { libc::read(self.0, into.as_mut_ptr().cast(), into.len()).max(0) as usize }
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // SAFETY: a descriptor of our own. The C library's `close` is ours, and looks at sockets only.
        unsafe { libc::syscall(libc::SYS_close, self.0) };
    }
}
