//! Plans of traffic on whatever libFuzzer comes up with; see `reader.rs`.
#![no_main]

#[path = "../../crates/leakline/tests/files/exercise.rs"]
#[allow(dead_code, reason = "each target has one of its functions for a body")]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    exercise::plan(bytes);
});
