//! Runs threads one step at a time, in every order there is: the first run always goes on with the thread that is at work,
//! each later one decides the last decision that has an alternative left in another way.

use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex};

/// How often a thread may be interrupted in one run. Most errors in such code need one or two interruptions (Musuvathi and
/// Qadeer, "Iterative context bounding", 2007).
pub const INTERRUPTIONS: usize = 2;

/// No run has so many steps, unless threads wait for each other for ever.
const MOST_STEPS: usize = 10_000;

/// The thread at work chooses at each step who goes on.
struct Run {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    at_work: usize,
    threads: Vec<Thread>,
    interruptions: usize,
    steps: usize,
    /// Of each decision the option that was taken, and how many there were.
    decisions: Vec<(usize, usize)>,
    /// How many decisions were taken in this run.
    taken: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Thread {
    Ready,
    /// It can't go on before another one has taken a step.
    Waiting,
    Ended,
}

thread_local! {
    /// The run that this thread belongs to, and its number in it.
    static PLACE: RefCell<Option<(Arc<Run>, usize)>> = const { RefCell::new(None) };
}

/// Anybody may come in between here.
pub fn step() {
    pass(Thread::Ready);
}

/// Nothing can be done before another thread has taken a step.
pub fn wait_for_others() {
    pass(Thread::Waiting);
}

fn pass(becomes: Thread) {
    let place = PLACE.with_borrow(Clone::clone);
    // Whoever looks at the outcome after a run is no part of it.
    if let Some((run, number)) = place {
        run.pass(number, becomes);
    }
}

impl Run {
    fn pass(&self, number: usize, becomes: Thread) {
        let mut state = self.state.lock().expect("no thread has panicked");
        state.threads[number] = becomes;
        state.go_on();
        self.changed.notify_all();
        if becomes != Thread::Ended {
            let is_anothers = |state: &mut State| state.at_work != number;
            drop(self.changed.wait_while(state, is_anothers).expect("no thread has panicked"));
        }
    }
}

impl State {
    /// Decides who goes on.
    fn go_on(&mut self) {
        self.steps += 1;
        assert!(self.steps < MOST_STEPS, "the threads wait for each other");
        let before = self.at_work;
        let goes_on = self.threads[before] == Thread::Ready;
        let ready =
            |(number, thread): (usize, &Thread)| (number != before && *thread == Thread::Ready).then_some(number);
        let mut options: Vec<usize> = Vec::new();
        if goes_on {
            options.push(before);
        }
        if !goes_on || self.interruptions < INTERRUPTIONS {
            options.extend(self.threads.iter().enumerate().filter_map(ready));
        }
        let Some(chosen) = self.decide(&options) else {
            // Those that wait have waited for whoever was at work last.
            if let Some(waiting) = self.threads.iter().position(|thread| *thread == Thread::Waiting) {
                self.threads[waiting] = Thread::Ready;
                self.at_work = waiting;
            }
            return;
        };
        self.interruptions += usize::from(goes_on && chosen != before);
        self.at_work = chosen;
        // Whoever waits may find what he waits for after this step.
        let waiting = self.threads.iter_mut().filter(|thread| **thread == Thread::Waiting);
        waiting.for_each(|thread| *thread = Thread::Ready);
    }

    fn decide(&mut self, options: &[usize]) -> Option<usize> {
        if options.is_empty() {
            return None;
        }
        if self.taken == self.decisions.len() {
            self.decisions.push((0, options.len()));
        }
        let (option, _) = self.decisions[self.taken];
        self.taken += 1;
        Some(options[option])
    }
}

/// Runs the threads on a new `world` each time, in every order, and lets `check` look at what came of it. Returns how many
/// orders there were.
pub fn explore<W: Sync>(new: impl Fn() -> W, threads: &[fn(&W)], mut check: impl FnMut(&W)) -> u64 {
    let mut decisions = Vec::new();
    let mut runs = 0;
    loop {
        let world = new();
        let state = State {
            at_work: 0,
            threads: vec![Thread::Ready; threads.len()],
            interruptions: 0,
            steps: 0,
            decisions,
            taken: 0,
        };
        let run = Arc::new(Run { state: Mutex::new(state), changed: Condvar::new() });
        std::thread::scope(|scope| {
            for (number, thread) in threads.iter().enumerate() {
                let (run, world) = (&run, &world);
                scope.spawn(move || {
                    PLACE.set(Some((run.clone(), number)));
                    let state = run.state.lock().expect("no thread has panicked");
                    drop(run.changed.wait_while(state, |state| state.at_work != number));
                    thread(world);
                    run.pass(number, Thread::Ended);
                });
            }
        });
        check(&world);
        runs += 1;
        decisions = std::mem::take(&mut run.state.lock().expect("no thread has panicked").decisions);
        while decisions.last().is_some_and(|(option, options)| option + 1 == *options) {
            decisions.pop();
        }
        match decisions.last_mut() {
            Some((option, _)) => *option += 1,
            None => return runs,
        }
    }
}

/// What `std::sync::atomic` has, with a step before each operation.
pub mod atomic {
    use super::step;
    pub use std::sync::atomic::Ordering;

    macro_rules! atomic {
        ($name:ident, $value:ty) => {
            pub struct $name(std::sync::atomic::$name);

            impl $name {
                pub const fn new(value: $value) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub fn load(&self, _: Ordering) -> $value {
                    step();
                    self.0.load(Ordering::SeqCst)
                }

                pub fn store(&self, value: $value, _: Ordering) {
                    step();
                    self.0.store(value, Ordering::SeqCst)
                }

                #[allow(dead_code, reason = "not of every type")]
                pub fn swap(&self, value: $value, _: Ordering) -> $value {
                    step();
                    self.0.swap(value, Ordering::SeqCst)
                }

                pub fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    _: Ordering,
                    _: Ordering,
                ) -> Result<$value, $value> {
                    step();
                    self.0.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
                }

                #[allow(dead_code, reason = "not of every type")]
                pub fn compare_exchange_weak(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.compare_exchange(current, new, success, failure)
                }
            }
        };
    }

    atomic!(AtomicBool, bool);
    atomic!(AtomicU64, u64);
    atomic!(AtomicUsize, usize);

    impl AtomicU64 {
        pub fn fetch_add(&self, value: u64, _: Ordering) -> u64 {
            step();
            self.0.fetch_add(value, Ordering::SeqCst)
        }
    }
}
