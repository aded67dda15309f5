//! `Thread.start` and `Thread._bootstrap_inner` that let a thread work for the request that starts it.
//!
//! They are functions as C makes them, so that no frame of ours stands in anybody's traceback: programs read theirs, and a
//! dump of all threads (faulthandler's, a debugger's) shows each thread from its first frame on.

use crate::python::api::{self, Api, MethodDef, Object};
use crate::python::{self, Name, install};
use crate::requests;

/// The attribute of a thread that holds the handle of its request.
static HANDLE: Name = Name::new(c"_leakline_handle");

// What stands beside them is what `inspect.signature` reads.
static START: MethodDef = MethodDef { doc: c"start(self, /)\n--\n\n".as_ptr(), ..install::method(c"start", start) };
static BOOTSTRAP: MethodDef =
    MethodDef { doc: c"_bootstrap_inner(self, /)\n--\n\n".as_ptr(), ..install::method(c"_bootstrap_inner", bootstrap) };

/// Makes the name.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn prepare(api: &Api) -> Result<(), &'static str> {
    // SAFETY: the caller's promise.
    unsafe { Name::intern(api, &[&HANDLE]) }
}

/// `thread_start(original) -> method`: the thread that it starts is told which request the current context serves.
pub(crate) unsafe extern "C" fn thread_start(_module: Object, arguments: *const Object, count: isize) -> Object {
    // SAFETY: called by Python code, hence with the GIL held and no exception set; so in all functions below.
    unsafe { around(&START, arguments, count) }
}

/// `thread_bootstrap(original) -> method`: a thread that was told of a request begins by serving it.
pub(crate) unsafe extern "C" fn thread_bootstrap(_module: Object, arguments: *const Object, count: isize) -> Object {
    // SAFETY: as above.
    unsafe { around(&BOOTSTRAP, arguments, count) }
}

/// A function whose `self` is the original, and which a class binds to its instances as it does functions in Python.
///
/// # Safety
/// As CPython promises a METH_FASTCALL function.
pub(crate) unsafe fn around(function: &'static MethodDef, arguments: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: the caller's promise. The method holds the function, and the function the original.
    unsafe {
        let Some([original]) = requests::arguments(arguments, count) else { return api.new_none() };
        let function = (api.function_new)(function, *original, std::ptr::null_mut());
        if function.is_null() {
            return function;
        }
        let method = (api.instance_method)(function);
        (api.decref)(function);
        method
    }
}

unsafe extern "C" fn start(original: Object, arguments: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above; a thread that takes no attribute works for nobody.
    unsafe {
        let handle = requests::current(api);
        if let Some([thread]) = requests::arguments(arguments, count).filter(|_| handle != 0) {
            let number = (api.long_from)(handle);
            if !number.is_null() {
                (api.set_attribute)(*thread, HANDLE.get(), number);
                (api.decref)(number);
            }
            api.clear_error();
        }
        (api.vectorcall)(original, arguments, count as usize, std::ptr::null_mut())
    }
}

unsafe extern "C" fn bootstrap(original: Object, arguments: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above; the number is a new reference or null.
    unsafe {
        if let Some([thread]) = requests::arguments(arguments, count) {
            let number = api.attribute_if_any(*thread, HANDLE.get());
            if !number.is_null() {
                // An integer that `start` made.
                let handle = python::unsigned(number);
                requests::set_current(api, handle, handle);
                (api.decref)(number);
            }
        }
        (api.vectorcall)(original, arguments, count as usize, std::ptr::null_mut())
    }
}
