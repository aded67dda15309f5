//! The live samples: found by the address of their block, chained where a block has grown.
//!
//! A block has one *anchor*, the sample that the index of addresses leads to. What realloc added to it later are
//! samples of their own, without an address, chained behind the anchor: they were added by other stacks and requests,
//! and they die with the block.

use super::memory::{Carver, Plain};
use super::names::mix;
use super::places::Places;
use super::{Life, Writer};
use crate::layout::{
    FLAG_GROWTH, FLAG_SMALL, Loss, OWNER_IN_FLIGHT, OWNER_NONE, PHASE_SHIFT, Phase, SampleRecord, SectionKind,
};

/// What is known of a sampled allocation.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// Where the block lies.
    pub address: u64,
    /// Its bytes, or the bytes that were added to it.
    pub size: u64,
    /// Bytes of the whole block; more than `size` where an untracked block has grown.
    pub block: u64,
    /// What the sample stands for, bytes.
    pub weight: f64,
    /// A StackId, 0 for none.
    pub stack: u32,
    /// The request's handle, 0 for none.
    pub request: u64,
    /// `FLAG_GROWTH` and its like.
    pub flags: u8,
    /// Where in the program it was allocated, below [`PLACES`](super::PLACES).
    pub place: u16,
}

/// A sampled block whose address is being changed by realloc: while the allocator works it has none, so that another
/// thread that is given the old address cannot be taken for it.
#[derive(Clone, Copy, Debug)]
#[must_use = "a block in transit has to arrive"]
pub struct Transit {
    slot: u32,
    generation: u32,
}

/// What the reader has no use for: chains, and whether a slot is still what it was.
#[derive(Clone, Copy)]
#[repr(C)]
struct Link {
    /// The next growth of the same block; the next free slot where the slot is free. A slot + 1, 0 for none.
    next: u32,
    /// The request in flight that owns the sample, its slot + 1.
    request: u32,
    /// Neighbours in that request's list. Slots + 1.
    request_next: u32,
    request_previous: u32,
    /// Raised whenever the slot is freed.
    generation: u32,
    /// The round of thinning that the sample has survived last; wraps.
    round: u16,
    /// The place that allocated the block, for anchors.
    place: u16,
    /// Bytes of the whole block, for anchors.
    block: u64,
}

// SAFETY: integers.
unsafe impl Plain for Link {}

pub(super) struct Samples<'a> {
    records: &'a mut [SampleRecord],
    links: &'a mut [Link],
    /// Open addressing with linear probing: slot + 1 of the anchor at an address.
    index: &'a mut [u32],
    /// Head of the chain of free slots, a slot + 1.
    free: u32,
    /// Slots that have ever been used.
    used: u32,
    /// Rounds of thinning so far; wraps.
    round: u16,
    pub(super) places: Places<'a>,
}

impl<'a> Samples<'a> {
    pub(super) fn private_bytes(samples: usize) -> usize {
        samples * size_of::<Link>() + 4 * index_cells(samples) + Places::private_bytes()
    }

    pub(super) fn new(records: &'a mut [SampleRecord], private: &mut Carver<'a>) -> Option<Self> {
        let count = records.len();
        let (links, index) = (private.take(count)?, private.take(index_cells(count))?);
        let places = Places::new(private)?;
        Some(Self { records, links, index, free: 0, used: 0, round: 0, places })
    }

    pub(super) fn record(&mut self, slot: u32) -> &mut SampleRecord {
        &mut self.records[slot as usize]
    }

    pub(super) fn generation(&self, slot: u32) -> u32 {
        self.links[slot as usize].generation
    }

    pub(super) fn is_live(&self, slot: u32, generation: u32) -> bool {
        self.links[slot as usize].generation == generation && self.records[slot as usize].live != 0
    }

    /// The samples of a request's list, from its head on.
    pub(super) fn of_request(&self, head: u32) -> impl Iterator<Item = &SampleRecord> {
        std::iter::successors(head.checked_sub(1), |slot| self.links[*slot as usize].request_next.checked_sub(1))
            .map(|slot| &self.records[slot as usize])
    }

