//! `leakline list`: from the folder of tables to a line a run and a line a table.
use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{Global, print};
use crate::failure::{Exit, Failure};
use crate::printable::printable;
use crate::reader;
use crate::runs::{self, Run, TableFile};

/// Show the runs and their tables
///
/// Runs are listed with the latest first. Ended ones are kept until `leakline run` has made enough newer ones (its
/// --keep); delete a run's folder to forget it earlier.
#[derive(Debug, Args)]
pub struct List {}

#[derive(Serialize)]
struct Listing {
    dir: String,
    runs: Vec<RunLine>,
}

/// Times in seconds since the Unix epoch, sizes in bytes.
#[derive(Serialize)]
struct RunLine {
    name: String,
    folder: String,
    alive: bool,
    command: Option<Vec<String>>,
    pid: Option<u32>,
    started: Option<f64>,
    ended: Option<f64>,
    exit_code: Option<u8>,
    /// The server ran already when the run began.
    attached: bool,
    tables: Vec<TableLine>,
}

#[derive(Serialize)]
struct TableLine {
    file: String,
    pid: u32,
    alive: bool,
    requests: Option<u64>,
    samples_taken: Option<u64>,
    /// What the file takes on disk: it has holes.
    bytes: u64,
    error: Option<String>,
}

impl List {
    /// Prints the listing.
    pub fn carry_out(self, global: &Global) -> Result<ExitCode, Failure> {
        let runs = global.runs()?;
        let listing =
            Listing { dir: runs.dir().display().to_string(), runs: runs.all().iter().map(RunLine::of).collect() };
        print(&if global.json { super::json(&listing) } else { listing.text(runs::now()) })?;
        Ok(Exit::Done.into())
    }
}

impl RunLine {
    fn of(run: &Run) -> Self {
        let record = run.record.as_ref();
        Self {
            name: run.name(),
            folder: run.folder.display().to_string(),
            alive: run.is_alive(),
            command: record.map(|record| record.argv.clone()),
            pid: run.server.map(|server| server.pid),
            started: record.map(|record| record.started),
            ended: record.and_then(|record| record.ended),
            exit_code: record.and_then(|record| record.exit_code),
            attached: record.is_some_and(|record| record.attached),
            tables: run.tables.iter().map(TableLine::of).collect(),
        }
    }
}

impl TableLine {
    fn of(table: &TableFile) -> Self {
        let header = reader::header(&table.path);
        let known = header.as_ref().ok();
        Self {
            file: table.path.display().to_string(),
            pid: table.process.pid,
            alive: table.process.is_alive(),
            requests: known.map(|header| header.requests),
            samples_taken: known.map(|header| header.samples_taken),
            bytes: table.path.symlink_metadata().map_or(0, |metadata| metadata.blocks() * 512),
            error: header.as_ref().err().map(|failure| failure.to_string()),
        }
    }
}

impl Listing {
    fn text(&self, now: f64) -> String {
        if self.runs.is_empty() {
            return format!("no runs in {}; start one with `leakline run -- COMMAND`\n", self.dir);
        }
        let mut text = String::new();
        for run in &self.runs {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", run.text(now));
            for table in &run.tables {
                let _ = writeln!(text, "{}", table.text());
            }
        }
        text
    }
}

impl RunLine {
    fn text(&self, now: f64) -> String {
        let state = match (self.alive, self.attached, self.ended, self.exit_code) {
            (true, true, Some(_), _) => "detached".to_owned(),
            (true, true, None, _) => "attached".to_owned(),
            (true, false, ..) => "running".to_owned(),
            (false, _, _, Some(code)) => format!("ended with {code}"),
            (false, ..) => "ended".to_owned(),
        };
        let age = self.started.map_or_else(String::new, |started| format!(", started {} ago", duration(now - started)));
        let command = printable(&self.command.as_ref().map(|words| words.join(" ")).unwrap_or_default());
        format!("{}  {state}{age}  {command}", self.name)
    }
}

impl TableLine {
    fn text(&self) -> String {
        let state = if self.alive { "alive" } else { "ended" };
        let kilobytes = self.bytes / 1024;
        match (&self.error, self.requests) {
            (Some(error), _) => format!("  {:>8}  {state}  {}", self.pid, printable(error)),
            (None, requests) => {
                format!("  {:>8}  {state}  {} requests  {kilobytes} KiB", self.pid, requests.unwrap_or_default())
            }
        }
    }
}

/// The two largest units are enough to recognise a run by.
fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
