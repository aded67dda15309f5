//! Turns the iterable that a WSGI application returns into one that marks where the server closes it, and where that is what
//! ends the request, ends it.
//!
//! Types made as C makes them: the same class in Python costs each request of gunicorn's 3,000 instructions more, and of
//! other servers' 10,000.

use crate::python::api::{self, Api, MethodDef, Object};
use crate::python::class::{self, Head, Slot, Visitor};
use crate::python::{Name, install};
use crate::requests;
use leakline_table::layout::Phase;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// `PyObject_HEAD` (Include/object.h), the application's iterable, and the request.
#[repr(C)]
struct Response {
    head: Head,
    /// The iterable; null in what somebody made by calling the type.
    held: [Object; 1],
    handle: u64,
    end: End,
    /// How the request ends, as far as it is known.
    outcome: u8,
}

/// What ends the request.
#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
pub(crate) enum End {
    /// The server tells us by other ways. What somebody makes by calling the type is zeroed.
    Elsewhere = 0,
    /// The response is closed, or dropped by a server that doesn't close it.
    Closing = 1,
    /// The same, and a server that doesn't read it to its end has lost its client.
    ClosingWhole = 2,
    /// It has ended.
    Over = 3,
}

/// An iterator of the application's, and the response that is told how it ends.
#[repr(C)]
struct Pieces {
    head: Head,
    held: [Object; 2],
}

/// A response without a length, one with, and their iterators.
static TYPE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static SIZED: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static PIECES: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
/// The shim's `judge(error)`, for errors that pass while a response is closed.
pub(crate) static JUDGE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static CLOSE: Name = Name::new(c"close");
static LENGTH: Name = Name::new(c"__len__");

static METHODS: [MethodDef; 2] = [
    install::method(c"close", close),
    MethodDef { name: std::ptr::null(), function: None, flags: 0, doc: std::ptr::null() },
];

/// Outcomes.
const OK: u8 = 0;
const ERROR: u8 = 1;
const ABORTED: u8 = 2;

/// Makes the types.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn prepare(api: &Api) -> Result<(), &'static str> {
    let common = || {
        [
            Slot::new(class::TP_DEALLOC, deallocate as *const c_void),
            Slot::new(class::TP_TRAVERSE, traverse as *const c_void),
            Slot::new(class::TP_CLEAR, clear as *const c_void),
            Slot::new(class::TP_ITER, iterate as *const c_void),
            Slot::new(class::TP_METHODS, METHODS.as_ptr().cast()),
        ]
    };
    let [a, b, c, d, e] = common();
    let unsized_slots = [a, b, c, d, e, Slot::END];
    let [a, b, c, d, e] = common();
    let sized_slots = [a, b, c, d, e, Slot::new(class::MP_LENGTH, length as *const c_void), Slot::END];
    let pieces_slots = [
        Slot::new(class::TP_DEALLOC, deallocate_pieces as *const c_void),
        Slot::new(class::TP_TRAVERSE, traverse_pieces as *const c_void),
        Slot::new(class::TP_CLEAR, clear_pieces as *const c_void),
        Slot::new(class::TP_ITER, itself as *const c_void),
        Slot::new(class::TP_ITERNEXT, next as *const c_void),
        Slot::END,
    ];
    // SAFETY: the GIL is held. The types are kept for good.
    unsafe {
        for (kind, name, bytes, slots) in [
            (&TYPE, c"leakline.Response", size_of::<Response>(), &unsized_slots[..]),
            (&SIZED, c"leakline.SizedResponse", size_of::<Response>(), &sized_slots),
            (&PIECES, c"leakline.Pieces", size_of::<Pieces>(), &pieces_slots),
        ] {
            kind.store(class::make(api, name, bytes, slots)?, Ordering::Relaxed);
        }
        Name::intern(api, &[&CLOSE, &LENGTH])
    }
}

/// The current context's request begins to send its response: takes the application's iterable and returns ours. A server
/// knows its own file wrapper by the type and may hand the file to the kernel, so that goes back as it is.
///
/// # Safety
/// The GIL is held, no exception is set; so in all functions below, which Python code calls.
pub(crate) unsafe fn respond(api: &Api, inner: Object, file_wrapper: Object) -> Object {
    // SAFETY: the caller's promise.
    unsafe {
        let handle = requests::current(api);
        requests::mark(handle, Phase::Streaming);
        if (api.is_subtype)(class::of(inner), file_wrapper) != 0 {
            return inner;
        }
        around(api, inner, handle, End::Elsewhere, &TYPE)
    }
}

