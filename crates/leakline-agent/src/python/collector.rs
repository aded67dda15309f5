//! Finds the lists of objects that CPython's collector keeps, without knowing where the interpreter keeps its state.

use super::api::Api;
use super::layout;
use super::text::word;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The heads of the three generations and of the objects that `gc.freeze` has put away; 0 where they were not found.
static LISTS: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];

/// The heads of the collector's lists.
pub(crate) fn collector_lists() -> [usize; 4] {
    std::array::from_fn(|index| LISTS[index].load(Ordering::Relaxed))
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
    // Until 3.7 the head was a union with a long double, aligned to 16.
    let (generation, frozen) = if layout.minor == 7 { (48, 160) } else { (24, 80) };
    // SAFETY: a list of our own, in whose head the collector keeps its links; the pointer behind the generations lies in
    // the same structure as the head, if it is one, and in the same allocation as another object, if it is not.
    unsafe {
        let list = (api.list_new)(0);
        if list.is_null() {
            return (api.err_clear)();
        }
        let own = list as usize - layout.collector_head;
        let youngest = word(own);
        if word(youngest + 8) & !3 == own && word(youngest + 3 * generation) == youngest {
            for (index, head) in LISTS.iter().enumerate() {
                head.store(youngest + if index == 3 { frozen } else { index * generation }, Ordering::Relaxed);
            }
        }
        (api.decref)(list);
    }
}
