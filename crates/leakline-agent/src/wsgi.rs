//! Turns a WSGI application into one that serves as it does and marks where each request begins, streams and ends, for servers
//! that have no hooks of their own.
//!
//! Functions as C makes them: the same in Python cost each request 12,000 instructions more.

use crate::python::api::{self, Api, FastFunction, METH_KEYWORDS, METH_VARARGS, MethodDef, Object};
use crate::python::{self, Name, class, install, item, item_text};
use crate::requests;
use crate::response::{self, End};
use crate::table::Text;
use leakline_table::layout::Phase;
use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, Ordering};

static REQUEST_METHOD: Name = Name::new(c"REQUEST_METHOD");
static PATH_INFO: Name = Name::new(c"PATH_INFO");
static SCRIPT_NAME: Name = Name::new(c"SCRIPT_NAME");
static FILE_WRAPPER: Name = Name::new(c"wsgi.file_wrapper");
static READ: Name = Name::new(c"read");
static STATUS: Name = Name::new(c"status");
/// Waitress's method that tells whether the client is there, its channel, and the attribute where we leave the handle.
static CLIENT_DISCONNECTED: Name = Name::new(c"waitress.client_disconnected");
static CHANNEL: Name = Name::new(c"__self__");
static HANDLE: Name = Name::new(c"_leakline_handle");

/// The shim's functions for what is rare.
static MEANT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static END_WHEN_CLOSED: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// What servers do with a response: most send it in the request's thread; waitress goes on reading a file after that; uWSGI
/// reads it to its end unless it has lost its client.
const FILES_LEAVE_THE_THREAD: u64 = 1;
const READS_TO_THE_END: u64 = 2;

static SERVE: MethodDef = install::method(c"serve", serve);
static START_RESPONSE: MethodDef = MethodDef {
    name: c"start_response".as_ptr(),
    // SAFETY: the flags say with which arguments it is called.
    function: Some(unsafe {
        std::mem::transmute::<unsafe extern "C" fn(Object, Object, Object) -> Object, FastFunction>(start_response)
    }),
    flags: METH_VARARGS | METH_KEYWORDS,
    doc: std::ptr::null(),
};

/// Bytes of a path with its mount; of a longer one the mount counts alone.
const LONGEST: usize = 1024;
const OK: u64 = 0;
const ERROR: u64 = 1;

/// Makes the names.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn prepare(api: &Api) -> Result<(), &'static str> {
    let names = [
        &REQUEST_METHOD,
        &PATH_INFO,
        &SCRIPT_NAME,
        &FILE_WRAPPER,
        &READ,
        &STATUS,
        &CLIENT_DISCONNECTED,
        &CHANNEL,
        &HANDLE,
    ];
    // SAFETY: the caller's promise.
    unsafe { Name::intern(api, &names) }
}

/// `serve_by(meant, judge, end_when_closed)`: `meant(path)` makes of a path that is not plain ASCII the one that the client
/// meant, `judge(error)` an outcome of the error that passes while a response is closed, and `end_when_closed(file, handle)`
/// lets a request end when a file is closed.
pub(crate) unsafe extern "C" fn serve_by(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: called by Python code, hence with the GIL held and no exception set; so in all functions below. The three are
    // kept for good.
    unsafe {
        if let Some(functions) = requests::arguments::<3>(start, count) {
            for (place, function) in [&MEANT, &response::JUDGE, &END_WHEN_CLOSED].into_iter().zip(functions) {
                (api.incref)(*function);
                place.store(*function, Ordering::Relaxed);
            }
        }
        api.new_none()
    }
}

/// `served(application, manner) -> application`
pub(crate) unsafe extern "C" fn served(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above.
    unsafe {
        match requests::arguments(start, count) {
            Some(pair) => install::with_pair(api, &SERVE, *pair),
            None => api.new_none(),
        }
    }
}

