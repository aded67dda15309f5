//! Turns evidence and what the analysis made of it into reports: one for programs, one for people. No I/O.
pub mod json;
mod ledger;
mod text;

pub use json::{Report, json};
pub use text::{Printed, count, size, text};
