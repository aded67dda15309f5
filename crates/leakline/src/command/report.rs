//! `leakline report`: from the tables of a run to what they say about its memory.
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstream::stream::RawStream;
use clap::{Args, ValueEnum};

use super::owner::Owner;
use super::{Global, print, say};
use crate::analyze;
use crate::analyze::evidence::Evidence;
use crate::failure::{Exit, Failure};
use crate::printable::printable;
use crate::reader;
use crate::report::{self, Printed, Report as Findings};
use crate::runs::{self, Run};
use crate::target::snapshot::{Expecting, IN_TIME, PATIENTLY};

pub(super) mod holders;

/// Say why a server's memory grows
///
/// Reads what the agents in a server's processes have written, while it runs or after it ended, however it ended.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leakline report                          the latest run
  leakline report 4711                     the run that process 4711 belongs to
  leakline report ./saved-run --json       a folder of tables that you kept

Exits with 3 when it found what --fail-on names, 4 when there is no run or table, 5 when no table can be read.")]
pub struct Report {
    /// A process of the run, or a folder of tables; the latest run if neither is given
    #[arg(value_name = "PID|DIR")]
    of: Option<String>,
    /// Exit with 3 if there is a finding of this kind
    #[arg(long, value_name = "KIND")]
    fail_on: Option<Kind>,
    /// Don't ask a worker that runs what holds its memory
    ///
    /// Where something leaks, the worker that holds most of it is copied to look at its objects (see `leakline heap`), unless
    /// it would stand still for more than 250 ms or less than 20 % of its memory limit is free.
    #[arg(long)]
    no_snapshot: bool,
}

/// What there are findings of.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Each request leaves something behind
    Leak,
    /// Few requests take much at once
    Balloon,
    /// The allocators keep much free memory
    Retained,
}

impl Report {
    /// Prints the report.
    pub fn carry_out(self, global: &Global) -> Result<ExitCode, Failure> {
        // Root's look at the tables of somebody's server is no more than their owner's.
        let process = self.of.as_ref().and_then(|of| of.parse().ok());
        let owner = process.map(Owner::of_process);
        let place = process.zip(owner).map(|(pid, owner)| global.place_of(&owner, pid)).transpose()?;
        let read = || {
            let run = match (&self.of, process.zip(owner), &place) {
                (_, Some((pid, owner)), Some(place)) => global.run_of(&owner, place, pid)?,
                (Some(folder), ..) => Run::open(Path::new(folder))?,
                (None, ..) => global.runs()?.latest()?,
            };
            let findings = of(&run, (!self.no_snapshot).then_some(PATIENTLY))?;
            if run.record.as_ref().is_some_and(|record| record.attached) {
                // `leakline run` does so while its server runs; here nobody else is there to do it.
                run.keep_latest();
                // A server that is killed is then known as it was when somebody last asked for it by its process id: in a
                // folder that was named root would write with root's rights.
                if process.is_some() {
                    runs::look(&run);
                }
            }
            let text = printed(&findings, &run, global, &std::io::stdout());
            Ok((findings, text))
        };
        let (findings, text) = owner.as_ref().map_or_else(read, |owner| owner.act(read))?;
        print(&text)?;
        let found = self.fail_on.is_some_and(|kind| {
            let kind = match kind {
                Kind::Leak => "leak",
                Kind::Balloon => "balloon",
                Kind::Retained => "retained",
            };
            findings.findings.iter().any(|finding| finding.kind == kind)
        });
        Ok(if found { Exit::Found } else { Exit::Done }.into())
    }
}

/// Reads every table of the run and analyzes them together. Tables that can't be read are named and left out, unless
/// there are no others. Who holds what leaks is asked of a worker that runs where `ask_seconds` says how long that may take,
/// else of the last snapshot.
pub fn of(run: &Run, ask_seconds: Option<u32>) -> Result<Findings, Failure> {
    let limit = run.record.as_ref().and_then(|record| record.limit_bytes);
    let mut evidence = Evidence::default();
    let (mut unreadable, mut tables) = (Vec::new(), Vec::new());
    for table in &run.tables {
        match reader::worker(table, limit) {
            Ok(worker) => {
                evidence.workers.push(worker);
                tables.push(table);
            }
            Err(failure) => unreadable.push(failure),
        }
    }
    if evidence.workers.is_empty() {
        return Err(unreadable.into_iter().next().unwrap_or_else(|| no_table(run)));
    }
    for failure in unreadable {
        say(&failure.to_string());
    }
    let mut analysis = analyze::findings(&evidence);
    holders::find(&mut analysis, &evidence, &tables, ask_seconds);
    Ok(Findings::new(&evidence, &analysis))
}

/// When the server has ended, or we have left it, nobody can tell any more who held what: so the worker that holds most of
/// what leaks, if anything does, is asked while it can be. A process that is about to end, since a terminal sends its
/// signals to the server and to us, waits for that. Where it can't be asked, the report does without.
pub fn ask_in_time(folder: &Path) {
    let Ok(run) = Run::open(folder) else { return };
    let _expecting: Vec<_> = run.tables.iter().filter_map(Expecting::tell).collect();
    let _ = of(&run, Some(IN_TIME));
}

/// The report as it is to go to `stream`.
pub fn printed(findings: &Findings, run: &Run, global: &Global, stream: &impl RawStream) -> String {
    if global.json {
        return report::json(findings) + "\n";
    }
    let home = Path::new(run.record.as_ref().map_or("", |record| &record.cwd));
    // As the server sees its files, where it runs: in a container they are others than ours.
    let alive = run.tables.iter().find(|table| table.process.is_alive());
    let root = alive.map(|table| PathBuf::from(format!("/proc/{}/root", table.process.pid)));
    let root = root.filter(|root| root.is_dir()).unwrap_or_else(|| "/".into());
    let source = |file: &str, line: u32| {
        let file = home.join(file);
        source_line(&file.strip_prefix("/").map_or(file.clone(), |inside| root.join(inside)), line)
    };
    report::text(findings, Printed { source: &source, colour: global.coloured(stream) })
}

fn no_table(run: &Run) -> Failure {
    let what = format!("{} holds no table: the agent started in none of its processes", run.folder.display());
    Failure::new(Exit::NoTable, what, "see what would work with `leakline doctor`")
}

/// No line is looked for behind so many bytes of a file, whose name and size are the target's choice.
const MOST_SOURCE: u64 = 16 << 20;

/// The file may be another one today, or none that we may read: then the report does without the source.
fn source_line(file: &Path, line: u32) -> Option<String> {
    let file = reader::open(file).ok()?;
    let text = BufReader::new(file.take(MOST_SOURCE)).lines().nth((line as usize).checked_sub(1)?)?.ok()?;
    Some(printable(text.trim()))
}
