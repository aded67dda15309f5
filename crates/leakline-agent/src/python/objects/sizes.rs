//! How large an object is, and which memory elsewhere is its own: what `sys.getsizeof` would add up, by raw loads, and the
//! attributes that it passes over.

use super::super::text::{half, word};
use super::{Kind, Objects, Shape, flag, items, type_of};
use leakline_table::heap::{Buffer, MOST_BUFFERS};

// SAFETY (of every block below): the loads lie within live objects, at offsets of this Python's own structures.
#[allow(clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]
impl Objects {
    /// Bytes in front of the address: the collector's head, and what 3.11 and later put before it.
    pub(crate) unsafe fn front(&self, object: usize, shape: &Shape) -> usize {
        let managed = match self.layout.minor {
            ..11 => 0,
            11 => flag::MANAGED_DICT,
            _ => flag::MANAGED_DICT | flag::MANAGED_WEAKREF,
        };
        let head = if unsafe { self.is_collected(object, shape) } { self.layout.collector_head } else { 0 };
        head + if shape.flags & managed != 0 { 16 } else { 0 }
    }

    /// Bytes of the object itself, from its address on.
    pub(crate) unsafe fn bytes(&self, object: usize, shape: &Shape) -> usize {
        unsafe {
            match shape.kind {
                Kind::Text => return self.text_bytes(object, shape),
                // It has no ob_size, and what stands there is another frame.
                Kind::Frame | Kind::Generator if self.layout.minor >= 11 => {
                    return shape.basic + 8 * self.frame_slots(object, shape.kind);
                }
                Kind::Generator => return shape.basic,
                Kind::Type if word(object + 168) as u64 & flag::HEAP_TYPE == 0 => return self.offsets.static_type,
                // Each item has a node, of four words.
                Kind::OrderedDict => return shape.basic + 32 * items(object),
                Kind::Deque => return shape.basic + deque_blocks(object).saturating_sub(2) * DEQUE_BLOCK,
                _ => {}
            }
            let items = match shape.kind {
                _ if shape.item == 0 => 0,
                // lv_tag: the number of digits above three bits of flags.
                Kind::Integer if self.layout.minor >= 12 => word(object + 16) >> 3,
                _ => items(object),
            };
            shape.basic + items * shape.item + self.inline_bytes(object, shape)
        }
    }

    /// What 3.13 puts behind an object for its attributes.
    unsafe fn inline_bytes(&self, object: usize, shape: &Shape) -> usize {
        match self.layout.minor >= 13 && shape.flags & flag::INLINE_VALUES != 0 {
            true => unsafe { bytes_of_values(object + shape.basic) },
            false => 0,
        }
    }

    /// PyASCIIObject, PyCompactUnicodeObject, PyUnicodeObject: the state's bits are interned: 2, kind: 3 (the bytes of a
    /// character), compact: 1, ascii: 1.
    unsafe fn text_bytes(&self, object: usize, shape: &Shape) -> usize {
        unsafe {
            let (length, state) = (word(object + 16), half(object + 32));
            match (state >> 5 & 1, state >> 6 & 1) {
                (0, _) => shape.basic,
                (_, 1) => self.layout.string_ascii + length + 1,
                _ => self.layout.string_other + (length + 1) * (state >> 2 & 7) as usize,
            }
        }
    }

