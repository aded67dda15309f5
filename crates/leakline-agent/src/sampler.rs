//! Poisson sampling by bytes: every byte is as likely to be the one that is sampled, whatever block it lies in.
//!
//! A countdown is drawn from the exponential distribution with mean R; each allocation subtracts its bytes, and the one
//! that brings it below zero is sampled. A block of z bytes is sampled with the chance p = 1 - exp(-z/R), so it stands
//! for z / p bytes: sums of such weights are unbiased (Horvitz and Thompson 1952).
//!
//! Most of what a server allocates it frees at once. Where experience says so of a place ([`place`]), what the countdown has
//! chosen is passed over more often than not, before anything was spent on it, and what is taken stands for as many more
//! bytes: there R is longer, by what the writer knows of the place.
//!
//! R follows the budget: the time that samples take is measured, and R raised or lowered until it fits. What requests and
//! sockets cost is not in it, since no R would lower that. The budget is a share of one core. A server that is idle most of
//! the time could spend all of that on a few requests, so beyond one half of it samples are also held to a share of the CPU
//! time that the process spends, four times as large as the budget. The first requests are worth more: a server that
//! answers thousands a second would have had them before R has found its value. Beyond the budget, once, sampling may
//! take what the budget is of [`CREDIT_NS`].

use crate::python::api::{self, Api, ThreadState};
use crate::python::{self, Access};
use crate::recorder::{self, Recorder};
use crate::{clock, config, message, native, requests, sockets, stack, table};
use leakline_table::layout::{FLAG_GROWTH, FLAG_OBJECT, Loss};
use leakline_table::writer::{Birth, MOST_SPARING, PLACES, Random, Transit, Writer};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};

/// Bytes that are still to pass until a sample. Threads that pass at the same moment may lose each other's bytes: a
/// little too few samples are better than a locked bus in every malloc. The hooks' instructions lower it by themselves.
#[repr(transparent)]
pub(crate) struct Countdown(AtomicI64);

/// Never runs out.
const FOREVER: i64 = i64::MAX;

impl Countdown {
    const fn new(left: i64) -> Self {
        Self(AtomicI64::new(left))
    }

    /// Lets bytes pass. True where the countdown ran out.
    #[inline(always)]
    pub(crate) fn pass(&self, bytes: usize) -> bool {
        let left = self.0.load(Ordering::Relaxed).wrapping_sub(bytes as i64);
        self.0.store(left, Ordering::Relaxed);
        left < 0
    }

    /// What is left; negative where it ran out.
    pub(crate) fn left(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, left: i64) {
        self.0.store(left, Ordering::Relaxed);
    }
}

/// Counts the blocks that pymalloc serves.
pub(crate) static SMALL: Countdown = Countdown::new(FOREVER);
/// Counts the blocks that malloc serves.
pub(crate) static LARGE: Countdown = Countdown::new(FOREVER);

const IDLE: u8 = 0;
const WAITING: u8 = 1;
const ASKED: u8 = 2;
const RUNNING: u8 = 3;
static STATE: AtomicU8 = AtomicU8::new(IDLE);
/// The interval that was asked for, bytes, as the bits of an f64; 0 where it follows the budget.
static FIXED: AtomicU64 = AtomicU64::new(0);

/// The interval to begin with, and its bounds, bytes.
const FIRST_INTERVAL: f64 = 65536.0;
const LEAST_INTERVAL: f64 = 4096.0;
const MOST_INTERVAL: f64 = 67_108_864.0;
/// How long the cost is measured before the interval follows it, ticks (about a quarter of a second), and the CPU time that
/// the process must have spent by then, ns: the cost of a few requests is too much of a chance.
const WINDOW: u64 = 1 << 29;
const WINDOW_CPU_NS: u64 = 20_000_000;
/// What sampling may take of the process's own CPU time, in budgets, and the part of the budget that it may take in any case.
const BUDGETS_OF_OWN: f64 = 4.0;
const IN_ANY_CASE: f64 = 0.5;
/// From the end of the first request on, sampling may take so many budgets of the process's own CPU time, until it has taken
/// as much beyond the budget as that is of so much time, ns; and the interval to begin that with, bytes times the budget (32 kB
/// at 0.3 %).
const BUDGETS_ON_CREDIT: f64 = 12.0;
const CREDIT_NS: f64 = 20e9;
const INTERVAL_ON_CREDIT: f64 = 98.0;
/// While waiting for the interpreter: malloc's bytes between two looks whether it is there.
const WAIT_BYTES: i64 = 16 << 10;