/// A response of the given end around the application's iterable, which has a length where that has one.
///
/// # Safety
/// As for `respond`.
pub(crate) unsafe fn ending(api: &Api, inner: Object, handle: u64, end: End) -> Object {
    // SAFETY: the caller's promise; the method is a new reference or null.
    unsafe {
        let length = api.attribute_if_any(inner, LENGTH.get());
        let kind = if length.is_null() { &TYPE } else { &SIZED };
        api.release([length]);
        around(api, inner, handle, end, kind)
    }
}

/// Takes the iterable; returns it where there is no memory for ours, which ends the request.
///
/// # Safety
/// As for `respond`.
unsafe fn around(api: &Api, inner: Object, handle: u64, end: End, kind: &AtomicPtr<c_void>) -> Object {
    // SAFETY: the caller's promise. What the type's own allocator makes is zeroed, and known to the collector.
    unsafe {
        let response = (api.allocate)(kind.load(Ordering::Relaxed), 0);
        if response.is_null() {
            (api.err_clear)();
            if end != End::Elsewhere {
                requests::end_request(api, handle, u64::from(OK), false);
            }
            return inner;
        }
        let made = &mut *response.cast::<Response>();
        (made.held, made.handle, made.end) = ([inner], handle, end);
        response
    }
}

/// `close()`: as the application's iterable does it, where that has a `close` at all.
unsafe extern "C" fn close(response: Object, _start: *const Object, _count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in respond. Nothing of the response stays borrowed while somebody's code runs.
    unsafe {
        let Response { held: [inner], handle, end, outcome, .. } = *response.cast::<Response>();
        if matches!(end, End::Elsewhere | End::Over) {
            requests::mark(handle, Phase::Closing);
            return close_inner(api, inner);
        }
        let outcome = if outcome == OK { judged_at_close(api) } else { outcome };
        requests::mark(handle, Phase::Closing);
        let result = close_inner(api, inner);
        (*response.cast::<Response>()).end = End::Over;
        if result.is_null() {
            let raised = api.fetch();
            requests::end_request(api, handle, u64::from(outcome.max(ERROR)), false);
            let [kind, error, trace] = raised;
            (api.err_restore)(kind, error, trace);
        } else {
            // Whatever this thread serves next, it begins in the same context.
            requests::end_request(api, handle, u64::from(outcome), true);
        }
        result
    }
}

/// What the error that is handled just now says of a request whose response is closed.
///
/// # Safety
/// The GIL is held, no exception is set, none is afterwards.
unsafe fn judged_at_close(api: &Api) -> u8 {
    // SAFETY: the caller's promise; references are dropped once.
    unsafe {
        let [mut kind, mut error, mut trace] = [std::ptr::null_mut(); 3];
        (api.handled)(&mut kind, &mut error, &mut trace);
        let outcome = if error.is_null() || error == api.none {
            OK
        } else {
            requests::judged(api, JUDGE.load(Ordering::Relaxed), error).min(2) as u8
        };
        api.release([kind, error, trace]);
        outcome
    }
}

/// # Safety
/// As for `respond`.
unsafe fn close_inner(api: &Api, inner: Object) -> Object {
    // SAFETY: the caller's promise; the method is a new reference, or null.
    unsafe {
        if inner.is_null() {
            return api.new_none();
        }
        let mut method = std::ptr::null_mut();
        match (api.look_up_attribute)(inner, CLOSE.get(), &mut method) {
            0 => api.new_none(),
            1 => {
                let result = (api.call)(method, std::ptr::null_mut());
                (api.decref)(method);
                result
            }
            _ => std::ptr::null_mut(),
        }
    }
}

