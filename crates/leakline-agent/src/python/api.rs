//! The part of CPython's C API that the agent uses, looked up by name when the agent is loaded: the agent is linked to
//! no Python, and works in one that is linked statically into its program as in one that is a library.

use std::ffi::{CStr, c_char, c_int, c_ulonglong, c_void};
use std::sync::OnceLock;

/// `PyObject *`.
pub(crate) type Object = *mut c_void;
/// `PyThreadState *`.
pub(crate) type ThreadState = *mut c_void;

/// `PyMemAllocatorEx` (Include/cpython/pymem.h).
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Allocator {
    pub(crate) ctx: *mut c_void,
    pub(crate) malloc: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void,
    pub(crate) calloc: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    pub(crate) realloc: unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> *mut c_void,
    pub(crate) free: unsafe extern "C" fn(*mut c_void, *mut c_void),
}

/// `PYMEM_DOMAIN_MEM`.
pub(crate) const DOMAIN_MEM: c_int = 1;
/// `PYMEM_DOMAIN_OBJ`.
pub(crate) const DOMAIN_OBJ: c_int = 2;
/// `METH_VARARGS` (Include/methodobject.h): the function is given its arguments as a tuple, and with METH_KEYWORDS as a tuple
/// and a dict or null.
pub(crate) const METH_VARARGS: c_int = 0x1;
/// `METH_FASTCALL` (Include/methodobject.h): the function is given an array of arguments and their number.
pub(crate) const METH_FASTCALL: c_int = 0x80;
/// `METH_KEYWORDS`: and with the names of those that were given by name, which stand behind the others.
pub(crate) const METH_KEYWORDS: c_int = 0x2;

/// A function of a module, called with METH_FASTCALL.
pub(crate) type FastFunction = unsafe extern "C" fn(Object, *const Object, isize) -> Object;

/// `PyMethodDef`.
#[repr(C)]
pub(crate) struct MethodDef {
    pub(crate) name: *const c_char,
    pub(crate) function: Option<FastFunction>,
    pub(crate) flags: c_int,
    pub(crate) doc: *const c_char,
}

// SAFETY: the table is constant, its pointers lead to constants.
unsafe impl Sync for MethodDef {}

