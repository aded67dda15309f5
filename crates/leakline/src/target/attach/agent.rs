//! From the agent's library in a process to what it says there, and to what it is told.
use std::io;
use std::mem::offset_of;
use std::path::Path;

use leakline_table::attachment::{Attachment, REASON_BYTES, SYMBOL, State, VERSION};

use super::examine::Target;
use super::memory::{Library, Memory};
use crate::target::agent::Source;
use crate::target::python::Mapped;

/// The agent's library in the process.
pub struct Agent(pub Library);

impl Agent {
    /// One that is mapped from this file already. What it exports we know from our own file where the one that was mapped
    /// is deleted and only root may still read it.
    pub fn present(target: &Target, file: &Path) -> Option<Self> {
        let ours = || {
            let (name, bytes) = Source::find().ok()?.named().ok()?;
            (Mapped::agent_name(file) == Some(&name)).then(|| Library::at(&bytes, target.maps.start(file)?, file))?
        };
        target.maps.load(file).or_else(ours).map(Self)
    }

    /// The address of a field of its [`Attachment`].
    pub fn field(&self, offset: usize) -> io::Result<u64> {
        let start =
            self.0.address(SYMBOL).ok_or_else(|| io::Error::other("this agent is of a leakline without attach"))?;
        Ok(start + offset as u64)
    }

    /// What it is doing.
    pub fn state(&self, memory: &Memory) -> io::Result<State> {
        if memory.half(self.field(offset_of!(Attachment, version))?)? != VERSION {
            return Err(io::Error::other("this agent is of another leakline"));
        }
        let number = memory.half(self.field(offset_of!(Attachment, state))?)?;
        State::from_number(number).ok_or_else(|| io::Error::other("this agent is damaged"))
    }

    /// Why it refused.
    pub fn reason(&self, memory: &Memory) -> String {
        let at = self.field(offset_of!(Attachment, reason)).unwrap_or(0);
        memory.text(at, REASON_BYTES)
    }

    /// Tells it something.
    pub fn put(&self, memory: &Memory, offset: usize, word: u64) -> io::Result<()> {
        memory.write(self.field(offset)?, &word.to_le_bytes())
    }

    /// The page of jumps that it was given, 0 for none.
    pub fn stubs(&self, memory: &Memory) -> io::Result<u64> {
        memory.word(self.field(offset_of!(Attachment, stubs))?)
    }
}
