//! `leakline attach`: from a process id to a server that is recorded from now on, and to its report if that is wanted.
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use procfs::process::Process;
use serde::Serialize;

use super::effort::Effort;
use super::owner::Owner;
use super::{Global, print, report, say};
use crate::failure::{Exit, Failure};
use crate::printable::printable;
use crate::report::{count, size};
use crate::runs::{self, Run, Runs};
use crate::target::agent::Source;
use crate::target::attach::examine::{Target, gone};
use crate::target::attach::{Outcome, Wishes, attach};
use crate::target::limit;
use crate::target::process::{Identity, descendants};
use crate::target::root::{Place, Root};

/// Watch the memory of a server that runs already
///
/// Brings the agent into the process and all its children that are CPythons, gunicorn's master and workers for example, and
/// so into those that they fork later. Nothing is installed for it, and the server is not restarted. Each process is
/// stopped for a few milliseconds, at a moment when it waits for something. What was allocated before is not known; its
/// growth from now on is.
///
/// `leakline report` shows what there is so far, and `leakline detach` takes the agent out again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leakline attach 4711                 a gunicorn master: all its workers
  leakline attach 4711 --for 10m       report in ten minutes, and leave
  leakline report 4711                 what there is so far
  leakline detach 4711

Exits with 6 when the kernel or the owner does not let us, 7 when there is no such process, 8 when it can't be attached
to whoever tries, 9 when it is recorded already, and 1 when it failed and the process goes on as it was.")]
pub struct Attach {
    /// The server's process, or any of its parents
    pid: u32,
    /// Report after this time, or on Ctrl-C, and detach: seconds, or a number with s, m or h
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    #[command(flatten)]
    effort: Effort,
}

#[derive(Serialize)]
struct Listing {
    run: String,
    processes: Vec<Line>,
}

/// What became of a process. Times in seconds.
#[derive(Serialize)]
pub struct Line {
    pid: u32,
    stopped: Option<f64>,
    threads: Option<usize>,
    /// `attach`: it records. `detach`: everything is out. False where that waits for its main thread to wake up.
    complete: bool,
    error: Option<String>,
}

impl Line {
    /// From what was done to it.
    pub fn new(pid: u32, outcome: &Result<Outcome, Failure>) -> Self {
        let done = outcome.as_ref().ok();
        Self {
            pid,
            stopped: done.map(|outcome| outcome.stopped.as_secs_f64()),
            threads: done.map(|outcome| outcome.threads),
            complete: done.is_some_and(|outcome| outcome.complete),
            error: outcome.as_ref().err().map(Failure::to_string),
        }
    }

    /// For a person; `done` says what was done, `waits` what is still to come.
    pub fn text(&self, done: &str, waits: &str) -> String {
        let Some(stopped) = self.stopped else {
            // It may name a file that the process has chosen.
            let why = printable(self.error.as_deref().unwrap_or_default());
            return format!("{:>8}  NOT {done}: {why}\n", self.pid);
        };
        let threads = match self.threads {
            Some(1) => "1 thread".to_owned(),
            threads => format!("{} threads", threads.unwrap_or_default()),
        };
        let rest = if self.complete { String::new() } else { format!("; {waits}") };
        format!("{:>8}  {done}, {threads}, stopped for {:.2} ms{rest}\n", self.pid, stopped * 1000.0)
    }
}