/// `tp_iter`: where the server tells us by other ways, nobody stands between it and the application's own iterator.
unsafe extern "C" fn iterate(this: Object) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in respond. What somebody made by calling the type holds nothing; None raises the TypeError for us.
    unsafe {
        let response = this.cast::<Response>();
        let [inner] = (*response).held;
        let iterator = (api.get_iterator)(if inner.is_null() { api.none } else { inner });
        if iterator.is_null() {
            (*response).outcome = ERROR;
        }
        if iterator.is_null() || matches!((*response).end, End::Elsewhere | End::Over) {
            return iterator;
        }
        if (*response).end == End::ClosingWhole {
            (*response).outcome = ABORTED;
        }
        let pieces = (api.allocate)(PIECES.load(Ordering::Relaxed), 0);
        if pieces.is_null() {
            (api.err_clear)();
            return iterator;
        }
        (api.incref)(this);
        (*pieces.cast::<Pieces>()).held = [iterator, this];
        pieces
    }
}

/// `mp_length`
unsafe extern "C" fn length(response: Object) -> isize {
    let Some(api) = api::get() else { return 0 };
    // SAFETY: as in respond; None raises the TypeError for us.
    unsafe {
        let [inner] = (*response.cast::<Response>()).held;
        (api.size)(if inner.is_null() { api.none } else { inner })
    }
}

/// `tp_iternext` of the pieces: what the application raises is the application's mistake, whatever it is.
unsafe extern "C" fn next(pieces: Object) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in respond. Both are held while somebody's code runs, whatever becomes of the pieces.
    unsafe {
        let [iterator, response] = (*pieces.cast::<Pieces>()).held;
        if iterator.is_null() {
            return std::ptr::null_mut();
        }
        (api.incref)(iterator);
        (api.incref)(response);
        let piece = (api.next)(iterator);
        let response_now = response.cast::<Response>();
        if piece.is_null() {
            if !(api.err_occurred)().is_null() {
                (*response_now).outcome = ERROR;
            } else if (*response_now).end == End::ClosingWhole {
                (*response_now).outcome = OK;
            }
        }
        (api.decref)(iterator);
        (api.decref)(response);
        piece
    }
}

/// `tp_iter` of the pieces.
unsafe extern "C" fn itself(pieces: Object) -> Object {
    if let Some(api) = api::get() {
        // SAFETY: as in respond.
        unsafe { (api.incref)(pieces) };
    }
    pieces
}

/// `tp_traverse`: tells the collector whom the response holds.
unsafe extern "C" fn traverse(response: Object, visit: Visitor, argument: *mut c_void) -> c_int {
    // SAFETY: called by the collector, with the GIL held.
    unsafe { class::traverse(response, &(*response.cast::<Response>()).held, visit, argument) }
}

/// `tp_clear`: lets go, also where a cycle is broken up.
unsafe extern "C" fn clear(response: Object) -> c_int {
    if let Some(api) = api::get() {
        // SAFETY: as in respond.
        unsafe { class::clear(api, &raw mut (*response.cast::<Response>()).held) };
    }
    0
}

/// `tp_dealloc`.
unsafe extern "C" fn deallocate(response: Object) {
    let Some(api) = api::get() else { return };
    // SAFETY: as in respond, but that an exception may be set; the last reference is gone.
    unsafe {
        (api.collector_forget)(response);
        let Response { handle, end, outcome, .. } = *response.cast::<Response>();
        if matches!(end, End::Closing | End::ClosingWhole) {
            let [kind, error, trace] = api.fetch();
            requests::end_request(api, handle, u64::from(outcome), false);
            (api.err_restore)(kind, error, trace);
        }
        clear(response);
        class::delete(api, response);
    }
}

/// `tp_traverse` of the pieces.
unsafe extern "C" fn traverse_pieces(pieces: Object, visit: Visitor, argument: *mut c_void) -> c_int {
    // SAFETY: called by the collector, with the GIL held.
    unsafe { class::traverse(pieces, &(*pieces.cast::<Pieces>()).held, visit, argument) }
}

/// `tp_clear` of the pieces.
unsafe extern "C" fn clear_pieces(pieces: Object) -> c_int {
    if let Some(api) = api::get() {
        // SAFETY: as in respond.
        unsafe { class::clear(api, &raw mut (*pieces.cast::<Pieces>()).held) };
    }
    0
}

/// `tp_dealloc` of the pieces.
unsafe extern "C" fn deallocate_pieces(pieces: Object) {
    let Some(api) = api::get() else { return };
    // SAFETY: as in respond; the last reference is gone.
    unsafe {
        (api.collector_forget)(pieces);
        clear_pieces(pieces);
        class::delete(api, pieces);
    }
}
