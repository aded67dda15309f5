//! What is known of CPython, and how the agent gets into it.

pub(crate) mod api;
pub(crate) mod class;
mod collector;
mod context;
mod frames;
pub(crate) mod install;
mod layout;
mod life;
mod name;
pub(crate) mod objects;
mod text;

pub(crate) use collector::{Interpreters, collector_lists, find_collector, knows_collector};
pub(crate) use context::{Variable, unsigned};
pub(crate) use frames::{DEPTH, evaluator, frames, key, line, readable_word};
pub(crate) use install::{Answer, ask_to_install, ask_to_remove};
pub(crate) use layout::{collector_head, pool_bytes, version};
pub(crate) use life::look;
pub(crate) use name::{Name, item, item_text};
pub(crate) use text::word;

use api::{Api, ThreadState};

/// What the calling thread may do with Python.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// It holds the GIL of the main interpreter: frames and the current request may be read.
    Main(ThreadState),
    /// Its own frames may be read, nothing else.
    FramesOnly(ThreadState),
    /// The same, and it works in another interpreter than the main one.
    Elsewhere(ThreadState),
    /// It is no thread of Python's.
    None,
}

/// Finds out what the calling thread may do, without taking anything.
pub(crate) fn access(api: &Api) -> Access {
    // SAFETY: both functions only read: a thread-local value, or the runtime's pointer to who holds the GIL.
    let (own, current) = unsafe { ((api.gil_state_this_thread_state)(), (api.thread_state_unchecked)()) };
    // Until 3.11 "current" is whoever holds the GIL; from 3.12 on it is this thread's state while it is attached.
    let holds = !current.is_null() && (layout::version() >= 0x030C_0000 || own == current);
    match (holds, own.is_null()) {
        (true, _) if in_main_interpreter(api) => Access::Main(current),
        (true, _) => Access::Elsewhere(current),
        (false, false) => Access::FramesOnly(own),
        (false, true) => Access::None,
    }
}

/// Does the calling thread work in another interpreter than the main one, as far as one can tell? Who allocates a small block
/// holds the GIL (`holds_gil`), and until 3.11 "current" is then this thread's state: where that is not the one by which the
/// thread is known, it is another interpreter's. It is compared and not looked into, in case somebody broke the rule.
pub(crate) fn is_elsewhere(api: &Api, access: Access, holds_gil: bool) -> bool {
    match access {
        Access::Elsewhere(_) => true,
        Access::FramesOnly(own) if holds_gil => {
            // SAFETY: only reads.
            let current = unsafe { (api.thread_state_unchecked)() };
            !current.is_null() && current != own
        }
        _ => false,
    }
}

/// From 3.12 on interpreters may have a GIL each, so objects of the main one are out of bounds for the others.
fn in_main_interpreter(api: &Api) -> bool {
    let Some(interpreter_get) = api.interpreter_get else { return true };
    // SAFETY: the caller holds a GIL, which is all that PyInterpreterState_Get wants.
    install::main_interpreter() == unsafe { interpreter_get() } as usize
}

/// The context that a thread works in, 0 for none: which one, and nothing more.
///
/// # Safety
/// The thread state is the calling thread's.
pub(crate) unsafe fn context(thread: ThreadState) -> usize {
    // SAFETY: the caller's promise; `Variable::new` has found the offset to be right.
    unsafe { text::word(thread as usize + layout::chosen().thread_context) }
}
