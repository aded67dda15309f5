//! Types that are made as C makes them: from a list of slots, with instances that the collector knows.

use super::api::{Api, Object};
use super::layout;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// `PyType_Slot` (Include/object.h).
#[repr(C)]
pub(crate) struct Slot {
    number: c_int,
    function: *const c_void,
}

impl Slot {
    /// The end of a list of them.
    pub(crate) const END: Self = Self::new(0, std::ptr::null());

    pub(crate) const fn new(number: c_int, function: *const c_void) -> Self {
        Self { number, function }
    }
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

// Numbers of slots (Include/typeslots.h).
pub(crate) const MP_LENGTH: c_int = 4;
pub(crate) const TP_CALL: c_int = 50;
pub(crate) const TP_CLEAR: c_int = 51;
pub(crate) const TP_DEALLOC: c_int = 52;
pub(crate) const TP_ITER: c_int = 62;
pub(crate) const TP_ITERNEXT: c_int = 63;
pub(crate) const TP_METHODS: c_int = 64;
pub(crate) const TP_TRAVERSE: c_int = 71;
pub(crate) const AM_AWAIT: c_int = 77;

/// `visitproc` (Include/object.h).
pub(crate) type Visitor = unsafe extern "C" fn(Object, *mut c_void) -> c_int;

/// What every object begins with: `PyObject_HEAD` (Include/object.h).
#[repr(C)]
pub(crate) struct Head {
    references: isize,
    kind: Object,
}

/// Makes a type whose instances have so many bytes. A new reference.
///
/// # Safety
/// The GIL is held, no exception is set; the slots are as CPython wants them.
pub(crate) unsafe fn make(
    api: &Api,
    name: &'static CStr,
    bytes: usize,
    slots: &[Slot],
) -> Result<Object, &'static str> {
    let spec =
        Spec { name: name.as_ptr(), basic_bytes: bytes as c_int, item_bytes: 0, flags: FLAGS, slots: slots.as_ptr() };
    // SAFETY: the caller's promise; CPython copies the slots.
    unsafe {
        let kind = (api.type_from_spec)(&spec);
        if kind.is_null() {
            (api.err_clear)();
            return Err("its types could not be made");
        }
        Ok(kind)
    }
}

/// The type of an object.
///
/// # Safety
/// The object lives.
pub(crate) unsafe fn of(object: Object) -> Object {
    // SAFETY: every object begins so.
    unsafe { (*object.cast::<Head>()).kind }
}

/// `tp_traverse` of an instance that holds these.
///
/// # Safety
/// Called by the collector, with what it hands over.
pub(crate) unsafe fn traverse(this: Object, held: &[Object], visit: Visitor, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's promise. From 3.9 on an instance of a type that was made on the heap counts as one who holds it.
    unsafe {
        let kind = (layout::version() >= 0x0309_0000).then(|| of(this));
        let others = held.iter().copied().filter(|object| !object.is_null());
        others.chain(kind).map(|object| visit(object, argument)).find(|stopped| *stopped != 0).unwrap_or(0)
    }
}

/// Lets go of what is held, each of which is taken out before it is dropped: what that runs may come back.
///
/// # Safety
/// The GIL is held; each is a reference or null.
pub(crate) unsafe fn clear<const N: usize>(api: &Api, held: *mut [Object; N]) {
    for index in 0..N {
        // SAFETY: the caller's promise. No reference to the array lives while somebody's code runs.
        unsafe {
            api.release([std::mem::replace(&mut (*held)[index], std::ptr::null_mut())]);
        }
    }
}

/// Gives the memory of an instance back, and its reference on its type, which PyType_GenericAlloc has taken.
///
/// # Safety
/// The GIL is held; the last reference is gone, and the collector has forgotten the instance.
pub(crate) unsafe fn delete(api: &Api, this: Object) {
    // SAFETY: the caller's promise.
    unsafe {
        let kind = of(this);
        (api.collector_delete)(this);
        (api.decref)(kind);
    }
}
