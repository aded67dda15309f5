//! What is known of CPython's objects beyond `tp_traverse`: how large they are, what memory belongs to them, what they and
//! their references are called. Raw loads only, for the child that writes a snapshot.
//!
//! Offsets that are the same from 3.7 to 3.13 stand where they are used, with the structure's name; the others are in
//! [`offsets`]. All were read from the interpreters' own headers with `offsetof`.

use super::api::Object;
use super::layout::{self, Layout};
use super::text::{half, word};
use std::ffi::{CStr, c_int, c_void};

mod sizes;

/// `visitproc`
pub(crate) type Visit = unsafe extern "C" fn(Object, *mut c_void) -> c_int;
/// `traverseproc`
pub(crate) type Traverse = unsafe extern "C" fn(Object, Visit, *mut c_void) -> c_int;

/// What kind of object it is, as far as more is known of it than its type's own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Other,
    Integer,
    Text,
    Bytes,
    ByteArray,
    List,
    Tuple,
    Dict,
    /// `collections.OrderedDict`, which is a dict, too.
    OrderedDict,
    Set,
    Type,
    Module,
    Function,
    Code,
    Frame,
    Generator,
    Deque,
    Array,
    NumpyArray,
    LruCache,
    BytesIo,
    StringIo,
    /// A file or socket with a buffer in front of it.
    Buffered,
    /// What ctypes makes.
    CData,
    Decimal,
    /// A node of a context's map from variables to values.
    ContextNode,
}

/// Kinds by `tp_name`, of types that are recognised by no flag.
const NAMED: [(&CStr, Kind); 23] = [
    (c"bytearray", Kind::ByteArray),
    (c"set", Kind::Set),
    (c"frozenset", Kind::Set),
    (c"module", Kind::Module),
    (c"function", Kind::Function),
    (c"code", Kind::Code),
    (c"frame", Kind::Frame),
    (c"generator", Kind::Generator),
    (c"coroutine", Kind::Generator),
    (c"async_generator", Kind::Generator),
    (c"collections.deque", Kind::Deque),
    (c"array.array", Kind::Array),
    (c"numpy.ndarray", Kind::NumpyArray),
    (c"functools._lru_cache_wrapper", Kind::LruCache),
    (c"_io.BytesIO", Kind::BytesIo),
    (c"_io.StringIO", Kind::StringIo),
    (c"_io.BufferedReader", Kind::Buffered),
    (c"_io.BufferedWriter", Kind::Buffered),
    (c"_io.BufferedRandom", Kind::Buffered),
    (c"_ctypes._CData", Kind::CData),
    (c"decimal.Decimal", Kind::Decimal),
    (c"hamt_bitmap_node", Kind::ContextNode),
    (c"moduledef", Kind::Other),
];

/// What all objects of a type have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    pub(crate) traverse: Option<Traverse>,
    flags: u64,
    basic: usize,
    item: usize,
    dict_offset: isize,
}

/// Offsets that depend on the version, bytes.
#[derive(Clone, Copy, Debug)]
struct Offsets {
    function_name: usize,
    function_module: usize,
    generator_name: usize,
    /// `gi_iframe`, from 3.11 on; before, `gi_frame` is at 16.
    generator_frame: usize,
    /// `gi_frame_state`, from 3.11 on: 4 and more when the frame has been cleared.
    generator_state: usize,
    /// `f_globals`
    frame_globals: usize,
    /// `localsplus`
    frame_locals: usize,
    /// `co_localsplusnames`, before 3.11 `co_varnames`.
    code_names: usize,
    /// `co_stacksize`, from 3.11 on; `co_nlocalsplus` is eight bytes behind.
    code_stack: usize,
    /// `ht_qualname`; `ht_cached_keys` is next to it.
    type_name: usize,
    /// `sizeof(PyTypeObject)`
    static_type: usize,
}

