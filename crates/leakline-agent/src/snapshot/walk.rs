//! Turns the objects of the interpreters into a snapshot's stream: those that the collector tracks, from its lists, and
//! those that they lead to. Each is written once, with all that it refers to.

use super::child::File;
use super::memory::{Growing, Map, Seen};
use crate::python::api::{Api, Object};
use crate::python::objects::{self, Kind, Objects, Shape, Word};
use crate::python::{Interpreters, collector_lists, word};
use leakline_table::heap::{Encoder, LIMITED, Name, ObjectHead, TEXT_BYTES, TypeName};
use std::ffi::{CStr, c_int, c_void};

/// Dicts with more items than this are written without names: nobody looks one up among so many.
const MOST_NAMED: u64 = 10_000;
/// Names that are written at most; edges that come later go without.
const MOST_NAMES: usize = 1 << 20;
/// The mark of a name that is one of [`LIMITED`], beside its index.
const LIMITS: u32 = 1 << 31;

/// A walk over all objects.
pub(super) struct Walk<'w> {
    api: &'w Api,
    objects: Objects,
    out: Encoder<File>,
    seen: Seen,
    /// Objects that were referred to and not written yet.
    pending: Growing<usize>,
    /// From a type's address to its place in `shapes`, which is its index in the file.
    types: Map,
    shapes: Growing<(Shape, usize, usize)>,
    /// Offsets and names of the members of all types, one type's after the other's.
    members: Growing<(usize, usize)>,
    /// From a name's address to its index in the file, with [`LIMITS`].
    names: Map,
    names_dropped: u64,
    /// What the references of the object that is being written are called. An entry that was used leads nowhere.
    called: Growing<(usize, Word)>,
    /// How many of those at its beginning were used: mostly they are asked for in their own order.
    used: usize,
}

impl<'w> Walk<'w> {
    pub(super) fn new(api: &'w Api, out: Encoder<File>) -> Self {
        Self {
            api,
            objects: Objects::of_this_python(),
            out,
            seen: Seen::new(),
            pending: Growing::new(),
            types: Map::new(),
            shapes: Growing::new(),
            members: Growing::new(),
            names: Map::new(),
            names_dropped: 0,
            called: Growing::new(),
            used: 0,
        }
    }

    /// Writes them all. Returns whose they are.
    ///
    /// # Safety
    /// Nothing changes any object meanwhile.
    pub(super) unsafe fn all(&mut self) -> Interpreters {
        let head_bytes = self.objects.collector_head();
        // SAFETY: the lists are circular, their links are the first word of each head; the lowest bits are flags.
        unsafe {
            collector_lists(self.api, |list| {
                let mut head = word(list) & !3;
                while head != list && head != 0 {
                    self.reach(head + head_bytes);
                    self.work_off();
                    head = word(head) & !3;
                }
            })
        }
    }

    /// Ends the stream, with the blocks that nothing points to. Returns the file, the number of objects and edges, and the
    /// names that had no room.
    pub(super) fn finish(self, lost: impl Iterator<Item = u64>) -> (File, u64, u64, u64) {
        let (file, objects, edges) = self.out.finish(lost);
        (file, objects, edges, self.names_dropped)
    }

    /// Remembers an object that was referred to.
    #[inline]
    fn reach(&mut self, object: usize) {
        if self.seen.add(object) {
            self.pending.push(object);
        }
    }

    /// # Safety
    /// As for [`Walk::all`].
    unsafe fn work_off(&mut self) {
        while let Some(object) = self.pending.pop() {
            // SAFETY: the caller's promise: it was referred to by a live object.
            unsafe { self.write(object) };
        }
    }

    /// Writes one object with its edges.
    ///
    /// # Safety
    /// A live object.
    unsafe fn write(&mut self, object: usize) {
        // SAFETY: the caller's promise, here and in all that is called.
        unsafe {
            let of = objects::type_of(object);
            self.reach(of);
            let known = self.types.get(of);
            let place = known.unwrap_or_else(|| self.learn(of));
            let (shape, first_member, members) = self.shapes[place as usize];
            let front = self.objects.front(object, &shape);
            let mut text = [0; TEXT_BYTES];
            let length = self.label(object, &shape, &mut text);
            self.out.object(&ObjectHead {
                address: object as u64,
                of: match known {
                    Some(index) => TypeName::Known(index),
                    None => TypeName::New(objects::type_name(of).to_bytes()),
                },
                references: self.objects.references(object),
                bytes: (front + self.objects.bytes(object, &shape)) as u64,
                front: front as u64,
                length: self.objects.length(object, &shape),
                bound: self.objects.bound(object, &shape),
                label: &text[..length],
                is_tracked: self.objects.is_tracked(object, &shape),
                is_class: shape.kind == Kind::Type,
                buffers: self.objects.buffers(object, &shape),
            });
            self.called.clear();
            self.used = 0;
            let called = &mut self.called;
            self.objects.names(object, &shape, &self.members[first_member..first_member + members], |target, name| {
                if target != 0 {
                    called.push((target, name));
                }
            });
            if matches!(shape.kind, Kind::Dict | Kind::OrderedDict) {
                self.items(object, self.objects.length(object, &shape).unwrap_or(0) <= MOST_NAMED);
            } else if let Some(traverse) = self.objects.traverse(object, &shape) {
                traverse(object as Object, visit, (&raw mut *self).cast());
            }
            // What `tp_traverse` passes over: code objects have none, dicts' own is not used.
            for at in 0..self.called.len() {
                let (target, name) = self.called[at];
                if target != 0 {
                    self.edge(target, Some(name));
                }
            }
            self.out.end();
        }
    }

