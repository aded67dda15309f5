//! `leakline heap`: from a running worker, or files, to who holds its memory.
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::owner::Owner;
use super::{Global, json, print, say};
use crate::failure::{Exit, Failure};
use crate::heap::summary::{self, Change, Held, OfType, Summary};
use crate::heap::{self, Graph};
use crate::printable::printable;
use crate::reader;
use crate::report::{count, size};
use crate::runs::{Run, TABLE, TableFile};
use crate::target::memory;
use crate::target::snapshot::{self, Forecast};
use line::Line;

mod line;

/// Show what is in a worker's heap, and who holds it
///
/// The process is copied, as by fork, and the copy writes down all objects while the server goes on. The server stands
/// still only while it is copied: about 100 ms for a GB of resident memory, said first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leakline heap 4711                       objects by type, and who holds most
  leakline heap 4711 --type app.Order      who holds the objects of a type
  leakline heap 4711 --object 0x7f21c0a3   who holds one object, by its id
  leakline heap 4711 --line app.py:42      who holds what a line has allocated
  leakline heap 4711 --save monday.heap    keep the snapshot
  leakline heap monday.heap                look at a snapshot that you kept
  leakline heap --diff monday.heap tuesday.heap

--line goes by the samples of requests that have ended, and says how many bytes they stand for. A snapshot holds names
and sizes of objects, no contents.")]
pub struct Heap {
    /// A process of a run, or a snapshot that was saved
    #[arg(value_name = "PID|FILE", required_unless_present = "diff")]
    of: Option<String>,
    /// Show who holds the objects of this type, by the name that the list of types shows
    #[arg(long = "type", value_name = "TYPE", group = "asked", conflicts_with = "diff")]
    of_type: Option<String>,
    /// Show who holds the object at this address, as id() and repr() tell it
    #[arg(long = "object", value_name = "ADDRESS", group = "asked", conflicts_with = "diff", value_parser = address)]
    of_object: Option<u64>,
    /// Show who holds what this line, or a function that it has called, has allocated
    #[arg(long = "line", value_name = "FILE:LINE", group = "asked", conflicts_with = "diff")]
    of_line: Option<Line>,
    /// Keep the snapshot in this file
    #[arg(long, value_name = "FILE", conflicts_with = "diff")]
    save: Option<PathBuf>,
    /// Take it although the server would stand still for long, or little memory is free
    #[arg(long, conflicts_with = "diff")]
    despite_limits: bool,
    /// Show what has grown from one snapshot to another
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"], conflicts_with = "of")]
    diff: Option<Vec<PathBuf>>,
}

/// An address as `id()` tells it, or as `repr()` does.
fn address(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "an address is a number, or hexadecimal after 0x".to_owned())
}

/// The listing as JSON.
#[derive(Serialize)]
struct Listing {
    schema: u32,
    /// How long the server stood still, seconds; null for a file.
    pause_seconds: Option<f64>,
    /// How much of what Python's allocator has given away these objects are; null for a file, and where a process's memory
    /// may not be read.
    python_blocks: Option<Blocks>,
    #[serde(flatten)]
    summary: Summary,
    /// Who holds the objects of the type, the object or the line that was asked for; null where none was.
    held_by: Option<Vec<Held>>,
}

/// Blocks of at most 512 bytes, which pymalloc serves.
#[derive(Serialize)]
struct Blocks {
    /// That are in use, by the ledger of the process's memory, bytes.
    used: u64,
    /// That belong to objects of the snapshot, bytes.
    of_objects: u64,
}

#[derive(Serialize)]
struct Difference {
    schema: u32,
    types: Vec<Change>,
    holders: Vec<Change>,
}

/// Rows of a table.
const ROWS: usize = 15;

impl Heap {
    /// Prints the listing.
    pub fn carry_out(self, global: &Global) -> Result<ExitCode, Failure> {
        let text = match &self.diff {
            Some(files) => difference(&files[0], &files[1], global)?,
            None => self.listing(global)?,
        };
        print(&text)?;
        Ok(Exit::Done.into())
    }

