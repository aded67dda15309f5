//! From a code object's compressed line table and an instruction to the line that was being run, outside the target:
//! recording lines would cost the server more than everything else that the agent does. (And from addresses of native
//! code to functions: [`native`].)
//!
//! CPython has had three encodings; `Objects/lnotab_notes.txt` and `Objects/locations.md` of its sources describe them.
mod linetable;
mod lnotab;
mod locations;
pub mod native;

/// A CPython's minor version: 11 for 3.11.
pub type Minor = u8;

/// The line that the instruction `offset` bytes into the code belongs to. `None` for instructions of no line, which
/// the compiler makes up, and for a table that is cut short or makes no sense.
pub fn line(minor: Minor, table: &[u8], first_line: u32, offset: u32) -> Option<u32> {
    let line = match minor {
        ..=9 => lnotab::line(table, i64::from(first_line), offset),
        10 => linetable::line(table, i64::from(first_line), offset),
        11.. => locations::line(table, i64::from(first_line), offset),
    };
    line.and_then(|line| u32::try_from(line).ok())
}
