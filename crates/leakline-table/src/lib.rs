//! The contract between the agent, which runs inside the Python server, and the command, which runs outside: one file,
//! mapped and shared, that outlives the server however it dies.
//!
//! [`layout`] draws the bytes. [`writer`] is the agent's half: it never allocates, never blocks and never panics, and
//! when it is full it thins what it holds instead of going blind. [`reader`] is the command's half: it believes nothing
//! that it reads. [`attachment`] is what they tell each other where the agent is brought into a server that already runs.
pub mod attachment;
pub mod heap;
pub mod layout;
pub mod reader;
pub mod writer;
