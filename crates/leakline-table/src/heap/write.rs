//! Turns objects and edges into the stream of a snapshot, without allocating.

use super::{BUFFERS_SHIFT, HAS_BOUND, HAS_LABEL, HAS_LENGTH, IS_CLASS, IS_TRACKED, MOST_BUFFERS, TEXT_BYTES};

/// Where the stream goes.
pub trait Sink {
    /// Takes the next bytes.
    fn put(&mut self, bytes: &[u8]);
}

/// Memory that belongs to an object and lies elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    /// Where it lies.
    pub address: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// The type of an object.
#[derive(Clone, Copy, Debug)]
pub enum TypeName<'n> {
    /// One that [`Encoder::object`] has seen, by the index that it was given.
    Known(u32),
    /// One that comes for the first time; it gets the next index.
    New(&'n [u8]),
}

/// What an edge is called.
#[derive(Clone, Copy, Debug)]
pub enum Name<'n> {
    /// Nothing: an item of a list.
    None,
    /// A name that was used before, by the index that it was given.
    Known(u32),
    /// One that comes for the first time; it gets the next index.
    New(&'n [u8]),
}

/// An object without its edges.
#[derive(Clone, Copy, Debug)]
pub struct ObjectHead<'n> {
    /// `id()`
    pub address: u64,
    /// Its type.
    pub of: TypeName<'n>,
    /// `ob_refcnt`, 0 where it is immortal.
    pub references: u64,
    /// Its own bytes, with those in front of its address.
    pub bytes: u64,
    /// Bytes in front of its address.
    pub front: u64,
    /// Items that it holds.
    pub length: Option<u64>,
    /// Items that it holds at most.
    pub bound: Option<u64>,
    /// What it is called; empty for nothing.
    pub label: &'n [u8],
    /// The collector tracks it.
    pub is_tracked: bool,
    /// It is a class.
    pub is_class: bool,
    /// Memory that belongs to it; places with the address 0 are not in use.
    pub buffers: [Buffer; MOST_BUFFERS],
}

/// Bytes that go to the sink at once: most numbers are one or two bytes long, and each call costs more than those.
const AT_ONCE: usize = 4096;
/// Bytes of the longest number.
const LONGEST: usize = 10;

/// Writes a stream. An object begins with [`Encoder::object`], then come its edges, then [`Encoder::end`].
pub struct Encoder<S> {
    sink: S,
    buffer: [u8; AT_ONCE],
    used: usize,
    last_object: u64,
    last_target: u64,
    /// The last edge without a name: how often it was repeated.
    run: Option<u64>,
    types: u32,
    names: u32,
    objects: u64,
    edges: u64,
}

impl<S: Sink> Encoder<S> {
    /// Begins a stream.
    pub fn new(sink: S) -> Self {
        Self {
            sink,
            buffer: [0; AT_ONCE],
            used: 0,
            last_object: 0,
            last_target: 0,
            run: None,
            types: 0,
            names: 0,
            objects: 0,
            edges: 0,
        }
    }

    /// Writes an object. Returns the index of its type.
    pub fn object(&mut self, head: &ObjectHead<'_>) -> u32 {
        let has = |is: bool, bit: u64| if is { bit } else { 0 };
        let buffers = || head.buffers.iter().filter(|buffer| buffer.address != 0);
        let what = has(head.length.is_some(), HAS_LENGTH)
            | has(head.bound.is_some(), HAS_BOUND)
            | has(!head.label.is_empty(), HAS_LABEL)
            | has(head.is_tracked, IS_TRACKED)
            | has(head.is_class, IS_CLASS)
            | (buffers().count() as u64) << BUFFERS_SHIFT;
        self.number(what + 1);
        self.distance(self.last_object, head.address);
        (self.last_object, self.last_target) = (head.address, head.address);
        let of = match head.of {
            TypeName::Known(index) => {
                self.number(index.into());
                index
            }
            TypeName::New(name) => {
                self.number(self.types.into());
                self.text(name);
                self.types += 1;
                self.types - 1
            }
        };
        self.number(head.references);
        self.number(head.bytes);
        self.number(head.front);
        head.length.into_iter().chain(head.bound).for_each(|number| self.number(number));
        if !head.label.is_empty() {
            self.text(head.label);
        }
        for buffer in buffers() {
            self.number(zigzag(buffer.address.wrapping_sub(head.address) as i64));
            self.number(buffer.bytes);
        }
        self.objects += 1;
        of
    }

    /// Writes an edge of the object that was begun last. Returns the index of its name, if it has one.
    pub fn edge(&mut self, name: Name<'_>, target: u64) -> Option<u32> {
        self.edges += 1;
        let is_repeated = target == self.last_target;
        if let (Name::None, Some(run), true) = (name, &mut self.run, is_repeated) {
            *run += 1;
            return None;
        }
        self.end_run();
        let index = match name {
            Name::None => {
                self.number(1);
                None
            }
            Name::Known(index) => {
                self.number(u64::from(index) + 3);
                Some(index)
            }
            Name::New(text) => {
                self.number(u64::from(self.names) + 3);
                self.text(text);
                self.names += 1;
                Some(self.names - 1)
            }
        };
        self.distance(self.last_target, target);
        self.last_target = target;
        self.run = index.is_none().then_some(0);
        index
    }

    /// Says what number the edge that was written last, whose name is one of [`super::LIMITED`], leads to.
    pub fn limit(&mut self, most: u64) {
        self.number(2);
        self.number(most);
    }

    /// Ends the object that was begun last.
    pub fn end(&mut self) {
        self.end_run();
        self.number(0);
    }

    /// Ends the stream with the blocks that nothing points to, in the order of their addresses. Returns where it went, the
    /// objects and the edges.
    pub fn finish(mut self, lost: impl Iterator<Item = u64>) -> (S, u64, u64) {
        self.number(0);
        let mut last = 0;
        for address in lost {
            self.number((address - last) >> 3);
            last = address;
        }
        self.number(0);
        self.flush();
        (self.sink, self.objects, self.edges)
    }

    fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            self.number(run);
        }
    }

    fn distance(&mut self, from: u64, to: u64) {
        self.number(zigzag(to.wrapping_sub(from) as i64 >> 3));
    }

    fn text(&mut self, text: &[u8]) {
        let text = &text[..text.len().min(TEXT_BYTES)];
        self.number(text.len() as u64);
        self.make_room(text.len());
        self.buffer[self.used..self.used + text.len()].copy_from_slice(text);
        self.used += text.len();
    }

    #[inline]
    fn number(&mut self, mut number: u64) {
        self.make_room(LONGEST);
        while number >= 0x80 {
            self.buffer[self.used] = number as u8 | 0x80;
            self.used += 1;
            number >>= 7;
        }
        self.buffer[self.used] = number as u8;
        self.used += 1;
    }

    #[inline]
    fn make_room(&mut self, bytes: usize) {
        if self.used + bytes > AT_ONCE {
            self.flush();
        }
    }

    #[cold]
    fn flush(&mut self) {
        self.sink.put(&self.buffer[..self.used]);
        self.used = 0;
    }
}

fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63) as u64
}
