//! What is asked of the reader of heap snapshots for any bytes at all: that it refuses them, or that all it returns can be
//! relied upon. The fuzz target in `fuzz/` has this for its body.

use leakline_table::heap::Heap;
use leakline_table::reader::Refusal;

/// Reads bytes as a heap snapshot and follows every reference in what comes out.
pub fn read(bytes: &[u8]) -> Result<Heap, Refusal> {
    let read = Heap::read(bytes);
    match &read {
        Ok(heap) => check(heap, bytes.len()),
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
    read
}

fn check(heap: &Heap, file_bytes: usize) {
    let mut edges = 0;
    for (at, object) in heap.objects.iter().enumerate() {
        assert!((object.of as usize) < heap.types.len());
        assert!(object.label.is_none_or(|label| (label as usize) < heap.labels.len()));
        edges += heap.edges_of(at).len();
    }
    assert_eq!(edges, heap.edges.len());
    for edge in &heap.edges {
        assert!(edge.count > 0 && edge.name.is_none_or(|name| (name as usize) < heap.names.len()));
    }
    for limit in &heap.limits {
        assert!((limit.object as usize) < heap.objects.len() && (limit.name as usize) < heap.names.len());
    }
    assert!(heap.lost.is_sorted_by(|one, other| one < other));
    // What is read from a file must not be able to fill the memory: an object takes eight bytes at least, an edge or a limit
    // two, a block one.
    assert!(8 * heap.objects.len() + 2 * (heap.edges.len() + heap.limits.len()) + heap.lost.len() <= file_bytes);
}