    /// The items of a dict; the keys, too, are held by it.
    ///
    /// # Safety
    /// A live dict.
    unsafe fn items(&mut self, dict: usize, is_named: bool) {
        let (mut at, mut key, mut value) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the caller's promise; PyDict_Next only reads.
        unsafe {
            while (self.api.dict_next)(dict as Object, &mut at, &mut key, &mut value) != 0 {
                let (key, value) = (key as usize, value as usize);
                let name = (is_named && self.objects.is_text(key)).then_some(Word::Text(key));
                self.edge(value, name);
                self.edge(key, None);
            }
        }
    }

    /// # Safety
    /// The target is a live object, and so is its name.
    unsafe fn edge(&mut self, target: usize, name: Option<Word>) {
        self.reach(target);
        let Some(name) = name else {
            self.out.edge(Name::None, target as u64);
            return;
        };
        let (Word::Text(key) | Word::C(key)) = name;
        // SAFETY: the caller's promise.
        unsafe {
            let known = match self.names.get(key) {
                Some(known) => {
                    self.out.edge(Name::Known(known & !LIMITS), target as u64);
                    known
                }
                None => self.edge_of_new_name(target, name, key),
            };
            if known & LIMITS != 0 {
                self.objects.number(target).into_iter().for_each(|most| self.out.limit(most));
            }
        }
    }

    /// Returns what [`Walk::names`] knows of the name from now on.
    ///
    /// # Safety
    /// As for [`Walk::edge`].
    unsafe fn edge_of_new_name(&mut self, target: usize, name: Word, key: usize) -> u32 {
        if self.names.len() >= MOST_NAMES {
            self.names_dropped += 1;
            self.out.edge(Name::None, target as u64);
            return 0;
        }
        let mut buffer = [0; TEXT_BYTES];
        // SAFETY: the caller's promise.
        let text = unsafe { self.text(name, &mut buffer) };
        let is_limit = LIMITED.iter().any(|(limit, _)| limit.as_bytes() == text);
        let index = self.out.edge(Name::New(text), target as u64).unwrap_or(0);
        let known = if is_limit { index | LIMITS } else { index };
        self.names.insert(key, known);
        known
    }

    /// # Safety
    /// A live `str` or C string.
    unsafe fn text<'b>(&self, name: Word, buffer: &'b mut [u8; TEXT_BYTES]) -> &'b [u8] {
        // SAFETY: the caller's promise.
        unsafe {
            match name {
                Word::Text(object) => self.objects.text(object, buffer),
                Word::C(start) => {
                    let bytes = CStr::from_ptr(start as *const _).to_bytes();
                    let length = bytes.len().min(TEXT_BYTES);
                    buffer[..length].copy_from_slice(&bytes[..length]);
                    &buffer[..length]
                }
            }
        }
    }

    /// What an object is called, such as `app.views.report`; returns its length.
    ///
    /// # Safety
    /// A live object.
    unsafe fn label(&self, object: usize, shape: &Shape, into: &mut [u8; TEXT_BYTES]) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            let [mut module, name] = self.objects.label(object, shape);
            let entry = self.objects.module_entry(object, shape);
            if let Some((dict, key)) = entry {
                module = self.value_of(dict, key);
            }
            if shape.kind == Kind::Type && entry.is_none() {
                let name = objects::type_name(object).to_bytes();
                let length = name.len().min(TEXT_BYTES);
                into[..length].copy_from_slice(&name[..length]);
                return length;
            }
            let mut length = 0;
            for part in [module, name].into_iter().filter(|part| self.objects.is_text(*part)) {
                if length > 0 && length < TEXT_BYTES {
                    into[length] = b'.';
                    length += 1;
                }
                length += self.objects.text(part, &mut into[length..]).len();
            }
            length
        }
    }

    /// The value of a key in a dict, 0 where there is none.
    ///
    /// # Safety
    /// A live dict, or none.
    unsafe fn value_of(&self, dict: usize, wanted: &[u8]) -> usize {
        let (mut at, mut key, mut value) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        let mut text = [0; 16];
        // SAFETY: the caller's promise; PyDict_Next only reads, and takes null for an empty dict.
        unsafe {
            while (self.api.dict_next)(dict as Object, &mut at, &mut key, &mut value) != 0 {
                if self.objects.is_text(key as usize) && self.objects.text(key as usize, &mut text) == wanted {
                    return value as usize;
                }
            }
        }
        0
    }

    /// Reads what a type's objects have in common; returns the type's index.
    ///
    /// # Safety
    /// A live type.
    unsafe fn learn(&mut self, of: usize) -> u32 {
        let place = self.shapes.len() as u32;
        let first = self.members.len();
        let members = &mut self.members;
        // SAFETY: the caller's promise.
        unsafe {
            self.objects.members(of, |offset, name| members.push((offset, name)));
            self.shapes.push((self.objects.shape(of), first, self.members.len() - first));
        }
        self.types.insert(of, place);
        place
    }
}

/// What `tp_traverse` calls for each reference.
unsafe extern "C" fn visit(target: Object, walk: *mut c_void) -> c_int {
    let target = target as usize;
    // SAFETY: `Walk::write` hands itself over, and uses nothing of itself before the call has returned.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    if target != 0 {
        while walk.called.get(walk.used).is_some_and(|(called, _)| *called == 0) {
            walk.used += 1;
        }
        let called = walk.called[walk.used..].iter_mut().find(|(called, _)| *called == target);
        let name = called.map(|(called, name)| {
            *called = 0;
            *name
        });
        // SAFETY: an object that another one holds lives, and so does what names it.
        unsafe { walk.edge(target, name) };
    }
    0
}
