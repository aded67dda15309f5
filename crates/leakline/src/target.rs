//! The processes that are looked at, from outside: how they are started or attached to, and what `/proc` says of them.
pub mod agent;
pub mod attach;
pub mod launch;
pub mod limit;
pub mod memory;
pub mod process;
pub mod python;
pub mod root;
pub mod snapshot;
