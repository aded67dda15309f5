//! What is asked of the reader for any bytes at all: that it refuses them, or that all it returns can be relied upon.
//! The fuzz target in `fuzz/` has this for its body.

use leakline_table::reader::{Peer, RawFrame, Refusal, Snapshot};

/// Reads bytes as a table and follows every reference in what comes out.
pub fn read(bytes: &[u8]) -> Result<Snapshot, Refusal> {
    let read = Snapshot::read(bytes);
    match &read {
        Ok(snapshot) => check(snapshot, bytes.len()),
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
    read
}

fn check(snapshot: &Snapshot, file_bytes: usize) {
    assert!(!snapshot.codes.is_empty() && !snapshot.routes.is_empty());
    for sample in &snapshot.samples {
        assert!((sample.record.route as usize) < snapshot.routes.len());
        assert!(sample.record.outcome < 3 && sample.record.live != 0);
        assert!(sample.record.weight.is_finite() && sample.record.weight >= 0.0);
        assert!(sample.stack.is_none_or(|stack| (stack as usize) < snapshot.stacks.len()));
    }
    for frame in snapshot.stacks.iter().flatten() {
        match frame {
            RawFrame::Python { code, .. } => assert!((*code as usize) < snapshot.codes.len()),
            RawFrame::Native { module, .. } => assert!((*module as usize) < snapshot.modules.len()),
        }
    }
    assert!(snapshot.routes.iter().flat_map(|route| route.record.allocated_bytes).all(f64::is_finite));
    for (peak, stack) in &snapshot.peaks {
        assert!((peak.route as usize) < snapshot.routes.len() && peak.outcome < 3 && peak.phase < 4);
        assert!(stack.is_none_or(|stack| (stack as usize) < snapshot.stacks.len()));
        assert!([peak.bytes, peak.top_bytes, peak.left_bytes].into_iter().all(f64::is_finite));
    }
    for (socket, _) in &snapshot.sockets {
        assert!((socket.route as usize) < snapshot.routes.len() && socket.outcome < 3 && socket.requests > 0);
    }
    assert!(snapshot.losses().count() <= snapshot.header.lost.len());
    // What is read from a file must not be able to fill the memory. A byte that is no UTF-8 becomes three.
    let peers = snapshot.sockets.iter().map(|(_, peer)| if let Peer::At(address) = peer { address.len() } else { 0 });
    let names = snapshot.codes.iter().map(|code| code.file.len() + code.function.len() + code.line_table.len());
    let modules = snapshot.modules.iter().map(|module| module.path.len() + module.build_id.len());
    let frames = snapshot.stacks.iter().map(|stack| size_of_val(&**stack));
    let names = names.chain(peers).chain(modules);
    let expanded = names.sum::<usize>() + frames.sum::<usize>();
    assert!(expanded <= 3 * 8 * file_bytes, "{expanded} bytes were made from {file_bytes}");
}
