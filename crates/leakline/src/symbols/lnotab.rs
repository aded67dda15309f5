//! `co_lnotab`, CPython 3.6 to 3.9: pairs of an unsigned step in bytes and a signed step in lines.
//!
//! ```text
//! line   1 ........ 2 ....... 4
//! table    [6, 1]     [4, 2]            the first 6 bytes are line 1, the next 4 line 2, the rest line 4
//! ```
//!
//! A step too large for a byte is split into several pairs.

/// The line of an instruction, as `PyCode_Addr2Line` finds it.
pub fn line(table: &[u8], first_line: i64, offset: u32) -> Option<i64> {
    let mut start: u32 = 0;
    let mut line = first_line;
    for pair in table.chunks_exact(2) {
        start = start.saturating_add(pair[0].into());
        if start > offset {
            break;
        }
        line += i64::from(pair[1] as i8);
    }
    Some(line)
}
