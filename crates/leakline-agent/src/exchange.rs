//! Turns an ASGI application's work for one request into a coroutine that marks where the request begins, streams and ends.
//!
//! A type made as C makes them: with coroutines and closures in Python each request took 14,000 instructions more. What a
//! server awaits is an [`Exchange`]; it drives the application's own coroutine, and gives the application a `send` that
//! looks at what passes through. Servers and frameworks meet such awaitables already: Cython makes its coroutines so.

use crate::python::api::{self, Api, FastFunction, METH_FASTCALL, METH_KEYWORDS, MethodDef, Object};
use crate::python::class::{self, Head, Slot, Visitor};
use crate::python::{Name, install, item, item_text as text};
use crate::{recorder, requests, sockets};
use leakline_table::layout::Phase;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// A Python object, and what is known of the request.
#[repr(C)]
struct Exchange {
    head: Head,
    /// References, by the indices below; null where there is nothing.
    held: [Object; HELD],
    handle: u64,
    /// Bytes of the response's body that were sent while the client was there.
    sent: u64,
    /// The number of the client's socket, where its loop writes in nobody's context; else -1.
    file: c_int,
    state: State,
    is_websocket: bool,
}

/// What is driven: the application's coroutine, or the server's that sends the last message.
const INNER: usize = 0;
/// What the server was given as its application, and how it calls it.
const APPLICATION: usize = 1;
const SCOPE: usize = 2;
const RECEIVE: usize = 3;
const SEND: usize = 4;
/// Who knows whether the client has gone, and the name of the attribute that tells.
const CLIENT: usize = 5;
const TELLS: usize = 6;
/// The response's headers.
const HEADERS: usize = 7;
const HELD: usize = 8;

/// How far it is. What somebody makes by calling the type is zeroed.
#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
enum State {
    Over = 0,
    /// The server has not called it yet.
    New = 1,
    /// Nobody has awaited it yet.
    Fresh = 2,
    /// The application works.
    Serving = 3,
    /// The last message is being sent.
    SendingLast = 4,
    /// What is no request of a client's.
    Passing = 5,
}

/// The type; the shim's `judge` and `awaited`.
static TYPE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static JUDGE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static AWAITED: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Outcomes.
const OK: u8 = 0;
const ERROR: u8 = 1;
const ABORTED: u8 = 2;

static TYPE_KEY: Name = Name::new(c"type");
static METHOD: Name = Name::new(c"method");
static PATH: Name = Name::new(c"path");
static STATUS: Name = Name::new(c"status");
static HEADERS_KEY: Name = Name::new(c"headers");
static BODY: Name = Name::new(c"body");
static MORE_BODY: Name = Name::new(c"more_body");
static SEND_NAME: Name = Name::new(c"send");
static THROW: Name = Name::new(c"throw");
static CLOSE: Name = Name::new(c"close");

static METHODS: [MethodDef; 4] = [
    install::method(c"send", send),
    install::method(c"throw", throw),
    install::method(c"close", close),
    MethodDef { name: std::ptr::null(), function: None, flags: 0, doc: std::ptr::null() },
];

/// What the application is given as its `send`. With METH_KEYWORDS CPython passes a fourth argument.
static OBSERVED_SEND: MethodDef = MethodDef {
    name: c"send".as_ptr(),
    // SAFETY: the flags say with which arguments it is called.
    function: Some(unsafe {
        std::mem::transmute::<unsafe extern "C" fn(Object, *const Object, isize, Object) -> Object, FastFunction>(
            observed_send,
        )
    }),
    flags: METH_FASTCALL | METH_KEYWORDS,
    doc: std::ptr::null(),
};

/// Makes the type.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn prepare(api: &Api) -> Result<(), &'static str> {
    let slots = [
        Slot::new(class::TP_DEALLOC, deallocate as *const c_void),
        Slot::new(class::TP_TRAVERSE, traverse as *const c_void),
        Slot::new(class::TP_CLEAR, clear as *const c_void),
        Slot::new(class::TP_CALL, call as *const c_void),
        Slot::new(class::AM_AWAIT, itself as *const c_void),
        Slot::new(class::TP_ITERNEXT, next as *const c_void),
        Slot::new(class::TP_METHODS, METHODS.as_ptr().cast()),
        Slot::END,
    ];
    // SAFETY: the GIL is held. The type is kept for good.
    unsafe {
        TYPE.store(class::make(api, c"leakline.Exchange", size_of::<Exchange>(), &slots)?, Ordering::Relaxed);
        let names = [&TYPE_KEY, &METHOD, &PATH, &STATUS, &HEADERS_KEY, &BODY, &MORE_BODY, &SEND_NAME, &THROW, &CLOSE];
        Name::intern(api, &names)
    }
}

