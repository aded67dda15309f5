//! What the shim calls: a request begins, is named, and ends. The current request is the value of a ContextVar, so it
//! follows threads, greenlets and tasks as Python itself follows them.

use crate::python::api::ThreadState;
use crate::python::api::{self, Api, MethodDef, Object};
use crate::python::{self, Variable, install};
use crate::table::Text;
use crate::{
    clock, end, exchange, gunicorn, recorder, response, sampler, snapshot, sockets, starlette, table, threads, uvicorn,
    werkzeug, wsgi,
};
use leakline_table::layout::{Loss, Phase};
use leakline_table::writer::{Collector, Ending, IN_FLIGHT, Moment, slot};
use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// The ContextVar whose value is the handle of the current request.
static CURRENT: AtomicPtr<std::ffi::c_void> = AtomicPtr::new(std::ptr::null_mut());
/// The same variable, as a thread finds it that may not hold the GIL.
static CURRENT_BY_LOADS: OnceLock<Variable> = OnceLock::new();
/// By the slot of a handle: the context in which its request has ended and the server goes on, 0 for none. What is left in
/// the variable there stands for no request, while contexts that were copied from it still work for the one that has
/// ended. To set the variable anew would cost 1,800 instructions.
static GOES_ON_IN: [AtomicUsize; IN_FLIGHT] = [const { AtomicUsize::new(0) }; IN_FLIGHT];
/// The thread that sets the variable just now (its state), and the request on whose behalf. What that takes, an integer and
/// nodes of the context's tree, lives as long as the context, and so as long as a task that outlives its request: it is
/// the request's and not nobody's.
static SETTING: (AtomicUsize, AtomicU64) = (AtomicUsize::new(0), AtomicU64::new(0));
/// The functions of module `gc` that tell of the collector, and their names.
static COLLECTOR: [AtomicPtr<std::ffi::c_void>; 3] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 3];
const COLLECTOR_TELLS: [&CStr; 3] = [c"get_stats", c"isenabled", c"get_threshold"];
/// When the process was last looked at, ns.
static LAST_TICK: AtomicU64 = AtomicU64::new(0);
/// ns between two looks.
const TICK_NS: u64 = 1_000_000_000;

/// The shim's texts, in the order in which they run. They are compiled as `<leakline>`, since they lie in no file of the
/// target's.
const SHIM: [&CStr; 8] = [
    text(concat!(include_str!("../shim/leakline_shim.py"), "\0").as_bytes()),
    text(concat!(include_str!("../shim/leakline_routes.py"), "\0").as_bytes()),
    text(concat!(include_str!("../shim/leakline_asgi.py"), "\0").as_bytes()),
    text(concat!(include_str!("../shim/leakline_uwsgi.py"), "\0").as_bytes()),
    text(concat!(include_str!("../shim/leakline_aiohttp.py"), "\0").as_bytes()),
    text(concat!(include_str!("../shim/leakline_tornado.py"), "\0").as_bytes()),
    text(concat!(include_str!("../shim/leakline_sanic.py"), "\0").as_bytes()),
    text(concat!(include_str!("../shim/leakline_celery.py"), "\0").as_bytes()),
];

