//! The calling thread's stack as the table keeps it: native code first, as far as the interpreter, then Python.

use crate::native::{self, Evaluator};
use crate::python::{self, api::ThreadState};
use leakline_table::layout::Loss;
use leakline_table::writer::Writer;

/// Writes the stack into the table and returns its id, 0 where there is none. `thread` is `None` for a thread that is not
/// Python's.
///
/// # Safety
/// The thread state is the calling thread's own.
pub(crate) unsafe fn record(writer: &mut Writer<'_>, thread: Option<ThreadState>) -> u32 {
    let mut frames = [[0; 2]; native::DEPTH + python::DEPTH];
    let (first, rest) = frames.split_first_chunk_mut().expect("it is longer");
    // SAFETY: the caller's promise.
    let evaluator = thread.map_or(Evaluator::None, |thread| unsafe { python::evaluator(thread) });
    let outside = native::segment(writer, evaluator, first);
    // Python's frames follow the native ones, so what these leave free is closed up.
    let inside = match thread {
        // SAFETY: the caller's promise.
        Some(thread) => unsafe { python::frames(writer, thread, rest.first_chunk_mut().expect("it is as long")) },
        None => 0,
    };
    if thread.is_some() && inside == 0 {
        writer.lose(Loss::NoPythonStack);
    }
    frames.copy_within(native::DEPTH..native::DEPTH + inside, outside);
    writer.stack(&frames[..outside + inside])
}
