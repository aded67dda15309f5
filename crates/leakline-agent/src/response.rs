//! Turns the iterable that a WSGI application returns into one that marks where the server closes it, for servers that
//! tell us by other ways when the request ends.
//!
//! A type made as C makes them: the same class in Python costs each request 3,000 instructions more.

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
}

static TYPE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static CLOSE: Name = Name::new(c"close");

static METHODS: [MethodDef; 2] = [
    install::method(c"close", close),
    MethodDef { name: std::ptr::null(), function: None, flags: 0, doc: std::ptr::null() },
];

/// Makes the type.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn prepare(api: &Api) -> Result<(), &'static str> {
    let slots = [
        Slot::new(class::TP_DEALLOC, deallocate as *const c_void),
        Slot::new(class::TP_TRAVERSE, traverse as *const c_void),
        Slot::new(class::TP_CLEAR, clear as *const c_void),
        Slot::new(class::TP_ITER, iterate as *const c_void),
        Slot::new(class::TP_METHODS, METHODS.as_ptr().cast()),
        Slot::END,
    ];
    // SAFETY: the GIL is held. The type is kept for good.
    unsafe {
        TYPE.store(class::make(api, c"leakline.Response", size_of::<Response>(), &slots)?, Ordering::Relaxed);
        Name::intern(api, &[&CLOSE])
    }
}

/// The current context's request begins to send its response: takes the application's iterable and returns ours. A server
/// knows its own file wrapper by the type and may hand the file to the kernel, so that goes back as it is.
///
/// # Safety
/// The GIL is held, no exception is set; so in all functions below, which Python code calls.
pub(crate) unsafe fn respond(api: &Api, inner: Object, file_wrapper: Object) -> Object {
    // SAFETY: the caller's promise. What the type's own allocator makes is zeroed, and known to the collector.
    unsafe {
        let handle = requests::current(api);
        requests::mark(handle, Phase::Streaming);
        if (api.is_subtype)(class::of(inner), file_wrapper) != 0 {
            return inner;
        }
        let response = (api.allocate)(TYPE.load(Ordering::Relaxed), 0);
        if response.is_null() {
            (api.err_clear)();
            return inner;
        }
        let made = &mut *response.cast::<Response>();
        (made.held, made.handle) = ([inner], handle);
        response
    }
}

/// `close()`: as the application's iterable does it, where that has a `close` at all.
unsafe extern "C" fn close(response: Object, _start: *const Object, _count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in respond; the method is a new reference, or null.
    unsafe {
        let Response { held: [inner], handle, .. } = *response.cast::<Response>();
        requests::mark(handle, Phase::Closing);
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

/// `tp_iter`: nobody stands between the server and the application's own iterator.
unsafe extern "C" fn iterate(response: Object) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in respond. What somebody made by calling the type holds nothing; None raises the TypeError for us.
    unsafe {
        let [inner] = (*response.cast::<Response>()).held;
        (api.get_iterator)(if inner.is_null() { api.none } else { inner })
    }
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
    // SAFETY: as in respond; the last reference is gone.
    unsafe {
        (api.collector_forget)(response);
        clear(response);
        class::delete(api, response);
    }
}
