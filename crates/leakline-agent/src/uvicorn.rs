//! `RequestResponseCycle.run_asgi` of uvicorn, which is given the application as one that serves a request of ours.
//!
//! A connection's protocol hands its application to a cycle for each request. Were it replaced in the protocol, we had to
//! look into that instance, and then CPython 3.11 and 3.12 would be slower to read its attributes.

use crate::python::api::{self, Api, MethodDef, Object};
use crate::python::{Name, install};
use crate::{exchange, requests, threads};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// The cycle's attribute that is true when the client has gone.
static DISCONNECTED: Name = Name::new(c"disconnected");
/// The shim's functions: one says that uvicorn serves here, one tells the number of a cycle's socket.
static SERVES: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static FILE_OF: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static IS_NAMED: AtomicBool = AtomicBool::new(false);

static RUN: MethodDef =
    MethodDef { doc: c"run_asgi(self, app, /)\n--\n\n".as_ptr(), ..install::method(c"run_asgi", run) };

/// Makes the name.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn prepare(api: &Api) -> Result<(), &'static str> {
    // SAFETY: the caller's promise.
    unsafe { Name::intern(api, &[&DISCONNECTED]) }
}

/// `run_asgi(original, serves) -> method`: `serves` is called with the first request.
pub(crate) unsafe extern "C" fn run_asgi(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: called by Python code, hence with the GIL held and no exception set; so in all functions below. The function
    // is kept for good.
    unsafe {
        if let Some([_original, serves]) = requests::arguments(start, count) {
            (api.incref)(*serves);
            SERVES.store(*serves, Ordering::Relaxed);
        }
        threads::around(&RUN, start, count)
    }
}

/// `files_by(file_of)`: from now on a loop writes to sockets in nobody's context, and `file_of(cycle)` tells their numbers.
pub(crate) unsafe extern "C" fn files_by(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above; the function is kept for good.
    unsafe {
        if let Some([file_of]) = requests::arguments(start, count) {
            (api.incref)(*file_of);
            FILE_OF.store(*file_of, Ordering::Relaxed);
        }
        api.new_none()
    }
}

/// `run_asgi(self, app)`
unsafe extern "C" fn run(original: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above; the exchange is dropped when the call has been made.
    unsafe {
        let Some([cycle, application]) = requests::arguments(start, count) else {
            return (api.vectorcall)(original, start, count as usize, std::ptr::null_mut());
        };
        if !IS_NAMED.swap(true, Ordering::Relaxed) {
            api.call_plain(SERVES.load(Ordering::Relaxed));
        }
        let made = exchange::make(api, *application, *cycle, DISCONNECTED.get(), file(api, *cycle));
        if made.is_null() {
            return made;
        }
        let result = (api.vectorcall)(original, [*cycle, made].as_ptr(), 2, std::ptr::null_mut());
        (api.decref)(made);
        result
    }
}

/// The number of the client's socket, where its loop writes in nobody's context; else -1.
///
/// # Safety
/// The GIL is held, no exception is set, none is afterwards.
unsafe fn file(api: &Api, cycle: Object) -> i32 {
    let file_of = FILE_OF.load(Ordering::Relaxed);
    if file_of.is_null() {
        return -1;
    }
    // SAFETY: the caller's promise; the number is a new reference or null.
    unsafe {
        let number = (api.vectorcall)(file_of, &cycle, 1, std::ptr::null_mut());
        let file = if number.is_null() { -1 } else { requests::file_number(api, number) };
        api.release([number]);
        api.clear_error();
        file
    }
}
