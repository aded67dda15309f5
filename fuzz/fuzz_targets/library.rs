//! Symbols and debug information of libraries on whatever libFuzzer comes up with; those without a build-id are read; see `reader.rs`.
#![no_main]

#[path = "../../crates/leakline/tests/files/exercise.rs"]
#[allow(dead_code, reason = "each target has one of its functions for a body")]
mod exercise;

mod private;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    exercise::library(&private::folder().join("library.so"), &[], bytes);
});
