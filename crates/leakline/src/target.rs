//! The processes that are looked at, from outside: how they are started, and what `/proc` says of them.
pub mod agent;
pub mod launch;
pub mod limit;
pub mod memory;
pub mod process;
pub mod python;