/// `exchange_by(judge, awaited)`: the shim's functions for what is rare. `judge(error, is_websocket, is_gone, headers, sent)`
/// tells the outcome of what did not simply end well; `awaited(awaitable)` is a coroutine that awaits another kind of
/// awaitable.
pub(crate) unsafe extern "C" fn exchange_by(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: called by Python code, hence with the GIL held and no exception set; so in all functions below. The two are
    // kept for good.
    unsafe {
        if let Some([judge, awaited]) = requests::arguments(start, count) {
            (api.incref)(*judge);
            (api.incref)(*awaited);
            JUDGE.store(*judge, Ordering::Relaxed);
            AWAITED.store(*awaited, Ordering::Relaxed);
        }
        api.new_none()
    }
}

/// `exchange(application, client, tells, file) -> application`: one that serves one call as the given one does, as a request
/// where it is one. `client` is whose attribute `tells` is true when the client has gone.
pub(crate) unsafe extern "C" fn exchange(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return NULL };
    // SAFETY: as in exchange_by.
    unsafe {
        let Some([application, client, tells, file]) = requests::arguments(start, count) else {
            return api.new_none();
        };
        make(api, *application, *client, *tells, requests::file_number(api, *file))
    }
}

/// The same. A new reference; null with an exception set where there is no memory for it.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn make(api: &Api, application: Object, client: Object, tells: Object, file: c_int) -> Object {
    // SAFETY: the caller's promise. What the type's own allocator makes is zeroed, and known to the collector.
    unsafe {
        let made = (api.allocate)(TYPE.load(Ordering::Relaxed), 0);
        let Some(exchange) = made.cast::<Exchange>().as_mut() else { return made };
        for (index, object) in [(APPLICATION, application), (CLIENT, client), (TELLS, tells)] {
            (api.incref)(object);
            exchange.held[index] = object;
        }
        (exchange.file, exchange.state) = (file, State::New);
        made
    }
}

/// `tp_call`: the server calls it with `(scope, receive, send)`, and is given what it will await.
unsafe extern "C" fn call(this: Object, arguments: Object, _named: Object) -> Object {
    let Some(api) = api::get() else { return NULL };
    // SAFETY: as in exchange_by; CPython hands over a tuple, whose items are borrowed.
    unsafe {
        let exchange = &mut *this.cast::<Exchange>();
        if exchange.state != State::New {
            (api.err_set)(*api.runtime_error, c"it serves one call".as_ptr());
            return NULL;
        }
        for (place, index) in [SCOPE, RECEIVE, SEND].into_iter().enumerate() {
            let argument = (api.tuple_get)(arguments, place as isize);
            if argument.is_null() {
                // With the IndexError that CPython has set.
                return NULL;
            }
            (api.incref)(argument);
            api.release([std::mem::replace(&mut exchange.held[index], argument)]);
        }
        exchange.state = State::Fresh;
        (api.incref)(this);
        this
    }
}

/// Begins the request and calls the application. False where that raised, and the request has ended.
///
/// # Safety
/// The GIL is held, no exception is set; the exchange is fresh.
unsafe fn open(api: &Api, this: Object) -> bool {
    // SAFETY: the caller's promise. Nothing of the exchange stays borrowed while somebody's code runs.
    unsafe {
        let exchange = this.cast::<Exchange>();
        let [_, application, scope, receive, plain_send, ..] = (*exchange).held;
        let method = match text(api, scope, &TYPE_KEY) {
            b"http" => Some(text(api, scope, &METHOD)),
            b"websocket" => Some(&b"WS"[..]),
            _ => None,
        };
        (*exchange).state = State::Passing;
        let mut send = plain_send;
        if let Some(method) = method {
            (*exchange).state = State::Serving;
            (*exchange).is_websocket = method == b"WS";
            // This context may have been copied from another request's: a connection's callbacks run in that of whoever
            // resumed its reading.
            (*exchange).handle = requests::open(api, method, text(api, scope, &PATH));
            if (*exchange).file >= 0 {
                sockets::serves((*exchange).file);
            }
            send = (api.function_new)(&OBSERVED_SEND, this, std::ptr::null_mut());
        }
        let mut inner = std::ptr::null_mut();
        if !send.is_null() {
            inner = (api.call_with)(application, scope, receive, send, NULL);
            if send != plain_send {
                (api.decref)(send);
            }
        }
        if !inner.is_null() && class::of(inner) != api.coroutine_type {
            let awaitable = inner;
            inner = (api.call_with)(AWAITED.load(Ordering::Relaxed), awaitable, NULL);
            (api.decref)(awaitable);
        }
        if inner.is_null() {
            finish(api, this);
            return false;
        }
        (*exchange).held[INNER] = inner;
        true
    }
}

