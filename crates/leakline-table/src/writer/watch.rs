//! A bounded list of blocks that are looked at again and again, one after the other.

use super::memory::Plain;

/// A block that may park or be revived, by its sample.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Watched {
    pub(super) slot: u32,
    pub(super) generation: u32,
    /// How many requests had ended with the one at whose end it was last looked at; wraps.
    pub(super) seen: u32,
}

// SAFETY: integers.
unsafe impl Plain for Watched {}

pub(super) struct Watch<'a> {
    blocks: &'a mut [Watched],
    count: usize,
    next: usize,
}

impl<'a> Watch<'a> {
    /// An empty list that holds up to `blocks.len()` blocks.
    pub(super) fn new(blocks: &'a mut [Watched]) -> Self {
        Self { blocks, count: 0, next: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Adds a block. Where the list is full, the block whose turn it would be gives way.
    pub(super) fn add(&mut self, block: Watched) {
        let at = if self.count < self.blocks.len() {
            self.count += 1;
            self.count - 1
        } else {
            self.place()
        };
        if let Some(place) = self.blocks.get_mut(at) {
            *place = block;
        }
    }

    /// The block whose turn it is, until it is kept or forgotten.
    pub(super) fn turn(&self) -> Option<Watched> {
        self.blocks[..self.count].get(self.place()).copied()
    }

    /// Goes on to the next block, after a look at the end of the request that made `seen` requests.
    pub(super) fn keep(&mut self, seen: u32) {
        let at = self.place();
        if let Some(block) = self.blocks.get_mut(at) {
            block.seen = seen;
        }
        self.next = at + 1;
    }

    /// Takes the block whose turn it is off the list; the last one comes to its place.
    pub(super) fn forget(&mut self) {
        let at = self.place();
        if at < self.count {
            self.count -= 1;
            self.blocks[at] = self.blocks[self.count];
        }
    }

    /// Where the block lies whose turn it is: after the last one comes the first.
    fn place(&self) -> usize {
        if self.next < self.count { self.next } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(slot: u32) -> Watched {
        Watched { slot, generation: 0, seen: 0 }
    }

    #[test]
    fn blocks_take_turns_and_a_full_list_stays_within_its_bounds() {
        let mut room = [Watched::default(); 3];
        let mut watch = Watch::new(&mut room);
        assert!(watch.turn().is_none());
        watch.forget();
        (0..3).for_each(|slot| watch.add(block(slot)));
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(watch.turn().map(|block| block.slot));
            watch.keep(1);
        }
        assert_eq!(seen, [Some(0), Some(1), Some(2), Some(0)]);

        // Full, whichever block's turn it is.
        for slot in 3..10 {
            watch.add(block(slot));
            watch.keep(1);
            assert_eq!(watch.count(), 3);
        }
        for left in (0..3).rev() {
            watch.forget();
            assert_eq!(watch.count(), left);
        }
    }
}
