//! The clocks, in nanoseconds, and the processor's own, in ticks.

use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

type ClockGettime = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> c_int;

/// The C library's own clock_gettime; 0 where it was not found.
static OWN: AtomicUsize = AtomicUsize::new(0);

/// Gets both kinds of clocks ready, and looks for the C library's own clock_gettime. A library that was preloaded to tell
/// another time, as libfaketime is, allocates with its lock taken, and would wait for ever for itself if the hook that sees it
/// asked for the time.
pub(crate) fn prepare() {
    // SAFETY: both get C strings. What is loaded already is only looked up, and the C library is never unloaded.
    let found = unsafe {
        let library = libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if library.is_null() { library } else { libc::dlsym(library, c"clock_gettime".as_ptr()) }
    };
    OWN.store(found as usize, Ordering::Relaxed);
    // Once outside of any hook: a child that is forked while another thread does it for the first time would wait for ever.
    ns_of(0);
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let gettime: ClockGettime = match OWN.load(Ordering::Relaxed) {
        0 => libc::clock_gettime,
        // SAFETY: the address of the function of that name, which has this signature (clock_gettime(3)).
        own => unsafe { std::mem::transmute::<usize, ClockGettime>(own) },
    };
    // SAFETY: `time` is writable for the call.
    unsafe { gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// ns since some moment, never going back; answered without entering the kernel, as is the next one.
pub(crate) fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// ns since the Unix epoch.
pub(crate) fn unix_ns() -> u64 {
    read(libc::CLOCK_REALTIME)
}

/// ns of CPU time that this process has spent. A system call.
pub(crate) fn process_cpu_ns() -> u64 {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Ticks of the processor's clock. It costs a third of what the others do, and touches no memory.
#[inline(always)]
pub(crate) fn ticks() -> u64 {
    // SAFETY: every x86-64 has the instruction, and the C library's clocks use it, too.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Turns ticks into nanoseconds: by what has passed on both clocks since this was asked first.
pub(crate) fn ns_of(ticks_passed: u64) -> u64 {
    static BEGAN: OnceLock<(u64, u64)> = OnceLock::new();
    let (began_ns, began) = *BEGAN.get_or_init(|| (monotonic_ns(), ticks()));
    let (ns, ticks) = (monotonic_ns().saturating_sub(began_ns), ticks().saturating_sub(began));
    (u128::from(ticks_passed) * u128::from(ns) / u128::from(ticks.max(1))) as u64
}