impl Attach {
    /// Attaches to the process and its children.
    pub fn carry_out(self, global: &Global) -> Result<ExitCode, Failure> {
        let targets = targets(self.pid)?;
        let first = &targets[0];
        let owner = Owner::of(first.user, first.group);
        let place = global.place_of(&owner, first.pid)?;
        let (run, agent) = owner.act(|| self.prepare(&place, first.pid))?;
        let folder = place.join(&run.name());
        let wishes = Wishes {
            agent: &agent,
            tables: &folder.theirs,
            table_bytes: self.effort.table_bytes(),
            budget: self.effort.budget(),
            exact: self.effort.exact,
            native: !self.effort.no_native,
        };
        let attach = |target: &Target| {
            let done = if target.root.is_that_of(&first.root) {
                attach(target, &wishes)
            } else {
                let what = format!("process {} sees other files than process {}", target.pid, first.pid);
                Err(Failure::new(Exit::Unsupported, what, "attach to it by its own process id"))
            };
            // Whatever went wrong with one that has ended meanwhile and sees nothing any more, that is why.
            done.map_err(|failure| if Root::of(target.pid).is_err() { gone(target.pid) } else { failure })
        };
        let mut outcomes: Vec<(u32, Result<Outcome, Failure>)> =
            targets.iter().map(|target| (target.pid, attach(target))).collect();
        // Those that were forked from a process before the agent was in it. Others have it from their parent.
        for pid in descendants(self.pid) {
            if !targets.iter().any(|target| target.pid == pid) {
                if let Ok(target) = Target::examine(pid) {
                    let outcome = attach(&target);
                    if !outcome.as_ref().is_err_and(|failure| failure.exit == Exit::Already) {
                        outcomes.push((pid, outcome));
                    }
                }
            }
        }
        // That a worker ends meanwhile is no failure.
        let is_gone = |failure: &Failure| failure.exit == Exit::Gone;
        outcomes.retain(|(pid, outcome)| *pid == first.pid || !outcome.as_ref().is_err_and(is_gone));
        let lines = outcomes.iter().map(|(pid, outcome)| Line::new(*pid, outcome)).collect();
        let listing = Listing { run: folder.shown.display().to_string(), processes: lines };
        if outcomes.iter().all(|(_, outcome)| outcome.is_err()) {
            owner.act(|| run.delete());
            return match outcomes.into_iter().find_map(|(_, outcome)| outcome.err()) {
                Some(failure) => Err(failure),
                None => Err(gone(self.pid)),
            };
        }
        if let Some(duration) = self.duration {
            // The output is the report's.
            outcomes.iter().for_each(|(pid, outcome)| say_failure(*pid, outcome));
            return self.watch(global, &owner, &run, duration);
        }
        print(&if global.json { super::json(&listing) } else { listing.text(self.pid) })?;
        Ok(match outcomes.into_iter().find_map(|(_, outcome)| outcome.err()) {
            Some(failure) => failure.exit.into(),
            None => Exit::Done.into(),
        })
    }

    /// Makes the run's folder, and puts the agent where the process can open it.
    fn prepare(&self, place: &Place, pid: u32) -> Result<(Run, Place), Failure> {
        let runs = Runs::create(&place.ours)?;
        runs.prune(self.effort.keep as usize - 1);
        let agent = Source::find()?.install(runs.dir())?;
        let agent = place.join(&agent.file_name().unwrap_or_default().to_string_lossy());
        let process = Process::new(pid as i32).ok();
        let argv = process.as_ref().and_then(|process| process.cmdline().ok()).unwrap_or_default();
        let cwd = process.and_then(|process| process.cwd().ok()).unwrap_or_default();
        let mut run = runs.begin_attached(argv, &cwd, limit::of(pid), pid)?;
        if let Some(identity) = Identity::of(self.pid) {
            run.started_as(identity)?;
        }
        Ok((run, agent))
    }

    /// Says from time to time what there is so far, looks at the memory as `leakline run` does, leaves, and reports.
    fn watch(&self, global: &Global, owner: &Owner, run: &Run, duration: Duration) -> Result<ExitCode, Failure> {
        let ends: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        // Either way it is time.
        let _ = ends.thread_block();
        let period = (duration / 10).clamp(LEAST_PERIOD, MOST_PERIOD);
        let began = Instant::now();
        let (end, mut word, mut look) = (began + duration, began + period, began + LEAST_PERIOD);
        loop {
            let time = end.min(word).min(look).saturating_duration_since(Instant::now());
            let time = libc::timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
            // SAFETY: a set and a time of our own.
            let is_enough = unsafe { libc::sigtimedwait(ends.as_ref(), std::ptr::null_mut(), &time) } > 0;
            if is_enough || Instant::now() >= end || Identity::of(self.pid).is_none() {
                break;
            }
            if Instant::now() >= look {
                // Not in a thread of its own: whose rights we have counts for all threads.
                look = Instant::now() + owner.act(|| look_at(&run.folder));
            }
            if Instant::now() >= word {
                say(&owner.act(|| so_far(run, end.saturating_duration_since(Instant::now()))));
                word = Instant::now() + period;
            }
        }
        // Of a server that was killed this tells by whom.
        owner.act(|| look_at(&run.folder));
        owner.act(|| report::ask_in_time(&run.folder));
        let lines = super::detach::leave(self.pid);
        lines.iter().for_each(|(pid, outcome)| say_failure(*pid, outcome));
        owner.act(|| {
            let mut run = Run::open(&run.folder)?;
            run.left()?;
            let findings = report::of(&run, None)?;
            print(&report::printed(&findings, &run, global, &std::io::stdout()))
        })?;
        Ok(Exit::Done.into())
    }
}