const fn text(bytes: &'static [u8]) -> &'static CStr {
    match CStr::from_bytes_with_nul(bytes) {
        Ok(text) => text,
        Err(_) => panic!("the shim holds a NUL"),
    }
}

/// Interpreters tear down what they hold when they end; what lived until then is what the table should show.
const AT_EXIT: &CStr = c"import atexit; atexit.register(leave)";

static FUNCTIONS: [MethodDef; 27] = [
    install::method(c"begin", begin),
    install::method(c"end", end),
    install::method(c"route", route),
    install::method(c"status", status),
    install::method(c"server", server),
    install::method(c"phase", phase),
    install::method(c"exchange", exchange::exchange),
    install::method(c"exchange_by", exchange::exchange_by),
    install::method(c"run_asgi", uvicorn::run_asgi),
    install::method(c"files_by", uvicorn::files_by),
    install::method(c"route_handle", starlette::route_handle),
    install::method(c"serve_by", wsgi::serve_by),
    install::method(c"served", wsgi::served),
    install::method(c"rule_match", werkzeug::rule_match),
    install::method(c"before_request", gunicorn::before_request),
    install::method(c"after_request", gunicorn::after_request),
    install::method(c"phased", gunicorn::phased),
    install::method(c"amend", amend),
    install::method(c"current", current_handle),
    install::method(c"resume", resume),
    install::method(c"thread_start", threads::thread_start),
    install::method(c"thread_bootstrap", threads::thread_bootstrap),
    install::method(c"serves", serves),
    install::method(c"unsent", unsent),
    install::method(c"failed", failed),
    install::method(c"leave", leave),
    MethodDef { name: std::ptr::null(), function: None, flags: 0, doc: std::ptr::null() },
];

/// Makes the variable of the current request, unless it was made when the agent was here before.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn prepare(api: &Api) -> Result<(), &'static str> {
    if !CURRENT.load(Ordering::Relaxed).is_null() {
        return Ok(());
    }
    // SAFETY: the GIL is held. The variable and the functions are kept for good.
    unsafe {
        let variable = (api.context_var_new)(c"leakline_request".as_ptr(), std::ptr::null_mut());
        let gc = (api.import)(c"gc".as_ptr());
        for (name, function) in COLLECTOR_TELLS.iter().zip(&COLLECTOR) {
            let found = if gc.is_null() { gc } else { (api.get_attribute)(gc, name.as_ptr()) };
            function.store(found, Ordering::Relaxed);
        }
        if variable.is_null() || COLLECTOR.iter().any(|function| function.load(Ordering::Relaxed).is_null()) {
            (api.err_clear)();
            return Err("this Python has no context variables or no collector");
        }
        (api.decref)(gc);
        let by_loads =
            Variable::new(api, variable).ok_or("this Python's contexts are not laid out as its version says")?;
        _ = CURRENT_BY_LOADS.set(by_loads);
        CURRENT.store(variable, Ordering::Relaxed);
        response::prepare(api)?;
        exchange::prepare(api)?;
        threads::prepare(api)?;
        starlette::prepare(api)?;
        uvicorn::prepare(api)?;
        werkzeug::prepare(api)?;
        wsgi::prepare(api)?;
        gunicorn::prepare(api)
    }
}

/// The shim's functions that take it out of the server and put it in again.
static WITHDRAW: AtomicPtr<std::ffi::c_void> = AtomicPtr::new(std::ptr::null_mut());
static REINSTATE: AtomicPtr<std::ffi::c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Runs the shim, which instruments the servers that are imported and those still to come. Where it has run already, it
/// is put in again.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn instrument(api: &Api) -> Result<(), &'static str> {
    let reinstate = REINSTATE.load(Ordering::Relaxed);
    if !reinstate.is_null() {
        // SAFETY: the GIL is held.
        return match unsafe { api.call_plain(reinstate) } {
            true => Ok(()),
            false => Err("its shim raised an exception"),
        };
    }
    // SAFETY: the GIL is held; references are dropped once.
    unsafe {
        let native = (api.module_new)(c"leakline".as_ptr());
        if native.is_null() || (api.module_add_functions)(native, FUNCTIONS.as_ptr()) != 0 {
            (api.err_clear)();
            return Err("its functions could not be made known to Python");
        }
        let leave = (api.get_attribute)(native, c"leave".as_ptr());
        let done = !leave.is_null()
            && SHIM.iter().all(|text| api.run(text, c"<leakline>", c"leakline_shim", &[(c"native", native)]))
            && api.run(AT_EXIT, c"<leakline>", c"leakline_shim", &[(c"leave", leave)]);
        if done {
            // Kept for good.
            WITHDRAW.store((api.get_attribute)(native, c"withdraw".as_ptr()), Ordering::Relaxed);
            REINSTATE.store((api.get_attribute)(native, c"reinstate".as_ptr()), Ordering::Relaxed);
        }
        api.release([native, leave]);
        (api.err_clear)();
        if done { Ok(()) } else { Err("its shim raised an exception") }
    }
}

