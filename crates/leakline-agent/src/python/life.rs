//! Looks at a small block and tells whether it lies dead on one of CPython's free lists.
//!
//! ```text
//! float        24 bytes                 [refcnt] [type, or the next free float] [value]
//! dict, list   head + 48, head + 40     [collector's head] [refcnt] [type] …
//! tuple        head + 24 + 8 × items    [collector's head] [refcnt] [type] [size] [item 0] …
//! key table    168 (120 from 3.11 on)   [refcnt] …
//! ```
//! (Objects/floatobject.c, dictobject.c, listobject.c, tupleobject.c.) A parked object keeps its type, a float aside,
//! and shows a reference count of zero, which a live one never does. There is one exception: a key table that its dict
//! has outgrown is parked as it was (`dictresize`), and only the first key of its next life gives it away.

use super::api;
use super::layout;
use super::text::{half, word};
use leakline_table::layout::{FLAG_OBJECT, SampleRecord};
use leakline_table::writer::Life;

const FLOAT_BYTES: usize = 24;

/// Looks at the block of a sample.
///
/// # Safety
/// The caller holds the GIL; the block was served by pymalloc through our hooks and has not been freed.
pub(crate) unsafe fn look(record: &SampleRecord) -> Life {
    let Some(api) = api::get() else { return Life::InUse(0) };
    let layout = layout::chosen();
    let (block, bytes) = (record.address as usize, record.size as usize);
    let head = layout.collector_head;
    // SAFETY: every load lies within the block's bytes, which are readable while the block is not freed.
    unsafe {
        if record.flags & FLAG_OBJECT != 0 && bytes == FLOAT_BYTES {
            return match (is_parked(layout, word(block)), word(block + 8) == api.float_type as usize) {
                (true, _) => Life::Parked,
                // Zero is a value, too, but the mark 0 says nothing.
                (_, true) => Life::InUse(word(block + 16) as u64 | 1),
                (_, false) => Life::InUse(0),
            };
        }
        if bytes == layout.key_table && is_key_table(layout, block) {
            // The first key stays until it is deleted, and others are put behind it even then.
            return match is_parked(layout, word(block)) {
                true => Life::Parked,
                false => Life::InUse(word(block + layout.key_table_first_key) as u64),
            };
        }
        if record.flags & FLAG_OBJECT != 0 && bytes >= head + 32 {
            let kind = word(block + head + 8);
            let is_tuple = kind == api.tuple_type as usize;
            if is_tuple || kind == api.dict_type as usize || kind == api.list_type as usize {
                return match is_parked(layout, word(block + head)) {
                    true => Life::Parked,
                    // The first item stays what it is as long as the tuple lives. (A parked tuple chains others there.)
                    false if is_tuple => Life::InUse(word(block + head + 24) as u64),
                    false => Life::InUse(0),
                };
            }
        }
        Life::InUse(0)
    }
}

/// Is this what stands in a parked object in the place of its count of references? An address, other than a count of 32
/// bits and the flags above bit 48, has bits between them (`_PyFreeList_PushObj`, Include/internal/pycore_freelist.h, and
/// Include/refcount.h, 3.14).
fn is_parked(layout: &layout::Layout, count: usize) -> bool {
    count == 0 || layout.parked_are_chained && count >> 32 & 0xFFFF != 0
}

/// Does the block look like a key table of the least size? Its counters stay as they were when it is parked.
///
/// # Safety
/// The block has at least 120 readable bytes.
unsafe fn is_key_table(layout: &layout::Layout, block: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let small = |offset: usize| word(block + offset) <= 5;
        match layout.key_table_has_logs {
            // dk_refcnt, dk_log2_size = 3, dk_log2_index_bytes = 3, dk_kind = DICT_KEYS_UNICODE, …, dk_usable, dk_nentries
            true => half(block + 8) & 0xFF_FFFF == 0x01_0303 && small(16) && small(24),
            // dk_refcnt, dk_size = 8, dk_lookup, dk_usable, dk_nentries
            false => word(block + 8) == 8 && small(24) && small(32),
        }
    }
}
