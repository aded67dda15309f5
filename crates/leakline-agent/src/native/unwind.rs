//! Walks the native stack of the calling thread, without allocating for it, by the tables that compilers write for
//! exceptions (`framehop`).
//!
//! Everything here runs under the recorder's lock: whoever has the table's writer in hand holds it.

use super::modules::Modules;
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
    }))
}

/// Writes the innermost native segment of the calling thread's stack as pairs of words, see the layout of STACKS, and
/// returns how many there are: none where only CPython's own code lies between the allocator and a frame of Python.
///
/// `evaluator` is an address within the frame of the evaluation loop that runs the innermost frame of Python; `None` where
/// the thread runs none.
pub(crate) fn segment(writer: &mut Writer<'_>, evaluator: Evaluator, frames: &mut [[u32; 2]; DEPTH]) -> usize {
    if !super::modules::are_known() {
        return 0;
    }
    with(|state| state.walk(writer, evaluator, frames))
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

impl State {
    fn walk(&mut self, writer: &mut Writer<'_>, evaluator: Evaluator, frames: &mut [[u32; 2]; DEPTH]) -> usize {
        let mut registers = registers();
        let bounds = bounds(registers.sp());
        let mut read_stack = |address: u64| match bounds.contains(&address) && address.is_multiple_of(8) {
            // SAFETY: between the stack pointer and the end of this thread's stack, and aligned.
            true => Ok(unsafe { (address as *const u64).read() }),
            false => Err(()),
        };
        // A thread that runs no Python at the moment has its root there, which lies on no stack.
        let evaluator = match evaluator {
            Evaluator::Holding(inside) if !bounds.contains(&(inside as u64)) => Evaluator::None,
            known => known,
        };
        let (mut depth, mut is_telling) = (0, matches!(evaluator, Evaluator::None));
        let mut address = FrameAddress::InstructionPointer(registers.ip());
        // A stack that is deeper than what is kept of it is no loss: the innermost frames are those that matter.
        let mut is_lost = false;
        for _ in 0..STEPS {
            let place = address.address_for_lookup() as usize;
            if matches!(evaluator, Evaluator::Code(start, end) if (start..end).contains(&place)) {
                break;
            }
            let Some(module) = self.modules.find(place, &mut self.unwinder) else {
                is_lost = true;
                break;
            };
            let frame = (!module.is_agent()).then(|| {
                is_telling |= !module.is_plumbing();
                [NATIVE | module.id(writer), (place - module.base) as u32]
            });
            let outer = self.unwinder.unwind_frame(address, &mut registers, &mut self.cache, &mut read_stack);
            // The stack pointer is now that of the caller: what lies below was this frame's.
            if matches!(evaluator, Evaluator::Holding(inside) if registers.sp() > inside as u64) {
                break;
            }
            if let Some(frame) = frame.filter(|frame| frame[0] != NATIVE) {
                let Some(room) = frames.get_mut(depth) else { break };
                *room = frame;
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
        if is_telling { depth } else { 0 }
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
