//! Notes in the table that the process ends by itself. A process that is gone without this note was killed: that is how a
//! report tells a victim of the OOM killer from a worker that was restarted.
//!
//! There are three ways to end: the interpreter's own, which calls `leave` from `atexit`; `exit`, which calls what the
//! loader has registered for this library; and `_exit`, by which `os._exit` and forked helpers go, and which calls
//! nothing, so that it is put in front of the C library's. An agent that came later by `leakline attach` is not asked for
//! `_exit`, and then no one is said to have been killed.

use crate::{clock, recorder, table};
use std::ffi::c_int;

/// Notes it, unless this is a vforked child that shares its parent's memory.
pub(crate) fn mark() {
    if table::is_ours() {
        recorder::surely_write(|writer| writer.ended(clock::unix_ns()));
    }
}

/// Runs when the program has called `exit`, or has returned from `main`.
#[used]
#[unsafe(link_section = ".fini_array")]
static ON_EXIT: extern "C" fn() = on_exit;

extern "C" fn on_exit() {
    mark();
}

/// See _exit(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _exit(status: c_int) -> ! {
    mark();
    loop {
        // SAFETY: ends all threads of the process, as the C library's own function does.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}
