//! Native code on the stack: from the calling thread's registers to (module, offset) pairs, in a hook.
//!
//! Only the *innermost segment* is walked: from the allocator outwards to the interpreter's evaluation loop, where the
//! innermost frame of Python stands. What lies outside of that loop called Python, and Python's own frames tell of it.
//! A segment of CPython's frames alone, as most are, says nothing that the line of Python does not, and is left out.

mod memory;
mod modules;
mod steps;
mod unwind;

pub(crate) use memory::{extend, map, map_again, unmap};
pub(crate) use modules::{forget_ids, is_of_an_allocator, prepare};
pub(crate) use steps::{Chain, mix};
pub(crate) use unwind::{DEPTH, Evaluator, Here, modules_removed};