/// What only the holder of the lock touches.
struct Control {
    random: Option<Random>,
    window: Window,
    /// When to look next at what the window has cost, ticks.
    next_look: u64,
    /// The interval that the budget allows, bytes. Below the floor it is not R that falls, but how much longer than R the
    /// places' intervals may be.
    allowed: f64,
    /// What is left of the credit, ns; `None` before the first request.
    credit: Option<f64>,
    /// The least interval since the table had to thin.
    floor: f64,
    /// A small block that was sampled just now, and what is left of the countdown: at the next allocation it will hold
    /// something, which is noted then.
    unmarked: Option<(Transit, i64)>,
}

/// The clocks when the window began, ns; all zero before the first one.
#[derive(Clone, Copy)]
struct Window {
    began: u64,
    cpu: u64,
    spent: u64,
}

impl Window {
    const NONE: Self = Self { began: 0, cpu: 0, spent: 0 };
}

struct Shared(UnsafeCell<Control>);

// SAFETY: only reached through a Recorder, of which there is one at most.
unsafe impl Sync for Shared {}

static CONTROL: Shared = Shared(UnsafeCell::new(Control {
    random: None,
    window: Window::NONE,
    next_look: 0,
    allowed: FIRST_INTERVAL,
    credit: None,
    floor: LEAST_INTERVAL,
    unmarked: None,
}));

#[allow(clippy::mut_from_ref)]
fn control(_held: &Recorder) -> &mut Control {
    // SAFETY: the caller holds the lock; every use below ends before the next call.
    unsafe { &mut *CONTROL.0.get() }
}

/// The interval of a new table, bytes.
pub(crate) fn first_interval() -> f64 {
    fixed_interval().unwrap_or(FIRST_INTERVAL)
}

/// Is the agent recording?
pub(crate) fn is_running() -> bool {
    STATE.load(Ordering::Relaxed) == RUNNING
}

/// Is every block sampled?
pub(crate) fn is_exact() -> bool {
    fixed_interval() == Some(1.0)
}

fn fixed_interval() -> Option<f64> {
    Some(f64::from_bits(FIXED.load(Ordering::Relaxed))).filter(|interval| *interval >= 1.0)
}

/// Waits for the interpreter to be initialised; looks from within malloc, for want of another call.
pub(crate) fn await_interpreter() {
    FIXED.store(config::get().map_or(0.0, |config| config.interval).to_bits(), Ordering::Relaxed);
    STATE.store(WAITING, Ordering::Relaxed);
    LARGE.set(WAIT_BYTES);
}

/// Begins to sample; the hooks are in place.
pub(crate) fn start() {
    STATE.store(RUNNING, Ordering::Relaxed);
    sockets::start();
    SMALL.set(0);
    LARGE.set(0);
}

/// Gives up: nothing will be sampled in this process.
pub(crate) fn stop() {
    STATE.store(IDLE, Ordering::Relaxed);
    sockets::stop();
    SMALL.set(FOREVER);
    LARGE.set(FOREVER);
}

/// In a forked child, or when a recording has ended: the first sample makes a table. Countdowns are drawn anew, by the new table's interval and from a
/// seed of the child's own; most children that only start another program never come as far as a sample.
pub(crate) fn begin_anew() {
    // SAFETY: has no preconditions. The child has one thread, which holds the lock or will be the first to.
    let (pid, control) = unsafe { (libc::getpid() as u64, &mut *CONTROL.0.get()) };
    let mut random = Random::new(clock::unix_ns() ^ pid << 32);
    if is_running() {
        SMALL.set(distance(&mut random, first_interval()));
        LARGE.set(distance(&mut random, first_interval()));
    }
    (control.random, control.unmarked, control.floor) = (Some(random), None, LEAST_INTERVAL);
    (control.window, control.next_look) = (Window::NONE, 0);
    (control.allowed, control.credit) = (FIRST_INTERVAL, None);
}