/// `serve(environ, start_response) -> iterable`
unsafe extern "C" fn serve(pair: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above. The pair lends the application, its caller the arguments.
    unsafe {
        let application = (api.tuple_get)(pair, 0);
        let plain = || (api.vectorcall)(application, start, count as usize, std::ptr::null_mut());
        let Some([environ, plain_start]) = requests::arguments(start, count) else { return plain() };
        let handle = begin(api, *environ);
        if handle == 0 {
            return plain();
        }
        let manner = python::unsigned((api.tuple_get)(pair, 1));
        if manner == FILES_LEAVE_THE_THREAD {
            tell_waitress(api, *environ, handle);
        }
        let number = (api.long_from)(handle);
        let observed_start = match number.is_null() {
            true => number,
            false => install::with_pair(api, &START_RESPONSE, [*plain_start, number]),
        };
        api.release([number]);
        let inner = match observed_start.is_null() {
            true => observed_start,
            false => (api.vectorcall)(application, [*environ, observed_start].as_ptr(), 2, std::ptr::null_mut()),
        };
        api.release([observed_start]);
        if inner.is_null() {
            let [kind, error, trace] = api.fetch();
            requests::end_request(api, handle, ERROR, false);
            (api.err_restore)(kind, error, trace);
            return inner;
        }
        requests::mark(handle, Phase::Streaming);
        if !is_file(api, *environ, inner) {
            let end = if manner == READS_TO_THE_END { End::ClosingWhole } else { End::Closing };
            return response::ending(api, inner, handle, end);
        }
        // Servers know their own file wrapper by its type and may hand the file to the kernel, so it must go back as it is.
        if manner == FILES_LEAVE_THE_THREAD {
            requests::end_request(api, handle, OK, false);
        } else {
            let number = (api.long_from)(handle);
            if !number.is_null() {
                let done = (api.vectorcall)(
                    END_WHEN_CLOSED.load(Ordering::Relaxed),
                    [inner, number].as_ptr(),
                    2,
                    std::ptr::null_mut(),
                );
                api.release([number, done]);
            }
            api.clear_error();
        }
        inner
    }
}

/// Lets a request begin, unless the current context serves one already; returns its handle, 0 where there is none.
///
/// # Safety
/// The GIL is held, no exception is set, none is afterwards.
unsafe fn begin(api: &Api, environ: Object) -> u64 {
    // SAFETY: the caller's promise. The environment lends its texts; what is meant is dropped after its text was used.
    unsafe {
        let [method, mut said, mount] =
            [&REQUEST_METHOD, &PATH_INFO, &SCRIPT_NAME].map(|key| item_text(api, environ, key));
        let mut whole = Text::<LONGEST>::new();
        if !mount.is_empty() {
            whole.put(mount);
            whole.put(said);
            said = whole.bytes();
        }
        let begin = |path: &[u8]| requests::open_within(api, requests::current(api), method, path);
        if said.is_ascii() {
            return begin(said);
        }
        let plain = (api.unicode_from_bytes)(said.as_ptr().cast(), said.len() as isize);
        let meant = match plain.is_null() {
            true => plain,
            false => (api.vectorcall)(MEANT.load(Ordering::Relaxed), &plain, 1, std::ptr::null_mut()),
        };
        api.clear_error();
        let handle = begin(if meant.is_null() { b"" } else { install::utf8(api, meant) });
        api.release([plain, meant]);
        handle
    }
}

/// Leaves the handle where the shim finds it when the channel is closed.
///
/// # Safety
/// As for `begin`.
unsafe fn tell_waitress(api: &Api, environ: Object, handle: u64) {
    // SAFETY: the caller's promise; the channel and the number are new references or null.
    unsafe {
        let disconnected = item(api, environ, &CLIENT_DISCONNECTED);
        if disconnected.is_null() {
            return;
        }
        let channel = api.attribute_if_any(disconnected, CHANNEL.get());
        let number = (api.long_from)(handle);
        if !channel.is_null() && !number.is_null() {
            (api.set_attribute)(channel, HANDLE.get(), number);
        }
        api.release([channel, number]);
        api.clear_error();
    }
}

/// Is this the server's own file wrapper? uWSGI's is a function that returns the file.
///
/// # Safety
/// As for `begin`.
unsafe fn is_file(api: &Api, environ: Object, inner: Object) -> bool {
    // SAFETY: the caller's promise; the method is a new reference or null.
    unsafe {
        let wrapper = item(api, environ, &FILE_WRAPPER);
        if wrapper.is_null() || wrapper == api.none {
            return false;
        }
        if (api.is_subtype)(class::of(wrapper), api.type_type) != 0 {
            return (api.is_subtype)(class::of(inner), wrapper) != 0;
        }
        let read = api.attribute_if_any(inner, READ.get());
        api.release([read]);
        !read.is_null()
    }
}

/// `start_response(status, headers, exc_info=None) -> write`: a status of 500 or more makes an ok end an error.
unsafe extern "C" fn start_response(pair: Object, arguments: Object, named: Object) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above; CPython hands over a tuple, whose items are borrowed, and a dict or null.
    unsafe {
        let write = (api.call_by)((api.tuple_get)(pair, 0), arguments, named);
        if write.is_null() {
            return write;
        }
        let mut status = if (api.size)(arguments) > 0 { (api.tuple_get)(arguments, 0) } else { std::ptr::null_mut() };
        if status.is_null() && !named.is_null() {
            status = item(api, named, &STATUS);
        }
        if !status.is_null()
            && let [b'5', tens @ b'0'..=b'9', ones @ b'0'..=b'9', ..] = install::utf8(api, status)
        {
            let status = 500 + u32::from(tens - b'0') * 10 + u32::from(ones - b'0');
            requests::set_status(python::unsigned((api.tuple_get)(pair, 1)), status);
        }
        write
    }
}
