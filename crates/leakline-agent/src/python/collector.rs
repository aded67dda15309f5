//! Finds the lists of objects that CPython's collector keeps, without knowing where an interpreter keeps its state.

use super::api::Api;
use super::text::word;
use super::{install, layout};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The head of the main interpreter's youngest generation; 0 where it was not found.
static YOUNGEST: AtomicUsize = AtomicUsize::new(0);

/// Where a generation's neighbours are, bytes behind it.
struct Generations {
    /// The next one.
    next: usize,
    /// The objects that `gc.freeze` has put away.
    frozen: usize,
}

/// Until 3.7 the head was a union with a long double, aligned to 16.
fn generations() -> Generations {
    match layout::chosen().minor {
        7 => Generations { next: 48, frozen: 160 },
        _ => Generations { next: 24, frozen: 80 },
    }
}

/// Were the lists found?
pub(crate) fn knows_collector() -> bool {
    YOUNGEST.load(Ordering::Relaxed) != 0
}

/// Finds them. A new list is the last object of the youngest generation, so what comes next is the generation's head. The
/// generations lie side by side, each a head and two ints; behind them is a pointer to the first, by which we know that
/// we are right, and then the generation of frozen objects (`struct _gc_runtime_state`).
///
/// # Safety
/// The GIL of the main interpreter is held, no exception is set.
pub(crate) unsafe fn find_collector(api: &Api) {
    let layout = layout::chosen();
    // 3.14 has other lists, and patch releases of it differ: its heap is not walked.
    if layout.minor > 13 {
        return;
    }
    // SAFETY: a list of our own, in whose head the collector keeps its links; the pointer behind the generations lies in
    // the same structure as the head, if it is one, and in the same allocation as another object, if it is not.
    unsafe {
        let list = (api.list_new)(0);
        if list.is_null() {
            return (api.err_clear)();
        }
        let own = list as usize - layout.collector_head;
        let youngest = word(own);
        if word(youngest + 8) & !3 == own && are_generations(youngest) {
            YOUNGEST.store(youngest, Ordering::Relaxed);
        }
        (api.decref)(list);
    }
}

/// Behind the generations is a pointer to the youngest.
///
/// # Safety
/// The memory behind the address is readable, as far as a generation's neighbours are.
unsafe fn are_generations(youngest: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { word(youngest + 3 * generations().next) == youngest }
}

/// How many interpreters a process has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Interpreters {
    /// Their lists were handed over.
    pub(crate) looked_at: u32,
    /// They have a GIL of their own, so that their objects may change at any moment.
    pub(crate) left_out: u32,
}

/// Hands over the heads of the collector's lists of all interpreters that share the main one's GIL: three generations and
/// the frozen objects of each. Until 3.8 the collector has one set of lists for all of them.
///
/// # Safety
/// Nothing changes any object of these interpreters meanwhile, nor the list of interpreters.
pub(crate) unsafe fn collector_lists(api: &Api, mut found: impl FnMut(usize)) -> Interpreters {
    let (youngest, main) = (YOUNGEST.load(Ordering::Relaxed), install::main_interpreter());
    let Generations { next, frozen } = generations();
    let mut lists_at = |youngest: usize| {
        [0, next, 2 * next, frozen].into_iter().for_each(|offset| found(youngest + offset));
    };
    lists_at(youngest);
    let has_lists = layout::chosen().minor >= 9;
    let mut interpreters = Interpreters::default();
    // SAFETY: the caller's promise; both functions only read. What interpreters keep lies at the same place in each.
    unsafe {
        let mut interpreter = (api.interpreter_head)() as usize;
        while interpreter != 0 {
            let own = youngest.wrapping_sub(main).wrapping_add(interpreter);
            match interpreter == main || !has_lists {
                true => interpreters.looked_at += 1,
                false if shares_gil(interpreter, main) && are_generations(own) => {
                    lists_at(own);
                    interpreters.looked_at += 1;
                }
                false => interpreters.left_out += 1,
            }
            interpreter = (api.interpreter_next)(interpreter as *mut _) as usize;
        }
    }
    interpreters
}

/// Does an interpreter run only while the main one's GIL is held?
///
/// # Safety
/// Two interpreters' states.
unsafe fn shares_gil(interpreter: usize, main: usize) -> bool {
    // PyInterpreterState.ceval.gil (Include/internal/pycore_interp.h); until 3.11 there is one GIL for all.
    let gil = match layout::chosen().minor {
        ..12 => return true,
        12 => 384,
        _ => 16,
    };
    /// More than any interpreter's state has, bytes.
    const MOST_STATE: usize = 1 << 20;
    // SAFETY: the caller's promise.
    let (own, mains) = unsafe { (word(interpreter + gil), word(main + gil)) };
    // The main one's is a part of its state, by which we know that this is the place.
    own == mains && mains.wrapping_sub(main) < MOST_STATE
}
