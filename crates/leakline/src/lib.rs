//! Everything of the `leakline` command but its entry: from the tables that agents write to findings and their print.
pub mod analyze;
pub mod case;
pub mod command;
pub mod drive;
pub mod failure;
pub mod heap;
pub mod printable;
pub mod reader;
pub mod report;
pub mod runs;
pub mod symbols;
pub mod target;