    /// All samples that have ever been made in their slots; those not in use are not live.
    pub(super) fn all(&mut self) -> &mut [SampleRecord] {
        &mut self.records[..self.used as usize]
    }

    /// Takes a sample out of its request's list, whose head is given.
    pub(super) fn leave_request(&mut self, slot: u32, head: &mut u32) {
        let link = self.links[slot as usize];
        match link.request_previous {
            0 => *head = link.request_next,
            previous => self.links[previous as usize - 1].request_next = link.request_next,
        }
        if link.request_next != 0 {
            self.links[link.request_next as usize - 1].request_previous = link.request_previous;
        }
        let link = &mut self.links[slot as usize];
        (link.request, link.request_next, link.request_previous) = (0, 0, 0);
    }

    fn join_request(&mut self, slot: u32, request: u32, head: &mut u32) {
        let next = std::mem::replace(head, slot + 1);
        if next != 0 {
            self.links[next as usize - 1].request_previous = slot + 1;
        }
        let link = &mut self.links[slot as usize];
        (link.request, link.request_next, link.request_previous) = (request + 1, next, 0);
    }

    fn home(&self, address: u64) -> usize {
        mix(address) as usize & (self.index.len() - 1)
    }

    /// The cell of the anchor at an address.
    fn cell(&self, address: u64) -> Option<usize> {
        let mask = self.index.len() - 1;
        let mut at = self.home(address);
        // At most half of the cells are in use, so the search ends.
        while self.index[at] != 0 {
            if self.records[self.index[at] as usize - 1].address == address {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
        None
    }

    fn enter(&mut self, slot: u32) {
        let mask = self.index.len() - 1;
        let mut at = self.home(self.records[slot as usize].address);
        while self.index[at] != 0 {
            at = (at + 1) & mask;
        }
        self.index[at] = slot + 1;
    }

    /// Takes an anchor out of the index, closing the gap so that searches need no tombstones (Knuth 6.4, algorithm R).
    fn leave(&mut self, mut gap: usize) {
        let mask = self.index.len() - 1;
        let mut at = gap;
        loop {
            self.index[gap] = 0;
            loop {
                at = (at + 1) & mask;
                if self.index[at] == 0 {
                    return;
                }
                let home = self.home(self.records[self.index[at] as usize - 1].address);
                // May the entry at `at` move into the gap? Only if its home is not cyclically within (gap, at].
                if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(gap) & mask) {
                    break;
                }
            }
            self.index[gap] = self.index[at];
            gap = at;
        }
    }

    /// Fetches what the next sample, of a block at this address, will be written to.
    fn expect(&self, address: u64) {
        let slot = if self.free != 0 { self.free - 1 } else { self.used } as usize;
        fetch(self.records, slot);
        fetch(self.links, slot);
        fetch(self.index, self.home(address));
    }

    fn take_slot(&mut self) -> Option<u32> {
        if self.free != 0 {
            let slot = self.free - 1;
            self.free = self.links[slot as usize].next;
            self.links[slot as usize].next = 0;
            return Some(slot);
        }
        ((self.used as usize) < self.records.len()).then(|| {
            self.used += 1;
            self.used - 1
        })
    }
}

fn index_cells(samples: usize) -> usize {
    samples.next_power_of_two() * 2
}

impl Writer<'_> {
    /// Records a sampled allocation. When there is no room, the table is thinned first and the interval doubled; then
    /// the new sample, too, stays with a chance of one half and twice its weight.
    pub fn born(&mut self, birth: &Birth) -> Option<Transit> {
        if let Some(cell) = self.samples.cell(birth.address) {
            self.lose(Loss::FreeUnseen);
            self.kill(cell);
        }
        let slot = self.record(birth)?;
        self.settle_down(slot, birth.address);
        let link = &mut self.samples.links[slot as usize];
        (link.block, link.place) = (birth.block, birth.place);
        self.samples.places.born(birth.place, birth.request != 0);
        let generation = self.samples.generation(slot);
        // What servers make for a request before it begins, or after its end, parks as well. (Importing makes more of these
        // than can be looked at, and what it leaves is the oldest there is.)
        if birth.request == 0 && birth.flags & (FLAG_SMALL | FLAG_GROWTH) == FLAG_SMALL && self.header.requests > 0 {
            self.requests.watch(slot, generation, self.header.requests as u32);
        }
        Some(Transit { slot, generation })
    }

