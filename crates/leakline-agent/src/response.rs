//! Turns the iterable that a WSGI application returns into one that marks where the server closes it, for servers that
//! tell us by other ways when the request ends.
//!
//! A type made as C makes them: the same class in Python costs each request 3,000 instructions more.

use crate::python::api::{self, Api, MethodDef, Object};
use crate::python::{self, install};
use crate::requests;
use leakline_table::layout::Phase;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// `PyObject_HEAD` (Include/object.h), the application's iterable, and the request.
#[repr(C)]
struct Response {
    references: isize,
    kind: Object,
    inner: Object,
    handle: u64,
}

/// `PyType_Slot` (Include/object.h).
#[repr(C)]
struct Slot {
    number: c_int,
    function: *const c_void,
}

/// `PyType_Spec` (Include/object.h).
#[repr(C)]
pub(crate) struct Spec {
    name: *const c_char,
    basic_bytes: c_int,
    item_bytes: c_int,
    flags: c_uint,
    slots: *const Slot,
}

/// `Py_TPFLAGS_DEFAULT` and `Py_TPFLAGS_HAVE_GC` (Include/object.h).
const FLAGS: c_uint = 1 << 18 | 1 << 14;
/// Numbers of slots (Include/typeslots.h).
const TP_CLEAR: c_int = 51;
const TP_DEALLOC: c_int = 52;
const TP_ITER: c_int = 62;
const TP_METHODS: c_int = 64;
const TP_TRAVERSE: c_int = 71;

/// The type, and the interned name "close".
static TYPE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static CLOSE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

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
        Slot { number: TP_DEALLOC, function: deallocate as *const c_void },
        Slot { number: TP_TRAVERSE, function: traverse as *const c_void },
        Slot { number: TP_CLEAR, function: clear as *const c_void },
        Slot { number: TP_ITER, function: iterate as *const c_void },
        Slot { number: TP_METHODS, function: METHODS.as_ptr().cast() },
        Slot { number: 0, function: std::ptr::null() },
    ];
    let spec = Spec {
        name: c"leakline.Response".as_ptr(),
        basic_bytes: size_of::<Response>() as c_int,
        item_bytes: 0,
        flags: FLAGS,
        slots: slots.as_ptr(),
    };
    // SAFETY: the GIL is held; CPython copies the slots. Both references are kept for good.
    unsafe {
        let (kind, name) = ((api.type_from_spec)(&spec), (api.intern)(c"close".as_ptr()));
        if kind.is_null() || name.is_null() {
            (api.err_clear)();
            return Err("its type of responses could not be made");
        }
        TYPE.store(kind, Ordering::Relaxed);
        CLOSE.store(name, Ordering::Relaxed);
    }
    Ok(())
}

/// `respond(inner, file_wrapper) -> iterable`: the current context's request begins to send its response. A server knows its
/// own file wrapper by the type and may hand the file to the kernel, so that goes back as it is.
pub(crate) unsafe extern "C" fn respond(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: called by Python code, hence with the GIL held and no exception set; so in all functions below. What the
    // type's own allocator makes is zeroed, and known to the collector.
    unsafe {
        let Some([inner, file_wrapper]) = requests::arguments(start, count) else { return api.new_none() };
        let handle = requests::current(api);
        requests::mark(handle, Phase::Streaming);
        (api.incref)(*inner);
        if (api.is_subtype)(kind(*inner), *file_wrapper) != 0 {
            return *inner;
        }
        let response = (api.allocate)(TYPE.load(Ordering::Relaxed), 0);
        if response.is_null() {
            (api.err_clear)();
            return *inner;
        }
        let made = &mut *response.cast::<Response>();
        (made.inner, made.handle) = (*inner, handle);
        response
    }
}

/// The type of an object.
///
/// # Safety
/// The object lives.
unsafe fn kind(object: Object) -> Object {
    // SAFETY: every object begins with PyObject_HEAD.
    unsafe { (*object.cast::<Response>()).kind }
}

/// `close()`: as the application's iterable does it, where that has a `close` at all.
unsafe extern "C" fn close(response: Object, _start: *const Object, _count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as in respond; the method is a new reference, or null.
    unsafe {
        let Response { inner, handle, .. } = *response.cast::<Response>();
        requests::mark(handle, Phase::Closing);
        if inner.is_null() {
            return api.new_none();
        }
        let mut method = std::ptr::null_mut();
        match (api.look_up_attribute)(inner, CLOSE.load(Ordering::Relaxed), &mut method) {
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
        let inner = (*response.cast::<Response>()).inner;
        (api.get_iterator)(if inner.is_null() { api.none } else { inner })
    }
}

/// `tp_traverse`: tells the collector whom the response holds.
unsafe extern "C" fn traverse(
    response: Object,
    visit: unsafe extern "C" fn(Object, *mut c_void) -> c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: called by the collector, with the GIL held.
    unsafe {
        let response = &*response.cast::<Response>();
        let stopped = if response.inner.is_null() { 0 } else { visit(response.inner, argument) };
        // From 3.9 on an instance of a type that was made on the heap counts as one who holds it.
        if stopped == 0 && python::version() >= 0x0309_0000 { visit(response.kind, argument) } else { stopped }
    }
}

/// `tp_clear`: lets go, also where a cycle is broken up.
unsafe extern "C" fn clear(response: Object) -> c_int {
    let Some(api) = api::get() else { return 0 };
    // SAFETY: as in respond. Taken out before it is dropped: what that runs may come back to this response.
    unsafe {
        let inner = std::mem::replace(&mut (*response.cast::<Response>()).inner, std::ptr::null_mut());
        if !inner.is_null() {
            (api.decref)(inner);
        }
    }
    0
}

/// `tp_dealloc`.
unsafe extern "C" fn deallocate(response: Object) {
    let Some(api) = api::get() else { return };
    // SAFETY: as in respond; the last reference is gone. PyType_GenericAlloc has taken one on the type.
    unsafe {
        (api.collector_forget)(response);
        clear(response);
        let kind = kind(response);
        (api.collector_delete)(response);
        (api.decref)(kind);
    }
}
