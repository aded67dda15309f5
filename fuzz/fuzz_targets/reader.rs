//! The reader on whatever libFuzzer comes up with. The body is the one that `tests/hostile` of leakline-table runs with
//! seeded mutations, so that every test run tries it briefly without a nightly compiler.
//!
//! `cargo fuzz run reader CORPUS -- -max_len=1100000`, with some tables of the least size (`LEAKLINE_TABLE_BYTES=1048576`)
//! in CORPUS: from nothing no fuzzer invents a header.
#![no_main]

#[path = "../../crates/leakline-table/tests/hostile/exercise.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = exercise::read(bytes);
});
