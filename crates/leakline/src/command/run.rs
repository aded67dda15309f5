//! `leakline run`: from a server's command line to its end, and to the report of what its memory did meanwhile.
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use nix::sys::signal::Signal;

use super::effort::Effort;
use super::{Global, report, say};
use crate::failure::Failure;
use crate::runs::{Run as Recorded, Runs, Watch};
use crate::target::agent::Source;
use crate::target::launch::{Ended, Environment, Recording, Server};
use crate::target::limit;
use crate::target::process::Identity;

/// Start a server and watch its memory
///
/// Runs COMMAND as it is, with an agent inside each of its Python processes. Signals are passed on, and the exit code is
/// the server's. When it ends, by itself, by Ctrl-C or by the OOM killer, the report goes to standard error. While it
/// runs, `leakline report` shows what there is so far.
///
/// Where the agent can't work, the server runs without it and says so.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leakline run -- gunicorn -w 4 -k gthread app:app
  leakline run -- flask --app app run
  leakline run --exact -- python manage.py runserver --noreload")]
pub struct Run {
    #[command(flatten)]
    effort: Effort,
    /// The server's command line
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Run {
    /// Runs the server to its end; the exit code is the server's.
    pub fn carry_out(self, global: &Global) -> Result<ExitCode, Failure> {
        let (mut run, environment) = match self.prepare(global) {
            // A server that would have started must start on a full disk, too.
            Err(failure) if failure.is_no_room() => {
                say(&format!("{failure}. The server runs without the agent"));
                return Ok(Server::start(&self.command, &[])?.wait(|| ())?.code().into());
            }
            prepared => prepared?,
        };
        let server = match Server::start(&self.command, &environment) {
            Ok(server) => server,
            Err(failure) => {
                run.delete();
                return Err(failure);
            }
        };
        // From here on nothing may keep us from waiting for the server.
        if let Some(identity) = Identity::of(server.pid()) {
            note(run.started_as(identity));
        }
        let watch = Watch::start(&run);
        let ended = server.wait(|| report::ask_in_time(&run.folder))?;
        watch.end();
        note(run.ended_with(ended.code()));
        note(conclude(&run, ended, global));
        Ok(ended.code().into())
    }

    /// Makes the run's folder, and says what the server has to be told.
    fn prepare(&self, global: &Global) -> Result<(Recorded, Environment), Failure> {
        let runs = Runs::create(&global.dir())?;
        runs.prune(self.effort.keep as usize - 1);
        let agent = Source::find()?.install(runs.dir())?;
        let argv = self.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let run = runs.begin(argv, limit::of(std::process::id()))?;
        let recording = Recording {
            agent,
            tables: run.folder.clone(),
            table_bytes: self.effort.table_bytes(),
            budget: self.effort.budget(),
            exact: self.effort.exact,
            native: !self.effort.no_native,
        };
        match recording.environment() {
            Ok(environment) => Ok((run, environment)),
            Err(failure) => {
                run.delete();
                Err(failure)
            }
        }
    }
}

/// Prints the report, and says where its tables stay.
fn conclude(run: &Recorded, ended: Ended, global: &Global) -> Result<(), Failure> {
    if ended == Ended::Signal(Signal::SIGKILL) {
        say("the server was killed with SIGKILL, as the kernel does when memory runs out");
    }
    let run = Recorded::open(&run.folder)?;
    let findings = report::of(&run, None)?;
    let stderr = std::io::stderr();
    // Nobody may be there to read it; the exit code is the server's all the same.
    let _ = stderr.lock().write_all(report::printed(&findings, &run, global, &stderr).as_bytes());
    if run.is_alive() {
        say("some of the server's processes still run; `leakline report` follows them");
    }
    run.keep_telling();
    let folder = run.folder.display();
    say(&format!("the tables stay in {folder}; see this again with `leakline report {folder}`"));
    Ok(())
}

/// What went wrong beside the server is said and does not stop it.
fn note(done: Result<(), Failure>) {
    if let Err(failure) = done {
        say(&failure.to_string());
    }
}