    /// A block at this address is about to be recorded with [`Writer::born`]: what it will be written to is on its way from
    /// memory meanwhile.
    pub fn expect(&self, address: u64) {
        self.samples.expect(address);
    }

    /// Is a sampled block of pymalloc's at this address?
    pub fn holds_small(&mut self, address: u64) -> bool {
        let Some(cell) = self.samples.cell(address) else { return false };
        let slot = self.samples.index[cell] - 1;
        self.samples.record(slot).flags & FLAG_SMALL != 0
    }

    /// A block was freed. Nothing happens where it was not sampled; returns whether it was.
    pub fn died(&mut self, address: u64) -> bool {
        let cell = self.samples.cell(address);
        cell.into_iter().for_each(|cell| self.kill(cell));
        cell.is_some()
    }

    /// Takes a sampled block off its address, before realloc may move it. `None` where it is not sampled.
    pub fn depart(&mut self, address: u64) -> Option<Transit> {
        let cell = self.samples.cell(address)?;
        let slot = self.samples.index[cell] - 1;
        self.samples.leave(cell);
        self.filter.remove(address);
        self.samples.record(slot).address = 0;
        Some(Transit { slot, generation: self.samples.generation(slot) })
    }

    /// Puts a block where realloc left it, `block` bytes long now. Returns the bytes that were added, which are to be
    /// recorded with [`Writer::grown`]; a block that shrank is scaled down at once.
    pub fn arrive(&mut self, transit: Transit, address: u64, block: u64) -> u64 {
        if !self.samples.is_live(transit.slot, transit.generation) {
            return 0; // Thinned away meanwhile.
        }
        if let Some(cell) = self.samples.cell(address) {
            self.lose(Loss::FreeUnseen);
            self.kill(cell);
        }
        self.settle_down(transit.slot, address);
        let link = &mut self.samples.links[transit.slot as usize];
        let before = std::mem::replace(&mut link.block, block);
        if block < before {
            self.scale(transit.slot, block as f64 / before as f64);
        }
        block.saturating_sub(before)
    }

    /// Records bytes that realloc added to a sampled block: with certainty, since the block is known, so that they
    /// weigh just what they are.
    pub fn grown(&mut self, transit: Transit, added: u64, stack: u32, request: u64) {
        // It may outlive the block's first sample and stand for the block then, so it says whose block it is.
        let flags = FLAG_GROWTH | self.samples.record(transit.slot).flags & FLAG_SMALL;
        let birth = Birth { address: 0, size: added, block: 0, weight: added as f64, stack, request, flags, place: 0 };
        if let Some(slot) = self.record(&birth) {
            if !self.samples.is_live(transit.slot, transit.generation) {
                return self.drop_slot(slot);
            }
            let next = std::mem::replace(&mut self.samples.links[transit.slot as usize].next, slot + 1);
            self.samples.links[slot as usize].next = next;
        }
    }

    /// realloc has failed: puts the block back as it was.
    pub fn stay(&mut self, transit: Transit, address: u64) {
        if self.samples.is_live(transit.slot, transit.generation) {
            self.settle_down(transit.slot, address);
        }
    }

    /// realloc has freed the block in transit.
    pub fn give_up(&mut self, transit: Transit) {
        if self.samples.is_live(transit.slot, transit.generation) {
            self.drop_block(transit.slot);
        }
    }

