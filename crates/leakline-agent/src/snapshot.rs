//! Answers the command's calls for a heap snapshot: a thread of the agent's waits for them, takes the GIL, and makes a
//! copy of the process that does the rest (`child`, `walk`).
//!
//! Why a thread: an idle server runs no code of ours. It sleeps in the kernel until a call comes, has all signals blocked
//! and a small stack, and is started by a process's first request, so that a server that only forks workers has none. It
//! ends before each fork and is started anew when a request ends or begins: a process with threads had better not fork,
//! and CPython warns of it since 3.12.
//!
//! Why with the GIL: whoever has it knows that every other thread of Python's stands where threads are switched, so that
//! all objects are whole. It is taken with a thread state that is made for the purpose. Making one takes a lock of
//! CPython's which, if another thread forks just then, stays locked in the child for good (3.9 and 3.10 take it before they
//! make it anew); so a fork waits for that moment to pass.

mod child;
mod heaps;
mod lost;
mod memory;
mod walk;

use crate::python;
use crate::python::api::{self, Api};
use crate::{clock, native, recorder, table};
use child::Task;
use leakline_table::layout::{HEADER_BYTES, Header, MOST_EXPECTED_MS, SnapshotCall};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// The thread of this process has been started, or will not be.
static STARTED: AtomicBool = AtomicBool::new(false);
/// A thread state is being made, or a fork is under way.
static LINKING: AtomicBool = AtomicBool::new(false);
/// The thread wants the GIL or has it.
static BUSY: AtomicBool = AtomicBool::new(false);
/// The interpreter is ending: nobody may ask for the GIL any more.
static CLOSED: AtomicBool = AtomicBool::new(false);
/// The thread is to end.
static RESTING: AtomicBool = AtomicBool::new(false);
/// The thread, which may have ended but was not joined yet; 0 where there is none.
static THREAD: AtomicU64 = AtomicU64::new(0);
/// Where the thread waits, null while there is none.
static CALL: AtomicPtr<SnapshotCall> = AtomicPtr::new(std::ptr::null_mut());

/// Bytes of the thread's stack; the child walks on a copy of it.
const STACK_BYTES: usize = 256 << 10;

/// Waits for calls from now on, in a thread. Called with the GIL held, at the beginning and end of every request; does
/// nothing where the thread is there already.
#[inline]
pub(crate) fn listen() {
    if !STARTED.load(Ordering::Relaxed) {
        start();
    }
}

#[cold]
fn start() {
    STARTED.store(true, Ordering::Relaxed);
    if !python::knows_collector() {
        return;
    }
    // A mapping of the thread's own: the table's goes when the agent leaves the process, and the thread does not wait.
    let Some(header) = table::map_header() else {
        // Perhaps the next request finds the lock free.
        STARTED.store(false, Ordering::Relaxed);
        return;
    };
    join();
    // SAFETY: a place within the header's page.
    let call = Call(unsafe { &raw mut (*header).snapshot });
    RESTING.store(false, Ordering::Relaxed);
    CALL.store(call.0, Ordering::Release);
    // Said by us: a request that was answered has a process that listens, even before the thread has got a core.
    call.listening().store(1, Ordering::Release);
    // SAFETY: a thread with all signals blocked, since it inherits the mask of the one that starts it; its argument is a
    // mapping that only it takes away. Where no thread can be had, snapshots can't either, and the mapping goes again.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        let mut thread: libc::pthread_t = 0;
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let mut runs = false;
        if libc::pthread_attr_init(&mut attributes) == 0 {
            libc::pthread_attr_setstacksize(&mut attributes, STACK_BYTES);
            runs = libc::pthread_create(&mut thread, &attributes, answer_calls, header.cast()) == 0;
            libc::pthread_attr_destroy(&mut attributes);
        }
        if runs {
            THREAD.store(thread, Ordering::Release);
        } else {
            call.stop_listening();
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
    }
}

/// Waits for the thread's end, which is near.
fn join() {
    let thread = THREAD.swap(0, Ordering::AcqRel);
    if thread == 0 {
        return;
    }
    // SAFETY: a thread that was made joinable, and that nobody else joins: whoever swaps it out does.
    while unsafe { libc::pthread_tryjoin_np(thread, std::ptr::null_mut()) } == libc::EBUSY {
        // Again and again, since it may look at RESTING just before it is set and fall asleep just after it was woken.
        let call = Call(CALL.load(Ordering::Acquire));
        if !call.0.is_null() {
            wake(call.wanted());
        }
        // SAFETY: has no preconditions.
        unsafe { libc::sched_yield() };
    }
}

/// Before a fork: ends the thread; if it makes a snapshot just now, after that.
pub(crate) fn rest() {
    // A copy of the process that was made without our being told has not got the thread that it remembers.
    if THREAD.load(Ordering::Acquire) == 0 || !table::is_of_this_process() {
        return;
    }
    RESTING.store(true, Ordering::SeqCst);
    // The caller may hold the GIL, which a busy thread waits for. One that becomes busy after this look sees that it is to
    // end before it asks for the GIL.
    if !BUSY.load(Ordering::SeqCst) {
        join();
    }
}