    /// Memory of the object's own that lies elsewhere.
    pub(crate) unsafe fn buffers(&self, object: usize, shape: &Shape) -> [Buffer; MOST_BUFFERS] {
        let buffer = |address: usize, bytes: usize| Buffer { address: address as u64, bytes: bytes as u64 };
        let none = Buffer::default();
        unsafe {
            match shape.kind {
                // ob_item, allocated
                Kind::List => [buffer(word(object + 24), word(object + 32) * 8), none],
                Kind::Dict => [self.dict_buffer(object), none],
                // od_fast_nodes and their number
                Kind::OrderedDict => [self.dict_buffer(object), buffer(word(object + 64), word(object + 72) * 8)],
                // Its objects' shared keys
                Kind::Type if word(object + 168) as u64 & flag::HEAP_TYPE != 0 => {
                    match word(object + self.offsets.type_name + 8) {
                        0 => [none; 2],
                        keys => [buffer(keys, self.keys_bytes(keys)), none],
                    }
                }
                // table, mask, smalltable
                Kind::Set if word(object + 40) != object + 64 => {
                    [buffer(word(object + 40), (word(object + 32) + 1) * 16), none]
                }
                // ob_bytes, ob_alloc
                Kind::ByteArray => [buffer(word(object + 32), word(object + 24)), none],
                // leftblock, rightblock; those between are counted as the object's own bytes
                Kind::Deque => {
                    let (left, right) = (word(object + 24), word(object + 32));
                    let second = if right == left { none } else { buffer(right, DEQUE_BLOCK) };
                    [buffer(left, DEQUE_BLOCK), second]
                }
                // ob_item, allocated, ob_descr->itemsize
                Kind::Array if word(object + 24) != 0 => {
                    [buffer(word(object + 24), word(object + 32) * half(word(object + 40) + 4) as usize), none]
                }
                Kind::NumpyArray => [numpy_buffer(object), none],
                // stringio: buf, buf_size; none while what was written lies in pieces
                Kind::StringIo if word(object + 16) != 0 => [buffer(word(object + 16), word(object + 40) * 4), none],
                // buffered: buffer, buffer_size
                Kind::Buffered if word(object + 56) != 0 => [buffer(word(object + 56), word(object + 120)), none],
                // b_ptr, b_needsfree, b_size; what is small lies within the object
                Kind::CData if half(object + 24) != 0 && word(object + 16).wrapping_sub(object) >= shape.basic => {
                    [buffer(word(object + 16), word(object + 40)), none]
                }
                // mpd_t: alloc, data; few digits lie within the object
                Kind::Decimal if word(object + 64) != object + 72 => {
                    [buffer(word(object + 64), word(object + 56) * 8), none]
                }
                Kind::Text => [self.text_buffer(object), none],
                _ if shape.flags & flag::MANAGED_DICT != 0 && matches!(self.layout.minor, 11 | 12) => {
                    let values = self.values(object, shape);
                    let keys = word(type_of(object) + self.offsets.type_name + 8);
                    [if values == 0 || keys == 0 { none } else { self.values_buffer(values, keys) }, none]
                }
                _ => [none; 2],
            }
        }
    }

    /// The characters of a string that is not compact, or the UTF-8 that a compact one has been asked for.
    unsafe fn text_buffer(&self, object: usize) -> Buffer {
        unsafe {
            let (length, state) = (word(object + 16), half(object + 32));
            let ascii = self.layout.string_ascii;
            let (address, bytes) = match (state >> 5 & 1, state >> 6 & 1) {
                (0, _) => (word(object + self.layout.string_other), (length + 1) * (state >> 2 & 7) as usize),
                (_, 1) => (0, 0),
                _ => (word(object + ascii + 8), word(object + ascii) + 1),
            };
            Buffer { address: address as u64, bytes: bytes as u64 }
        }
    }

    /// PyDictObject: ma_keys at 32, ma_values at 40. Keys that several dicts share are their type's.
    unsafe fn dict_buffer(&self, object: usize) -> Buffer {
        unsafe {
            let (keys, values) = (word(object + 32), word(object + 40));
            if values != 0 {
                return self.values_buffer(values, keys);
            }
            // The empty keys are one static table of the least size.
            match self.cells(keys) {
                ..8 => Buffer::default(),
                _ => Buffer { address: keys as u64, bytes: self.keys_bytes(keys) as u64 },
            }
        }
    }

    /// The values of a dict whose keys are shared, or of an object's attributes.
    unsafe fn values_buffer(&self, values: usize, keys: usize) -> Buffer {
        unsafe {
            let (before, bytes) = match self.layout.minor {
                11 | 12 => {
                    let before = before_values(values);
                    // Two bytes and one for each value, rounded up, stand before them. The shared keys (dk_usable,
                    // dk_nentries) say how many there are today, which may be less than when these were made.
                    let count = word(keys + 16) + word(keys + 24);
                    let count = count.clamp(before.saturating_sub(9), before.saturating_sub(2));
                    (before, before + 8 * count)
                }
                // Those that lie within an object (`embedded`) are counted there.
                13.. if *((values + 2) as *const u8) != 0 => return Buffer::default(),
                13.. => (0, bytes_of_values(values)),
                _ => (0, 8 * usable(self.cells(keys))),
            };
            Buffer { address: (values - before) as u64, bytes: bytes as u64 }
        }
    }

