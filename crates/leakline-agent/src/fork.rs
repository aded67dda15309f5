//! Follows fork: the child forgets its parent's table and makes one of its own when it first allocates under Python.
//!
//! A child that is about to become another program (`subprocess`) never gets that far and leaves no table behind.

use crate::{hooks, recorder, sampler, snapshot, sockets, table};
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks to be told of forks, once for each process and its children.
pub(crate) fn watch() {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.swap(true, Ordering::Relaxed) {
        return;
    }
    // SAFETY: the three functions live as long as the process, since the agent is never unloaded.
    unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
}

/// The lock is held over the fork, so that no other thread is in the middle of a change when memory is copied.
extern "C" fn before() {
    snapshot::rest();
    snapshot::hold();
    recorder::hold();
}

extern "C" fn in_parent() {
    recorder::let_go();
    snapshot::let_go();
}

extern "C" fn in_child() {
    table::forget();
    recorder::begin_anew();
    hooks::mapping::begin_anew();
    snapshot::begin_anew();
    sampler::begin_anew();
    sockets::begin_anew();
}
