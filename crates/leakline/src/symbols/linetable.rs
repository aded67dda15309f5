//! `co_linetable` of CPython 3.10 (PEP 626): pairs of an unsigned length in bytes and a signed step in lines. The step
//! comes before the bytes that it is for. A step of -128 says that these bytes have no line.

const NO_LINE: i8 = -128;

/// The line of an instruction.
pub fn line(table: &[u8], first_line: i64, offset: u32) -> Option<i64> {
    let mut end: u32 = 0;
    let mut line = first_line;
    for pair in table.chunks_exact(2) {
        let step = pair[1] as i8;
        if step != NO_LINE {
            line += i64::from(step);
        }
        end = end.saturating_add(pair[0].into());
        if offset < end {
            return (step != NO_LINE).then_some(line);
        }
    }
    None
}