/// By minor version.
fn offsets(minor: u32) -> Offsets {
    let python_3_7 = Offsets {
        function_name: 104,
        function_module: 88,
        generator_name: 56,
        generator_frame: 0,
        generator_state: 0,
        frame_globals: 48,
        frame_locals: 360,
        code_names: 64,
        code_stack: 0,
        type_name: 848,
        static_type: 400,
    };
    let python_3_8 = Offsets { code_names: 72, type_name: 864, static_type: 416, ..python_3_7 };
    let python_3_10 = Offsets {
        function_name: 40,
        function_module: 104,
        generator_name: 48,
        frame_locals: 352,
        static_type: 408,
        ..python_3_8
    };
    let python_3_11 = Offsets {
        generator_name: 40,
        generator_frame: 80,
        generator_state: 75,
        frame_globals: 8,
        frame_locals: 72,
        code_names: 96,
        code_stack: 68,
        static_type: 424,
        ..python_3_10
    };
    let python_3_12 = Offsets {
        generator_name: 32,
        generator_frame: 72,
        generator_state: 67,
        frame_globals: 24,
        code_stack: 64,
        type_name: 872,
        static_type: 432,
        ..python_3_11
    };
    match minor {
        7 => python_3_7,
        8 => python_3_8,
        9 => Offsets { type_name: 856, static_type: 408, ..python_3_8 },
        10 => python_3_10,
        11 => python_3_11,
        12 => python_3_12,
        _ => Offsets { static_type: 416, ..python_3_12 },
    }
}

/// `Py_TPFLAGS_…` (Include/object.h).
mod flag {
    /// From 3.13 on.
    pub(super) const INLINE_VALUES: u64 = 1 << 2;
    /// From 3.12 on.
    pub(super) const MANAGED_WEAKREF: u64 = 1 << 3;
    /// From 3.11 on.
    pub(super) const MANAGED_DICT: u64 = 1 << 4;
    pub(super) const HEAP_TYPE: u64 = 1 << 9;
    pub(super) const HAVE_GC: u64 = 1 << 14;
    pub(super) const LONG: u64 = 1 << 24;
    pub(super) const LIST: u64 = 1 << 25;
    pub(super) const TUPLE: u64 = 1 << 26;
    pub(super) const BYTES: u64 = 1 << 27;
    pub(super) const UNICODE: u64 = 1 << 28;
    pub(super) const DICT: u64 = 1 << 29;
    pub(super) const TYPE: u64 = 1 << 31;
}

/// Where things are in this Python.
#[derive(Clone, Copy)]
pub(crate) struct Objects {
    layout: &'static Layout,
    offsets: Offsets,
}

/// A name that lies in the target: a `str` or a C string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Text(usize),
    C(usize),
}

/// The word for what holds an object's attributes.
pub(crate) const DICT: &CStr = c"__dict__";
/// The word for the list that a `BytesIO` keeps its bytes in.
const BUFFER: &CStr = c"buffer";
/// The most items that are believed; more than that is an `ob_size` that is something else.
const MOST_ITEMS: usize = 1 << 36;

/// The type of an object.
///
/// # Safety
/// A live object; so in all functions here, and its type is one whose [`Shape`] was read.
pub(crate) unsafe fn type_of(object: usize) -> usize {
    // SAFETY: the caller's promise; ob_type.
    unsafe { word(object + 8) }
}

/// `tp_name`
///
/// # Safety
/// A live type.
pub(crate) unsafe fn type_name<'a>(of: usize) -> &'a CStr {
    // SAFETY: the caller's promise; tp_name is never null.
    unsafe { CStr::from_ptr(word(of + 24) as *const _) }
}

// SAFETY (of every block below): the loads lie within live objects, at offsets of this Python's own structures.
#[allow(clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]
impl Objects {
    /// For this Python.
    pub(crate) fn of_this_python() -> Self {
        let layout = layout::chosen();
        Self { layout, offsets: offsets(layout.minor) }
    }

    /// Bytes of the collector's head.
    pub(crate) fn collector_head(&self) -> usize {
        self.layout.collector_head
    }

    /// What a type says of its objects.
    pub(crate) unsafe fn shape(&self, of: usize) -> Shape {
        unsafe {
            let flags = word(of + 168) as u64;
            let traverse = match word(of + 184) {
                0 => None,
                address => Some(std::mem::transmute::<usize, Traverse>(address)),
            };
            Shape {
                kind: kind(of, flags),
                traverse: traverse.filter(|_| flags & flag::HAVE_GC != 0),
                flags,
                basic: word(of + 32),
                item: word(of + 40),
                dict_offset: word(of + 288) as isize,
            }
        }
    }