    fn listing(&self, global: &Global) -> Result<String, Failure> {
        if let Some(file) =
            self.save.as_ref().filter(|file| file.extension().is_some_and(|extension| extension == TABLE))
        {
            // A server that has mapped what is overwritten would not survive it.
            let what = format!("{} is called as tables are, which servers write", file.display());
            return Err(Failure::new(Exit::Usage, what, "choose another name, such as monday.heap"));
        }
        let of = self.of.as_deref().unwrap_or_default();
        let looked = match of.parse() {
            Ok(pid) => {
                // What root does in the folder of somebody's server it does with that user's rights.
                let owner = Owner::of_process(pid);
                let place = global.place_of(&owner, pid)?;
                owner.act(|| {
                    let run = global.run_of(&owner, &place, pid)?;
                    self.look_at(&worker(&run, pid)?)
                })?
            }
            Err(_) if self.of_line.is_some() => {
                let what = format!("{of} does not say where the lines of its process have allocated");
                return Err(Failure::new(Exit::Usage, what, "name a process that runs"));
            }
            Err(_) => Looked::at_file(Path::new(of))?,
        };
        let Looked { path, graph, pause_seconds, python_blocks, blocks } = looked;
        if let Some(file) = &self.save {
            // The folder that it is in may be somebody else's: no link is followed there.
            let copied = reader::open(&path).and_then(|mut from| io::copy(&mut from, &mut File::create(file)?));
            copied.map_err(|error| Failure::io("write", file, &error))?;
        }
        let held_by = match (&self.of_type, self.of_object, blocks) {
            (Some(name), ..) => Some(summary::holders_of_type(&graph, name)),
            (_, Some(address), _) => Some(summary::holder_of_object(&graph, address).into_iter().collect()),
            (.., Some(blocks)) => Some(summary::holders_of_blocks(&graph, &blocks)),
            _ => None,
        };
        let listing = Listing { schema: 1, pause_seconds, python_blocks, summary: Summary::of(&graph), held_by };
        Ok(if global.json { json(&listing) } else { listing.text() })
    }

    /// Takes a snapshot of the process that writes this table, and looks at what else tells of its memory.
    fn look_at(&self, table: &TableFile) -> Result<Looked, Failure> {
        let taken = self.take(table)?;
        let look = reader::header(&table.path).ok().and_then(|header| reader::look(table, &header));
        let files = memory::files(table.process.pid);
        let mut looked = Looked::at_file(&taken.path)?;
        looked.pause_seconds = Some(taken.pause);
        looked.python_blocks = look.zip(files).map(|(look, files)| Blocks {
            used: look.ledger.python.used,
            of_objects: summary::in_small_blocks(&looked.graph, &files),
        });
        if let Some(line) = &self.of_line {
            looked.blocks = Some(line.blocks(&reader::worker(table, None)?, &looked.graph));
        }
        Ok(looked)
    }

    fn take(&self, table: &TableFile) -> Result<snapshot::Taken, Failure> {
        let pid = table.process.pid;
        if let Some(forecast) = Forecast::of(table) {
            let free = forecast.headroom.map_or("an unknown share".to_owned(), |free| format!("{:.0} %", free * 100.0));
            let resident = size(forecast.resident as f64);
            let [least, most] = forecast.range.map(|seconds| seconds * 1e3);
            say(&format!(
                "process {pid}: {resident} resident, will stand still for {least:.1} to {most:.1} ms; {free} free"
            ));
            self.check(pid, &forecast)?;
        }
        let taken = snapshot::take(table, snapshot::PATIENTLY)?;
        say(&format!("process {pid} stood still for {:.1} ms", taken.pause * 1e3));
        Ok(taken)
    }

    /// Refuses what goes beyond the limits, unless somebody insists.
    fn check(&self, pid: u32, forecast: &Forecast) -> Result<(), Failure> {
        match forecast.objection() {
            Some(objection) if !self.despite_limits => {
                let what = format!("no snapshot of process {pid} was taken: {objection}");
                Err(Failure::new(Exit::Error, what, "insist with --despite-limits"))
            }
            _ => Ok(()),
        }
    }
}

/// A snapshot, and what else is known of a process's memory; of a file that was kept nothing else is.
struct Looked {
    path: PathBuf,
    graph: Graph,
    pause_seconds: Option<f64>,
    python_blocks: Option<Blocks>,
    /// What the line that was asked for has allocated: addresses, and the bytes that they stand for.
    blocks: Option<Vec<(u64, f64)>>,
}

impl Looked {
    fn at_file(path: &Path) -> Result<Self, Failure> {
        let (path, graph) = (path.to_owned(), heap::open(path)?);
        Ok(Self { path, graph, pause_seconds: None, python_blocks: None, blocks: None })
    }
}

/// The process itself where it has a table, else the worker of its run that has served most.
fn worker(run: &Run, pid: u32) -> Result<TableFile, Failure> {
    let alive = || run.tables.iter().filter(|table| table.process.is_alive());
    let requests = |table: &&TableFile| reader::header(&table.path).map_or(0, |header| header.requests);
    let chosen = alive().find(|table| table.process.pid == pid).or_else(|| alive().max_by_key(requests));
    chosen.cloned().ok_or_else(|| {
        let what = format!("no process of {} runs any more", run.name());
        Failure::new(Exit::NoTable, what, "see which processes run with `leakline list`")
    })
}

