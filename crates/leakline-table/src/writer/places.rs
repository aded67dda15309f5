//! What becomes of what the places of a program allocate. Most of them allocate what is freed soon, and samples of that say
//! little: where it is so, they are taken less often, so that the time they would have cost goes to the places whose blocks
//! stay.
//!
//! For the sum of what stays, samples are best spent in proportion to the root of a place's variance (Neyman 1934), which
//! is that of the share of its samples that stay. A sample stands for more bytes where it is less likely, whatever the
//! likelihood was made from, so this costs the estimates nothing but precision, and that where little stays.

use super::memory::{Carver, Plain};

/// How a place is known: one of this many numbers. Places that fall together are taken for one: the shares of both are
/// less well known then, and no estimate is worse for it.
pub const PLACES: usize = 1 << 14;

/// Samples of a place, and of all, after which those before count for half.
const MEMORY: u16 = 256;

/// So many times longer than where blocks stay, a place's interval may become at most. What requests hold at once is made of
/// blocks that are freed soon, and its estimate must not become much worse. Where a place works outside of requests alone, as
/// those do that read from connections, that does not matter, and it may be longer by the square.
pub const MOST_SPARING: f64 = 8.0;
/// Where blocks are larger than the interval, it may become half as many times as long as the block is.
const MOST_BLOCKS: f64 = 0.5;
/// For a request's blocks, it never becomes longer than that, bytes, unless it is everywhere.
const MOST_BYTES: f64 = 524_288.0;

/// The samples that were taken at a place.
#[derive(Clone, Copy)]
#[repr(C)]
struct Place {
    born: u16,
    died: u16,
    /// Of those that were born, so many were for a request.
    in_requests: u16,
}

// SAFETY: integers.
unsafe impl Plain for Place {}

impl Place {
    /// The share of samples that stay, where it was `known` before the first of these.
    fn stay(&self, known: f64) -> f64 {
        (f64::from(self.born.saturating_sub(self.died)) + known) / (f64::from(self.born) + 1.0)
    }

    fn born(&mut self, in_request: bool) {
        self.born += 1;
        self.in_requests += u16::from(in_request);
        if self.born >= MEMORY {
            (self.born, self.died, self.in_requests) = (self.born / 2, self.died / 2, self.in_requests / 2);
        }
    }

    fn died(&mut self) {
        self.died = (self.died + 1).min(self.born);
    }

    fn forget(&mut self) {
        self.born = self.born.saturating_sub(1).max(self.died);
    }
}

pub(super) struct Places<'a> {
    /// The places, and behind them all together: what is thought of a place that nothing is known of.
    places: &'a mut [Place],
    /// See [`Places::spare`].
    most: f64,
}

impl<'a> Places<'a> {
    pub(super) fn private_bytes() -> usize {
        (PLACES + 1) * size_of::<Place>()
    }

    pub(super) fn new(private: &mut Carver<'a>) -> Option<Self> {
        Some(Self { places: private.take(PLACES + 1)?, most: MOST_SPARING })
    }

    /// From now on a place's interval may become so many times longer, from 1, where no sample has to be spared, to
    /// [`MOST_SPARING`].
    pub(super) fn spare(&mut self, most: f64) {
        self.most = most;
    }

    /// The mean distance between samples of blocks of `bytes` at a place, where it is `interval` for those that stay, bytes.
    pub(super) fn interval(&self, place: u16, bytes: f64, interval: f64) -> f64 {
        let (here, all) = (self.places.get(usize::from(place)), self.places.get(PLACES));
        let (Some(here), Some(all)) = (here, all) else { return interval };
        let most = self.most * interval.max(MOST_BLOCKS * bytes);
        let is_outside = here.in_requests == 0 && here.born > 0;
        let most = if is_outside { most * self.most } else { most.min(MOST_BYTES.max(interval)) };
        (interval / here.stay(all.stay(1.0)).sqrt()).min(most)
    }

    /// A block was sampled.
    pub(super) fn born(&mut self, place: u16, in_request: bool) {
        self.both(place).for_each(|place| place.born(in_request));
    }

    /// A sampled block was freed.
    pub(super) fn died(&mut self, place: u16) {
        self.both(place).for_each(Place::died);
    }

    /// A sample was given up: nobody will know what becomes of its block.
    pub(super) fn forget(&mut self, place: u16) {
        self.both(place).for_each(Place::forget);
    }

    fn both(&mut self, place: u16) -> impl Iterator<Item = &mut Place> {
        let (places, all) = self.places.split_at_mut(PLACES.min(self.places.len()));
        places.get_mut(usize::from(place)).into_iter().chain(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: f64 = 16_384.0;

    fn with<R>(act: impl FnOnce(&mut Places<'_>) -> R) -> R {
        let places = &mut [Place { born: 0, died: 0, in_requests: 0 }; PLACES + 1];
        act(&mut Places { places, most: MOST_SPARING })
    }

    /// In intervals.
    fn longer(places: &Places<'_>, place: u16, bytes: f64) -> f64 {
        places.interval(place, bytes, INTERVAL) / INTERVAL
    }

    #[test]
    fn samples_are_taken_by_the_root_of_what_stays() {
        with(|places| {
            assert_eq!(longer(places, 0, 64.0), 1.0);
            for n in 0..100 {
                places.born(0, true);
                places.born(1, true);
                if n % 4 != 0 {
                    places.died(1);
                }
            }
            assert!(longer(places, 0, 64.0) < 1.01);
            assert!((longer(places, 1, 64.0) - 2.0).abs() < 0.1);
            // Of one that is new, what is usual is expected.
            assert!((longer(places, 2, 64.0) - (200.0_f64 / 125.0).sqrt()).abs() < 0.1);
            assert_eq!(longer(places, u16::MAX, 64.0), 1.0, "a number that is no place's");
        });
    }

    #[test]
    fn a_sample_stands_for_no_more_than_a_bound() {
        with(|places| {
            for _ in 0..1_000 {
                places.born(0, true);
                places.died(0);
                places.born(1, false);
                places.died(1);
            }
            assert_eq!(longer(places, 0, 64.0), MOST_SPARING);
            assert_eq!(places.interval(0, 65_536.0, INTERVAL), 262_144.0);
            assert_eq!(places.interval(0, 1e9, INTERVAL), MOST_BYTES);
            assert_eq!(places.interval(0, 1e9, 4.0 * MOST_BYTES), 4.0 * MOST_BYTES);
            assert_eq!(longer(places, 1, 64.0), MOST_SPARING * MOST_SPARING);
            assert_eq!(longer(places, 2, 64.0), MOST_SPARING, "it may work for requests");
            places.spare(1.0);
            assert_eq!([0, 1, 2].map(|place| longer(places, place, 64.0)), [1.0; 3], "there is enough for all");
        });
    }

    #[test]
    fn a_place_that_begins_to_keep_is_noticed() {
        with(|places| {
            for _ in 0..100_000 {
                places.born(0, true);
                places.died(0);
            }
            assert_eq!(longer(places, 0, 64.0), MOST_SPARING);
            (0..600).for_each(|_| places.born(0, true));
            assert!(longer(places, 0, 64.0) < 1.5);
        });
    }

    #[test]
    fn what_was_given_up_is_not_known() {
        with(|places| {
            for _ in 0..200 {
                places.born(0, true);
                places.born(0, true);
                places.died(0);
                places.forget(0);
            }
            assert_eq!(longer(places, 0, 64.0), MOST_SPARING);
            places.forget(0);
            places.died(0);
        });
    }
}
