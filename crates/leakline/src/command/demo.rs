//! `leakline demo`: from the name of a case to a server that leaks, its traffic, and the finding.
//!
//! It does what a person would type: makes a virtual environment, starts the server with `leakline run`, drives it,
//! stops it, and asks `leakline report`.
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::Serialize;

use super::Global;
use super::drive::ProgressLine;
use crate::case::Case;
use crate::case::service::free_port;
use crate::drive::plan::{Behaviour, Plan};
use crate::drive::{self, Server};
use crate::failure::{Exit, Failure};
use crate::target::process::{Identity, descendants};

mod environment;

/// How long a server may take until it accepts connections.
const START: Duration = Duration::from_secs(60);

/// Watch leakline find a leak
///
/// Makes a virtual environment with the case's packages in your cache folder, starts a leaking server under leakline on
/// a free port of 127.0.0.1, drives it with real traffic, stops it and prints the report. Nothing is left running; the
/// environment stays for the next demo.
#[derive(Debug, Args)]
pub struct Demo {
    /// Which server: see --list
    #[arg(long, value_name = "NAME", default_value = "user-list")]
    case: String,
    /// The Python to make the virtual environment with
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
    /// As large as in the story that the case is taken from (s3-proxy: an object of 1 GB; S3 takes 5 GB meanwhile)
    #[arg(long)]
    large: bool,
    /// List the cases and end
    #[arg(long)]
    list: bool,
}

/// A line of `--list`.
#[derive(Serialize)]
struct Listed<'c> {
    case: &'c str,
    story: &'c str,
}

impl Demo {
    /// Runs the case from its environment to its report.
    pub fn carry_out(self, global: &Global) -> Result<ExitCode, Failure> {
        let cases = Case::all();
        if self.list {
            let listing = cases.iter().map(|case| Listed { case: &case.name, story: &case.story }).collect::<Vec<_>>();
            let lines = listing.iter().map(|listed| format!("{:<24} {}\n", listed.case, listed.story));
            super::print(&if global.json { super::json(&listing) } else { lines.collect() })?;
            return Ok(Exit::Done.into());
        }
        let case = cases.iter().find(|case| case.name == self.case).ok_or_else(|| {
            let next = "see which there are with `leakline demo --list`";
            Failure::new(Exit::Usage, format!("there is no case {:?}", self.case), next)
        })?;
        let case = match self.large {
            true => &case.large().ok_or_else(|| {
                let next = "leave out --large";
                Failure::new(Exit::Usage, format!("the case {:?} has one size only", self.case), next)
            })?,
            false => case,
        };
        say("case", &format!("{}: {}", case.name, case.story));
        let without = case.without_packages().filter(|_| !case.has_packages());
        if !case.packages.is_empty() {
            let or_else = if without.is_some() { ", and does without, since they are not installed" } else { "" };
            say("needs", &format!("Debian's packages {}{or_else}", case.packages.join(", ")));
        }
        let case = without.as_ref().unwrap_or(case);

        let cache = cache_dir()?;
        let python = environment::python(&self.python, case.requirements, &cache.join("venvs"))?;
        let folder = cache.join("cases").join(&case.name);
        make_dir(&folder)?;
        case.unpack(&folder).map_err(|error| Failure::io("write into", &folder, &error))?;

        let service = case.start_service(&python, &folder);
        let service = service.map_err(|error| Failure::io("start the service of the case in", &folder, &error))?;
        if let Some(service) = &service {
            say("service", &format!("what the server needs beside it listens on 127.0.0.1:{}", service.port));
        }
        let service_port = service.as_ref().map(|service| service.port);
        let mut running = Running::start(case, &python, &folder, &global.dir(), service_port)?;
        say("traffic", &described(&case.traffic));
        let before = running.resident_mb();
        let mut line = ProgressLine::new();
        let driven = drive::run(&running.server, &case.traffic, |tally| {
            line.show(tally, &format!(", the server's memory {} MB", running.resident_mb()));
        });
        line.clear();
        let sum = driven.map_err(|error| running.broken(&error.to_string()))?.sum();
        let (requests, failed, after) = (sum.requests(), sum.failed(), running.resident_mb());
        say("", &format!("{requests} requests, {failed} failed; the server's memory went from {before} to {after} MB"));
        running.stop();
        drop(service);

        let mut report = leakline(&global.dir())?;
        report.arg("report").arg(running.child.id().to_string());
        if global.json {
            report.arg("--json");
        }
        say("report", &format!("leakline report {}\n", running.child.id()));
        let failed = report.exec();
        Err(Failure::io("run", Path::new(report.get_program()), &failed))
    }
}