fn difference(before: &Path, after: &Path, global: &Global) -> Result<String, Failure> {
    let (before, after) = (heap::open(before)?, heap::open(after)?);
    let difference = Difference {
        schema: 1,
        types: summary::growth_by_type(&before, &after),
        holders: summary::growth_by_holder(&before, &after),
    };
    Ok(if global.json { json(&difference) } else { difference.text() })
}

impl Listing {
    fn text(&self) -> String {
        let summary = &self.summary;
        let mut text = format!(
            "{} objects, {} references, {} (CPython {}, process {})\n",
            count(summary.objects),
            count(summary.references),
            size(summary.bytes as f64),
            summary.python,
            summary.pid,
        );
        if summary.interpreters > 1 {
            text += &format!("they are of {} interpreters\n", summary.interpreters);
        }
        match summary.interpreters_left_out {
            0 => {}
            1 => {
                text += "1 interpreter more has a GIL of its own: its objects change all the while, and are not here\n"
            }
            more => text += &format!("{more} interpreters more have GILs of their own: their objects are not here\n"),
        }
        if let Some(Blocks { used, of_objects }) = self.python_blocks {
            let (all, objects, rest) =
                (size(used as f64), size(of_objects as f64), size(used.saturating_sub(of_objects) as f64));
            text += &format!(
                "{objects} of them lie among the {all} of small blocks that Python has in use; {rest} belong to none\n"
            );
        }
        text += "\n";
        write_types(&mut text, &summary.types);
        let (title, holders) = match &self.held_by {
            Some(held) => ("held by", held),
            None => ("who holds most", &summary.holders),
        };
        text += &format!("\n  {:>10} {:>10}  {title}\n", "objects", "retained");
        if self.held_by.as_ref().is_some_and(Vec::is_empty) {
            text += &format!("  {:>10} {:>10}  nobody: the snapshot has no such object\n", 0, "");
        }
        for held in holders {
            let (objects, bytes) = (count(held.objects), size(held.retained_bytes as f64));
            text += &format!("  {objects:>10} {bytes:>10}  {}\n", held.text);
        }
        text
    }
}

fn write_types(text: &mut String, types: &[OfType]) {
    *text += &format!("  {:>10} {:>10}  type\n", "objects", "bytes");
    for of in types.iter().take(ROWS) {
        let (objects, bytes) = (count(of.objects), size(of.bytes as f64));
        writeln!(text, "  {objects:>10} {bytes:>10}  {}", printable(&of.name)).expect("a String takes what is written");
    }
    if types.len() > ROWS {
        writeln!(text, "  {:>10} {:>10}  and {} types more", "", "", types.len() - ROWS).expect("as above");
    }
}

impl Difference {
    fn text(&self) -> String {
        let mut text = String::new();
        for (title, changes) in [("type", &self.types), ("holder", &self.holders)] {
            text += &format!("  {:>10} {:>10}  {title}\n", "objects", "bytes");
            for change in changes.iter().take(ROWS) {
                let sign = if change.bytes < 0 { "-" } else { "+" };
                let bytes = format!("{sign}{}", size(change.bytes.unsigned_abs() as f64));
                text += &format!("  {:>+10} {bytes:>10}  {}\n", change.objects, printable(&change.what));
            }
            text += "\n";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::snapshot::PAUSE_LIMIT;
    use clap::Parser;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        heap: Heap,
    }

    #[test]
    fn what_goes_beyond_the_limits_has_to_be_asked_for() {
        let forecast = |pause| Forecast { pause, range: [pause, 2.0 * pause], headroom: Some(0.9), resident: 1 << 30 };
        let check = |words: &[&str], pause| Words::parse_from(words).heap.check(7, &forecast(pause));
        let refused = check(&["heap", "7"], 2.0 * PAUSE_LIMIT).unwrap_err().to_string();
        assert!(refused.contains("500 ms") && refused.contains("--despite-limits"), "{refused}");
        assert!(check(&["heap", "7", "--despite-limits"], 2.0 * PAUSE_LIMIT).is_ok());
        assert!(check(&["heap", "7"], PAUSE_LIMIT / 2.0).is_ok());
    }

    #[test]
    fn an_object_is_named_as_python_prints_it() {
        assert_eq!(
            (address("0x7f21c0a3d0b0"), address("139783400411312")),
            (Ok(0x7F21_C0A3_D0B0), Ok(139783400411312))
        );
        assert!(address("app.Order").is_err());
    }
}