/// Takes the shim out of the server.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn withdraw(api: &Api) {
    let withdraw = WITHDRAW.load(Ordering::Relaxed);
    if !withdraw.is_null() {
        // SAFETY: the GIL is held. What could not be taken back does nothing.
        unsafe { api.call_plain(withdraw) };
    }
}

/// The handle of the current request, 0 where there is none.
///
/// # Safety
/// The GIL of the main interpreter is held. An exception may be set: neither call looks at it or sets one.
pub(crate) unsafe fn current(api: &Api) -> u64 {
    let variable = CURRENT.load(Ordering::Relaxed);
    if variable.is_null() {
        return 0;
    }
    // SAFETY: the variable lives for good; its values are integers that only this file makes.
    unsafe {
        let thread = (api.thread_state_unchecked)();
        if SETTING.0.load(Ordering::Relaxed) == thread as usize {
            return SETTING.1.load(Ordering::Relaxed);
        }
        let mut value = std::ptr::null_mut();
        if (api.context_var_get)(variable, std::ptr::null_mut(), &mut value) != 0 || value.is_null() {
            return 0;
        }
        let handle = python::unsigned(value);
        // The context holds another reference, so this is never the last one.
        (api.decref)(value);
        unless_ended_here(handle, thread)
    }
}

/// The same for a thread that may not hold the GIL; CPython gives it up around every call that may wait.
pub(crate) fn current_of(thread: ThreadState) -> u64 {
    // SAFETY: callers pass their own thread state.
    unsafe { CURRENT_BY_LOADS.get().map_or(0, |variable| unless_ended_here(variable.value(thread), thread)) }
}

/// The handle, or 0 where it is only what is left in the context of a request that has ended there.
///
/// # Safety
/// The thread state is the calling thread's own.
unsafe fn unless_ended_here(handle: u64, thread: ThreadState) -> u64 {
    let goes_on_in = goes_on_in(handle).load(Ordering::Relaxed);
    // SAFETY: the caller's promise.
    if goes_on_in != 0 && goes_on_in == unsafe { python::context(thread) } { 0 } else { handle }
}

/// See [`GOES_ON_IN`].
fn goes_on_in(handle: u64) -> &'static AtomicUsize {
    &GOES_ON_IN[slot(handle)]
}

/// From now on this context works for a request that begins.
///
/// # Safety
/// The GIL of the main interpreter is held, no exception is set.
unsafe fn begin_current(api: &Api, handle: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let thread = (api.thread_state_unchecked)();
        if !CURRENT_BY_LOADS.get().is_some_and(|current| current.change(thread, handle)) {
            set_current(api, handle, handle);
        }
    }
}

/// Gives the variable a handle as its value in this thread's context, or 0. What that takes is on behalf of a request.
///
/// # Safety
/// The GIL of the main interpreter is held, no exception is set.
pub(crate) unsafe fn set_current(api: &Api, handle: u64, on_behalf_of: u64) {
    // SAFETY: the GIL is held, the variable lives for good; integer and token are new references or null. Should a collection
    // run somebody's code meanwhile, which lets go of the GIL, then another thread's nodes may be nobody's or this request's.
    unsafe {
        SETTING.1.store(on_behalf_of, Ordering::Relaxed);
        SETTING.0.store((api.thread_state_unchecked)() as usize, Ordering::Relaxed);
        let object = (api.long_from)(handle);
        if !object.is_null() {
            let token = (api.context_var_set)(CURRENT.load(Ordering::Relaxed), object);
            // The integer is the context's alone from now on.
            api.release([object, token]);
        }
        api.clear_error();
        SETTING.0.store(0, Ordering::Relaxed);
    }
}

