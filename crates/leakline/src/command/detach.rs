//! `leakline detach`: from a server that `leakline attach` has come into to one that runs as it did before.
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::attach::Line;
use super::owner::Owner;
use super::{Global, print};
use crate::failure::{Exit, Failure};
use crate::target::attach::examine::Target;
use crate::target::attach::{Outcome, detach};
use crate::target::process::descendants;

/// End what `leakline attach` has begun
///
/// Takes the hooks out of the process and its children and closes their tables, which stay and can be reported. The
/// agent's code stays in memory, unused, and serves again if you attach again.
#[derive(Debug, Args)]
#[command(after_help = "\
Exits with 9 when neither the process nor any of its children is recorded, or when `leakline run` has started it.")]
pub struct Detach {
    /// The server's process, or any of its parents
    pid: u32,
}

#[derive(Serialize)]
struct Listing {
    processes: Vec<Line>,
}

impl Detach {
    /// Detaches from the process and its children.
    pub fn carry_out(self, global: &Global) -> Result<ExitCode, Failure> {
        let owner = Owner::of_process(self.pid);
        let place = global.place_of(&owner, self.pid)?;
        let outcomes = leave(self.pid);
        let lines: Vec<Line> = outcomes.iter().map(|(pid, outcome)| Line::new(*pid, outcome)).collect();
        let is_done = outcomes.iter().any(|(_, outcome)| outcome.is_ok());
        let failure = outcomes.into_iter().find_map(|(_, outcome)| outcome.err());
        if !is_done {
            return match failure {
                Some(failure) => Err(failure),
                None => Target::examine(self.pid).and_then(|target| detach(&target)).map(|_| Exit::Done.into()),
            };
        }
        // The tables may lie in a folder that was named when they were begun, and not now.
        owner.act(|| {
            if let Ok(mut run) = global.run_of(&owner, &place, self.pid) {
                run.left()?;
            }
            Ok(())
        })?;
        let waits = "the last of it goes when its main thread wakes up";
        let text = || lines.iter().map(|line| line.text("detached", waits)).collect();
        print(&if global.json { super::json(&Listing { processes: lines }) } else { text() })?;
        Ok(failure.map_or(Exit::Done, |failure| failure.exit).into())
    }
}

/// Detaches from a process and its children, those that are recorded.
pub fn leave(pid: u32) -> Vec<(u32, Result<Outcome, Failure>)> {
    let processes = std::iter::once(pid).chain(descendants(pid));
    let targets = processes.filter_map(|pid| Target::examine(pid).ok());
    let outcomes = targets.map(|target| (target.pid, detach(&target)));
    outcomes.filter(|(_, outcome)| !outcome.as_ref().is_err_and(|failure| failure.exit == Exit::Already)).collect()
}
