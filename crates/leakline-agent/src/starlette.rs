//! `Route.handle` of Starlette, and of what FastAPI makes of it, that names the route which a request has come to.
//!
//! A function as C makes them: the same in Python is called twice a request under FastAPI.

use crate::python::api::{self, Api, FastFunction, METH_KEYWORDS, METH_VARARGS, MethodDef, Object};
use crate::python::{Name, install, item, item_text};
use crate::{requests, threads};
use std::ffi::CStr;

static PATH_FORMAT: Name = Name::new(c"path_format");
static ORIGINAL_ROUTE: Name = Name::new(c"original_route");
/// Where the shim keeps the mounts that have led here, and FastAPI what it knows of a router that was included, in the
/// request's scope.
static MOUNT: Name = Name::new(c"leakline.mount");
static FASTAPI: Name = Name::new(c"fastapi");
static EFFECTIVE: Name = Name::new(c"effective_route_context");

/// What `inspect.signature` reads.
const SIGNATURE: &CStr = c"handle(self, scope, receive, send)\n--\n\n";

static HANDLE: MethodDef = MethodDef {
    name: c"handle".as_ptr(),
    // SAFETY: the flags say with which arguments it is called.
    function: Some(unsafe {
        std::mem::transmute::<unsafe extern "C" fn(Object, Object, Object) -> Object, FastFunction>(handle)
    }),
    flags: METH_VARARGS | METH_KEYWORDS,
    doc: SIGNATURE.as_ptr(),
};

/// Makes the names.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn prepare(api: &Api) -> Result<(), &'static str> {
    // SAFETY: the caller's promise.
    unsafe { Name::intern(api, &[&PATH_FORMAT, &ORIGINAL_ROUTE, &MOUNT, &FASTAPI, &EFFECTIVE]) }
}

/// `route_handle(original) -> method`: the same, and names the route.
pub(crate) unsafe extern "C" fn route_handle(_module: Object, arguments: *const Object, count: isize) -> Object {
    // SAFETY: called by Python code, hence with the GIL held and no exception set; so in all functions below.
    unsafe { threads::around(&HANDLE, arguments, count) }
}

/// `handle(self, scope, receive, send)`, however it was given them.
unsafe extern "C" fn handle(original: Object, arguments: Object, named: Object) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: as above; CPython hands over a tuple, whose items are borrowed, and a dict or null.
    unsafe {
        let [route, scope] = [0, 1].map(|index| (api.tuple_get)(arguments, index));
        api.clear_error();
        if !route.is_null() && !scope.is_null() {
            name(api, route, scope);
        }
        (api.call_by)(original, arguments, named)
    }
}

/// Names the current request by the template of a route.
///
/// # Safety
/// The GIL is held, no exception is set, none is afterwards.
unsafe fn name(api: &Api, route: Object, scope: Object) {
    // SAFETY: the caller's promise. What `item` returns is borrowed from the scope; new references are dropped once, after
    // their text was used.
    unsafe {
        let mut whose = route;
        // A router that was included stays as it is, and the whole path is kept beside it.
        let fastapi = item(api, scope, &FASTAPI);
        let effective = match fastapi.is_null() {
            true => fastapi,
            false => item(api, fastapi, &EFFECTIVE),
        };
        if !effective.is_null() && effective != api.none {
            let original = api.attribute_if_any(effective, ORIGINAL_ROUTE.get());
            if original == route {
                whose = effective;
            }
            api.release([original]);
        }
        let path = api.attribute_if_any(whose, PATH_FORMAT.get());
        if path.is_null() {
            return;
        }
        requests::name_route(api, item_text(api, scope, &MOUNT), install::utf8(api, path));
        (api.decref)(path);
    }
}