/// The end of a list of arguments.
const NULL: Object = std::ptr::null_mut();

/// Makes sure that there is a coroutine to be driven. False with an exception set where there is none.
///
/// # Safety
/// The GIL is held, no exception is set.
unsafe fn ready(api: &Api, this: Object) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        match (*this.cast::<Exchange>()).state {
            State::Fresh => open(api, this),
            State::New | State::Over => {
                (api.err_set)(*api.runtime_error, c"cannot reuse already awaited coroutine".as_ptr());
                false
            }
            _ => true,
        }
    }
}

/// Lets the coroutine go on with this value; null where it has ended. Then an exception tells how, or none where it has
/// returned None.
///
/// # Safety
/// The GIL is held, no exception is set.
unsafe fn step(api: &Api, this: Object, value: Object) -> Object {
    // SAFETY: the caller's promise. The coroutine is held while it runs, whatever becomes of the exchange.
    unsafe {
        if !ready(api, this) {
            return NULL;
        }
        let inner = (*this.cast::<Exchange>()).held[INNER];
        (api.incref)(inner);
        let mut result = NULL;
        match api.iter_send {
            // `PYGEN_RETURN` (Include/object.h).
            Some(iter_send) => {
                if iter_send(inner, value, &mut result) == 0 {
                    let returned = std::mem::replace(&mut result, NULL);
                    if returned != api.none {
                        let stop = (api.call_with)(*api.stop_iteration, returned, NULL);
                        if !stop.is_null() {
                            (api.err_set_object)(*api.stop_iteration, stop);
                            (api.decref)(stop);
                        }
                    }
                    (api.decref)(returned);
                }
            }
            None => result = (api.call_method)(inner, SEND_NAME.get(), value, NULL),
        }
        (api.decref)(inner);
        if result.is_null() {
            finish(api, this);
        }
        result
    }
}

/// `am_await`: it is its own iterator.
unsafe extern "C" fn itself(this: Object) -> Object {
    if let Some(api) = api::get() {
        // SAFETY: as in exchange_by.
        unsafe { (api.incref)(this) };
    }
    this
}

/// `tp_iternext`: as with CPython's own coroutines, nothing and no exception stands for a returned None.
unsafe extern "C" fn next(this: Object) -> Object {
    let Some(api) = api::get() else { return NULL };
    // SAFETY: as in exchange_by.
    unsafe { step(api, this, api.none) }
}

/// `send(value)`
unsafe extern "C" fn send(this: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return NULL };
    // SAFETY: as in exchange_by.
    unsafe {
        let value = requests::arguments(start, count).map_or(api.none, |[value]: &[Object; 1]| *value);
        let result = step(api, this, value);
        if result.is_null() && (api.err_occurred)().is_null() {
            (api.err_set_none)(*api.stop_iteration);
        }
        result
    }
}

/// `throw(type, value, traceback)`, the last two of which may be missing.
unsafe extern "C" fn throw(this: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return NULL };
    // SAFETY: as in exchange_by; CPython hands over `count` arguments.
    unsafe {
        if !ready(api, this) {
            return NULL;
        }
        let inner = (*this.cast::<Exchange>()).held[INNER];
        let argument = |index: isize| if index < count { *start.offset(index) } else { NULL };
        (api.incref)(inner);
        let result = (api.call_method)(inner, THROW.get(), argument(0), argument(1), argument(2), NULL);
        (api.decref)(inner);
        if result.is_null() {
            finish(api, this);
        }
        result
    }
}

