//! From the bytes at the beginning of a page to what CPython's pymalloc holds there.
//!
//! ```text
//! pool     4 KiB, from 3.10 on 16 KiB, aligned: [header, 48 bytes][block][block]…
//! header   [blocks in use: u32][padding][free block][next pool][previous pool]
//!          [arena: u32][class: u32][next offset: u32][most next offset: u32]
//! ```
//! (`struct pool_header`, Objects/obmalloc.c, from 3.12 on Include/internal/pycore_obmalloc.h.) Arenas are mapped by
//! themselves, and their list is no symbol that programs export; but a pool's header says so much of the pool twice
//! that it is known when it is seen.

use crate::symbols::Minor;

/// Bytes of a pool's header.
pub(super) const HEADER: usize = 48;
/// Bytes between two classes of sizes.
const STEP: u32 = 16;
/// How many classes there are: up to 512 bytes.
const CLASSES: u32 = 32;

/// A pool: blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    /// Bytes of its blocks that are in use.
    pub(super) used: u64,
}

/// Bytes of a pool in a Python of this minor version.
pub(super) fn pool_bytes(minor: Minor) -> u64 {
    if minor < 10 { 4096 } else { 16384 }
}

/// The pool with this header; `None` where it is none.
pub(super) fn pool(header: &[u8; HEADER], pool_bytes: u64) -> Option<Pool> {
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (blocks, class, next, most_next) = (word(0), word(36), word(40), word(44));
    if class >= CLASSES {
        return None;
    }
    let size = (class + 1) * STEP;
    let pool_bytes = u32::try_from(pool_bytes).ok()?;
    let capacity = (pool_bytes - HEADER as u32) / size;
    let is_offset =
        |offset: u32| offset > HEADER as u32 && offset <= pool_bytes && (offset - HEADER as u32).is_multiple_of(size);
    let is_pool = most_next == pool_bytes - size && is_offset(next) && blocks <= capacity;
    is_pool.then(|| Pool { used: u64::from(blocks) * u64::from(size) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(blocks: u32, class: u32, next: u32, most_next: u32) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        for (at, word) in [(0, blocks), (36, class), (40, next), (44, most_next)] {
            header[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        header
    }

    #[test]
    fn pools_are_known_by_their_headers() {
        assert_eq!(pool(&header(3, 3, 48 + 5 * 64, 4096 - 64), 4096), Some(Pool { used: 3 * 64 }));
        assert_eq!(pool(&header(0, 31, 48 + 512, 16384 - 512), 16384), Some(Pool { used: 0 }));
        for other in [
            header(3, 3, 48 + 5 * 64, 4096 - 48),
            header(3, 3, 48 + 5 * 64 + 8, 4096 - 64),
            header(64, 3, 48 + 5 * 64, 4096 - 64),
            header(3, 32, 48 + 5 * 64, 4096 - 64),
            header(0, 0xFFFF, 0, 0),
            [0; HEADER],
            [0xFF; HEADER],
        ] {
            assert_eq!(pool(&other, 4096), None);
        }
    }
}