    /// Cells of a PyDictKeysObject: dk_log2_size, before 3.11 dk_size.
    unsafe fn cells(&self, keys: usize) -> usize {
        unsafe {
            match self.layout.key_table_has_logs {
                true => 1 << (word(keys + 8) & 0x3F),
                false => word(keys + 8),
            }
        }
    }

    /// Bytes of a PyDictKeysObject: a head, an index for each cell, and entries.
    unsafe fn keys_bytes(&self, keys: usize) -> usize {
        unsafe {
            let cells = self.cells(keys);
            if self.layout.key_table_has_logs {
                // dk_kind: with keys of any type there is room for hashes.
                let entry = if word(keys + 10) & 0xFF == 0 { 24 } else { 16 };
                return 32 + (1 << (word(keys + 9) & 0x3F)) + entry * usable(cells);
            }
            let index = match cells {
                0..0x100 => 1,
                0x100..0x1_0000 => 2,
                0x1_0000..0x1_0000_0000 => 4,
                _ => 8,
            };
            40 + index * cells + 24 * usable(cells)
        }
    }

    /// How many words of variables and stack there is room for in the frame, from 3.11 on.
    unsafe fn frame_slots(&self, object: usize, kind: Kind) -> usize {
        unsafe {
            match self.frame(object, kind) {
                0 => 0,
                frame => {
                    let stack = word(frame + self.layout.frame_code) + self.offsets.code_stack;
                    (half(stack) + half(stack + 8)) as usize
                }
            }
        }
    }
}

/// Entries that a key table of so many cells has room for: two thirds.
fn usable(cells: usize) -> usize {
    (cells << 1) / 3
}

/// Bytes in front of the values of an object's attributes in 3.11 and 3.12: the byte before them says so.
///
/// # Safety
/// Such values.
unsafe fn before_values(values: usize) -> usize {
    // SAFETY: the caller's promise.
    usize::from(unsafe { *((values - 1) as *const u8) })
}

/// PyDictValues of 3.13: a head whose first byte says how many there are, the values, and their order, a byte each.
///
/// # Safety
/// Such values.
unsafe fn bytes_of_values(values: usize) -> usize {
    // SAFETY: the caller's promise.
    let capacity = usize::from(unsafe { *(values as *const u8) });
    8 * (capacity + 1) + capacity.next_multiple_of(8)
}

/// Bytes of a block of a deque: two links and 64 items.
const DEQUE_BLOCK: usize = 528;

/// # Safety
/// A live deque.
unsafe fn deque_blocks(object: usize) -> usize {
    // SAFETY: the caller's promise. leftindex says where the items begin in the first block.
    unsafe { (word(object + 40) + items(object)).div_ceil(64).max(1) }
}

/// PyArrayObject: data, nd, dimensions, strides, base, descr, flags. What it owns is as long as its longest dimension.
///
/// # Safety
/// A live `numpy.ndarray`.
unsafe fn numpy_buffer(object: usize) -> Buffer {
    const OWNDATA: u32 = 4;
    // SAFETY: the caller's promise; there are `nd` dimensions and strides.
    unsafe {
        let (dimensions, strides) = (word(object + 32), word(object + 40));
        if half(object + 64) & OWNDATA == 0 {
            return Buffer::default();
        }
        let along = |axis: usize| {
            (word(dimensions + 8 * axis) as isize).saturating_mul(word(strides + 8 * axis) as isize).unsigned_abs()
        };
        let bytes = (0..half(object + 24).min(64) as usize).map(along).max().unwrap_or(8);
        Buffer { address: word(object + 16) as u64, bytes: bytes as u64 }
    }
}