    /// `PyObject_IS_GC`: static types say that they may be collected and are not.
    unsafe fn is_collected(&self, object: usize, shape: &Shape) -> bool {
        shape.flags & flag::HAVE_GC != 0
            && (shape.kind != Kind::Type || unsafe { word(object + 168) } as u64 & flag::HEAP_TYPE != 0)
    }

    /// May `tp_traverse` be called, and what is it?
    pub(crate) unsafe fn traverse(&self, object: usize, shape: &Shape) -> Option<Traverse> {
        shape.traverse.filter(|_| unsafe { self.is_collected(object, shape) })
    }

    /// Does the collector track it?
    pub(crate) unsafe fn is_tracked(&self, object: usize, shape: &Shape) -> bool {
        /// `_PyGC_REFS_UNTRACKED` of 3.7, whose head is next, previous and `gc_refs`, the lowest bit of which is a flag.
        const UNTRACKED: isize = -2;
        unsafe {
            self.is_collected(object, shape)
                && match self.layout.minor {
                    7 => word(object - 16) as isize >> 1 != UNTRACKED,
                    _ => word(object - 16) != 0,
                }
        }
    }

    /// The reference count; 0 where the object is immortal.
    pub(crate) unsafe fn references(&self, object: usize) -> u64 {
        unsafe {
            match self.layout.minor {
                ..12 => word(object) as u64,
                _ => (half(object) as i32).max(0) as u64,
            }
        }
    }

    /// The values of an object's attributes that are kept without a dict (3.11 and later), 0 where there are none.
    unsafe fn values(&self, object: usize, shape: &Shape) -> usize {
        if shape.flags & flag::MANAGED_DICT == 0 {
            return 0;
        }
        unsafe {
            match self.layout.minor {
                11 => word(object - 32),
                // A union: the lowest bit says that it is values.
                12 => match word(object - 24) {
                    values if values & 1 == 1 => values + 1,
                    _ => 0,
                },
                13.. if shape.flags & flag::INLINE_VALUES != 0 => {
                    let values = object + shape.basic;
                    if *((values + 3) as *const u8) != 0 { values + 8 } else { 0 }
                }
                _ => 0,
            }
        }
    }

    /// The dict of an object's attributes, 0 where there is none.
    unsafe fn dict(&self, object: usize, shape: &Shape) -> usize {
        unsafe {
            if shape.flags & flag::MANAGED_DICT != 0 && self.layout.minor >= 11 {
                let dict = word(object - 24);
                return if dict & 1 == 0 { dict } else { 0 };
            }
            let offset = match shape.dict_offset {
                0 => return 0,
                // Counted from the end of an object whose size differs (subclasses of tuple and int).
                offset @ ..0 if shape.item != 0 => {
                    (shape.basic + items(object) * shape.item).next_multiple_of(8) as isize + offset
                }
                ..0 => return 0,
                offset => offset,
            };
            word(object.wrapping_add_signed(offset))
        }
    }

    /// What an object's references are called, each with the object that it leads to: attributes, slots, variables.
    /// `members` are those of the type, see [`Objects::members`].
    pub(crate) unsafe fn names(
        &self,
        object: usize,
        shape: &Shape,
        members: &[(usize, usize)],
        mut found: impl FnMut(usize, Word),
    ) {
        unsafe {
            for (offset, name) in members {
                found(word(object + offset), Word::C(*name));
            }
            let dict_word = Word::C(DICT.as_ptr() as usize);
            match shape.kind {
                // md_dict
                Kind::Module => found(word(object + 16), dict_word),
                // tp_dict
                Kind::Type => found(word(object + 264), dict_word),
                Kind::BytesIo => found(word(object + 16), Word::C(BUFFER.as_ptr() as usize)),
                Kind::Frame | Kind::Generator => self.variables(object, shape.kind, &mut found),
                // PyHamtNode_Bitmap: b_array; pairs of a variable, or nothing where the other is a node, and its value
                Kind::ContextNode => {
                    for pair in (object + 32..).step_by(16).take(items(object).min(64) / 2) {
                        let variable = word(pair);
                        if variable != 0 && type_name(type_of(variable)).to_bytes().ends_with(b"ContextVar") {
                            // var_name
                            found(word(pair + 8), Word::Text(word(variable + 16)));
                        }
                    }
                }
                _ => {}
            }
            found(self.dict(object, shape), dict_word);
            let values = self.values(object, shape);
            let keys = if values == 0 { 0 } else { word(type_of(object) + self.offsets.type_name + 8) };
            if keys != 0 {
                // Entries are key and value; shared keys have at most 30.
                let entries = keys + 32 + (1usize << (word(keys + 9) & 0x3F));
                for index in 0..word(keys + 24).min(64) {
                    found(word(values + 8 * index), Word::Text(word(entries + 16 * index)));
                }
            }
        }
    }