macro_rules! api {
    ($($field:ident: $name:literal $(or $other:literal)? => $type:ty,)*) => {
        /// Functions and objects of the C API by the names that CPython exports.
        pub(crate) struct Api {
            $(#[doc = $name] pub(crate) $field: $type,)*
            /// `PyInterpreterState_Get`, from 3.9 on.
            pub(crate) interpreter_get: Option<unsafe extern "C" fn() -> *mut c_void>,
            /// `PyIter_Send`, from 3.10 on.
            pub(crate) iter_send: Option<unsafe extern "C" fn(Object, Object, *mut Object) -> c_int>,
            /// `PyObject_Vectorcall`, from 3.9 on: with the names of arguments that are given by name.
            pub(crate) vectorcall_named: Option<unsafe extern "C" fn(Object, *const Object, usize, Object) -> Object>,
            /// Where the code of the evaluation loop begins and ends.
            pub(crate) evaluator: (usize, usize),
        }

        impl Api {
            /// `None` where a name is missing: then this is no CPython that we know.
            fn find() -> Option<Self> {
                Some(Self {
                    // SAFETY: each name is exported by CPython with the C signature that stands beside it here
                    // (Doc/c-api of 3.7 to 3.13), and a function pointer is as large as the address of its symbol.
                    $($field: unsafe { std::mem::transmute_copy(&symbol($name)$(.or_else(|| symbol($other)))??) },)*
                    // SAFETY: as above; a missing symbol is `None` for both types.
                    interpreter_get: unsafe { std::mem::transmute::<Option<std::ptr::NonNull<c_void>>, Option<unsafe extern "C" fn() -> *mut c_void>>(symbol("PyInterpreterState_Get")) },
                    // SAFETY: as above.
                    iter_send: unsafe { std::mem::transmute::<Option<std::ptr::NonNull<c_void>>, Option<unsafe extern "C" fn(Object, Object, *mut Object) -> c_int>>(symbol("PyIter_Send")) },
                    // SAFETY: as above.
                    vectorcall_named: unsafe { std::mem::transmute::<Option<std::ptr::NonNull<c_void>>, Option<unsafe extern "C" fn(Object, *const Object, usize, Object) -> Object>>(symbol("PyObject_Vectorcall")) },
                    evaluator: symbol("_PyEval_EvalFrameDefault").map_or((0, 0), extent),
                })
            }
        }
    };
}

api! {
    is_initialized: "Py_IsInitialized" => unsafe extern "C" fn() -> c_int,
    add_pending_call: "Py_AddPendingCall" => unsafe extern "C" fn(extern "C" fn(*mut c_void) -> c_int, *mut c_void) -> c_int,
    get_allocator: "PyMem_GetAllocator" => unsafe extern "C" fn(c_int, *mut Allocator),
    set_allocator: "PyMem_SetAllocator" => unsafe extern "C" fn(c_int, *mut Allocator),
    gil_state_this_thread_state: "PyGILState_GetThisThreadState" => unsafe extern "C" fn() -> ThreadState,
    thread_state_unchecked: "_PyThreadState_UncheckedGet" or "PyThreadState_GetUnchecked" => unsafe extern "C" fn() -> ThreadState,
    thread_state_new: "PyThreadState_New" => unsafe extern "C" fn(*mut c_void) -> ThreadState,
    thread_state_clear: "PyThreadState_Clear" => unsafe extern "C" fn(ThreadState),
    thread_state_delete_current: "PyThreadState_DeleteCurrent" => unsafe extern "C" fn(),
    interpreter_main: "PyInterpreterState_Main" => unsafe extern "C" fn() -> *mut c_void,
    interpreter_head: "PyInterpreterState_Head" => unsafe extern "C" fn() -> *mut c_void,
    interpreter_next: "PyInterpreterState_Next" => unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    save_thread: "PyEval_SaveThread" => unsafe extern "C" fn() -> ThreadState,
    restore_thread: "PyEval_RestoreThread" => unsafe extern "C" fn(ThreadState),
    context_var_new: "PyContextVar_New" => unsafe extern "C" fn(*const c_char, Object) -> Object,
    context_var_get: "PyContextVar_Get" => unsafe extern "C" fn(Object, Object, *mut Object) -> c_int,
    context_var_set: "PyContextVar_Set" => unsafe extern "C" fn(Object, Object) -> Object,
    hash: "PyObject_Hash" => unsafe extern "C" fn(Object) -> isize,
    long_from: "PyLong_FromUnsignedLongLong" => unsafe extern "C" fn(c_ulonglong) -> Object,
    long_as: "PyLong_AsUnsignedLongLong" => unsafe extern "C" fn(Object) -> c_ulonglong,
    unicode_as_utf8: "PyUnicode_AsUTF8AndSize" => unsafe extern "C" fn(Object, *mut isize) -> *const c_char,
    err_clear: "PyErr_Clear" => unsafe extern "C" fn(),
    err_fetch: "PyErr_Fetch" => unsafe extern "C" fn(*mut Object, *mut Object, *mut Object),
    err_restore: "PyErr_Restore" => unsafe extern "C" fn(Object, Object, Object),
    err_occurred: "PyErr_Occurred" => unsafe extern "C" fn() -> Object,
    err_is: "PyErr_GivenExceptionMatches" => unsafe extern "C" fn(Object, Object) -> c_int,
    err_set: "PyErr_SetString" => unsafe extern "C" fn(Object, *const c_char),
    err_set_none: "PyErr_SetNone" => unsafe extern "C" fn(Object),
    err_set_object: "PyErr_SetObject" => unsafe extern "C" fn(Object, Object),
    handled: "PyErr_GetExcInfo" => unsafe extern "C" fn(*mut Object, *mut Object, *mut Object),
    incref: "Py_IncRef" => unsafe extern "C" fn(Object),
    decref: "Py_DecRef" => unsafe extern "C" fn(Object),
    compile: "Py_CompileString" => unsafe extern "C" fn(*const c_char, *const c_char, c_int) -> Object,
    eval_code: "PyEval_EvalCode" => unsafe extern "C" fn(Object, Object, Object) -> Object,
    dict_new: "PyDict_New" => unsafe extern "C" fn() -> Object,
    dict_set: "PyDict_SetItemString" => unsafe extern "C" fn(Object, *const c_char, Object) -> c_int,
    dict_get: "PyDict_GetItemString" => unsafe extern "C" fn(Object, *const c_char) -> Object,
    dict_item: "PyDict_GetItemWithError" => unsafe extern "C" fn(Object, Object) -> Object,
    dict_next: "PyDict_Next" => unsafe extern "C" fn(Object, *mut isize, *mut Object, *mut Object) -> c_int,
    list_new: "PyList_New" => unsafe extern "C" fn(isize) -> Object,
    list_get: "PyList_GetItem" => unsafe extern "C" fn(Object, isize) -> Object,
    builtins: "PyEval_GetBuiltins" => unsafe extern "C" fn() -> Object,
    module_new: "PyModule_New" => unsafe extern "C" fn(*const c_char) -> Object,
    module_add_functions: "PyModule_AddFunctions" => unsafe extern "C" fn(Object, *const MethodDef) -> c_int,
    import: "PyImport_ImportModule" => unsafe extern "C" fn(*const c_char) -> Object,
    get_attribute: "PyObject_GetAttrString" => unsafe extern "C" fn(Object, *const c_char) -> Object,
    set_attribute: "PyObject_SetAttr" => unsafe extern "C" fn(Object, Object, Object) -> c_int,
    attribute: "PyObject_GetAttr" => unsafe extern "C" fn(Object, Object) -> Object,
    get_item: "PyObject_GetItem" => unsafe extern "C" fn(Object, Object) -> Object,
    tuple_pack: "PyTuple_Pack" => unsafe extern "C" fn(isize, ...) -> Object,
    tuple_get: "PyTuple_GetItem" => unsafe extern "C" fn(Object, isize) -> Object,
    function_new: "PyCFunction_NewEx" => unsafe extern "C" fn(*const MethodDef, Object, Object) -> Object,
    instance_method: "PyInstanceMethod_New" => unsafe extern "C" fn(Object) -> Object,
    call: "PyObject_CallObject" => unsafe extern "C" fn(Object, Object) -> Object,
    call_by: "PyObject_Call" => unsafe extern "C" fn(Object, Object, Object) -> Object,
    call_with: "PyObject_CallFunctionObjArgs" => unsafe extern "C" fn(Object, ...) -> Object,
    call_method: "PyObject_CallMethodObjArgs" => unsafe extern "C" fn(Object, Object, ...) -> Object,
    is_true: "PyObject_IsTrue" => unsafe extern "C" fn(Object) -> c_int,
    size: "PyObject_Size" => unsafe extern "C" fn(Object) -> isize,
    type_from_spec: "PyType_FromSpec" => unsafe extern "C" fn(*const super::class::Spec) -> Object,
    vectorcall: "PyObject_VectorcallDict" or "_PyObject_FastCallDict" => unsafe extern "C" fn(Object, *const Object, usize, Object) -> Object,
    is_subtype: "PyType_IsSubtype" => unsafe extern "C" fn(Object, Object) -> c_int,
    allocate: "PyType_GenericAlloc" => unsafe extern "C" fn(Object, isize) -> Object,
    collector_forget: "PyObject_GC_UnTrack" => unsafe extern "C" fn(Object),
    collector_delete: "PyObject_GC_Del" => unsafe extern "C" fn(Object),
    next: "PyIter_Next" => unsafe extern "C" fn(Object) -> Object,
    get_iterator: "PyObject_GetIter" => unsafe extern "C" fn(Object) -> Object,
    look_up_attribute: "_PyObject_LookupAttr" or "PyObject_GetOptionalAttr" => unsafe extern "C" fn(Object, Object, *mut Object) -> c_int,
    intern: "PyUnicode_InternFromString" => unsafe extern "C" fn(*const c_char) -> Object,
    unicode_from: "PyUnicode_FromString" => unsafe extern "C" fn(*const c_char) -> Object,
    unicode_from_bytes: "PyUnicode_FromStringAndSize" => unsafe extern "C" fn(*const c_char, isize) -> Object,
    none: "_Py_NoneStruct" => Object,
    yes: "_Py_TrueStruct" => Object,
    stop_iteration: "PyExc_StopIteration" => *const Object,
    runtime_error: "PyExc_RuntimeError" => *const Object,
    coroutine_type: "PyCoro_Type" => Object,
    type_type: "PyType_Type" => Object,
    dict_type: "PyDict_Type" => Object,
    list_type: "PyList_Type" => Object,
    tuple_type: "PyTuple_Type" => Object,
    float_type: "PyFloat_Type" => Object,
}

/// `Py_file_input` (Include/compile.h): compile a whole module.
const FILE_INPUT: c_int = 257;

static API: OnceLock<Api> = OnceLock::new();

// SAFETY: function pointers and addresses of static objects.
unsafe impl Sync for Api {}
// SAFETY: as above.
unsafe impl Send for Api {}

fn symbol(name: &str) -> Option<std::ptr::NonNull<c_void>> {
    let mut text = crate::table::Text::<64>::new();
    text.put(name.as_bytes());
    let name = text.c_str()?;
    // SAFETY: a C string; the default scope is all that the program has loaded by now.
    std::ptr::NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

/// Where a function begins and ends, as its symbol says; nowhere if it says nothing.
fn extent(function: std::ptr::NonNull<c_void>) -> (usize, usize) {
    unsafe extern "C" {
        /// dladdr(3)
        fn dladdr1(address: *const c_void, info: *mut libc::Dl_info, extra: *mut *mut c_void, flags: c_int) -> c_int;
    }
    const RTLD_DL_SYMENT: c_int = 1;
    let mut info = std::mem::MaybeUninit::uninit();
    let mut entry: *mut c_void = std::ptr::null_mut();
    let start = function.as_ptr() as usize;
    // SAFETY: where the call succeeds, the entry is null or the symbol's in its module, which stays loaded.
    unsafe {
        match dladdr1(function.as_ptr(), info.as_mut_ptr(), &mut entry, RTLD_DL_SYMENT) {
            0 => (0, 0),
            _ => {
                entry.cast::<libc::Elf64_Sym>().as_ref().map_or((0, 0), |entry| (start, start + entry.st_size as usize))
            }
        }
    }
}

/// Looks the API up and checks the version. False where the program has no Python, or one that we refuse (and have
/// said so).
pub(crate) fn load() -> bool {
    if get().is_some() {
        return true;
    }
    let (Some(_), Some(get_version)) = (symbol("Py_IsInitialized"), symbol("Py_GetVersion")) else { return false };
    // SAFETY: Py_GetVersion may be called before Python is initialised and returns a static string.
    let version = unsafe {
        let get_version: unsafe extern "C" fn() -> *const c_char = std::mem::transmute(get_version);
        CStr::from_ptr(get_version()).to_str().unwrap_or("")
    };
    if let Err(reason) = super::layout::choose(version) {
        crate::message::refuse(reason, version.split(' ').next().unwrap_or(version));
        return false;
    }
    let Some(api) = Api::find() else {
        crate::message::refuse("a part of the C API is missing from this Python ", version);
        return false;
    };
    API.set(api).is_ok()
}

/// The API; `None` in a program without a Python that we know.
pub(crate) fn get() -> Option<&'static Api> {
    API.get()
}

impl Api {
    /// Runs Python source in a namespace that holds the builtins, `__name__` and what is given. False where it raised;
    /// the exception is gone.
    ///
    /// # Safety
    /// The caller holds the GIL and no exception is set.
    pub(crate) unsafe fn run(&self, source: &CStr, file: &CStr, name: &CStr, given: &[(&CStr, Object)]) -> bool {
        // SAFETY: the caller holds the GIL; each new reference is dropped once, and null is never passed on.
        unsafe {
            let namespace = (self.dict_new)();
            let name = (self.unicode_from)(name.as_ptr());
            if namespace.is_null() || name.is_null() {
                (self.err_clear)();
                return false;
            }
            (self.dict_set)(namespace, c"__builtins__".as_ptr(), (self.builtins)());
            (self.dict_set)(namespace, c"__name__".as_ptr(), name);
            (self.decref)(name);
            for (name, object) in given {
                (self.dict_set)(namespace, name.as_ptr(), *object);
            }
            let code = (self.compile)(source.as_ptr(), file.as_ptr(), FILE_INPUT);
            let mut done = false;
            if !code.is_null() {
                let result = (self.eval_code)(code, namespace, namespace);
                done = !result.is_null();
                if done {
                    (self.decref)(result);
                }
                (self.decref)(code);
            }
            (self.decref)(namespace);
            (self.err_clear)();
            done
        }
    }

    /// Calls an object without arguments. False where it raised; the exception is gone.
    ///
    /// # Safety
    /// The caller holds the GIL and no exception is set.
    pub(crate) unsafe fn call_plain(&self, object: Object) -> bool {
        // SAFETY: the caller holds the GIL; the result is a new reference or null.
        unsafe {
            let result = (self.call)(object, std::ptr::null_mut());
            if !result.is_null() {
                (self.decref)(result);
            }
            (self.err_clear)();
            !result.is_null()
        }
    }

    /// Clears the exception that may be set. To ask first is cheaper, where there hardly ever is one.
    ///
    /// # Safety
    /// The caller holds the GIL.
    pub(crate) unsafe fn clear_error(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            if !(self.err_occurred)().is_null() {
                (self.err_clear)();
            }
        }
    }

    /// An attribute, a new reference; null where there is none, or where to look for it raises.
    ///
    /// # Safety
    /// The caller holds the GIL and no exception is set; none is afterwards.
    pub(crate) unsafe fn attribute_if_any(&self, object: Object, name: Object) -> Object {
        let mut found = std::ptr::null_mut();
        // SAFETY: the caller's promise.
        unsafe {
            if (self.look_up_attribute)(object, name, &mut found) < 0 {
                (self.err_clear)();
            }
        }
        found
    }

    /// Takes the exception that is set: type, value and traceback.
    ///
    /// # Safety
    /// The caller holds the GIL, and restores what it gets.
    pub(crate) unsafe fn fetch(&self) -> [Object; 3] {
        let [mut kind, mut error, mut trace] = [std::ptr::null_mut(); 3];
        // SAFETY: the caller's promise.
        unsafe { (self.err_fetch)(&mut kind, &mut error, &mut trace) };
        [kind, error, trace]
    }

    /// Drops new references, those that there are.
    ///
    /// # Safety
    /// The caller holds the GIL; each is a reference of its own, or null.
    pub(crate) unsafe fn release<const N: usize>(&self, references: [Object; N]) {
        for object in references.into_iter().filter(|object| !object.is_null()) {
            // SAFETY: the caller's promise.
            unsafe { (self.decref)(object) };
        }
    }

    /// A new reference to None.
    ///
    /// # Safety
    /// The caller holds the GIL.
    pub(crate) unsafe fn new_none(&self) -> Object {
        // SAFETY: None is an object of every interpreter.
        unsafe { (self.incref)(self.none) };
        self.none
    }
}