/// Before a fork: waits until no thread state is being made.
pub(crate) fn hold() {
    while LINKING.swap(true, Ordering::Acquire) {
        // SAFETY: has no preconditions.
        unsafe { libc::sched_yield() };
    }
}

/// Ends [`hold`] in the parent.
pub(crate) fn let_go() {
    LINKING.store(false, Ordering::Release);
}

/// In a forked child, which has no thread of ours.
pub(crate) fn begin_anew() {
    for flag in [&LINKING, &STARTED, &BUSY] {
        flag.store(false, Ordering::Release);
    }
    THREAD.store(0, Ordering::Release);
    CALL.store(std::ptr::null_mut(), Ordering::Release);
}

/// The agent leaves the process, whose threads are stopped: lets the thread end when it goes on.
pub(crate) fn leave() {
    RESTING.store(true, Ordering::SeqCst);
    let call = Call(CALL.load(Ordering::Acquire));
    if !call.0.is_null() {
        // A thread that is about to wait, and has looked whether it is to end before we said so, finds another number than
        // it waits at. The table is not used again.
        call.wanted().fetch_add(1, Ordering::SeqCst);
        wake(call.wanted());
    }
}

fn wake(word: &AtomicU32) {
    // SAFETY: the kernel looks who waits at this address; it may be gone by now.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// The interpreter is about to end: waits for a call that is expected, and until the thread has let go of the GIL, and
/// keeps it from asking again. A thread that asks for it later would be ended by CPython in the middle of our code.
///
/// # Safety
/// The GIL is held.
pub(crate) unsafe fn close(api: &Api) {
    // A mapping of our own: the thread's goes with the thread, which another thread's fork may end while we wait.
    let header = (!CALL.load(Ordering::Acquire).is_null()).then(table::map_header).flatten();
    // SAFETY: the caller holds the GIL, and gets it back; the mapping is used here alone.
    unsafe {
        if let Some(header) = header {
            let call = Call(&raw mut (*header).snapshot);
            wait_without_gil(api, MOST_EXPECTED_MS, || call.expected().load(Ordering::Acquire) != 0);
            native::unmap(header as usize, HEADER_BYTES);
        }
        CLOSED.store(true, Ordering::SeqCst);
        wait_without_gil(api, u32::MAX, || BUSY.load(Ordering::SeqCst));
    }
}

/// Waits while something holds, a number of milliseconds at most.
///
/// # Safety
/// The GIL is held.
unsafe fn wait_without_gil(api: &Api, most_ms: u32, holds: impl Fn() -> bool) {
    if !holds() {
        return;
    }
    // SAFETY: the caller's promise; the GIL is held again afterwards.
    unsafe {
        let thread = (api.save_thread)();
        for _ in 0..most_ms {
            if !holds() {
                break;
            }
            libc::usleep(1000);
        }
        (api.restore_thread)(thread);
    }
}

/// The fields of a [`SnapshotCall`] that two processes touch.
struct Call(*mut SnapshotCall);

impl Call {
    fn word(&self, field: impl FnOnce(*mut SnapshotCall) -> *mut u32) -> &AtomicU32 {
        // SAFETY: an aligned word of the table, which stays mapped; all who touch it do so atomically.
        unsafe { AtomicU32::from_ptr(field(self.0)) }
    }

    fn wanted(&self) -> &AtomicU32 {
        // SAFETY: the field of a place that is valid; nothing is read.
        self.word(|call| unsafe { &raw mut (*call).wanted })
    }

    fn answered(&self) -> &AtomicU32 {
        // SAFETY: as above.
        self.word(|call| unsafe { &raw mut (*call).answered })
    }

    fn expected(&self) -> &AtomicU32 {
        // SAFETY: as above.
        self.word(|call| unsafe { &raw mut (*call).expected })
    }

    fn listening(&self) -> &AtomicU32 {
        // SAFETY: as above.
        self.word(|call| unsafe { &raw mut (*call).listening })
    }

    /// Nobody is to call any more; takes away the mapping, which is [`start`]'s.
    ///
    /// # Safety
    /// Nobody uses this afterwards.
    unsafe fn stop_listening(self) {
        self.listening().store(0, Ordering::Release);
        CALL.store(std::ptr::null_mut(), Ordering::Release);
        let header = self.0 as usize - std::mem::offset_of!(Header, snapshot);
        // SAFETY: the caller's promise.
        unsafe { native::unmap(header, HEADER_BYTES) };
    }

    fn answer(&self, wanted: u32, pause_ns: u64, error: u32) {
        // SAFETY: as above.
        unsafe {
            AtomicU64::from_ptr(&raw mut (*self.0).pause_ns).store(pause_ns, Ordering::Relaxed);
            self.word(|call| &raw mut (*call).error).store(error, Ordering::Relaxed);
        }
        self.answered().store(wanted, Ordering::Release);
        wake(self.answered());
    }
}

/// The thread's life.
extern "C" fn answer_calls(header: *mut c_void) -> *mut c_void {
    // SAFETY: a place within the header's page, which stays mapped until this thread ends.
    let call = Call(unsafe { &raw mut (*header.cast::<Header>()).snapshot });
    if let Some(api) = api::get() {
        while !RESTING.load(Ordering::SeqCst) && !CLOSED.load(Ordering::SeqCst) {
            answer_call(api, &call);
        }
    }
    // SAFETY: the mapping is this thread's own, and nothing of it is used from here on.
    unsafe { call.stop_listening() };
    // An agent that has come back meanwhile starts a new thread at its next request.
    STARTED.store(false, Ordering::Release);
    std::ptr::null_mut()
}

/// Waits to be woken, and answers the call if it is one.
fn answer_call(api: &Api, call: &Call) {
    let wanted = call.wanted().load(Ordering::Acquire);
    if wanted == call.answered().load(Ordering::Relaxed) {
        let no_timeout = std::ptr::null::<libc::timespec>();
        // SAFETY: the kernel compares the word and sleeps; it wakes us when somebody has raised it.
        unsafe { libc::syscall(libc::SYS_futex, call.wanted().as_ptr(), libc::FUTEX_WAIT, wanted, no_timeout) };
        return;
    }
    BUSY.store(true, Ordering::SeqCst);
    if CLOSED.load(Ordering::SeqCst) || RESTING.load(Ordering::SeqCst) {
        return BUSY.store(false, Ordering::SeqCst);
    }
    // SAFETY: this is a thread of its own, without a thread state, and the interpreter is not ending.
    let copied = unsafe { copy(api, call) };
    BUSY.store(false, Ordering::SeqCst);
    match copied {
        Copied { pid: 0, errno, .. } => call.answer(wanted, 0, 256 + errno),
        // SAFETY: this thread's own child.
        Copied { pid, pause_ns, .. } => call.answer(wanted, pause_ns, unsafe { outcome(pid) }),
    }
}

/// What came of the copy.
struct Copied {
    /// 0 where there is none.
    pid: i32,
    errno: u32,
    pause_ns: u64,
}

/// Copies the process with the GIL held. In the copy this does not return.
///
/// # Safety
/// The calling thread has no thread state; the interpreter is not ending.
unsafe fn copy(api: &Api, call: &Call) -> Copied {
    let mut file = table::heap_path();
    let mut unfinished = table::heap_path();
    unfinished.put(b".part");
    let mut table = table::own_path();
    let (Some(path), Some(unfinished), Some(table)) = (file.c_str(), unfinished.c_str(), table.c_str()) else {
        return Copied { pid: 0, errno: libc::ENAMETOOLONG as u32, pause_ns: 0 };
    };
    // SAFETY: a state of this thread's own, made, used and deleted here. The rest are system calls.
    unsafe {
        hold();
        let thread = (api.thread_state_new)((api.interpreter_main)());
        let_go();
        if thread.is_null() {
            return Copied { pid: 0, errno: libc::ENOMEM as u32, pause_ns: 0 };
        }
        (api.restore_thread)(thread);
        let task = Task {
            api,
            path,
            unfinished,
            table,
            most_bytes: (*call.0).most_bytes,
            most_seconds: (*call.0).most_seconds,
            header: child::header(
                libc::getpid() as u32,
                table::process_start_ticks(),
                recorder::write(|writer| writer.requests()).unwrap_or(0),
                python::collector_head(),
            ),
        };
        let began_ns = clock::monotonic_ns();
        // Neither SIGCHLD nor anything shared: whoever waits for children of the server's own does not see this one.
        let pid = libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) as i32;
        if pid == 0 {
            child::run(task);
        }
        let pause_ns = clock::monotonic_ns() - began_ns;
        let errno = *libc::__errno_location() as u32;
        (api.thread_state_clear)(thread);
        (api.thread_state_delete_current)();
        Copied { pid: pid.max(0), errno, pause_ns }
    }
}

/// Waits for the child, which ends itself in time. Returns its exit code, or 128 and the signal.
///
/// # Safety
/// A child of this process that nobody else waits for.
unsafe fn outcome(pid: i32) -> u32 {
    let mut status = 0;
    // SAFETY: a system call; __WALL, because the child sends no SIGCHLD.
    while unsafe { libc::waitpid(pid, &mut status, libc::__WALL) } < 0 {
        // SAFETY: the location of errno is always readable.
        if unsafe { *libc::__errno_location() } != libc::EINTR {
            return 256 + libc::ECHILD as u32;
        }
    }
    match libc::WIFEXITED(status) {
        true => libc::WEXITSTATUS(status) as u32,
        false => 128 + libc::WTERMSIG(status) as u32,
    }
}