/// A block of malloc's is due.
#[cold]
#[inline(never)]
pub(crate) fn large(address: usize, bytes: usize) {
    take(address, bytes, bytes, 0);
}

/// realloc of a block that is not sampled is due, by the bytes that it added.
#[cold]
pub(crate) fn large_growth(address: usize, added: usize, block: usize) {
    take(address, added, block, FLAG_GROWTH);
}

/// A block of pymalloc's is due.
#[cold]
#[inline(never)]
pub(crate) fn small(address: usize, bytes: usize, flags: u8) {
    take(address, bytes, bytes, flags);
}

/// realloc of a small block that is not sampled is due, by the bytes that it added.
#[cold]
pub(crate) fn small_growth(address: usize, added: usize, block: usize, flags: u8) {
    take(address, added, block, flags | FLAG_GROWTH);
}

/// The small countdown ran out, but no sample is to be taken: it is drawn anew.
#[cold]
pub(crate) fn pass_over(bytes: usize) {
    if let Some(mut recorder) = recorder::enter()
        && !note_mark(&mut recorder, bytes)
    {
        let interval = recorder.writer().map_or(FIRST_INTERVAL, |writer| writer.interval_bytes());
        SMALL.set(draw(&recorder, interval));
    }
}

/// Takes a sample: `bytes` of them were asked for, in a block of `block` bytes.
fn take(address: usize, bytes: usize, block: usize, flags: u8) {
    if !is_running() {
        return look_for_interpreter();
    }
    let is_small = flags & leakline_table::layout::FLAG_SMALL != 0;
    let Some(mut recorder) = recorder::enter() else { return };
    if !is_running() {
        // While we waited for the lock, its holder has ended the recording.
        return;
    }
    if is_small && note_mark(&mut recorder, bytes) {
        return;
    }
    let Some(api) = api::get() else { return };
    let access = python::access(api);
    if !table::exists() && !make_table(&mut recorder, access) {
        return;
    }
    let place = place(access, bytes, flags);
    let chance = random(&recorder).unit();
    let Some(writer) = recorder.writer() else { return };
    let Some(weight) = weight_if_taken(writer, place, bytes as f64, chance) else {
        let interval = writer.interval_bytes();
        return countdown(is_small).set(draw(&recorder, interval));
    };
    writer.expect(address as u64);
    let (thread, request) = on_whose_behalf(api, access);
    follow_budget(&mut recorder);
    let Some(writer) = recorder.writer() else { return };
    if python::is_elsewhere(api, access, is_small) {
        writer.lose(Loss::OtherInterpreters);
    }
    let interval = writer.interval_bytes();
    // SAFETY: the thread state is this thread's.
    let stack = unsafe { stack::record(writer, thread) };
    let sample = writer.born(&Birth {
        address: address as u64,
        size: bytes as u64,
        block: block as u64,
        weight,
        stack,
        request,
        // A look at a block wants the GIL of the interpreter that may free it.
        flags: if matches!(access, Access::Main(_)) { flags } else { flags & FLAG_GROWTH },
        place,
    });
    let interval_now = writer.interval_bytes();
    if interval_now > interval {
        control(&recorder).floor = interval_now;
    }
    let left = draw(&recorder, interval_now);
    if is_small && flags & FLAG_OBJECT != 0 && sample.is_some() {
        control(&recorder).unmarked = sample.map(|sample| (sample, left));
        SMALL.set(0);
    } else {
        countdown(is_small).set(left);
    }
}

fn countdown(is_small: bool) -> &'static Countdown {
    if is_small { &SMALL } else { &LARGE }
}

/// A number for where in the program, as far as one look tells, a block of about that size is allocated.
fn place(access: Access, bytes: usize, flags: u8) -> u16 {
    let line = match access {
        // SAFETY: the thread state is this thread's.
        Access::Main(thread) | Access::FramesOnly(thread) | Access::Elsewhere(thread) => unsafe {
            python::line(thread)
        },
        Access::None => 0,
    };
    let kind = u64::from(bytes.checked_ilog2().unwrap_or(0)) << 8 | u64::from(flags);
    (native::mix(line, kind) % PLACES as u64) as u16
}

