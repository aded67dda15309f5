//! How the agent gets into the interpreter: from a pending call, which CPython makes in its main thread with the GIL
//! held, between two instructions of bytecode.
//!
//! The order matters. First the layout is checked against a stack that we know; then the table is made; then the shim
//! goes in; last come the hooks. Whatever fails, the server is left without the agent and as it was.

use super::api::{self, Api, FastFunction, METH_FASTCALL, MethodDef, Object, ThreadState};
use super::layout;
use super::{class, frames, objects, text};
use crate::{attach, hooks, message, recorder, requests, sampler, table};
use leakline_table::attachment::NO_ROOM;
use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What came of asking for the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Python is not initialised yet, or its list of pending calls is full.
    NotYet,
    /// The call will be made.
    Asked,
}

/// Asks for a pending call, from whatever thread happens to be in malloc.
pub(crate) fn ask_to_install() -> Answer {
    let Some(api) = api::get() else { return Answer::NotYet };
    // SAFETY: both may be called from any thread without the GIL, the second one once Python is initialised.
    let asked = unsafe { (api.is_initialized)() != 0 && (api.add_pending_call)(install, std::ptr::null_mut()) == 0 };
    if asked { Answer::Asked } else { Answer::NotYet }
}

static MAIN_INTERPRETER: AtomicUsize = AtomicUsize::new(0);

/// The interpreter that the agent was installed in.
pub(super) fn main_interpreter() -> usize {
    MAIN_INTERPRETER.load(Ordering::Relaxed)
}

extern "C" fn install(_: *mut c_void) -> c_int {
    if let Some(api) = api::get().filter(|_| attach::is_awaited()) {
        // SAFETY: CPython makes pending calls with the GIL held and no exception set; so below.
        if unsafe { is_taking_a_modules_lock(api) } && ask_to_install() == Answer::Asked {
            return 0;
        }
        // SAFETY: as above.
        if let Err(reason) = unsafe { try_to_install(api) } {
            message::refuse(reason, "");
            sampler::stop();
        }
    }
    0
}

/// Is this thread about to take the lock of a module that it imports? For a few instructions importlib then has a note of
/// it, one for each thread until CPython 3.12 (3.11.5), and another import in between, as ours, takes the note away: the
/// import that was interrupted ends with a KeyError (python/cpython issue 106176).
///
/// # Safety
/// The GIL is held, no exception is set.
unsafe fn is_taking_a_modules_lock(api: &Api) -> bool {
    let mut is_taking = false;
    // SAFETY: the caller's promise; references are dropped once, and a dict lends its items. What is no dict has none.
    unsafe {
        let importlib = (api.import)(c"_frozen_importlib".as_ptr());
        if !importlib.is_null() {
            let notes = (api.get_attribute)(importlib, c"_blocking_on".as_ptr());
            if !notes.is_null() {
                let (mut at, mut thread, mut lock) = (0, std::ptr::null_mut(), std::ptr::null_mut());
                while (api.dict_next)(notes, &mut at, &mut thread, &mut lock) != 0 {
                    let is_ours = super::unsigned(thread) == libc::pthread_self();
                    is_taking |= is_ours && objects::type_name(class::of(lock) as usize) == c"_ModuleLock";
                }
                (api.decref)(notes);
            }
            (api.decref)(importlib);
        }
        (api.err_clear)();
    }
    is_taking
}

/// Asks for the call that takes the hooks out again, from the main thread.
pub(crate) fn ask_to_remove() -> Answer {
    let Some(api) = api::get() else { return Answer::NotYet };
    // SAFETY: as above.
    let asked = unsafe { (api.add_pending_call)(remove, std::ptr::null_mut()) == 0 };
    if asked { Answer::Asked } else { Answer::NotYet }
}

extern "C" fn remove(_: *mut c_void) -> c_int {
    if let Some(api) = api::get().filter(|_| attach::is_leaving()) {
        // SAFETY: CPython makes pending calls with the GIL held and no exception set.
        unsafe {
            hooks::python::remove(api);
            requests::withdraw(api);
        }
        table::give_back();
        attach::has_left();
    }
    0
}

/// # Safety
/// The GIL is held, no exception is set.
unsafe fn try_to_install(api: &'static Api) -> Result<(), &'static str> {
    if let Some(interpreter_get) = api.interpreter_get {
        // SAFETY: the GIL is held.
        MAIN_INTERPRETER.store(unsafe { interpreter_get() } as usize, Ordering::Relaxed);
    }
    // SAFETY: the GIL is held, so everywhere below.
    unsafe {
        if !VERIFIED.load(Ordering::Relaxed) {
            verify_layout(api)?;
        }
        requests::prepare(api)?;
        super::find_collector(api);
        {
            let mut recorder = recorder::enter().ok_or("its table is in use")?;
            table::create(&mut recorder).map_err(explain)?;
        }
        requests::instrument(api)?;
        hooks::python::install(api);
    }
    sampler::start();
    attach::has_come_in();
    Ok(())
}

fn explain(failure: table::Failure) -> &'static str {
    match failure.errno {
        libc::ENOSPC | libc::EDQUOT => NO_ROOM,
        libc::EACCES | libc::EPERM | libc::EROFS => "no permission to make a table in LEAKLINE_TABLES",
        libc::ENOENT => "the folder LEAKLINE_TABLES does not exist",
        _ => failure.what,
    }
}

