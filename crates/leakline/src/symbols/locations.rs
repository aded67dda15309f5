//! `co_linetable` of CPython 3.11 and later (PEP 657): an entry for each run of code units of two bytes.
//!
//! ```text
//! first byte   1 kkkk nnn      kind, code units - 1; later bytes of an entry have no top bit
//! kind 0..=9   a column byte follows; the line stays
//! kind 10..=12 two column bytes follow; the line grows by kind - 10
//! kind 13      step in lines, a signed varint
//! kind 14      step in lines, a signed varint; then end line, column, end column, varints
//! kind 15      these units have no line
//! ```
//!
//! Steps add up over all entries, also those whose columns do not interest us.

const UNIT_BYTES: u32 = 2;

/// The line of an instruction.
pub fn line(table: &[u8], first_line: i64, offset: u32) -> Option<i64> {
    let mut end: u32 = 0;
    let mut line = first_line;
    // What a kind is followed by has no top bit, so entries are found without decoding the columns.
    for entry in table.chunk_by(|_, next| next & 0x80 == 0) {
        let kind = entry[0] >> 3 & 15;
        // A made-up table may step out of any range; then the line is wrong, and nothing else is.
        line = line.saturating_add(match kind {
            10..=12 => i64::from(kind - 10),
            13 | 14 => signed_varint(&entry[1..])?,
            _ => 0,
        });
        end = end.saturating_add((u32::from(entry[0] & 7) + 1) * UNIT_BYTES);
        if offset < end {
            return (kind != 15).then_some(line);
        }
    }
    None
}

/// Six bits a byte, lowest first, bit 6 says that more follow; the lowest bit of the number is its sign.
fn signed_varint(bytes: &[u8]) -> Option<i64> {
    let mut value: u64 = 0;
    for (index, byte) in bytes.iter().enumerate() {
        value |= u64::from(byte & 63).checked_shl(6 * index as u32)?;
        if byte & 64 == 0 {
            let magnitude = (value >> 1) as i64;
            return Some(if value & 1 == 1 { -magnitude } else { magnitude });
        }
    }
    None
}