    /// Where the variables of a frame are, or of a generator that has not ended; 0 where they are not here.
    unsafe fn frame(&self, object: usize, kind: Kind) -> usize {
        unsafe {
            let frame = match (kind, self.layout.minor) {
                (Kind::Frame, ..11) => object,
                // f_frame
                (Kind::Frame, _) => word(object + 24),
                // The generator's frame is an object of its own.
                (_, ..11) => return 0,
                _ if *((object + self.offsets.generator_state) as *const i8) >= 4 => return 0,
                _ => object + self.offsets.generator_frame,
            };
            if frame == 0 || word(frame + self.layout.frame_code) == 0 { 0 } else { frame }
        }
    }

    /// The local variables of a frame, or of a generator that has not ended.
    unsafe fn variables(&self, object: usize, kind: Kind, found: &mut impl FnMut(usize, Word)) {
        unsafe {
            let frame = self.frame(object, kind);
            if frame == 0 {
                return;
            }
            let code = word(frame + self.layout.frame_code);
            let names = word(code + self.offsets.code_names);
            for index in 0..items(names).min(256) {
                found(word(frame + self.offsets.frame_locals + 8 * index), Word::Text(word(names + 24 + 8 * index)));
            }
        }
    }

    /// The parts of what an object is called, to be joined by a dot.
    pub(crate) unsafe fn label(&self, object: usize, shape: &Shape) -> [usize; 2] {
        unsafe {
            match shape.kind {
                // md_name
                Kind::Module => [0, word(object + 48)],
                Kind::Function => {
                    [word(object + self.offsets.function_module), word(object + self.offsets.function_name)]
                }
                Kind::Generator => [0, word(object + self.offsets.generator_name)],
                Kind::Code => [0, word(object + self.layout.code_function)],
                Kind::Frame => match self.frame(object, shape.kind) {
                    0 => [0, 0],
                    frame => [0, word(word(frame + self.layout.frame_code) + self.layout.code_function)],
                },
                Kind::Type if word(object + 168) as u64 & flag::HEAP_TYPE != 0 => {
                    [0, word(object + self.offsets.type_name)]
                }
                _ => [0, 0],
            }
        }
    }

    /// The dict that tells which module a heap type or a frame is of, and under which key.
    pub(crate) unsafe fn module_entry(&self, object: usize, shape: &Shape) -> Option<(usize, &'static [u8])> {
        unsafe {
            match shape.kind {
                // tp_dict
                Kind::Type if word(object + 168) as u64 & flag::HEAP_TYPE != 0 => {
                    Some((word(object + 264), b"__module__"))
                }
                Kind::Frame => match self.frame(object, shape.kind) {
                    0 => None,
                    frame => Some((word(frame + self.offsets.frame_globals), b"__name__")),
                },
                _ => None,
            }
        }
    }

    /// A positive `int`'s value, if it is one of at most two digits.
    pub(crate) unsafe fn number(&self, object: usize) -> Option<u64> {
        unsafe {
            if word(type_of(object) + 168) as u64 & flag::LONG == 0 {
                return None;
            }
            // ob_size, negative for a negative number; lv_tag: the number of digits above three bits of flags, of which
            // the lowest two are 0 where it is positive.
            let (digits, at) = match (self.layout.minor, word(object + 16)) {
                (..12, digits) => (digits, object + 24),
                (_, tag) if tag & 3 == 0 => (tag >> 3, object + 24),
                _ => return None,
            };
            match digits {
                1 => Some(half(at).into()),
                2 => Some(u64::from(half(at)) | u64::from(half(at + 4)) << 30),
                _ => None,
            }
        }
    }

    /// Items that it holds.
    pub(crate) unsafe fn length(&self, object: usize, shape: &Shape) -> Option<u64> {
        unsafe {
            match shape.kind {
                Kind::List | Kind::Tuple | Kind::Deque | Kind::Dict | Kind::OrderedDict => Some(items(object) as u64),
                // used
                Kind::Set => Some(word(object + 24) as u64),
                _ => None,
            }
        }
    }