/// The arguments of a call, N of them; `None` where it has fewer. Handles among them are integers that this file made.
///
/// # Safety
/// As CPython promises a METH_FASTCALL function.
pub(crate) unsafe fn arguments<'a, const N: usize>(start: *const Object, count: isize) -> Option<&'a [Object; N]> {
    // SAFETY: CPython hands over `count` arguments.
    (count >= N as isize).then(|| unsafe { &*start.cast() })
}

/// `begin(method, path) -> handle`; with a third argument, whatever it is, also where a request is in flight already.
unsafe extern "C" fn begin(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: called by Python code, hence with the GIL held and no exception set; so in all functions below.
    unsafe {
        let Some([method, path]) = arguments(start, count) else { return (api.long_from)(0) };
        let (method, path) = (install::utf8(api, *method), install::utf8(api, *path));
        let handle = if count > 2 { open(api, method, path) } else { open_within(api, current(api), method, path) };
        (api.long_from)(handle)
    }
}

/// Begins a request whatever the current context serves, and makes it that context's. 0 where there is no room for one.
///
/// # Safety
/// The GIL of the main interpreter is held, no exception is set.
pub(crate) unsafe fn open(api: &Api, method: &[u8], path: &[u8]) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { open_within(api, 0, method, path) }
}

/// Begins a request, unless this one is in flight, and makes it the current context's. 0 where that is so, or no other has
/// room.
///
/// # Safety
/// The GIL of the main interpreter is held, no exception is set.
pub(crate) unsafe fn open_within(api: &Api, outer: u64, method: &[u8], path: &[u8]) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let handle = begin_within(outer, method, path);
        if handle != 0 {
            begin_current(api, handle);
        }
        handle
    }
}

/// Begins a request, unless this one is in flight; 0 where that is so, or no other has room.
///
/// # Safety
/// The GIL of the main interpreter is held.
unsafe fn begin_within(outer: u64, method: &[u8], path: &[u8]) -> u64 {
    let Some(mut recorder) = recorder::surely_enter() else { return 0 };
    if !sampler::is_running() || !(table::exists() || table::create(&mut recorder).is_ok()) {
        return 0;
    }
    let Some(writer) = recorder.writer().filter(|writer| !writer.in_flight(outer)) else { return 0 };
    // SAFETY: the GIL is held, so that no small block is freed while it is looked at; so at the end.
    writer.look_before_next(|record| unsafe { python::look(record) });
    let handle = writer.begin(method, path, clock::monotonic_ns());
    drop(recorder);
    if handle != 0 {
        goes_on_in(handle).store(0, Ordering::Relaxed);
        snapshot::listen();
    }
    handle
}

/// `end(handle, outcome)`; with a third argument, whatever it is, where the server begins its next request in this context.
unsafe extern "C" fn end(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe {
        if let Some([handle, outcome]) = arguments(start, count) {
            end_request(api, python::unsigned(*handle), (api.long_as)(*outcome), count > 2);
        }
        api.new_none()
    }
}

/// A request ends; `goes_on` where the server begins its next request in this context.
///
/// # Safety
/// The GIL of the main interpreter is held, no exception is set.
pub(crate) unsafe fn end_request(api: &Api, handle: u64, outcome: u64, goes_on: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        conclude(api, handle, outcome.min(2) as u8);
        if goes_on {
            goes_on_in(handle).store(python::context((api.thread_state_unchecked)()), Ordering::Relaxed);
        } else if current(api) == handle {
            set_current(api, 0, handle);
        }
    }
}

/// Ends a request, whose handle stays what its context carries.
///
/// # Safety
/// The GIL of the main interpreter is held, no exception is set.
pub(crate) unsafe fn conclude(api: &Api, handle: u64, outcome: u8) {
    let now_ns = clock::monotonic_ns();
    // SAFETY: the caller's promise.
    unsafe {
        recorder::surely_write(|writer| writer.end(handle, Ending { outcome, now_ns }, |record| python::look(record)));
        if now_ns.saturating_sub(LAST_TICK.load(Ordering::Relaxed)) >= TICK_NS {
            LAST_TICK.store(now_ns, Ordering::Relaxed);
            tick(api);
        }
    }
    // The request may have forked.
    if sampler::is_running() {
        snapshot::listen();
    }
}

