//! Reads Python's strings and bytes in place, without its API: nothing is allocated and no reference is taken.

use super::layout::Layout;

/// A word in the target's own memory.
///
/// # Safety
/// The address is readable.
pub(crate) unsafe fn word(address: usize) -> usize {
    // SAFETY: the caller's promise; alignment is not relied upon.
    unsafe { (address as *const usize).read_unaligned() }
}

/// Half a word.
///
/// # Safety
/// The address is readable.
pub(super) unsafe fn half(address: usize) -> u32 {
    // SAFETY: as above.
    unsafe { (address as *const u32).read_unaligned() }
}

/// The contents of a `bytes` object, at most `most` of them.
///
/// # Safety
/// The address is that of a live `bytes`.
pub(super) unsafe fn bytes<'a>(object: usize, most: usize) -> &'a [u8] {
    // SAFETY: PyBytesObject is ob_refcnt, ob_type, ob_size, ob_shash, then the bytes, in 3.7 to 3.13.
    unsafe { std::slice::from_raw_parts((object + 32) as *const u8, word(object + 16).min(most)) }
}

/// A `str` as UTF-8, cut to the buffer.
///
/// # Safety
/// The address is that of a live, compact `str`.
pub(super) unsafe fn string<'b>(layout: &Layout, object: usize, buffer: &'b mut [u8]) -> &'b [u8] {
    // SAFETY: PyASCIIObject is ob_refcnt, ob_type, length, hash, state; the state's bits are interned: 2, kind: 3 (the
    // bytes of a character), compact: 1, ascii: 1 (Include/cpython/unicodeobject.h).
    let (length, state) = unsafe { (word(object + 16), half(object + 32)) };
    let (kind, is_compact, is_ascii) = (state >> 2 & 7, state >> 5 & 1 == 1, state >> 6 & 1 == 1);
    if !is_compact {
        return &[];
    }
    let start = object + if is_ascii { layout.string_ascii } else { layout.string_other };
    let mut used = 0;
    for index in 0..length {
        // SAFETY: the string holds `length` characters of `kind` bytes each.
        let character = unsafe {
            match kind {
                1 => u32::from(*((start + index) as *const u8)),
                2 => u32::from(((start + 2 * index) as *const u16).read_unaligned()),
                _ => half(start + 4 * index),
            }
        };
        let mut encoded = [0; 4];
        let encoded = char::from_u32(character).unwrap_or(char::REPLACEMENT_CHARACTER).encode_utf8(&mut encoded);
        let Some(room) = buffer.get_mut(used..used + encoded.len()) else { break };
        room.copy_from_slice(encoded.as_bytes());
        used += encoded.len();
    }
    &buffer[..used]
}
