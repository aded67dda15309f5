//! Walks the native stack of the calling thread, without allocating for it, by the tables that compilers write for
//! exceptions (`framehop`).
//!
//! Everything here runs under the recorder's lock: whoever has the table's writer in hand holds it.

use super::modules::{self, Modules};
use super::steps::{Chain, Stack, Step, Steps};
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{FrameAddress, MustNotAllocateDuringUnwind, Unwinder as _};
use leakline_table::layout::{Loss, NATIVE};
use leakline_table::writer::Writer;
use std::cell::UnsafeCell;

/// Native frames that are kept of a stack, from the innermost on.
pub(crate) const DEPTH: usize = 32;
/// Frames that are walked at most: the agent's own come first.
const STEPS: usize = 2 * DEPTH;
/// Bytes of stack that are read at most, should the tables lead astray where nothing else bounds the stack.
const MOST_STACK: u64 = 1 << 20;

pub(super) type Unwinder = UnwinderX86_64<&'static [u8], MustNotAllocateDuringUnwind>;

pub(super) struct State {
    pub(super) modules: Modules,
    unwinder: Unwinder,
    /// Rules by address, so that the tables are searched once for each.
    cache: CacheX86_64<MustNotAllocateDuringUnwind>,
    pub(super) steps: Steps,
}

struct Shared(UnsafeCell<Option<State>>);

// SAFETY: only touched by the holder of the recorder's lock.
unsafe impl Sync for Shared {}

static STATE: Shared = Shared(UnsafeCell::new(None));

/// Works with the unwinder, which is made at its first use.
pub(super) fn with<R>(act: impl FnOnce(&mut State) -> R) -> R {
    // SAFETY: the callers hold the recorder's lock, which is not reentrant.
    let state = unsafe { &mut *STATE.0.get() };
    act(state.get_or_insert_with(|| State {
        modules: Modules::new(),
        unwinder: Unwinder::new(),
        cache: CacheX86_64::new_in(),
        steps: Steps::new(),
    }))
}

/// How many modules were found to be unloaded so far.
pub(crate) fn modules_removed() -> u32 {
    with(|state| state.modules.removed())
}

/// Where native code ends and Python begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Evaluator {
    /// The thread runs no Python.
    None,
    /// The loop's frame holds this address of the stack.
    Holding(usize),
    /// The loop is the function at these addresses.
    Code(usize, usize),
}

/// The calling thread's native stack, from where the walk begins.
pub(crate) struct Here {
    registers: UnwindRegsX86_64,
    stack: Stack,
    evaluator: Evaluator,
}

/// What a walk has found.
pub(crate) struct Segment {
    /// Its frames: none where only CPython's own code lies between the allocator and a frame of Python.
    pub(crate) depth: usize,
    /// What it is known by the next time; `None` where that takes another walk.
    pub(crate) chain: Option<Chain>,
}

impl Here {
    /// Begins in the function that calls this, which must be one that is never inlined: then the walk always begins at the
    /// same place.
    #[inline(always)]
    pub(crate) fn new(evaluator: Evaluator) -> Self {
        let registers = registers();
        let stack = Stack(bounds(registers.sp()));
        // A thread that runs no Python at the moment has its root there, which lies on no stack.
        let evaluator = match evaluator {
            Evaluator::Holding(inside) if !stack.holds(inside as u64) => Evaluator::None,
            known => known,
        };
        Self { registers, stack, evaluator }
    }

    /// How far it is to the loop, bytes; 0 where nothing tells, or native code is not walked. `None` where the thread runs no
    /// Python.
    pub(crate) fn distance(&self) -> Option<u64> {
        match self.evaluator {
            Evaluator::None => None,
            Evaluator::Holding(inside) if modules::are_walked() => Some(inside as u64 - self.registers.sp()),
            Evaluator::Holding(_) | Evaluator::Code(..) => Some(0),
        }
    }

    /// Does the segment of this chain lie here? Only asked where the distance is the same, and no module has been removed.
    /// Where native code is not walked, none lies anywhere.
    pub(crate) fn holds(&self, chain: &Chain) -> bool {
        !modules::are_walked()
            || chain.is_at(&self.registers, &self.stack)
                && chain.passing().all(|place| with(|state| state.modules.is_there(place)))
    }

    /// Writes the innermost native segment as pairs of words, see the layout of STACKS.
    pub(crate) fn segment(&self, writer: &mut Writer<'_>, frames: &mut [[u32; 2]; DEPTH]) -> Segment {
        if !modules::are_walked() {
            return Segment { depth: 0, chain: Some(Chain::NONE) };
        }
        with(|state| state.walk(writer, self, frames))
    }
}