/// What a block that the countdown has chosen stands for, bytes; `None` where it is passed over. A place that has a longer
/// interval T takes as many of the blocks as make the chance 1 - exp(-z/T) of 1 - exp(-z/R). `chance` is uniform in (0, 1].
fn weight_if_taken(writer: &Writer<'_>, place: u16, bytes: f64, chance: f64) -> Option<f64> {
    let interval = writer.interval_bytes();
    if is_exact() {
        return Some(bytes);
    }
    let longer = weight(bytes, writer.interval_at(place, bytes));
    (chance * longer <= weight(bytes, interval)).then_some(longer)
}

/// Whose stack to read, and for which request this thread works, as far as it may find out.
fn on_whose_behalf(api: &Api, access: Access) -> (Option<ThreadState>, u64) {
    match access {
        // SAFETY: this thread holds the GIL of the main interpreter.
        Access::Main(thread) => (Some(thread), unsafe { requests::current(api) }),
        Access::FramesOnly(thread) => (Some(thread), requests::current_of(thread)),
        // The shim is the main interpreter's.
        Access::Elsewhere(thread) => (Some(thread), 0),
        Access::None => (None, 0),
    }
}

/// At the first small allocation after a sample: the sampled object is made by now, and what it holds is noted. True
/// where that was all that was due.
fn note_mark(recorder: &mut Recorder, bytes: usize) -> bool {
    let Some((sample, left)) = control(recorder).unmarked.take() else { return false };
    if let Some(writer) = recorder.writer() {
        // SAFETY: the GIL is held, as in every small allocation, and a sample that still stands is not freed.
        writer.mark(sample, |record| unsafe { python::look(record) });
    }
    let left = left.saturating_sub(bytes as i64);
    SMALL.set(left);
    left >= 0
}

fn draw(recorder: &Recorder, interval: f64) -> i64 {
    distance(random(recorder), interval)
}

#[allow(clippy::mut_from_ref)]
fn random(recorder: &Recorder) -> &mut Random {
    control(recorder).random.get_or_insert_with(|| Random::new(clock::unix_ns()))
}

/// Bytes until the next sample: exponential, or none where each block is one.
fn distance(random: &mut Random, interval: f64) -> i64 {
    if interval <= 1.0 { 0 } else { (random.exponential() * interval) as i64 }
}

/// What a block stands for: z / (1 - exp(-z/R)).
fn weight(bytes: f64, interval: f64) -> f64 {
    let share = bytes / interval;
    // An empty block can only be sampled by a countdown that had run out before; it stands for nothing, not for 0 / 0.
    if interval <= 1.0 || bytes == 0.0 {
        bytes
    } else if share < 0.125 {
        // Most blocks are small, and the library's function is far from where we are. The next term of the series (with
        // Bernoulli's numbers) is less than 1e-12 of the whole.
        let square = share * share;
        interval * (1.0 + share / 2.0 + square / 12.0 - square * square / 720.0 + square * square * square / 30240.0)
    } else {
        bytes / -(-share).exp_m1()
    }
}

