//! Everything of the `leakline` command but its entry: from the tables that agents write to findings and their print.
pub mod analyze;