impl State {
    fn walk(&mut self, writer: &mut Writer<'_>, here: &Here, frames: &mut [[u32; 2]; DEPTH]) -> Segment {
        let Here { mut registers, ref stack, evaluator } = *here;
        let below = registers.sp();
        // Where the frame pointer was loaded from; it is the first one as long as it was not.
        let (mut chain, mut pointer) = (Some(Chain::NONE), None);
        // The walk has come as far as Python.
        let mut is_whole = false;
        let (mut depth, mut is_telling) = (0, matches!(evaluator, Evaluator::None));
        let mut address = FrameAddress::InstructionPointer(registers.ip());
        // A stack that is deeper than what is kept of it is no loss: the innermost frames are those that matter.
        let mut is_lost = false;
        for _ in 0..STEPS {
            let place = address.address_for_lookup() as usize;
            if matches!(evaluator, Evaluator::Code(start, end) if (start..end).contains(&place)) {
                is_whole = true;
                break;
            }
            let Some(step) = self.step(writer, address, &registers, stack) else {
                is_lost = true;
                break;
            };
            is_telling |= step.is_telling;
            let taken = step.take(&mut registers, stack);
            let outer = match &taken {
                Some(taken) => Ok(Some(taken.outer)),
                None => self.unwinder.unwind_frame(address, &mut registers, &mut self.cache, &mut |at| stack.load(at)),
            };
            // The stack pointer is now that of the caller: what lies below was this frame's.
            if matches!(evaluator, Evaluator::Holding(inside) if registers.sp() > inside as u64) {
                is_whole = true;
                break;
            }
            chain = chain.zip(taken).and_then(|(chain, taken)| {
                let chain = match taken.by {
                    Some(to) => chain.by_pointer(pointer.map(|at| at - below), to.wrapping_sub(below))?,
                    None => chain,
                };
                pointer = taken.loaded.or(pointer);
                let chain = chain.and(registers.sp() - 8 - below, taken.outer)?;
                let is_same_module = |other| self.steps.get(other).is_some_and(|other| other.frame[0] == step.frame[0]);
                if step.is_lasting { Some(chain) } else { chain.through(place, is_same_module) }
            });
            // Not the agent's, nor one of a module that there was no room for.
            if step.frame[0] & !NATIVE != 0 {
                let Some(room) = frames.get_mut(depth) else { break };
                *room = step.frame;
                depth += 1;
            }
            match outer.map(|outer| outer.and_then(FrameAddress::from_return_address)) {
                Ok(Some(outer)) => address = outer,
                Ok(None) => break,
                Err(_) => {
                    is_lost = true;
                    break;
                }
            }
        }
        if is_lost {
            writer.lose(Loss::NativeStackCut);
        }
        Segment { depth: if is_telling { depth } else { 0 }, chain: chain.filter(|_| is_whole) }
    }

    /// What is known of the place of a frame; at first sight, what can be learnt of it. `None` where no module is known to
    /// lie there.
    fn step(
        &mut self,
        writer: &mut Writer<'_>,
        address: FrameAddress,
        registers: &UnwindRegsX86_64,
        stack: &Stack,
    ) -> Option<Step> {
        let place = address.address_for_lookup() as usize;
        if let Some(step) = self.steps.get(place)
            && (step.is_lasting || self.modules.is_there(place))
        {
            return Some(step);
        }
        let removed = self.modules.removed();
        let module = self.modules.find(place, &mut self.unwinder)?;
        let frame = if module.is_agent() { [0; 2] } else { [NATIVE | module.id(writer), (place - module.base) as u32] };
        let is_telling = !module.is_agent() && !module.is_plumbing();
        let mut step = Step::new(place, frame, is_telling, module.is_lasting());
        if self.modules.removed() != removed {
            self.steps.forget();
        }
        let Self { unwinder, cache, .. } = self;
        step.learn(registers, stack, &mut |registers, mut load| {
            unwinder.unwind_frame(address, registers, cache, &mut load).ok().flatten()
        });
        self.steps.keep(step);
        Some(step)
    }
}

/// The registers that unwinding begins with.
#[inline(always)]
fn registers() -> UnwindRegsX86_64 {
    let (ip, sp, bp): (u64, u64, u64);
    // SAFETY: reads three registers.
    unsafe {
        std::arch::asm!(
            "lea {ip}, [rip]", "mov {sp}, rsp", "mov {bp}, rbp",
            ip = out(reg) ip, sp = out(reg) sp, bp = out(reg) bp,
            options(nomem, nostack, preserves_flags),
        );
    }
    UnwindRegsX86_64::new(ip, sp, bp)
}

/// What may be read of the calling thread's stack. glibc puts a thread's control block, whose address is `pthread_self`,
/// at the end of its stack; the loader knows where the main thread's ends. A coroutine's stack lies elsewhere, and
/// only [`MOST_STACK`] bounds it.
fn bounds(sp: u64) -> std::ops::Range<u64> {
    unsafe extern "C" {
        /// Where the main thread's stack ends (ld.so).
        static __libc_stack_end: *const u8;
    }
    // SAFETY: the loader sets the variable before any program runs; pthread_self has no preconditions.
    let ends = unsafe { [__libc_stack_end as u64, libc::pthread_self() as u64] };
    let nearest = ends.into_iter().filter(|end| *end > sp).min();
    sp..nearest.map_or(sp + MOST_STACK, |end| end.min(sp + MOST_STACK))
}