/// How often is said what there is so far: in the tenth part of the time, within these bounds.
const LEAST_PERIOD: Duration = Duration::from_secs(1);
const MOST_PERIOD: Duration = Duration::from_secs(60);

/// Leaves a look at the memory of the run's processes beside their tables; how long to wait before the next one.
fn look_at(folder: &Path) -> Duration {
    Run::open(folder).map_or(LEAST_PERIOD, |run| runs::look(&run))
}

/// What there is so far, in a line.
fn so_far(run: &Run, left: Duration) -> String {
    let left = left.as_secs() + 1;
    let Ok(findings) = Run::open(&run.folder).and_then(|run| report::of(&run, None)) else {
        return format!("{left} s left; no request so far");
    };
    let (requests, resident) = (count(findings.window.requests), size(findings.rss.now as f64));
    let said = match &findings.findings[..] {
        [] => "nothing found so far".to_owned(),
        [first] => first.summary.clone(),
        [first, others @ ..] => format!("{} (and {} more)", first.summary, others.len()),
    };
    format!("{left} s left; {requests} requests, {resident} resident; {said}")
}

fn say_failure(pid: u32, outcome: &Result<Outcome, Failure>) {
    if let Err(failure) = outcome {
        say(&format!("{pid}: {failure}"));
    }
}

/// The process and its children, those that can be attached to.
fn targets(pid: u32) -> Result<Vec<Target>, Failure> {
    let first = Target::examine(pid);
    match &first {
        // A shell or a supervisor, whose children may be what is meant.
        Err(failure) if failure.exit == Exit::Unsupported => {}
        Err(_) => return first.map(|target| vec![target]),
        Ok(_) => {}
    }
    let children = descendants(pid).into_iter().filter_map(|child| Target::examine(child).ok());
    let (why, targets): (Option<Failure>, Vec<Target>) = match first {
        Ok(first) => (None, std::iter::once(first).chain(children).collect()),
        Err(failure) => (Some(failure), children.collect()),
    };
    match why {
        Some(failure) if targets.is_empty() => Err(failure),
        _ => Ok(targets),
    }
}

impl Listing {
    fn text(&self, pid: u32) -> String {
        let lines = self.processes.iter();
        let waits = "it records as soon as its main thread wakes up";
        let lines: String = lines.map(|line| line.text("attached", waits)).collect();
        format!("{lines}see `leakline report {pid}`; end with `leakline detach {pid}`\n")
    }
}

/// As in `90`, `90s`, `10m` and `2h`.
fn time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(['s', 'm', 'h']);
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => 0,
    };
    match digits.parse::<u32>() {
        Ok(number) if unit > 0 && number > 0 => Ok(Duration::from_secs(u64::from(number) * unit)),
        _ => Err("seconds, or a number with s, m or h".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_process_has_chosen_cannot_send_commands_to_the_terminal() {
        let failure = Failure::new(Exit::Unsupported, "\x1b[2Jmalloc.so stands in for glibc's malloc", "go on");
        let text = Line::new(7, &Err(failure)).text("attached", "");
        assert!(!text.contains('\x1b') && text.contains("malloc.so"), "{text:?}");
    }
}