    /// Notes what a small block holds soon after its birth, see [`Life::InUse`].
    pub fn mark(&mut self, sample: Transit, look: impl FnOnce(&SampleRecord) -> Life) {
        let record = self.samples.record(sample.slot);
        if record.address != 0 && self.samples.is_live(sample.slot, sample.generation) {
            let record = self.samples.record(sample.slot);
            if let Life::InUse(mark) = look(record) {
                record.mark = mark;
            }
        }
    }

    /// Makes a sample without an address.
    fn record(&mut self, birth: &Birth) -> Option<u32> {
        self.header.samples_taken += 1;
        self.header.allocated_bytes += birth.weight;
        let open = self.requests.open(birth.request);
        match open {
            Some(index) => self.requests.slot(index).allocated(birth.weight),
            None => self.header.unattributed_allocated_bytes += birth.weight,
        }
        let mut weight = birth.weight;
        let slot = match self.samples.take_slot() {
            Some(slot) => slot,
            None => {
                self.thin();
                weight *= 2.0;
                if self.random.coin() {
                    return None;
                }
                self.samples.take_slot()?
            }
        };
        let (phase, ended) = match open {
            Some(index) => {
                self.samples.join_request(slot, index, &mut self.requests.slot(index).first);
                // Only here: what thinning has just refused is not held, and what it let pass counts twice.
                self.requests.slot(index).kept(birth.size, weight);
                (self.requests.slot(index).phase(), None)
            }
            None => (Phase::After as u8, self.requests.ended(birth.request)),
        };
        let born = self.header.requests;
        *self.samples.record(slot) = SampleRecord {
            live: 0,
            stack: birth.stack,
            address: 0,
            size: birth.size,
            weight,
            ordinal: open.map_or(0, Self::number_in_flight),
            born,
            route: 0,
            outcome: 0,
            owner: if open.is_some() { OWNER_IN_FLIGHT } else { OWNER_NONE },
            flags: birth.flags | if birth.request == 0 { 0 } else { phase << PHASE_SHIFT },
            looks: 0,
            mark: 0,
        };
        if let Some(index) = ended {
            self.settle_late(index, slot);
        }
        publish(&mut self.samples.record(slot).live, 1);
        let used = self.samples.used;
        self.entry(SectionKind::Samples).used = used;
        if let Some(index) = open {
            self.look_for_peak(index);
        }
        Some(slot)
    }

    fn settle_down(&mut self, slot: u32, address: u64) {
        self.samples.record(slot).address = address;
        self.samples.enter(slot);
        self.filter.add(address);
    }

    /// Ends the block whose anchor a cell of the index holds, with all that it has grown by.
    fn kill(&mut self, cell: usize) {
        let slot = self.samples.index[cell] - 1;
        let address = self.samples.record(slot).address;
        self.samples.leave(cell);
        self.filter.remove(address);
        self.drop_block(slot);
    }

    /// Frees the slots of a block that the index leads to no more.
    fn drop_block(&mut self, anchor: u32) {
        self.samples.places.died(self.samples.links[anchor as usize].place);
        let mut next = anchor + 1;
        while next != 0 {
            let slot = next - 1;
            next = self.samples.links[slot as usize].next;
            self.drop_slot(slot);
        }
    }

    /// A block has shrunk to a share of what it was, and so has each of its samples.
    fn scale(&mut self, anchor: u32, share: f64) {
        let mut next = anchor + 1;
        while next != 0 {
            let slot = next - 1;
            let record = self.samples.record(slot);
            let before = (record.size, record.weight);
            (record.size, record.weight) = ((record.size as f64 * share) as u64, record.weight * share);
            let after = (record.size, record.weight);
            let link = &self.samples.links[slot as usize];
            next = link.next;
            if let Some(request) = link.request.checked_sub(1) {
                let request = self.requests.slot(request);
                request.freed(before.0, before.1);
                request.kept(after.0, after.1);
            }
        }
    }

