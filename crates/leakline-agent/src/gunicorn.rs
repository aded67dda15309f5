//! Gunicorn's hooks before and after each request, around those that its user has configured, and the application that it
//! calls in between: what they tell makes a request begin, stream and end.
//!
//! They are functions as C makes them: the same in Python cost each request 3,200 instructions more (3.13.0). The shim puts
//! them in place.

use crate::python::api::{self, Api, MethodDef, Object};
use crate::python::{Name, install};
use crate::{requests, response};
use leakline_table::writer::{IN_FLIGHT, slot};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

static METHOD: Name = Name::new(c"method");
static PATH: Name = Name::new(c"path");
static STATUS: Name = Name::new(c"status");
static VALUE: Name = Name::new(c"value");
static FILE_WRAPPER: Name = Name::new(c"wsgi.file_wrapper");

/// A request of gunicorn's that is in flight: the address of its object, and the handle.
struct Served {
    request: AtomicUsize,
    handle: AtomicU64,
}

/// By the slot of the handle.
static SERVED: [Served; IN_FLIGHT] =
    [const { Served { request: AtomicUsize::new(0), handle: AtomicU64::new(0) } }; IN_FLIGHT];

static BEFORE: MethodDef = install::method(c"pre_request", before);
static AFTER: MethodDef = install::method(c"post_request", after);
static SERVE: MethodDef = install::method(c"serve", serve);

/// Makes the names.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn prepare(api: &Api) -> Result<(), &'static str> {
    // SAFETY: the caller's promise.
    unsafe { Name::intern(api, &[&METHOD, &PATH, &STATUS, &VALUE, &FILE_WRAPPER]) }
}

/// `before_request(setting, meant) -> pre_request(worker, request)`: the hook that the setting holds is called when the
/// request has begun. `meant` makes of a path that is quoted, or not plain ASCII, the one that the client meant.
pub(crate) unsafe extern "C" fn before_request(_module: Object, start: *const Object, count: isize) -> Object {
    // SAFETY: called by Python code, hence with the GIL held and no exception set; so in all functions below.
    unsafe { with_pair(&BEFORE, start, count) }
}

/// `after_request(setting, judge) -> post_request(worker, request, environ, response)`: the request ends when the hook that
/// the setting holds has been called. `judge` makes an outcome of the error that gunicorn is handling.
pub(crate) unsafe extern "C" fn after_request(_module: Object, start: *const Object, count: isize) -> Object {
    // SAFETY: as above.
    unsafe { with_pair(&AFTER, start, count) }
}

/// `phased(application) -> application`: the same, and marks where its response begins and is closed.
pub(crate) unsafe extern "C" fn phased(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above. The function holds the application.
    unsafe {
        match requests::arguments(start, count) {
            Some([application]) => (api.function_new)(&SERVE, *application, std::ptr::null_mut()),
            None => api.new_none(),
        }
    }
}

/// # Safety
/// As CPython promises a METH_FASTCALL function.
unsafe fn with_pair(function: &'static MethodDef, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: the caller's promise.
    unsafe {
        match requests::arguments(start, count) {
            Some(pair) => install::with_pair(api, function, *pair),
            None => api.new_none(),
        }
    }
}

unsafe extern "C" fn before(pair: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above.
    unsafe {
        if let Some([_worker, request]) = requests::arguments(start, count) {
            let handle = begin(api, *request, (api.tuple_get)(pair, 1));
            if handle != 0 {
                let served = &SERVED[slot(handle)];
                served.request.store(*request as usize, Ordering::Relaxed);
                served.handle.store(handle, Ordering::Relaxed);
            }
        }
        configured(api, pair, start, count)
    }
}

