//! `MapAdapter.match` of Werkzeug that names the rule which matched: for Flask of any version and for whoever else routes by
//! Werkzeug.
//!
//! Flask asks for the rule itself, and that is answered here, by a function as C makes them. Whatever else may be asked for is
//! left to the shim.

use crate::python::api::{self, Api, FastFunction, METH_FASTCALL, METH_KEYWORDS, MethodDef, Object};
use crate::python::{Name, install};
use crate::requests;

static RETURN_RULE: Name = Name::new(c"return_rule");
static RULE: Name = Name::new(c"rule");
static SCRIPT_NAME: Name = Name::new(c"script_name");

/// With METH_KEYWORDS CPython passes a fourth argument.
static MATCH: MethodDef = MethodDef {
    name: c"match".as_ptr(),
    // SAFETY: the flags say with which arguments it is called.
    function: Some(unsafe {
        std::mem::transmute::<unsafe extern "C" fn(Object, *const Object, isize, Object) -> Object, FastFunction>(
            match_rule,
        )
    }),
    flags: METH_FASTCALL | METH_KEYWORDS,
    doc: c"match(self, path_info=None, method=None, return_rule=False, query_args=None, websocket=None)\n--\n\n"
        .as_ptr(),
};

/// Makes the names.
///
/// # Safety
/// The GIL is held, no exception is set.
pub(crate) unsafe fn prepare(api: &Api) -> Result<(), &'static str> {
    // SAFETY: the caller's promise.
    unsafe { Name::intern(api, &[&RETURN_RULE, &RULE, &SCRIPT_NAME]) }
}

/// `rule_match(original, whole) -> method`: `whole` does the same for all arguments that there may be.
pub(crate) unsafe extern "C" fn rule_match(_module: Object, start: *const Object, count: isize) -> Object {
    let Some(api) = api::get() else { return std::ptr::null_mut() };
    // SAFETY: called by Python code, hence with the GIL held and no exception set; so in all functions below. The method
    // holds the function, and the function the two.
    unsafe {
        let Some(pair) = requests::arguments::<2>(start, count) else { return api.new_none() };
        if api.vectorcall_named.is_none() {
            (api.incref)(pair[1]);
            return pair[1];
        }
        let function = install::with_pair(api, &MATCH, *pair);
        if function.is_null() {
            return function;
        }
        let method = (api.instance_method)(function);
        (api.decref)(function);
        method
    }
}

/// `match(self, …)`
unsafe extern "C" fn match_rule(pair: Object, start: *const Object, count: isize, names: Object) -> Object {
    let Some((api, call)) = api::get().and_then(|api| Some((api, api.vectorcall_named?))) else {
        return std::ptr::null_mut();
    };
    // SAFETY: as above. The pair lends the two functions, the caller its arguments and their names.
    unsafe {
        let asks_for_the_rule = count == 1
            && !names.is_null()
            && (api.size)(names) == 1
            && (api.tuple_get)(names, 0) == RETURN_RULE.get()
            && *start.add(1) == api.yes;
        if !asks_for_the_rule {
            return call((api.tuple_get)(pair, 1), start, count as usize, names);
        }
        let matched = call((api.tuple_get)(pair, 0), start, count as usize, names);
        if !matched.is_null() {
            let rule = (api.tuple_get)(matched, 0);
            if rule.is_null() { api.clear_error() } else { name(api, *start, rule) }
        }
        matched
    }
}

/// Names the current request by a rule, below where its application is mounted.
///
/// # Safety
/// The GIL is held, no exception is set, none is afterwards.
unsafe fn name(api: &Api, adapter: Object, rule: Object) {
    // SAFETY: the caller's promise; new references are dropped once, after their text was used.
    unsafe {
        let rule = api.attribute_if_any(rule, RULE.get());
        let mount = api.attribute_if_any(adapter, SCRIPT_NAME.get());
        if !rule.is_null() && !mount.is_null() {
            // It ends in a slash, and a rule begins with one.
            let mount = install::utf8(api, mount).split_last().map_or(&[][..], |(_, mount)| mount);
            requests::name_route(api, mount, install::utf8(api, rule));
        }
        api.release([rule, mount]);
    }
}
