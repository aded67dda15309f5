//! From the words of the command line to what they ask for: a file a subcommand.
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::failure::Failure;
use crate::printable::printable;
use crate::runs::{Run, Runs};
use crate::target::root::{Place, Root};
use owner::Owner;

mod attach;
mod demo;
mod detach;
mod doctor;
mod drive;
mod effort;
mod heap;
mod list;
mod owner;
mod report;
mod run;

const EXAMPLES: &str = "\
Examples:
  leakline run -- gunicorn -w 2 app:app     start a server; its report comes when it ends
  leakline attach 4711                      watch a server that runs already
  leakline report                           what the latest run has shown so far
  leakline report 4711 --json               the run that process 4711 belongs to, for a program
  leakline report --fail-on leak            in CI: exit with 3 when there is a leak
  leakline heap 4711                        what is in a worker's heap, and who holds it
  leakline list                             which runs and tables there are
  leakline doctor                           what would work on this machine, and what not
  leakline drive http://127.0.0.1:8000/     send traffic to a server
  leakline demo                             watch it find the leak of a small server

Exit codes: 0 done, 1 error, 2 wrong usage, 3 found what --fail-on names, 4 no run or table,
5 not a table or a damaged one, 6 somebody else's, 7 no such process, 8 a process that can't be
attached to, 9 attached to already, or not at all. `run` exits as its server does:
128+N for signal N, 126 or 127 when the command can't be run or isn't there.";

/// Finds out why a Python web server's memory grows, while it serves, and names the route and the line.
#[derive(Debug, Parser)]
#[command(name = "leakline", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand takes.
#[derive(Debug, Args)]
pub struct Global {
    /// Where tables live: a folder of yours that nobody else may enter
    ///
    /// It is made with mode 0700 where it is missing. Default: $LEAKLINE_DIR, else $XDG_RUNTIME_DIR/leakline, else
    /// /tmp/leakline-UID.
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: clap::ColorChoice,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Attach(attach::Attach),
    Detach(detach::Detach),
    Report(report::Report),
    List(list::List),
    Doctor(doctor::Doctor),
    Drive(Box<drive::Drive>),
    Demo(demo::Demo),
    Heap(heap::Heap),
}

impl Arguments {
    /// Does what they ask for.
    pub fn carry_out(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Run(run) => run.carry_out(&self.global),
            Command::Attach(attach) => attach.carry_out(&self.global),
            Command::Detach(detach) => detach.carry_out(&self.global),
            Command::Report(report) => report.carry_out(&self.global),
            Command::List(list) => list.carry_out(&self.global),
            Command::Doctor(doctor) => doctor.carry_out(&self.global),
            Command::Drive(drive) => drive.carry_out(&self.global),
            Command::Demo(demo) => demo.carry_out(&self.global),
            Command::Heap(heap) => heap.carry_out(&self.global),
        }
    }
}

impl Global {
    /// The folder of tables, by the user's choice or by default.
    fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(Runs::default_dir)
    }

    /// The same for the tables of somebody whose server we attach to.
    fn dir_of(&self, owner: &Owner) -> PathBuf {
        match (&self.dir, owner.foreign_dir()) {
            (None, Some(dir)) if std::env::var_os("LEAKLINE_DIR").is_none() => dir,
            _ => self.dir(),
        }
    }

    /// Where the tables of a process lie: in our folder, or in one of its own, where it sees other files than we do.
    fn place_of(&self, owner: &Owner, pid: u32) -> Result<Place, Failure> {
        let dir = self.dir_of(owner);
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        // One that has ended sees nothing any more.
        let Ok(root) = Root::of(pid) else { return Ok(Place::shared(dir)) };
        if root.sees(&dir) {
            return Ok(Place::shared(dir));
        }
        let is_chosen = self.dir.is_some() || std::env::var_os("LEAKLINE_DIR").is_some();
        root.place(&if is_chosen { dir } else { owner.usual_dir() })
    }

    /// The latest run that a process belongs to, in our folder or in its own.
    fn run_of(&self, owner: &Owner, place: &Place, pid: u32) -> Result<Run, Failure> {
        let dir = self.dir_of(owner);
        let ours = Runs::open(&dir).and_then(|runs| runs.of_pid(pid));
        if ours.is_ok() || place.ours == place.theirs {
            return ours;
        }
        Runs::open(&place.ours)?.of_pid(pid)
    }

    /// The runs that there are.
    fn runs(&self) -> Result<Runs, Failure> {
        Runs::open(&self.dir())
    }

    /// Whether to colour what goes to `stream`.
    fn coloured(&self, stream: &impl RawStream) -> bool {
        match self.color {
            clap::ColorChoice::Always => true,
            clap::ColorChoice::Never => false,
            clap::ColorChoice::Auto => AutoStream::choice(stream) != ColorChoice::Never,
        }
    }
}

/// Writes to standard output. A reader that has had enough, as `head` has, is no error.
fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("write to", Path::new("standard output"), &error))
        }
        _ => Ok(()),
    }
}

/// Says a line to the user, beside whatever the output is. Nobody may be there to hear it.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "leakline: {}", printable(line));
}

/// The JSON text of a listing, on lines of its own.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("strings, numbers and lists always have a JSON form") + "\n"
}
