//! How a command that came later brings the agent into a running process, and out of it again.
//!
//! `leakline attach` stops the main thread at a place where it holds none of the C library's locks, lets it load this
//! library, and calls the functions below in it, one after the other:
//!
//! ```text
//! leakline_prepare   nothing is changed yet: is this a Python that we know? where do our hooks go on?
//!                    (the command stops the other threads and puts jumps to our hooks into the allocator)
//! leakline_begin     asks the interpreter for the call from which the agent is installed, as under `leakline run`
//! leakline_leave     ends the recording and asks for the call that takes the hooks and the shim out
//!                    (the command takes the jumps back; this library stays mapped, since threads may be in it)
//! ```
//!
//! None of them may wait for the GIL, which another thread may hold for long.

use crate::{clock, config, fork, hooks, native, python, recorder, requests, sampler, snapshot, sockets, table};
use leakline_table::attachment::{Attachment, FUNCTIONS, State};
use std::ffi::{CStr, c_void};
use std::sync::atomic::Ordering;

/// What the command reads and writes, under the name `leakline_table::attachment::SYMBOL`.
#[unsafe(export_name = "leakline_attachment")]
pub static ATTACHMENT: Attachment = Attachment::new();

/// Done.
const DONE: u64 = 0;
/// Not now: somebody is at work in the recorder.
const BUSY: u64 = 1;
/// Never, for the reason that is written down.
const REFUSED: u64 = 2;

fn is(state: State) -> bool {
    ATTACHMENT.state.load(Ordering::Acquire) == state as u32
}

fn set(state: State) {
    ATTACHMENT.state.store(state as u32, Ordering::Release);
}

/// Was the agent loaded when the program started? Then the functions that it is put in front of are ours for everybody; a
/// library that is loaded later comes after the C library. A program that is linked to fixed addresses and passes such a
/// function on as a pointer, as Debian's Python does with malloc, is itself what the function's name leads to, but not for
/// all of them.
pub(crate) fn came_with_the_program() -> bool {
    let own = library_of((&raw const ATTACHMENT).cast());
    let is_ours = NAMES.iter().any(|name| {
        // SAFETY: a C string.
        library_of(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }) == own
    });
    if is_ours {
        set(State::Preloaded);
    }
    is_ours
}

/// Some of the names in question, those that programs pass on least.
const NAMES: [&CStr; 4] = [c"memalign", c"pvalloc", c"recvmsg", c"malloc"];

/// Where the library or program begins that this address belongs to.
fn library_of(address: *const c_void) -> Option<usize> {
    let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: zeroes are a valid Dl_info, which the call fills in; it takes any address.
    let found = unsafe { (libc::dladdr(address, found.as_mut_ptr()) != 0).then(|| found.assume_init()) }?;
    Some(found.dli_fbase as usize)
}

/// Did it? Only then is it asked for `_exit`.
pub(crate) fn is_preloaded() -> bool {
    is(State::Preloaded)
}

/// See the drawing above.
#[unsafe(no_mangle)]
pub extern "C" fn leakline_prepare() -> u64 {
    if is(State::Refused) {
        set(State::Loaded);
    }
    config::load_attached(&ATTACHMENT);
    if !python::api::load() {
        if !is(State::Refused) {
            refuse("this process has no Python whose names are known to it", "");
        }
        return REFUSED;
    }
    let next = |name: &CStr| {
        let place = FUNCTIONS.iter().position(|known| known.as_bytes() == name.to_bytes())?;
        Some(ATTACHMENT.next[place].load(Ordering::Relaxed) as usize)
    };
    if !hooks::native::go_on_at(next) || !hooks::mapping::go_on_at(next) || !hooks::socket::go_on_at(next) {
        refuse("it and the command are not of one leakline", "");
        return REFUSED;
    }
    DONE
}

/// See the drawing above.
#[unsafe(no_mangle)]
pub extern "C" fn leakline_begin() -> u64 {
    fork::watch();
    clock::prepare();
    native::prepare();
    hooks::native::try_relays();
    set(State::Asked);
    sampler::await_interpreter();
    // Where it can't be asked yet, it is asked from within malloc, as under `leakline run`.
    sampler::look_for_interpreter();
    DONE
}

/// See the drawing above.
#[unsafe(no_mangle)]
pub extern "C" fn leakline_leave() -> u64 {
    let Some(mut recorder) = recorder::enter() else { return BUSY };
    if python::ask_to_remove() == python::Answer::NotYet {
        return BUSY;
    }
    set(State::Leaving);
    sampler::stop();
    if let Some(writer) = recorder.writer() {
        // The collector can't be asked without the GIL, and what it did last second matters little.
        writer.tick(&requests::moment(None));
        writer.ended(clock::unix_ns());
    }
    snapshot::leave();
    sockets::forget_all();
    table::close(&mut recorder);
    sampler::begin_anew();
    DONE
}

/// Whoever attached is told, and nobody else. False where the agent came with the program.
pub(crate) fn refuse(reason: &str, detail: &str) -> bool {
    if is_preloaded() {
        return false;
    }
    // SAFETY: one thread refuses, and the command reads it after the state tells so.
    let room = unsafe { &mut *ATTACHMENT.reason.get() };
    room.fill(0);
    let bytes = [reason, detail].into_iter().flat_map(str::bytes);
    let length = room.len() - 1;
    room[..length].iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    set(State::Refused);
    true
}

/// Is the agent still to be installed? Whoever detached before it could be has had it called off.
pub(crate) fn is_awaited() -> bool {
    is(State::Asked) || is_preloaded()
}

/// It is installed.
pub(crate) fn has_come_in() {
    if is(State::Asked) {
        set(State::Recording);
    }
}

/// Is it to be taken out? Whoever attached again in the meantime has had that called off.
pub(crate) fn is_leaving() -> bool {
    is(State::Leaving)
}

/// It is out.
pub(crate) fn has_left() {
    set(State::Left);
}
