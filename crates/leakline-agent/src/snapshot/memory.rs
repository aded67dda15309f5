//! The memory of the child that writes a snapshot: mappings of its own, since malloc's locks may be held by threads that
//! the child does not have.

use super::child::end;
use crate::native;
use leakline_table::heap::Ending;

/// A growing array in a mapping of its own.
pub(super) struct Growing<T> {
    start: *mut T,
    length: usize,
    capacity: usize,
}

impl<T: Copy> Growing<T> {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { start: std::ptr::null_mut(), length: 0, capacity: 0 }
    }

    pub(super) fn push(&mut self, value: T) {
        if self.length == self.capacity {
            self.reserve((self.capacity * 2).max((64 << 10) / size_of::<T>()));
        }
        // SAFETY: there is room for one more.
        unsafe { self.start.add(self.length).write(value) };
        self.length += 1;
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        self.length = self.length.checked_sub(1)?;
        // SAFETY: the value was pushed before; T is Copy.
        Some(unsafe { self.start.add(self.length).read() })
    }

    pub(super) fn clear(&mut self) {
        self.length = 0;
    }

    /// Makes it `count` longer; what is new is zero, as the kernel gives it.
    pub(super) fn extend_zeroed(&mut self, count: usize) {
        let length = self.length + count;
        if length > self.capacity {
            self.reserve(length.max(self.capacity * 2));
        }
        self.length = length;
    }

    /// Where its memory begins and ends.
    pub(super) fn area(&self) -> (usize, usize) {
        (self.start as usize, self.start as usize + (self.capacity * size_of::<T>()).next_multiple_of(4096))
    }

    /// Makes room for so many values, of which nothing is touched yet.
    pub(super) fn reserve(&mut self, capacity: usize) {
        let bytes = |count: usize| (count * size_of::<T>()).next_multiple_of(4096);
        let start = match self.capacity {
            0 => native::map(bytes(capacity), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            // SAFETY: a mapping that only this array knows.
            before => unsafe { native::extend(self.start as usize, bytes(before), bytes(capacity)) },
        };
        let Some(start) = start else { end(Ending::NoMemory) };
        (self.start, self.capacity) = (start as *mut T, capacity);
    }
}

impl<T> Drop for Growing<T> {
    fn drop(&mut self) {
        if self.capacity > 0 {
            // SAFETY: the mapping is this array's alone.
            unsafe { native::unmap(self.start as usize, (self.capacity * size_of::<T>()).next_multiple_of(4096)) };
        }
    }
}

impl<T> std::ops::Deref for Growing<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self.length {
            0 => &[],
            // SAFETY: so many values were written, or are zero.
            length => unsafe { std::slice::from_raw_parts(self.start, length) },
        }
    }
}

impl<T> std::ops::DerefMut for Growing<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self.length {
            0 => &mut [],
            // SAFETY: as above.
            length => unsafe { std::slice::from_raw_parts_mut(self.start, length) },
        }
    }
}

/// From addresses (never 0) to numbers: open addressing, at most half full.
pub(super) struct Map {
    cells: Growing<(usize, u32)>,
    used: usize,
}

impl Map {
    pub(super) fn new() -> Self {
        let mut cells = Growing::new();
        cells.extend_zeroed(1 << 12);
        Self { cells, used: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.used
    }

    pub(super) fn get(&self, key: usize) -> Option<u32> {
        let (found, value) = self.cells[self.cell(key)];
        (found == key).then_some(value)
    }

    pub(super) fn insert(&mut self, key: usize, value: u32) {
        if 2 * self.used >= self.cells.len() {
            let mut larger = Self { cells: Growing::new(), used: 0 };
            larger.cells.extend_zeroed(2 * self.cells.len());
            for &(key, value) in self.cells.iter().filter(|(key, _)| *key != 0) {
                larger.insert(key, value);
            }
            *self = larger;
        }
        let at = self.cell(key);
        self.used += usize::from(self.cells[at].0 != key);
        self.cells[at] = (key, value);
    }

    /// Where the key is, or would be.
    fn cell(&self, key: usize) -> usize {
        let mask = self.cells.len() - 1;
        // Fibonacci hashing: the upper bits of the product depend on all bits of the key (Knuth 6.4).
        let mut at = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) & mask;
        while self.cells[at].0 != 0 && self.cells[at].0 != key {
            at = (at + 1) & mask;
        }
        at
    }
}

/// A set of addresses that are multiples of eight: a bit for each eight bytes of the stretches that hold any, which is
/// 1.6 % of what the objects take.
pub(super) struct Seen {
    stretches: Map,
    bits: Growing<u64>,
    /// Stretches that were asked for lately, each in the place that its lowest bits name, and their numbers: most objects
    /// refer to some nearby, and to types and constants.
    latest: [(usize, u32); LATEST],
}

/// Stretches that are at hand.
const LATEST: usize = 256;

/// Bytes of a stretch, as a power of two.
const STRETCH_SHIFT: u32 = 18;
/// Words of bits for a stretch.
const STRETCH_WORDS: usize = 1 << (STRETCH_SHIFT - 3 - 6);

impl Seen {
    pub(super) fn new() -> Self {
        Self { stretches: Map::new(), bits: Growing::new(), latest: [(0, 0); LATEST] }
    }

    /// Adds an address. True where it was not in the set.
    #[inline]
    pub(super) fn add(&mut self, address: usize) -> bool {
        // Never 0, which stands for none.
        let stretch = (address >> STRETCH_SHIFT) + 1;
        let latest = self.latest[stretch % LATEST];
        let number = if latest.0 == stretch { latest.1 } else { self.find(stretch) };
        let bit = (address >> 3) & ((1 << (STRETCH_SHIFT - 3)) - 1);
        let word = &mut self.bits[number as usize * STRETCH_WORDS + bit / 64];
        let before = *word;
        *word |= 1 << (bit % 64);
        *word != before
    }

    #[cold]
    fn find(&mut self, stretch: usize) -> u32 {
        let number = self.stretches.get(stretch).unwrap_or_else(|| {
            let number = self.stretches.len() as u32;
            self.stretches.insert(stretch, number);
            self.bits.extend_zeroed(STRETCH_WORDS);
            number
        });
        self.latest[stretch % LATEST] = (stretch, number);
        number
    }
}
