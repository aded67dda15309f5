//! Turns evidence and what the analysis made of it into reports: one for programs (`schema`, which `json` fills in), one for
//! people (`text`). No I/O.
mod json;
mod ledger;
pub mod schema;
mod sentence;
mod text;

pub use json::json;
pub use schema::Report;
pub use text::{Printed, count, size, text};