    /// Items that it holds at most.
    pub(crate) unsafe fn bound(&self, object: usize, shape: &Shape) -> Option<u64> {
        unsafe {
            match shape.kind {
                // maxsize, -1 for none
                Kind::LruCache => u64::try_from(word(object + 96) as isize).ok(),
                // maxlen, -1 for none
                Kind::Deque => u64::try_from(word(object + 64) as isize).ok(),
                _ => None,
            }
        }
    }

    /// A `str`'s text, as much of it as fits.
    pub(crate) unsafe fn text<'b>(&self, object: usize, buffer: &'b mut [u8]) -> &'b [u8] {
        unsafe { super::text::string(self.layout, object, buffer) }
    }

    /// Is it a `str`?
    pub(crate) unsafe fn is_text(&self, object: usize) -> bool {
        object != 0 && unsafe { word(type_of(object) + 168) } as u64 & flag::UNICODE != 0
    }

    /// The members that a type's objects hold objects in: offset and name, those of its bases too.
    pub(crate) unsafe fn members(&self, of: usize, mut found: impl FnMut(usize, usize)) {
        /// `PyMemberDef`: name, type, offset, flags, doc.
        const MEMBER_BYTES: usize = 40;
        const T_OBJECT: u32 = 6;
        const T_OBJECT_EX: u32 = 16;
        const RELATIVE_OFFSET: u32 = 8;
        unsafe {
            let mut base = of;
            while base != 0 {
                let mut member = word(base + 240);
                while member != 0 && word(member) != 0 {
                    let is_object = matches!(half(member + 8), T_OBJECT | T_OBJECT_EX);
                    if is_object && half(member + 24) & RELATIVE_OFFSET == 0 {
                        found(word(member + 16), word(member));
                    }
                    member += MEMBER_BYTES;
                }
                base = word(base + 256);
            }
        }
    }
}

/// What a type's flags, or its name or that of one of its bases, say.
///
/// # Safety
/// A live type.
unsafe fn kind(of: usize, flags: u64) -> Kind {
    let by_flag = [
        (flag::LONG, Kind::Integer),
        (flag::LIST, Kind::List),
        (flag::TUPLE, Kind::Tuple),
        (flag::BYTES, Kind::Bytes),
        (flag::UNICODE, Kind::Text),
        (flag::DICT, Kind::Dict),
        (flag::TYPE, Kind::Type),
    ];
    if let Some((_, kind)) = by_flag.iter().find(|(flag, _)| flags & flag != 0) {
        // SAFETY: the caller's promise.
        let is_ordered = *kind == Kind::Dict && unsafe { has_base(of, c"collections.OrderedDict") };
        return if is_ordered { Kind::OrderedDict } else { *kind };
    }
    let mut base = of;
    while base != 0 {
        // SAFETY: the caller's promise; bases live as long as the type. A class of the same name that was made in Python
        // is none of these: its `tp_name` has no module, so only the names of builtins could be mistaken, and their
        // bases are asked only where the type is CPython's own.
        unsafe {
            let is_own = word(base + 168) as u64 & flag::HEAP_TYPE == 0 || type_name(base).to_bytes().contains(&b'.');
            let name = type_name(base);
            if let Some((_, kind)) = NAMED.iter().find(|(known, _)| is_own && *known == name) {
                return *kind;
            }
            base = word(base + 256);
        }
    }
    Kind::Other
}

/// Has a type this one, by its `tp_name`, among itself and its bases?
///
/// # Safety
/// A live type.
unsafe fn has_base(of: usize, wanted: &CStr) -> bool {
    let mut base = of;
    // SAFETY: the caller's promise; bases live as long as the type.
    unsafe {
        while base != 0 && type_name(base) != wanted {
            base = word(base + 256);
        }
    }
    base != 0
}

/// `Py_SIZE`, whose sign is an integer's; 0 where it can be none.
///
/// # Safety
/// A live object with at least 24 bytes.
pub(crate) unsafe fn items(object: usize) -> usize {
    // SAFETY: the caller's promise.
    let items = unsafe { word(object + 16) as isize }.unsigned_abs();
    if items < MOST_ITEMS { items } else { 0 }
}
