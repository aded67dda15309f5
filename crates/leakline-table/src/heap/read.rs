//! Turns the bytes of a snapshot, which may be cut or hostile, into objects and edges. A snapshot is read whole or refused.

use super::{
    BUFFERS_SHIFT, Buffer, HAS_BOUND, HAS_LABEL, HAS_LENGTH, HeapHeader, IS_CLASS, IS_TRACKED, MAGIC, MOST_BUFFERS,
    TEXT_BYTES, VERSION,
};
use crate::reader::Refusal;

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub struct HeapObject {
    /// `id()`
    pub address: u64,
    /// Index into [`Heap::types`].
    pub of: u32,
    /// `ob_refcnt`, 0 where it is immortal.
    pub references: u64,
    /// Its own bytes, with those in front of its address, without its buffers.
    pub bytes: u64,
    /// Bytes in front of its address.
    pub front: u64,
    /// Items that it holds.
    pub length: Option<u64>,
    /// Items that it holds at most.
    pub bound: Option<u64>,
    /// What it is called; index into [`Heap::labels`].
    pub label: Option<u32>,
    /// The collector tracks it.
    pub is_tracked: bool,
    /// It is a class.
    pub is_class: bool,
    /// Memory that belongs to it.
    pub buffers: [Buffer; MOST_BUFFERS],
    /// Where its edges begin in [`Heap::edges`]; they end where the next object's begin.
    pub first_edge: u64,
}

/// An edge, or a run of edges to the same object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edge {
    /// The address that it leads to.
    pub target: u64,
    /// Index into [`Heap::names`].
    pub name: Option<u32>,
    /// How many there are, at least 1.
    pub count: u64,
}

/// What an object says of how many items its attribute may hold; see [`super::LIMITED`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// The object, by its index.
    pub object: u32,
    /// What the number is called; index into [`Heap::names`].
    pub name: u32,
    /// The number.
    pub most: u64,
}

/// A whole snapshot.
#[derive(Clone, Debug)]
pub struct Heap {
    /// The header, verbatim.
    pub header: HeapHeader,
    /// `tp_name`s.
    pub types: Vec<String>,
    /// What edges are called.
    pub names: Vec<String>,
    /// What objects are called.
    pub labels: Vec<String>,
    /// The objects, in the order of the file.
    pub objects: Vec<HeapObject>,
    /// The edges of all objects, one object's after the other's.
    pub edges: Vec<Edge>,
    /// In the order of their objects.
    pub limits: Vec<Limit>,
    /// Where the sampled blocks lie that nothing points to, in this order; see [`HeapHeader::search`].
    pub lost: Vec<u64>,
}

/// Reads and checks the header alone.
pub fn header(file: &[u8]) -> Result<HeapHeader, Refusal> {
    if file.len() >= MAGIC.len() && file[..MAGIC.len()] != MAGIC {
        return Err(Refusal::Damaged { what: "it does not begin as a snapshot does" });
    }
    let header = HeapHeader::decode(file).ok_or(Refusal::TooShort { bytes: file.len() })?;
    if header.version > VERSION {
        return Err(Refusal::Newer { version: header.version });
    }
    if header.complete != 1 {
        return Err(Refusal::Damaged { what: "it was not written to its end" });
    }
    Ok(header)
}

impl Heap {
    /// Reads a snapshot from all of its bytes.
    pub fn read(file: &[u8]) -> Result<Self, Refusal> {
        let header = header(file)?;
        let stream = &file[HeapHeader::BYTES..];
        if stream.len() as u64 != header.stream_bytes {
            return Err(Refusal::Damaged { what: "its length is not the one that it names (cut short?)" });
        }
        let mut heap = Self {
            header,
            types: vec![],
            names: vec![],
            labels: vec![],
            objects: vec![],
            edges: vec![],
            limits: vec![],
            lost: vec![],
        };
        heap.objects(&mut Stream { rest: stream }).ok_or(Refusal::Damaged { what: "an object is not well formed" })?;
        let edges = heap.edges.iter().fold(0u64, |sum, edge| sum.saturating_add(edge.count));
        if (heap.objects.len() as u64, edges, heap.lost.len() as u64) != (header.objects, header.edges, header.lost) {
            return Err(Refusal::Damaged { what: "it holds other numbers of objects, edges or blocks than it names" });
        }
        Ok(heap)
    }