/// Raises or lowers the interval so that the slow path takes the share of one core, and of the process's own time, that it
/// may.
fn follow_budget(recorder: &mut Recorder) {
    let Some(requests) = recorder.writer().map(|writer| writer.requests()) else { return };
    let (ticks, control) = (clock::ticks(), control(recorder));
    let is_first = control.credit.is_none() && requests > 0;
    if ticks < control.next_look && !is_first || fixed_interval().is_some() {
        return;
    }
    let Some(budget) = config::get().map(|config| config.budget) else { return };
    if is_first {
        (control.credit, control.window, control.next_look) = (Some(budget * CREDIT_NS), Window::NONE, 0);
        control.allowed = control.allowed.min(INTERVAL_ON_CREDIT / budget).max(control.floor / MOST_SPARING);
        return change_interval(recorder);
    }
    control.next_look = ticks + WINDOW;
    let now = clock::monotonic_ns();
    let before = control.window;
    let window = Window { began: now, cpu: clock::process_cpu_ns(), spent: recorder::spent_on_samples_ns() };
    let cpu = window.cpu.saturating_sub(before.cpu);
    if cpu < WINDOW_CPU_NS {
        return;
    }
    control.window = window;
    // A clock that stood still or went back, as a faked one may, says nothing of how much time has passed.
    if before.began == 0 || now <= before.began {
        return;
    }
    let spent = window.spent.saturating_sub(before.spent) as f64;
    let passed = now.saturating_sub(before.began) as f64;
    let allowed = budget * (BUDGETS_OF_OWN * cpu as f64).clamp(IN_ANY_CASE * passed, passed);
    let credit = control.credit.unwrap_or(0.0);
    let excess = spent / allowed.max((allowed + credit).min(budget * BUDGETS_ON_CREDIT * cpu as f64));
    control.credit = control.credit.map(|credit| (credit - (spent - allowed).max(0.0)).max(0.0));
    // As far up as down, so that chance does not drive it either way.
    control.allowed = (control.allowed * excess.clamp(0.25, 4.0)).clamp(control.floor / MOST_SPARING, MOST_INTERVAL);
    change_interval(recorder);
}

/// Puts what is allowed in force. What is left of a countdown is as exponential as it was when it was drawn, so that it only has
/// to be stretched.
fn change_interval(recorder: &mut Recorder) {
    let (allowed, floor) = (control(recorder).allowed, control(recorder).floor);
    let Some(writer) = recorder.writer() else { return };
    let (from, to) = (writer.interval_bytes(), allowed.max(floor));
    writer.set_interval_bytes(to);
    writer.spare((MOST_SPARING * allowed / floor).clamp(1.0, MOST_SPARING));
    let stretched = |left: i64| (left as f64 * (to / from)) as i64;
    [&SMALL, &LARGE].into_iter().for_each(|countdown| countdown.set(stretched(countdown.left())));
    if let Some((_, left)) = &mut control(recorder).unmarked {
        *left = stretched(*left);
    }
}

/// The program has a Python: has it come up? Then the agent asks it for a call in the main thread, with the GIL.
pub(crate) fn look_for_interpreter() {
    LARGE.set(WAIT_BYTES);
    if STATE.load(Ordering::Relaxed) == WAITING && python::ask_to_install() == python::Answer::Asked {
        STATE.store(ASKED, Ordering::Relaxed);
    }
}

/// After a fork: makes the child's table.
fn make_table(recorder: &mut Recorder, access: Access) -> bool {
    if !matches!(access, Access::Main(_)) {
        SMALL.set(WAIT_BYTES);
        LARGE.set(WAIT_BYTES);
        return false;
    }
    let made = table::create(recorder);
    if let Err(failure) = made {
        message::refuse(failure.what, "");
        stop();
    }
    made.is_ok()
}

/// Takes a sampled block off its address, for the time of a realloc.
pub(crate) fn depart(address: usize) -> Option<Transit> {
    recorder::write(|writer| writer.depart(address as u64))?
}

/// realloc has moved (or left) a sampled block, which is `bytes` long now.
pub(crate) fn arrive(transit: Transit, address: usize, bytes: usize) {
    recorder::surely_write(|writer| {
        let added = writer.arrive(transit, address as u64, bytes as u64);
        if added == 0 {
            return;
        }
        let Some(api) = api::get() else { return };
        let (thread, request) = on_whose_behalf(api, python::access(api));
        // SAFETY: the thread state is this thread's.
        let stack = unsafe { stack::record(writer, thread) };
        writer.grown(transit, added, stack, request);
    });
}

/// realloc has failed: the block is where and what it was.
pub(crate) fn stay(transit: Transit, address: usize) {
    recorder::surely_write(|writer| writer.stay(transit, address as u64));
}

/// realloc to nothing has freed the block.
pub(crate) fn give_up(transit: Transit) {
    recorder::surely_write(|writer| writer.give_up(transit));
}

/// Is the block at this address a sampled one of pymalloc's?
pub(crate) fn holds_small(address: usize) -> bool {
    recorder::write(|writer| writer.holds_small(address as u64)).unwrap_or(false)
}