/// Lets a request begin; returns its handle, 0 where there is none.
///
/// # Safety
/// The GIL is held, no exception is set.
unsafe fn begin(api: &Api, request: Object, meant: Object) -> u64 {
    // SAFETY: the caller's promise; each reference is dropped once, after its text was used.
    unsafe {
        let (method, mut path) =
            (api.attribute_if_any(request, METHOD.get()), api.attribute_if_any(request, PATH.get()));
        let mut handle = 0;
        if !method.is_null() && !path.is_null() {
            if install::utf8(api, path).iter().any(|byte| !byte.is_ascii() || *byte == b'%') {
                let plain = (api.vectorcall)(meant, &path, 1, std::ptr::null_mut());
                (api.err_clear)();
                if !plain.is_null() {
                    (api.decref)(std::mem::replace(&mut path, plain));
                }
            }
            let (method, path) = (install::utf8(api, method), install::utf8(api, path));
            handle = requests::open_within(api, requests::current(api), method, path);
        }
        api.release([method, path]);
        handle
    }
}

unsafe extern "C" fn after(pair: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above. Gunicorn calls us in a `finally`, so the error that is handled is the request's. What the hook raises
    // is put aside while the request ends.
    unsafe {
        let [mut kind, mut error, mut trace] = [std::ptr::null_mut(); 3];
        (api.handled)(&mut kind, &mut error, &mut trace);
        let result = configured(api, pair, start, count);
        let raised = if result.is_null() { Some(api.fetch()) } else { None };
        if let Some([_worker, request, _environ, answer]) = requests::arguments(start, count) {
            let handle = handle_of(api, *request);
            if handle != 0 {
                let outcome = if error.is_null() || error == api.none {
                    u64::from(has_failed(api, *answer))
                } else {
                    requests::judged(api, (api.tuple_get)(pair, 1), error)
                };
                // The next request of this thread begins in the same context.
                requests::end_request(api, handle, outcome, true);
            }
        }
        api.release([kind, error, trace]);
        if let Some([kind, error, trace]) = raised {
            (api.err_restore)(kind, error, trace);
        }
        result
    }
}

/// Does the response say that the server has failed, as in "500 Internal Server Error"?
///
/// # Safety
/// The GIL is held, no exception is set.
unsafe fn has_failed(api: &Api, answer: Object) -> bool {
    // SAFETY: the caller's promise; the status is dropped when it has been read.
    unsafe {
        let status = api.attribute_if_any(answer, STATUS.get());
        if status.is_null() {
            return false;
        }
        let failed = install::utf8(api, status).first().is_some_and(|digit| *digit >= b'5');
        (api.decref)(status);
        failed
    }
}

/// The handle of a request of gunicorn's, which is forgotten; 0 where there is none. It is the current context's, unless the
/// application has left the context with another one.
///
/// # Safety
/// The GIL is held.
unsafe fn handle_of(api: &Api, request: Object) -> u64 {
    let is_it = |served: &&Served| served.request.load(Ordering::Relaxed) == request as usize;
    // SAFETY: the caller's promise.
    let current = &SERVED[slot(unsafe { requests::current(api) })];
    let Some(served) = Some(current).filter(is_it).or_else(|| SERVED.iter().find(is_it)) else { return 0 };
    served.request.store(0, Ordering::Relaxed);
    served.handle.load(Ordering::Relaxed)
}

unsafe extern "C" fn serve(application: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above.
    unsafe {
        let inner = (api.vectorcall)(application, start, count as usize, std::ptr::null_mut());
        let Some([environ]) = requests::arguments(start, count).filter(|_| !inner.is_null()) else { return inner };
        let file_wrapper = (api.get_item)(*environ, FILE_WRAPPER.get());
        if file_wrapper.is_null() {
            (api.err_clear)();
            return inner;
        }
        let outer = response::respond(api, inner, file_wrapper);
        (api.decref)(file_wrapper);
        outer
    }
}

/// Calls the hook that the user has configured, or gunicorn's own.
///
/// # Safety
/// As CPython promises a METH_FASTCALL function; the pair begins with the setting.
unsafe fn configured(api: &Api, pair: Object, start: *const Object, count: isize) -> Object {
    // SAFETY: the caller's promise; the hook is dropped when it has returned.
    unsafe {
        let hook = (api.attribute)((api.tuple_get)(pair, 0), VALUE.get());
        if hook.is_null() {
            return hook;
        }
        let result = (api.vectorcall)(hook, start, count as usize, std::ptr::null_mut());
        (api.decref)(hook);
        result
    }
}