    /// The edges of an object.
    pub fn edges_of(&self, object: usize) -> &[Edge] {
        let end = self.objects.get(object + 1).map_or(self.edges.len(), |next| next.first_edge as usize);
        &self.edges[self.objects[object].first_edge as usize..end]
    }

    fn objects(&mut self, stream: &mut Stream) -> Option<()> {
        let mut last = 0;
        loop {
            let what = stream.number()?;
            if what == 0 {
                self.lost(stream)?;
                return stream.rest.is_empty().then_some(());
            }
            let object = self.object(stream, what - 1, last)?;
            last = object.address;
            self.objects.push(object);
            self.edges(stream, last)?;
        }
    }

    fn lost(&mut self, stream: &mut Stream) -> Option<()> {
        let mut last = 0u64;
        loop {
            match stream.number()? {
                0 => return Some(()),
                eights => last = last.checked_add(eights.checked_mul(8)?)?,
            }
            self.lost.push(last);
        }
    }

    fn object(&mut self, stream: &mut Stream, what: u64, last: u64) -> Option<HeapObject> {
        let address = stream.near(last)?;
        let of = stream.index(&mut self.types)?;
        let (references, bytes, front) = (stream.number()?, stream.number()?, stream.number()?);
        let length = stream.optional(what & HAS_LENGTH)?;
        let bound = stream.optional(what & HAS_BOUND)?;
        let label = match what & HAS_LABEL {
            0 => None,
            _ => {
                self.labels.push(stream.text()?);
                Some(self.labels.len() as u32 - 1)
            }
        };
        let count = (what >> BUFFERS_SHIFT) as usize;
        let mut buffers = [Buffer::default(); MOST_BUFFERS];
        for buffer in buffers.get_mut(..count)? {
            *buffer = Buffer { address: address.wrapping_add(stream.signed()? as u64), bytes: stream.number()? };
        }
        let (is_tracked, is_class) = (what & IS_TRACKED != 0, what & IS_CLASS != 0);
        let first_edge = self.edges.len() as u64;
        Some(HeapObject {
            address,
            of,
            references,
            bytes,
            front,
            length,
            bound,
            label,
            is_tracked,
            is_class,
            buffers,
            first_edge,
        })
    }

    fn edges(&mut self, stream: &mut Stream, object: u64) -> Option<()> {
        let mut target = object;
        loop {
            let code = stream.peek()?;
            let name = match code {
                0 => return stream.number().map(|_| ()),
                1 => {
                    stream.number()?;
                    None
                }
                2 => {
                    stream.number()?;
                    let object = self.objects.len() - 1;
                    let name = self.edges_of(object).last()?.name?;
                    self.limits.push(Limit { object: u32::try_from(object).ok()?, name, most: stream.number()? });
                    continue;
                }
                _ => Some(stream.index_from(3, &mut self.names)?),
            };
            target = stream.near(target)?;
            let count = if name.is_none() { stream.number()?.checked_add(1)? } else { 1 };
            self.edges.push(Edge { target, name, count });
        }
    }
}

struct Stream<'a> {
    rest: &'a [u8],
}

impl Stream<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn peek(&self) -> Option<u64> {
        Self { rest: self.rest }.number()
    }

    fn optional(&mut self, is_there: u64) -> Option<Option<u64>> {
        if is_there == 0 { Some(None) } else { self.number().map(Some) }
    }

    fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// An address by its distance to another.
    fn near(&mut self, other: u64) -> Option<u64> {
        let eights = self.signed()?;
        Some(other.wrapping_add((eights << 3) as u64))
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok().filter(|length| *length <= TEXT_BYTES)?;
        let (text, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn index(&mut self, known: &mut Vec<String>) -> Option<u32> {
        self.index_from(0, known)
    }

    /// An index, counted from `base`, into texts of which the next may be defined here.
    fn index_from(&mut self, base: u64, known: &mut Vec<String>) -> Option<u32> {
        let index = usize::try_from(self.number()?.checked_sub(base)?).ok()?;
        if index == known.len() {
            known.push(self.text()?);
        }
        (index < known.len()).then(|| u32::try_from(index).ok()).flatten()
    }
}