/// What the traffic is, and what its clients do, in a line.
fn described(plan: &Plan) -> String {
    let rate = match plan.rate {
        Some(rate) => format!(", {rate} a second"),
        None => String::new(),
    };
    let connections = if plan.keep_alive { "" } else { ", a connection for each" };
    let routes = plan.routes.iter().map(|route| match route.client {
        Behaviour::ReadAll => format!("{} {}", route.method, route.path),
        client => format!("{} {} ({client})", route.method, route.path),
    });
    format!("{} requests{rate}{connections}: {}", plan.total, routes.collect::<Vec<_>>().join(", "))
}

/// A server under `leakline run`, which is stopped when this is dropped.
struct Running {
    server: Server,
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(
        case: &Case,
        python: &Path,
        folder: &Path,
        tables: &Path,
        service_port: Option<u16>,
    ) -> Result<Running, Failure> {
        let port = free_port().map_err(|error| Failure::io("find a free port on", Path::new("127.0.0.1"), &error))?;
        let log = folder.join("server.log");
        let output = File::create(&log).map_err(|error| Failure::io("write", &log, &error))?;
        let errors = output.try_clone().map_err(|error| Failure::io("write", &log, &error))?;
        let words = case.command(python, port, service_port);
        let mut command = leakline(tables)?;
        command.arg("run").args(&case.options).arg("--").args(&words).current_dir(folder);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // SAFETY: prctl is async-signal-safe, and nothing else is done between fork and exec.
        unsafe {
            // Whatever ends the demo, even SIGKILL, ends the server: `leakline run` passes the signal on.
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGTERM)?));
        }
        let child = command.spawn().map_err(|error| Failure::io("run", Path::new(command.get_program()), &error))?;
        let server = Server { host: Ipv4Addr::LOCALHOST.to_string(), port };
        let shown: Vec<_> = command.get_args().skip(2).map(|word| word.to_string_lossy()).collect();
        say("server", &format!("leakline {}", shown.join(" ")));
        let mut running = Running { server, child, log };
        running.wait_until_it_accepts()?;
        Ok(running)
    }

    fn wait_until_it_accepts(&mut self) -> Result<(), Failure> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.server.port));
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return Err(self.broken("the server ended before it accepted a connection"));
            }
            if start.elapsed() > START {
                return Err(self.broken(&format!("the server accepts no connection after {} s", START.as_secs())));
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Resident sets of the server's processes in megabytes; pages that they share count in each.
    fn resident_mb(&self) -> u64 {
        let processes = descendants(self.child.id()).into_iter().filter_map(Identity::of);
        processes.filter_map(Identity::resident).map(|resident| resident.now).sum::<u64>() / 1_000_000
    }

    fn broken(&self, what: &str) -> Failure {
        Failure::new(Exit::Error, what, format!("read what it said in {}", self.log.display()))
    }

    /// Ends the server in the way a deployment does, and waits for its end.
    fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may end in between; then there is nobody to tell, and nothing is lost.
            let _ = signal::kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// This very command, to be given a subcommand.
fn leakline(tables: &Path) -> Result<Command, Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::io("find", Path::new("leakline"), &error))?;
    let mut command = Command::new(program);
    // The server is started from its own folder.
    let tables = std::path::absolute(tables).map_err(|error| Failure::io("find", tables, &error))?;
    command.arg("--dir").arg(tables);
    Ok(command)
}

/// Says a line to the user. Nobody may be there to hear it.
fn say(what: &str, text: &str) {
    let _ = writeln!(io::stderr().lock(), "{what:>12}  {text}");
}

fn make_dir(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| Failure::io("make the folder", folder, &error))
}

/// `$XDG_CACHE_HOME/leakline`, else `~/.cache/leakline`.
fn cache_dir() -> Result<PathBuf, Failure> {
    let of = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    let cache = of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache")));
    cache.map(|cache| cache.join("leakline")).ok_or_else(|| {
        Failure::new(Exit::Error, "there is no home folder to keep the environment in", "set $XDG_CACHE_HOME")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_says_what_its_clients_do() {
        let text = "total = 40\nrate = 5\nkeep_alive = false\n[[route]]\npath = \"/feed\"\n\
                    [[route]]\npath = \"/feed\"\nclient = { hang-up = 10 }\n\
                    [[route]]\nmethod = \"HEAD\"\npath = \"/all\"\nclient = { ranges = { bytes = 100, at_once = 4 } }";
        assert_eq!(
            described(&Plan::parse(text).unwrap()),
            "40 requests, 5 a second, a connection for each: GET /feed, GET /feed (hang up after 10 B), \
             HEAD /all (download parts of 100 B, 4 at once)"
        );
    }
}
