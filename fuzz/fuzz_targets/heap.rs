//! The reader of heap snapshots on whatever libFuzzer comes up with; see `reader.rs`.
#![no_main]

#[path = "../../crates/leakline-table/tests/heap/exercise.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = exercise::read(bytes);
});