/// What the shim's function says of a request, by the error that its server handles.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn judged(api: &Api, judge: Object, error: Object) -> u64 {
    const ERROR: u64 = 1;
    // SAFETY: the caller's promise; the outcome is a new reference or null.
    unsafe {
        let outcome = (api.vectorcall)(judge, &error, 1, std::ptr::null_mut());
        let number = if outcome.is_null() { ERROR } else { (api.long_as)(outcome) };
        (api.err_clear)();
        api.release([outcome]);
        number
    }
}

/// `route(template)`
unsafe extern "C" fn route(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe {
        if let Some([template]) = arguments(start, count) {
            name_route(api, b"", install::utf8(api, *template));
        }
        api.new_none()
    }
}

/// Names the current request by a template below where its application is mounted.
///
/// # Safety
/// The GIL of the main interpreter is held.
pub(crate) unsafe fn name_route(api: &Api, mount: &[u8], template: &[u8]) {
    /// Bytes of a template with its mount; what is longer is left out.
    const LONGEST: usize = 512;
    // SAFETY: the caller's promise.
    let handle = unsafe { current(api) };
    if mount.is_empty() {
        recorder::write(|writer| writer.route(handle, template));
    } else {
        let mut whole = Text::<LONGEST>::new();
        whole.put(mount);
        whole.put(template);
        recorder::write(|writer| writer.route(handle, whole.bytes()));
    }
}

/// `status(handle, status)`
unsafe extern "C" fn status(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe {
        if let Some([handle, status]) = arguments(start, count) {
            set_status(python::unsigned(*handle), (api.long_as)(*status) as u32);
        }
        api.new_none()
    }
}

/// The response's status. One of 500 or more makes an ok end an error.
pub(crate) fn set_status(handle: u64, status: u32) {
    recorder::write(|writer| writer.status(handle, status));
}

/// `phase(handle, phase)`: 0 handler, 1 streaming, 2 closing, 3 after. The handle 0 stands for the current request's.
unsafe extern "C" fn phase(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe {
        if let Some([handle, phase]) = arguments(start, count) {
            let phase = match (api.long_as)(*phase) {
                0 => Phase::Handler,
                1 => Phase::Streaming,
                2 => Phase::Closing,
                _ => Phase::After,
            };
            let handle = match python::unsigned(*handle) {
                0 => current(api),
                handle => handle,
            };
            mark(handle, phase);
        }
        api.new_none()
    }
}

/// A request enters another phase.
pub(crate) fn mark(handle: u64, phase: Phase) {
    recorder::write(|writer| writer.phase(handle, phase));
}

/// `amend(handle, outcome)`: a request that has ended turns out to have ended otherwise.
unsafe extern "C" fn amend(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe {
        if let Some([handle, outcome]) = arguments(start, count) {
            let (handle, outcome) = (python::unsigned(*handle), (api.long_as)(*outcome));
            recorder::surely_write(|writer| writer.amend(handle, outcome.min(2) as u8));
        }
        api.new_none()
    }
}

/// `current() -> handle`
unsafe extern "C" fn current_handle(_module: Object, _start: *const Object, _count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe { (api.long_from)(current(api)) }
}

/// `resume(handle)`: this context works for a request that began in another one.
unsafe extern "C" fn resume(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe {
        if let Some([handle]) = arguments(start, count) {
            // The shim hands back an integer that this file made.
            let handle = python::unsigned(*handle);
            set_current(api, handle, handle);
        }
        api.new_none()
    }
}

/// `server(name)`
unsafe extern "C" fn server(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe {
        if let Some([name]) = arguments(start, count) {
            let name = install::utf8(api, *name);
            recorder::write(|writer| writer.name_server(name));
        }
        api.new_none()
    }
}

