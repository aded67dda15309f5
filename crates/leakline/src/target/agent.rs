//! From the agent's bytes to a file that the target's loader can open.
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::failure::{Exit, Failure};
use crate::runs::write_whole;

/// The agent of a released command, which carries it in itself (see `build.rs`).
#[cfg(agent_embedded)]
const EMBEDDED: Option<&[u8]> = Some(include_bytes!(env!("LEAKLINE_EMBED_AGENT")));
#[cfg(not(agent_embedded))]
const EMBEDDED: Option<&[u8]> = None;

const FILE: &str = "libleakline_agent.so";

/// Where the agent's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `$LEAKLINE_AGENT`, or a file beside the command, as cargo builds it.
    File(PathBuf),
    /// The command itself.
    Embedded,
}

impl Source {
    /// The agent that this command would use: `$LEAKLINE_AGENT`, its own, or one beside it.
    pub fn find() -> Result<Self, Failure> {
        if let Some(file) = std::env::var_os("LEAKLINE_AGENT") {
            return Ok(Self::File(file.into()));
        }
        if EMBEDDED.is_some() {
            return Ok(Self::Embedded);
        }
        // Cargo leaves the command in target/debug or target/release and the agent in target/agent.
        let command = std::env::current_exe().unwrap_or_default();
        let folder = command.parent().unwrap_or(Path::new("."));
        [folder.join(FILE), folder.join("../agent").join(FILE)]
            .into_iter()
            .find(|file| file.is_file())
            .map(Self::File)
            .ok_or_else(|| {
                Failure::new(
                    Exit::Error,
                    "this build of leakline carries no agent, and none lies beside it",
                    "build one with `cargo build -p leakline-agent --profile agent`, or the whole with scripts/dist",
                )
            })
    }

    fn bytes(&self) -> Result<Vec<u8>, Failure> {
        match self {
            Self::File(file) => fs::read(file).map_err(|error| {
                let next = "check $LEAKLINE_AGENT, or build it with `cargo build -p leakline-agent --profile agent`";
                Failure::new(Exit::Error, format!("cannot read the agent {}: {error}", file.display()), next)
            }),
            Self::Embedded => Ok(EMBEDDED.unwrap_or_default().to_vec()),
        }
    }

    /// The agent's bytes, and a name made from them.
    pub fn named(&self) -> Result<(String, Vec<u8>), Failure> {
        let bytes = self.bytes()?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Ok((format!("agent-{:016x}.so", hasher.finish()), bytes))
    }

    /// Puts the agent into `folder` under its name, and returns its path. A file that is there already is kept: running
    /// servers have it mapped.
    pub fn install(&self, folder: &Path) -> Result<PathBuf, Failure> {
        let (name, bytes) = self.named()?;
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|present| present == bytes) {
            return Ok(path);
        }
        write_whole(&path, &bytes)?;
        Ok(path)
    }
}