    /// Frees a slot that no index and no chain of growth leads to any more.
    fn drop_slot(&mut self, slot: u32) {
        let request = self.samples.links[slot as usize].request;
        if request != 0 {
            let SampleRecord { size, weight, .. } = *self.samples.record(slot);
            let request = self.requests.slot(request - 1);
            request.freed(size, weight);
            self.samples.leave_request(slot, &mut request.first);
        }
        publish(&mut self.samples.record(slot).live, 0);
        let free = self.samples.free;
        let link = &mut self.samples.links[slot as usize];
        link.generation = link.generation.wrapping_add(1);
        link.next = free;
        self.samples.free = slot + 1;
    }

    /// Drops each sample with a chance of one half and doubles the weight of those that stay: the sums stay unbiased.
    /// The interval is doubled, so that what comes is as likely to be kept as what is here; those of the history, too.
    fn thin(&mut self) {
        let before = self.header.interval_bytes;
        self.header.interval_bytes = before * 2.0;
        let written = self.header.ticks as usize;
        self.ticks.iter_mut().take(written).for_each(|tick| tick.interval_bytes *= 2.0);
        self.samples.round = self.samples.round.wrapping_add(1);
        let mut dropped = 0;
        for slot in 0..self.samples.used {
            let record = *self.samples.record(slot);
            // Growth is reached through its anchor; a block in transit has no address and is left alone this once. A
            // block whose anchor was replaced by a later one in this very round must not be thinned again there.
            if record.live == 0 || record.address == 0 || self.samples.links[slot as usize].round == self.samples.round
            {
                continue;
            }
            dropped += self.thin_block(slot);
        }
        self.lose_many(Loss::Thinned, dropped);
    }

    /// Thins the samples of one block. The block stays findable as long as one of them is left.
    fn thin_block(&mut self, anchor: u32) -> u64 {
        let record = *self.samples.record(anchor);
        let Some(cell) = self.samples.cell(record.address) else { return 0 };
        let Link { block, place, .. } = self.samples.links[anchor as usize];
        let mut kept = 0;
        let mut dropped = 0;
        let mut next = anchor + 1;
        while next != 0 {
            let slot = next - 1;
            next = std::mem::take(&mut self.samples.links[slot as usize].next);
            if self.random.coin() {
                let request = self.samples.links[slot as usize].request;
                let record = self.samples.record(slot);
                if let Some(request) = request.checked_sub(1) {
                    let request = self.requests.slot(request);
                    request.freed(record.size, record.weight);
                    request.kept(record.size, record.weight * 2.0);
                }
                record.weight *= 2.0;
                record.address = 0;
                let link = &mut self.samples.links[slot as usize];
                (link.next, link.round) = (kept, self.samples.round);
                kept = slot + 1;
            } else {
                self.drop_slot(slot);
                dropped += 1;
            }
        }
        // The last one that was kept is the anchor now. Its record must have the address before the index is touched:
        // closing a gap asks the records for their homes.
        if kept != 0 {
            self.samples.record(kept - 1).address = record.address;
            let link = &mut self.samples.links[kept as usize - 1];
            (link.block, link.place) = (block, place);
            self.samples.index[cell] = kept;
        } else {
            self.samples.places.forget(place);
            // The anchor was dropped; its record still has its address, which `leave` does not ask for.
            self.samples.leave(cell);
            self.filter.remove(record.address);
        }
        dropped
    }
}

/// Asks the processor to fetch an element.
fn fetch<T>(elements: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(element) = elements.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has the instruction, and it only takes a hint.
        unsafe { _mm_prefetch::<_MM_HINT_T0>((element as *const T).cast()) };
    }
}

/// Writes a word that tells readers whether the rest of a record holds.
fn publish(word: &mut u32, value: u32) {
    // SAFETY: an exclusive reference to an aligned u32 may be used as an atomic.
    unsafe { std::sync::atomic::AtomicU32::from_ptr(word) }.store(value, std::sync::atomic::Ordering::Release);
}
