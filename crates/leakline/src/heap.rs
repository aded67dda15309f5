//! From a heap snapshot to who holds what: a graph of objects, what would be freed with each (`dominators`), the shortest
//! way to each in Python's own words (`words`), and the holder of a finding's survivors (`holder`).
use std::io::Read;
use std::path::Path;

use leakline_table::heap::Heap;

use crate::failure::{Exit, Failure};
use crate::reader;

pub mod dominators;
pub mod graph;
pub mod holder;
pub mod summary;
mod words;

pub use graph::Graph;

/// The largest file that is read, bytes.
const MOST_BYTES: u64 = 16 << 30;

/// Reads a snapshot and finds out who holds what.
pub fn open(path: &Path) -> Result<Graph, Failure> {
    let mut bytes = Vec::new();
    reader::open(path)
        .and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes))
        .map_err(|error| Failure::io("read", path, &error))?;
    let heap = Heap::read(&bytes).map_err(|refusal| {
        let what = format!("{} is no heap snapshot that can be read: {refusal}", path.display());
        Failure::new(Exit::Damaged, what, "take a new one with `leakline heap PID`")
    })?;
    Ok(Graph::new(heap))
}
