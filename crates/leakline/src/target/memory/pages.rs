//! What is known of the pages of one mapping: whether they are resident, who claims them, how many of their bytes are in
//! use.
use std::ops::Range;

use super::remote::PAGE;

/// Who a page belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Claim {
    /// No allocator that is known.
    #[default]
    Nobody,
    /// CPython's pymalloc.
    Python,
    /// An arena of glibc's malloc, by its place in the list.
    Arena(u16),
    /// A block that malloc has mapped by itself.
    Chunk,
    /// malloc's, but its chunks could not be followed.
    Unknown,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    resident: bool,
    claim: Claim,
    used: u16,
}

/// The pages of a mapping.
#[derive(Debug)]
pub(super) struct Pages {
    start: u64,
    pages: Vec<Page>,
}

impl Pages {
    /// Pages from `start` on, nobody's.
    pub(super) fn new(start: u64, resident: Vec<bool>) -> Self {
        let pages = resident.into_iter().map(|resident| Page { resident, ..Page::default() }).collect();
        Self { start, pages }
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.start + self.pages.len() as u64 * PAGE
    }

    fn index(&self, address: u64) -> Option<usize> {
        let index = usize::try_from(address.checked_sub(self.start)? / PAGE).ok()?;
        (index < self.pages.len()).then_some(index)
    }

    pub(super) fn is_resident(&self, address: u64) -> bool {
        self.index(address).is_some_and(|index| self.pages[index].resident)
    }

    /// Resident pages from `address` on that nobody has claimed, by address.
    pub(super) fn unclaimed_from(&self, address: u64) -> impl Iterator<Item = u64> + '_ {
        let from = (address.saturating_sub(self.start) / PAGE) as usize;
        let pages = self.pages.iter().enumerate().skip(from);
        let unclaimed = pages.filter(|(_, page)| page.resident && page.claim == Claim::Nobody);
        unclaimed.map(|(index, _)| self.start + index as u64 * PAGE)
    }

    pub(super) fn is_unclaimed(&self, address: u64) -> bool {
        self.index(address).is_some_and(|index| self.pages[index].claim == Claim::Nobody)
    }

    fn of(&mut self, range: Range<u64>) -> &mut [Page] {
        let pages = self.range();
        let (from, to) = (range.start.clamp(pages.start, pages.end), range.end.clamp(pages.start, pages.end));
        let (from, to) = ((from - self.start) / PAGE, (to - self.start).div_ceil(PAGE));
        &mut self.pages[from as usize..to.max(from) as usize]
    }

    /// These pages belong to an allocator.
    pub(super) fn claim(&mut self, range: Range<u64>, claim: Claim) {
        self.of(range).iter_mut().for_each(|page| page.claim = claim);
    }

    /// These pages, from `start` on, have been looked at again: nothing is known of their bytes any more.
    pub(super) fn renew(&mut self, start: u64, resident: &[bool]) {
        let pages = self.of(start..start + resident.len() as u64 * PAGE);
        pages.iter_mut().zip(resident).for_each(|(page, &resident)| *page = Page { resident, ..Page::default() });
    }

    /// These bytes are in use.
    pub(super) fn use_up(&mut self, range: Range<u64>) {
        let mut page = range.start.max(self.start) / PAGE * PAGE;
        for found in self.of(range.clone()) {
            let bytes = range.end.min(page + PAGE) - range.start.max(page);
            found.used = (u64::from(found.used) + bytes).min(PAGE) as u16;
            page += PAGE;
        }
    }

    /// Resident bytes of whole pages in the range.
    pub(super) fn resident_bytes(&self, range: Range<u64>) -> u64 {
        let pages = (range.start..range.end).step_by(PAGE as usize);
        pages.filter(|&page| self.is_resident(page)).count() as u64 * PAGE
    }

    /// Each resident page: its address, who claims it, and how many of its bytes are in use.
    pub(super) fn resident(&self) -> impl Iterator<Item = (u64, Claim, u64)> + '_ {
        let resident = self.pages.iter().enumerate().filter(|(_, page)| page.resident);
        resident.map(|(index, page)| (self.start + index as u64 * PAGE, page.claim, u64::from(page.used)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_use_are_counted_page_by_page() {
        let mut pages = Pages::new(8 * PAGE, vec![true, true, false, true]);
        pages.claim(8 * PAGE..12 * PAGE, Claim::Python);
        pages.use_up(8 * PAGE + 4000..10 * PAGE + 100);
        pages.use_up(11 * PAGE + 10..11 * PAGE + 20);
        let used: Vec<u64> = pages.resident().map(|(_, _, used)| used).collect();
        assert_eq!(used, [96, PAGE, 10]);
        assert_eq!(pages.resident_bytes(9 * PAGE..12 * PAGE), 2 * PAGE);
        assert_eq!(pages.unclaimed_from(0).count(), 0);
    }

    #[test]
    fn what_lies_outside_of_the_mapping_is_passed_over() {
        let mut pages = Pages::new(8 * PAGE, vec![true]);
        pages.use_up(0..PAGE);
        pages.use_up(9 * PAGE..20 * PAGE);
        pages.claim(9 * PAGE..u64::MAX, Claim::Python);
        assert_eq!(pages.resident().next(), Some((8 * PAGE, Claim::Nobody, 0)));
        assert!(!pages.is_resident(9 * PAGE) && !pages.is_resident(0));
    }
}
