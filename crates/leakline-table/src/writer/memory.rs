//! Turns zeroed bytes into typed slices, and holds the filter over sampled addresses.

use crate::layout::{
    CodeRecord, CollectionRecord, Header, ModuleRecord, PeakRecord, RouteRecord, SampleRecord, SectionEntry,
    SectionKind, SocketRecord, TickRecord,
};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// A type for which every pattern of bits is a value.
///
/// # Safety
/// No padding that matters, no references, no enums, no `bool`.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: integers, floats and `repr(C)` structs of them.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for Header {}
// SAFETY: as above.
unsafe impl Plain for CodeRecord {}
// SAFETY: as above.
unsafe impl Plain for RouteRecord {}
// SAFETY: as above.
unsafe impl Plain for SampleRecord {}
// SAFETY: as above.
unsafe impl Plain for CollectionRecord {}
// SAFETY: as above.
unsafe impl Plain for TickRecord {}
// SAFETY: as above.
unsafe impl Plain for PeakRecord {}
// SAFETY: as above.
unsafe impl Plain for SocketRecord {}
// SAFETY: as above.
unsafe impl Plain for ModuleRecord {}

/// Cuts typed slices off the front of a region.
pub(super) struct Carver<'a> {
    rest: &'a mut [u8],
    taken: usize,
}

impl<'a> Carver<'a> {
    pub(super) fn new(region: &'a mut [u8]) -> Self {
        Self { rest: region, taken: 0 }
    }

    /// The next `count` values, aligned; `None` where too few bytes are left.
    pub(super) fn take<T: Plain>(&mut self, count: usize) -> Option<&'a mut [T]> {
        let region = std::mem::take(&mut self.rest);
        let padding = region.as_ptr().align_offset(align_of::<T>());
        let bytes = count.checked_mul(size_of::<T>())?;
        let (_, region) = region.split_at_mut_checked(padding)?;
        let (wanted, rest) = region.split_at_mut_checked(bytes)?;
        self.rest = rest;
        self.taken += padding + bytes;
        // SAFETY: `wanted` is aligned, holds `count` values, lives for 'a and was split off, so nobody else has it;
        // T is Plain, so whatever the bytes are, they are values.
        Some(unsafe { std::slice::from_raw_parts_mut(wanted.as_mut_ptr().cast(), count) })
    }

    /// The section of a kind, which must come next in file order.
    pub(super) fn section<T: Plain>(&mut self, directory: &[SectionEntry], kind: SectionKind) -> Option<&'a mut [T]> {
        let entry = directory.get(kind as usize - 1)?;
        self.take::<u8>((entry.offset as usize).checked_sub(self.taken)?)?;
        self.take(entry.bytes as usize / size_of::<T>())
    }
}

/// How many cells the filter has, as a power of two. A table of 32 MiB holds 16,384 samples at most, so that not more than
/// one free in 32 asks about a stranger far away.
const CELLS_LOG: u32 = 19;
const CELLS: usize = 1 << CELLS_LOG;
/// Bytes of memory that share a cell, as a power of two: a processor's cache line of 64 cells then answers for a page. Cells of
/// 16 bytes, one for each block, took more time for the lines that they brought into the cache (bench/README.md) than a free
/// beside a sampled block takes to find that it is another one.
const SHARED_LOG: u32 = 6;

/// A counting filter over the addresses of sampled blocks. Its answer "no" is certain, so that a free of a block that
/// was never sampled costs one load. A cell that has reached 255 stays there: it can only say "maybe" too often.
///
/// Fast paths in assembly ask it by themselves: it is nothing but its cells, a byte each. The cell of an address is
/// `((address as u32).wrapping_mul(Filter::SPREAD)) >> Filter::SHIFT`, which is (address / 64) modulo the number of cells.
#[repr(transparent)]
pub struct Filter([AtomicU8; CELLS]);

impl Filter {
    /// What an address is multiplied by, to lose the bits above those that choose a cell.
    pub const SPREAD: u32 = 1 << (u32::BITS - CELLS_LOG - SHARED_LOG);
    /// How far the product is shifted down, to lose the bits below them.
    pub const SHIFT: u32 = u32::BITS - CELLS_LOG;

    /// An empty filter.
    pub const fn new() -> Self {
        Self([const { AtomicU8::new(0) }; CELLS])
    }

    /// May a sampled block lie at this address?
    #[inline(always)]
    pub fn may_hold(&self, address: usize) -> bool {
        self.cell(address).load(Relaxed) != 0
    }

    #[inline(always)]
    fn cell(&self, address: usize) -> &AtomicU8 {
        &self.0[((address as u32).wrapping_mul(Self::SPREAD) >> Self::SHIFT) as usize]
    }

    pub(super) fn add(&self, address: u64) {
        let cell = self.cell(address as usize);
        let count = cell.load(Relaxed);
        if count < u8::MAX {
            cell.store(count + 1, Relaxed);
        }
    }

    pub(super) fn remove(&self, address: u64) {
        let cell = self.cell(address as usize);
        let count = cell.load(Relaxed);
        if count > 0 && count < u8::MAX {
            cell.store(count - 1, Relaxed);
        }
    }

    /// Forgets all addresses.
    pub fn clear(&self) {
        // Read first: after a fork most cells are zero, and writing them all would copy their pages for nothing.
        for cell in &self.0 {
            if cell.load(Relaxed) != 0 {
                cell.store(0, Relaxed);
            }
        }
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self::new()
    }
}