/// Two functions, one within the other, whose frames we know everything about.
const PROBE: &CStr = c"



def leakline_probe(verify, frame):
    def inner():
        here = frame()
        back = here.f_back
        code = back.f_code
        verify(
            id(here.f_code), id(code), back.f_lasti, code.co_filename,
            getattr(code, 'co_qualname', code.co_name), code.co_firstlineno,
            id(getattr(code, 'co_linetable', None) or code.co_lnotab),
        )
    inner()

leakline_probe(verify, frame)
";

static VERIFIED: AtomicBool = AtomicBool::new(false);

static PROBE_FUNCTIONS: [MethodDef; 2] =
    [method(c"verify", verify), MethodDef { name: std::ptr::null(), function: None, flags: 0, doc: std::ptr::null() }];

/// An entry of a table of functions.
pub(crate) const fn method(name: &'static CStr, function: FastFunction) -> MethodDef {
    MethodDef { name: name.as_ptr(), function: Some(function), flags: METH_FASTCALL, doc: std::ptr::null() }
}

/// A function whose `self` is a pair of objects. A new reference; null with an exception set where there is no memory.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn with_pair(api: &Api, function: &'static MethodDef, [first, second]: [Object; 2]) -> Object {
    // SAFETY: the caller's promise. The function holds the pair, and the pair the objects.
    unsafe {
        let pair = (api.tuple_pack)(2, first, second);
        if pair.is_null() {
            return pair;
        }
        let made = (api.function_new)(function, pair, std::ptr::null_mut());
        (api.decref)(pair);
        made
    }
}

/// # Safety
/// The GIL is held, no exception is set.
unsafe fn verify_layout(api: &Api) -> Result<(), &'static str> {
    // SAFETY: the GIL is held; references are dropped once.
    unsafe {
        let sys = (api.import)(c"sys".as_ptr());
        let module = (api.module_new)(c"leakline".as_ptr());
        if !sys.is_null() && !module.is_null() {
            let frame = (api.get_attribute)(sys, c"_getframe".as_ptr());
            if !frame.is_null() && (api.module_add_functions)(module, PROBE_FUNCTIONS.as_ptr()) == 0 {
                let verify = (api.get_attribute)(module, c"verify".as_ptr());
                if !verify.is_null() {
                    api.run(PROBE, c"<leakline>", c"leakline", &[(c"verify", verify), (c"frame", frame)]);
                    (api.decref)(verify);
                }
            }
            api.release([sys, module, frame]);
        }
        (api.err_clear)();
    }
    if VERIFIED.load(Ordering::Relaxed) {
        Ok(())
    } else {
        Err("this Python's frames are not laid out as its version says (a modified or debug build?)")
    }
}

unsafe extern "C" fn verify(_module: Object, arguments: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: CPython hands over `count` arguments; the GIL is held, and this thread is the one that runs.
    unsafe {
        if count == 7 {
            let arguments = std::slice::from_raw_parts(arguments, 7);
            VERIFIED.store(frames_are_known(api, arguments), Ordering::Relaxed);
        }
        api.new_none()
    }
}

/// Compares what the raw walk finds with what Python says of its own frames.
///
/// # Safety
/// Called from the probe's inner function, with its seven arguments, with the GIL held.
unsafe fn frames_are_known(api: &Api, arguments: &[Object]) -> bool {
    let layout = layout::chosen();
    let [inner, outer, instruction, file, function, first_line, line_table] = *arguments else { return false };
    // SAFETY: the caller's promise: integers and strings; the thread is this one.
    unsafe {
        let thread: ThreadState = (api.thread_state_unchecked)();
        let known = (api.gil_state_this_thread_state)();
        if thread.is_null() || thread != known {
            return false;
        }
        let mut found = [None; 3];
        let mut depth = 0;
        // The frames come from unverified offsets: each address is checked before it is followed.
        if !frames::is_walkable(layout, thread) {
            return false;
        }
        frames::walk(layout, thread, |frame| {
            found[depth] = Some(frame);
            depth += 1;
            depth < found.len()
        });
        let [Some(innermost), Some(next), Some(_module)] = found else { return false };
        let number = |object| (api.long_as)(object) as usize;
        if innermost.code != number(inner)
            || next.code != number(outer)
            || next.instruction as usize != number(instruction)
        {
            return false;
        }
        let (mut file_text, mut function_text) = ([0; 64], [0; 64]);
        let said = frames::describe(layout, next.code, &mut file_text, &mut function_text);
        said.0 == utf8(api, file)
            && said.1 == utf8(api, function)
            && said.2 as usize == number(first_line)
            && said.3 == number(line_table)
            && text::word(said.3) != 0
    }
}

/// The UTF-8 of a string; empty where it is none.
///
/// # Safety
/// The GIL is held; the string lives for 'a.
pub(crate) unsafe fn utf8<'a>(api: &Api, string: Object) -> &'a [u8] {
    let mut bytes = 0;
    // SAFETY: the GIL is held. The bytes belong to the string and live as long as it does.
    unsafe {
        let start = (api.unicode_as_utf8)(string, &mut bytes);
        if start.is_null() {
            (api.err_clear)();
            return &[];
        }
        std::slice::from_raw_parts(start.cast(), bytes as usize)
    }
}
