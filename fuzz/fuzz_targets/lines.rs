//! Line tables of code objects on whatever libFuzzer comes up with; see `reader.rs`.
#![no_main]

#[path = "../../crates/leakline/tests/files/exercise.rs"]
#[allow(dead_code, reason = "each target has one of its functions for a body")]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    exercise::lines(bytes);
});