/// `close()`
unsafe extern "C" fn close(this: Object, _start: *const Object, _count: isize) -> Object {
    let Some(api) = api::get() else { return NULL };
    // SAFETY: as in exchange_by.
    unsafe {
        let inner = (*this.cast::<Exchange>()).held[INNER];
        if inner.is_null() {
            (*this.cast::<Exchange>()).state = State::Over;
            return api.new_none();
        }
        (api.incref)(inner);
        let result = (api.call_method)(inner, CLOSE.get(), NULL);
        (api.decref)(inner);
        // What the application raises instead of ending is put aside meanwhile.
        let [kind, value, trace] = api.fetch();
        end_in(api, this, Some(ABORTED));
        (api.err_restore)(kind, value, trace);
        result
    }
}

/// The coroutine has ended, as the exception says that is set, or well where none is.
///
/// # Safety
/// The GIL is held.
unsafe fn finish(api: &Api, this: Object) {
    // SAFETY: the caller's promise.
    unsafe {
        let error = (api.err_occurred)();
        if error.is_null() {
            end_in(api, this, None);
        } else {
            let [kind, value, trace] = api.fetch();
            let ended_well = (api.err_is)(kind, *api.stop_iteration) != 0;
            let outcome = (!ended_well).then(|| judged(api, this, kind));
            end_in(api, this, outcome);
            (api.err_restore)(kind, value, trace);
        }
    }
}

/// The request, or the sending of its last message, has ended: so, or well unless the client has gone.
///
/// # Safety
/// The GIL is held, no exception is set, none is afterwards.
unsafe fn end_in(api: &Api, this: Object, outcome: Option<u8>) {
    // SAFETY: the caller's promise. All that is asked of the exchange is asked before it lets go of what it holds.
    unsafe {
        let exchange = this.cast::<Exchange>();
        match (*exchange).state {
            State::Serving => {
                let outcome = match outcome {
                    Some(outcome) => outcome,
                    None if is_gone(api, this) => judged(api, this, api.none),
                    None => OK,
                };
                (*exchange).state = State::Over;
                requests::conclude(api, (*exchange).handle, outcome);
            }
            State::SendingLast if outcome.is_none() => requests::mark((*exchange).handle, Phase::After),
            _ => {}
        }
        (*exchange).state = State::Over;
        // Whoever keeps the `send` that he was given keeps no more than he would have kept without us.
        for index in [INNER, APPLICATION, SCOPE, RECEIVE, HEADERS] {
            let object = std::mem::replace(&mut (*exchange).held[index], NULL);
            api.release([object]);
        }
    }
}

/// Whether the server knows that the client has gone.
///
/// # Safety
/// The GIL is held, no exception is set, none is afterwards.
unsafe fn is_gone(api: &Api, this: Object) -> bool {
    // SAFETY: the caller's promise; the attribute is a new reference or null.
    unsafe {
        let Exchange { held, .. } = &*this.cast::<Exchange>();
        let told = api.attribute_if_any(held[CLIENT], held[TELLS]);
        let is_gone = !told.is_null() && (api.is_true)(told) == 1;
        api.release([told]);
        api.clear_error();
        is_gone
    }
}

/// What the shim says of a request that ended with this error, None for none: it knows the exceptions and the headers.
///
/// # Safety
/// As for `is_gone`.
unsafe fn judged(api: &Api, this: Object, error: Object) -> u8 {
    // SAFETY: the caller's promise; new references are dropped once.
    unsafe {
        let exchange = this.cast::<Exchange>();
        if (*exchange).state != State::Serving {
            return ERROR;
        }
        let is_gone = (api.long_from)(u64::from(is_gone(api, this)));
        let is_websocket = (api.long_from)(u64::from((*exchange).is_websocket));
        let sent = (api.long_from)((*exchange).sent);
        let headers = (*exchange).held[HEADERS];
        let headers = if headers.is_null() { api.none } else { headers };
        let mut outcome = u64::from(ERROR);
        if ![is_gone, is_websocket, sent].contains(&NULL) {
            let judge = JUDGE.load(Ordering::Relaxed);
            let judged = (api.call_with)(judge, error, is_websocket, is_gone, headers, sent, NULL);
            if !judged.is_null() {
                outcome = (api.long_as)(judged);
            }
            api.release([judged]);
        }
        api.release([is_gone, is_websocket, sent]);
        api.clear_error();
        outcome.min(2) as u8
    }
}

