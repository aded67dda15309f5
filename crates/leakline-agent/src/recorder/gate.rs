//! Who may record now, and what is left for him by those who may not: frees, which must not be forgotten, and the number
//! of allocations that were.
//!
//! `tests/interleavings.rs` takes this file, with atomics that it schedules itself, through every order of its steps.

use super::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The one lock, and what happened while it was held. Threads are numbers other than 0.
pub(crate) struct Gate<const PLACES: usize> {
    /// The thread that holds the lock, 0 for none.
    holder: AtomicUsize,
    /// Addresses of blocks that were freed while another thread held the lock for long, 0 for none.
    late_frees: [AtomicU64; PLACES],
    /// May there be any? Looking into all places at every entry would cost more than most entries do.
    any_late_frees: AtomicBool,
    /// What was not recorded because the lock was held, until a holder counts it.
    contended: AtomicU64,
}

impl<const PLACES: usize> Gate<PLACES> {
    pub(crate) const fn new() -> Self {
        Self {
            holder: AtomicUsize::new(0),
            late_frees: [const { AtomicU64::new(0) }; PLACES],
            any_late_frees: AtomicBool::new(false),
            contended: AtomicU64::new(0),
        }
    }

    /// Takes the lock if it is free, in so many tries. Whoever has got it works off what was left first.
    #[inline]
    pub(crate) fn enter(&self, thread: usize, tries: u32) -> bool {
        for _ in 0..tries {
            match self.holder.compare_exchange_weak(0, thread, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(holder) if holder == thread => return false,
                Err(_) => std::hint::spin_loop(),
            }
        }
        false
    }

    /// Takes the lock from whoever had it: in a forked child only this thread lives on. What was left is forgotten.
    pub(crate) fn seize(&self, thread: usize) {
        self.holder.store(thread, Ordering::Relaxed);
        self.late_frees.iter().for_each(|place| place.store(0, Ordering::Relaxed));
        self.contended.store(0, Ordering::Relaxed);
    }

    /// Lets go of the lock.
    #[inline]
    pub(crate) fn leave(&self) {
        self.holder.store(0, Ordering::Release);
    }

    /// Is this thread the one that has the lock?
    pub(crate) fn is_held_by(&self, thread: usize) -> bool {
        self.holder.load(Ordering::Relaxed) == thread
    }

    /// Something was not recorded.
    pub(crate) fn lose(&self) {
        self.contended.fetch_add(1, Ordering::Relaxed);
    }

    /// A block is about to be freed, and the lock can't be had. Returns only when whoever enters after the free finds it.
    pub(crate) fn leave_free(&self, address: u64) {
        let is_put =
            |place: &AtomicU64| place.compare_exchange(0, address, Ordering::Release, Ordering::Relaxed).is_ok();
        match self.late_frees.iter().any(is_put) {
            true => self.any_late_frees.store(true, Ordering::Release),
            false => self.lose(),
        }
    }

    /// Was anything left? Asked by the holder.
    #[inline]
    pub(crate) fn has_work(&self) -> bool {
        self.any_late_frees.load(Ordering::Relaxed) || self.contended.load(Ordering::Relaxed) != 0
    }

    /// Hands the holder each free that was left, and says how many losses there were.
    pub(crate) fn work_off(&self, mut died: impl FnMut(u64)) -> u64 {
        // Told first and looked at second: a free that comes in between is told again.
        self.any_late_frees.swap(false, Ordering::AcqRel);
        for place in &self.late_frees {
            if place.load(Ordering::Relaxed) != 0 {
                died(place.swap(0, Ordering::Acquire));
            }
        }
        self.contended.swap(0, Ordering::Relaxed)
    }
}
