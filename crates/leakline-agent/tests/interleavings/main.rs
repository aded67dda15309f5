//! The gate of the recorder in every order that the steps of four threads can come in: two free sampled blocks, one is given
//! the address of either and records it, and one records something else. No death may be forgotten, told twice, or told of
//! the new block.
//!
//! Every atomic operation is a step (`schedule`). All schedules are tried in which a thread is interrupted at most
//! [`schedule::INTERRUPTIONS`] times before it waits or ends. Steps are seen by all at once: what weaker processors than
//! x86-64 may reorder is not tried.

#[allow(dead_code, reason = "a part of the agent, of which the forks are left out")]
#[path = "../../src/recorder/gate.rs"]
mod gate;
mod schedule;

use gate::Gate;
use schedule::atomic;
use std::collections::BTreeSet;
use std::sync::Mutex;

/// What a table and an allocator know.
#[derive(Default)]
struct World {
    /// Sampled blocks that the table shows, by address.
    live: BTreeSet<u64>,
    /// Addresses that the allocator may give away.
    free: Vec<u64>,
    /// Deaths that the table was told of.
    deaths: u64,
    /// Losses that a holder has counted.
    lost: u64,
    /// Somebody writes.
    is_open: bool,
}

const BLOCKS: [u64; 2] = [0x10, 0x20];

struct Process<const PLACES: usize> {
    gate: Gate<PLACES>,
    world: Mutex<World>,
}

impl<const PLACES: usize> Process<PLACES> {
    fn new() -> Self {
        let world = World { live: BLOCKS.into(), ..World::default() };
        Self { gate: Gate::new(), world: Mutex::new(world) }
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().expect("no thread has panicked")
    }

    /// As a `Recorder` is got and dropped.
    fn write(&self, thread: usize, act: impl FnOnce(&mut World)) -> bool {
        if !self.gate.enter(thread, 1) {
            return false;
        }
        assert!(!std::mem::replace(&mut self.world().is_open, true), "two threads write at once");
        if self.gate.has_work() {
            let mut died = Vec::new();
            let lost = self.gate.work_off(|address| died.push(address));
            let mut world = self.world();
            died.into_iter().for_each(|address| world.died(address));
            world.lost += lost;
        }
        act(&mut self.world());
        self.world().is_open = false;
        self.gate.leave();
        true
    }

    /// As `recorder::freed`, and then the free itself.
    fn free(&self, thread: usize, address: u64) {
        if !self.write(thread, |world| world.died(address)) && !self.gate.is_held_by(thread) {
            self.gate.leave_free(address);
        }
        schedule::step();
        self.world().free.push(address);
    }

    /// A new block at an address that was freed. Its birth is recorded, however long that takes.
    fn allocate(&self, thread: usize) {
        let address = loop {
            let given = self.world().free.pop();
            match given {
                Some(address) => break address,
                None => schedule::wait_for_others(),
            }
        };
        let born = |world: &mut World| {
            // Where there was no place for a free, the old block still stands; that was counted.
            let is_new = world.live.insert(address);
            assert!(is_new || world.lost > 0, "a block was born where one lives: its death was forgotten");
        };
        while !self.write(thread, born) {
            schedule::wait_for_others();
        }
    }
}

impl World {
    fn died(&mut self, address: u64) {
        assert!(self.live.remove(&address), "a death was told twice");
        self.deaths += 1;
    }
}

/// All schedules; how often frees were lost, and how many schedules there were.
fn explore<const PLACES: usize>() -> (u64, u64) {
    let mut lost = 0;
    let schedules = schedule::explore(
        Process::<PLACES>::new,
        &[
            |process| (0..2).for_each(|_| _ = process.write(4, |_| ())),
            |process| process.free(1, BLOCKS[0]),
            |process| process.free(2, BLOCKS[1]),
            |process| process.allocate(3),
        ],
        |process| {
            // The next one who comes works off what is left.
            assert!(process.write(5, |_| ()), "the lock was not given back");
            let world = process.world();
            assert_eq!(world.deaths + world.lost, 2, "a free is neither recorded nor counted as lost");
            // One block lives that was allocated, and whatever was lost, unless that block has its address.
            assert!((1..=1 + world.lost).contains(&(world.live.len() as u64)), "{:?}", world.live);
            lost += world.lost;
        },
    );
    (lost, schedules)
}

#[test]
fn a_free_that_comes_while_the_lock_is_held_is_recorded_before_its_address_is_used_again() {
    let (lost, schedules) = explore::<2>();
    assert_eq!(lost, 0, "there is a place for each free");
    assert!(schedules > 1000, "{schedules}");
}

#[test]
fn a_free_for_which_there_is_no_place_is_counted() {
    let (lost, schedules) = explore::<0>();
    assert!(lost > 0 && schedules > 1000, "{lost} lost in {schedules}");
}