/// `serves(file)`: what is sent on this socket from now on is the current request's.
unsafe extern "C" fn serves(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe {
        if let Some([file]) = arguments(start, count) {
            sockets::serves(file_number(api, *file));
        }
        api.new_none()
    }
}

/// `unsent(file)`: what is still to be sent on this socket, its client will not get.
unsafe extern "C" fn unsent(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe {
        if let Some([file]) = arguments(start, count) {
            sockets::unsent(file_number(api, *file));
        }
        api.new_none()
    }
}

/// The number of a file, -1 for none: a socket that is closed already has that, which long_as refuses.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn file_number(api: &Api, file: Object) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        let file = (api.long_as)(file);
        api.clear_error();
        i32::try_from(file).unwrap_or(-1)
    }
}

/// `failed()`: a place could not be instrumented.
unsafe extern "C" fn failed(_module: Object, _start: *const Object, _count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    recorder::write(|writer| writer.lose(Loss::ShimFailures));
    // SAFETY: as in begin.
    unsafe { api.new_none() }
}

/// `leave()`: the interpreter ends.
unsafe extern "C" fn leave(_module: Object, _start: *const Object, _count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in begin.
    unsafe {
        snapshot::close(api);
        tick(api);
        sampler::stop();
        end::mark();
        if let Some(mut recorder) = recorder::surely_enter() {
            recorder.close();
        }
        api.new_none()
    }
}

/// Writes the state of the process down.
///
/// # Safety
/// The GIL is held, no exception is set.
unsafe fn tick(api: &Api) {
    // SAFETY: the GIL is held.
    let moment = moment(unsafe { collector(api) });
    recorder::write(|writer| writer.tick(&moment));
}

/// The state of the process, its collector beside.
pub(crate) fn moment(collector: Option<Collector>) -> Moment {
    let (rss_bytes, rss_peak_bytes) = resident_bytes();
    Moment { time_ns: clock::unix_ns(), rss_bytes, rss_peak_bytes, collector, agent_ns: recorder::spent_ns() }
}

/// How often the collector has gone over all generations, `gc.get_stats()[2]["collections"]`, and whether it is off:
/// `gc.disable()`, or `gc.set_threshold(0)`, which nobody's `gc.enable()` undoes.
///
/// # Safety
/// The GIL is held, no exception is set, none is afterwards.
unsafe fn collector(api: &Api) -> Option<Collector> {
    // SAFETY: what list, dict and tuple hold is borrowed from the answers, which are dropped last.
    unsafe {
        let ask = |function: &AtomicPtr<std::ffi::c_void>| {
            let answer = (api.call)(function.load(Ordering::Relaxed), std::ptr::null_mut());
            api.clear_error();
            answer
        };
        let answers = COLLECTOR.each_ref().map(ask);
        let told = match answers {
            [stats, is_enabled, thresholds] if answers.iter().all(|answer| !answer.is_null()) => {
                let oldest = (api.list_get)(stats, 2);
                let runs = if oldest.is_null() { oldest } else { (api.dict_get)(oldest, c"collections".as_ptr()) };
                let youngest = (api.tuple_get)(thresholds, 0);
                let full_runs = if runs.is_null() { 0 } else { (api.long_as)(runs) };
                let never = !youngest.is_null() && (api.long_as)(youngest) == 0;
                Some(Collector { full_runs, is_off: never || is_enabled != api.yes })
            }
            _ => None,
        };
        api.release(answers);
        api.clear_error();
        told
    }
}

/// The resident set now and at its highest, bytes.
fn resident_bytes() -> (u64, u64) {
    let mut text = [0; 128];
    let length = table::read_file(c"/proc/self/statm", &mut text);
    let pages = text[..length]
        .split(|byte| *byte == b' ')
        .nth(1)
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok())
        .unwrap_or(0);
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: zeroes are a valid rusage, which the call fills in.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let now = pages * 4096;
    // ru_maxrss is in KiB, and in a forked child begins with the parent's.
    (now, (usage.ru_maxrss as u64 * 1024).max(now))
}