/// `send(message)`, as the application calls it: looks at the message and hands it on to the server.
unsafe extern "C" fn observed_send(this: Object, start: *const Object, count: isize, names: Object) -> Object {
    let Some(api) = api::get() else { return NULL };
    // SAFETY: as in exchange_by. An argument that is given by name stands behind the others. The server's `send` is held by
    // the exchange for as long as that lives, and its caller holds the exchange.
    unsafe {
        let exchange = this.cast::<Exchange>();
        let server_send = (*exchange).held[SEND];
        // The one message may have been given by name: then it is not counted, and stands in the same place.
        let named = if names.is_null() { 0 } else { (api.size)(names) };
        if count + named != 1 || server_send.is_null() {
            (api.err_set)(*api.runtime_error, c"send() takes one message".as_ptr());
            return NULL;
        }
        let message = *start;
        let is_last = (*exchange).state == State::Serving && look_at(api, this, message);
        let sending = (api.call_with)(server_send, message, NULL);
        if !is_last || sending.is_null() || class::of(sending) != api.coroutine_type {
            return sending;
        }
        let made = (api.allocate)(TYPE.load(Ordering::Relaxed), 0);
        let Some(last) = made.cast::<Exchange>().as_mut() else {
            api.clear_error();
            return sending;
        };
        (last.held[INNER], last.handle, last.state) = (sending, (*exchange).handle, State::SendingLast);
        made
    }
}

/// Notes what a message says of the response. True where it is the last one.
///
/// # Safety
/// The GIL is held, no exception is set, none is afterwards.
unsafe fn look_at(api: &Api, this: Object, message: Object) -> bool {
    // SAFETY: the caller's promise. What `item` returns is borrowed from the message, which its sender holds.
    unsafe {
        let exchange = this.cast::<Exchange>();
        match text(api, message, &TYPE_KEY) {
            b"http.response.start" => {
                let status = item(api, message, &STATUS);
                let status = if status.is_null() { 0 } else { (api.long_as)(status) };
                api.clear_error();
                // What is no number is refused as the largest of all.
                let status = u32::try_from(status).unwrap_or(0);
                let handle = (*exchange).handle;
                recorder::write(|writer| {
                    writer.phase(handle, Phase::Streaming);
                    writer.status(handle, status);
                });
                let headers = item(api, message, &HEADERS_KEY);
                if !headers.is_null() {
                    (api.incref)(headers);
                }
                api.release([std::mem::replace(&mut (*exchange).held[HEADERS], headers)]);
                false
            }
            b"http.response.body" => {
                let body = item(api, message, &BODY);
                if !body.is_null() && !is_gone(api, this) {
                    (*exchange).sent += (api.size)(body).max(0) as u64;
                    api.clear_error();
                }
                let more = item(api, message, &MORE_BODY);
                let is_last = more.is_null() || (api.is_true)(more) == 0;
                api.clear_error();
                is_last
            }
            _ => false,
        }
    }
}

/// `tp_traverse`: tells the collector whom the exchange holds.
unsafe extern "C" fn traverse(this: Object, visit: Visitor, argument: *mut c_void) -> c_int {
    // SAFETY: called by the collector, with the GIL held.
    unsafe { class::traverse(this, &(*this.cast::<Exchange>()).held, visit, argument) }
}

/// `tp_clear`: lets go, also where a cycle is broken up.
unsafe extern "C" fn clear(this: Object) -> c_int {
    if let Some(api) = api::get() {
        // SAFETY: as in exchange_by.
        unsafe { class::clear(api, &raw mut (*this.cast::<Exchange>()).held) };
    }
    0
}

/// `tp_dealloc`: of a request that nobody awaits any more, as when a task is destroyed in the midst of its work.
unsafe extern "C" fn deallocate(this: Object) {
    let Some(api) = api::get() else { return };
    // SAFETY: as in exchange_by, but that an exception may be set; the last reference is gone.
    unsafe {
        (api.collector_forget)(this);
        let [kind, value, trace] = api.fetch();
        // That lets the application's coroutine end, whose last words are still the request's.
        clear(this);
        end_in(api, this, Some(ABORTED));
        (api.err_restore)(kind, value, trace);
        class::delete(api, this);
    }
}
