//! `leakline drive`: from a plan file or flags to real traffic at a server, and to what came of it.
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use hyper::Uri;

use super::Global;
use crate::drive::plan::{Behaviour, Order, Parameter, Plan, Route};
use crate::drive::tally::{RouteTally, Tally};
use crate::drive::{self, Server};
use crate::failure::{Exit, Failure};

/// Send real traffic to a server
///
/// Asks for weighted routes, at a rate or as fast as the connections allow, reads every answer, and prints what came of
/// it. The same seed makes the same requests. Flags go before what the plan file says.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leakline drive http://127.0.0.1:8000/ --total 500
  leakline drive http://127.0.0.1:8000 --rate 200 --route '8 GET /items/{id}' --route /health --parameter id=1..500
  leakline drive http://127.0.0.1:8000 --plan traffic.toml --json
  leakline drive http://127.0.0.1:8000 --route /export --client hang-up=10

A plan file:
  total = 20000
  rate = 500
  concurrency = 4

  [[route]]
  path = \"/tickets/{number}\"
  weight = 8
  parameters = { number = \"1..100000\" }

  [[route]]
  path = \"/health\"")]
pub struct Drive {
    /// Where the server is; its path is asked for where no route is given
    url: Uri,
    /// The traffic to make
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// A route to ask for, instead of the plan's; may be repeated
    #[arg(long = "route", value_name = "[WEIGHT] [METHOD] PATH")]
    routes: Vec<Route>,
    /// Values for {NAME} in the paths of --route: a range such as 1..500, or words such as apple,pear
    #[arg(long = "parameter", value_name = "NAME=VALUES", value_parser = parameter, requires = "routes")]
    parameters: Vec<(String, Parameter)>,
    /// What the clients of --route do: read-all, hang-up=BYTES (0 is right after the headers), slow=BYTES a second,
    /// malformed, or ranges=BYTESxN (a first GET without its body, then parts, N at once)
    #[arg(long, value_name = "CLIENT", requires = "routes")]
    client: Option<Behaviour>,
    /// Requests in all [default: 1000]
    #[arg(long, short = 'n', value_name = "N")]
    total: Option<u64>,
    /// Connections that ask at the same time [default: 1]
    #[arg(long, short = 'c', value_name = "N")]
    concurrency: Option<usize>,
    /// Requests a second [default: as fast as the connections allow]
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Ask for the routes one after the other, not at random
    #[arg(long)]
    in_turn: bool,
    /// Make a new connection for each request
    #[arg(long)]
    no_keep_alive: bool,
    /// Draw other values and another order
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Seconds after which an unfinished request counts as failed [default: 30]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
}

fn parameter(text: &str) -> Result<(String, Parameter), String> {
    let (name, values) = text.split_once('=').ok_or("write NAME=VALUES")?;
    Ok((name.to_owned(), values.parse().map_err(|error| format!("{error}"))?))
}

impl Drive {
    /// Makes the traffic and prints what came of it.
    pub fn carry_out(self, global: &Global) -> Result<ExitCode, Failure> {
        let server = self.server()?;
        let plan = self.plan()?;
        let mut line = ProgressLine::new();
        let tally = drive::run(&server, &plan, |tally| line.show(tally, ""))
            .map_err(|error| Failure::new(Exit::Error, error.to_string(), "start the server, or check the address"))?;
        line.clear();
        match global.json {
            true => super::print(&super::json(&tally.json()))?,
            false => super::print(&text(&tally))?,
        }
        match tally.sum().failed() == tally.sum().requests() {
            true => Err(Failure::new(Exit::Error, "no request got a whole answer", "look at the server's own log")),
            false => Ok(Exit::Done.into()),
        }
    }

    fn server(&self) -> Result<Server, Failure> {
        let usage = |what: String| Err(Failure::new(Exit::Usage, what, "write http://HOST:PORT/"));
        match (self.url.scheme_str(), self.url.host()) {
            (Some("http"), Some(host)) => {
                let host = host.trim_matches(['[', ']']).to_owned();
                Ok(Server { host, port: self.url.port_u16().unwrap_or(80) })
            }
            (Some("https"), _) => usage(format!("{}: only plain HTTP is spoken here", self.url)),
            _ => usage(format!("{}: no URL of a server", self.url)),
        }
    }

    fn plan(&self) -> Result<Plan, Failure> {
        let mut plan = match &self.plan {
            Some(file) => {
                let text = std::fs::read_to_string(file).map_err(|error| Failure::io("read", file, &error))?;
                Plan::parse(&text).map_err(|error| self.unsound(error))?
            }
            None => Plan::default(),
        };
        if !self.routes.is_empty() {
            plan.routes = self.routes.clone();
            for route in &mut plan.routes {
                route.parameters.extend(self.parameters.iter().cloned());
                route.client = self.client.unwrap_or_default();
            }
        }
        if plan.routes.is_empty() {
            let path = self.url.path_and_query().map_or("/", |path| path.as_str());
            plan.routes = vec![path.parse().map_err(|error| self.unsound(error))?];
        }
        plan.total = self.total.unwrap_or(plan.total);
        plan.concurrency = self.concurrency.unwrap_or(plan.concurrency);
        plan.rate = self.rate.or(plan.rate);
        plan.seed = self.seed.unwrap_or(plan.seed);
        plan.timeout_seconds = self.timeout.unwrap_or(plan.timeout_seconds);
        plan.keep_alive &= !self.no_keep_alive;
        if self.in_turn {
            plan.order = Order::InTurn;
        }
        plan.check().map_err(|error| self.unsound(error))?;
        Ok(plan)
    }

    fn unsound(&self, error: impl ToString) -> Failure {
        let (of, next) = match &self.plan {
            Some(file) => (format!("{}: ", file.display()), "correct the plan; `leakline drive --help` shows one"),
            None => (String::new(), "see `leakline drive --help`"),
        };
        Failure::new(Exit::Usage, of + &error.to_string(), next)
    }
}

/// One line on a terminal that is written again and again.
pub struct ProgressLine {
    terminal: bool,
}

impl ProgressLine {
    /// Nothing is shown yet. Where standard error is no terminal, nothing ever is.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Shows how far the traffic is, and what else there is to say.
    pub fn show(&mut self, tally: &Tally, more: &str) {
        if self.terminal {
            let sum = tally.sum();
            let failed = match sum.failed() {
                0 => String::new(),
                failed => format!(", {failed} failed"),
            };
            let (done, planned) = (sum.requests(), tally.planned);
            // Whoever closed our standard error does without.
            let seconds = tally.seconds;
            let _ = write!(std::io::stderr(), "\r\x1b[K  {done} of {planned} requests, {seconds:.0} s{failed}{more}");
        }
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// What came of the traffic, for a person.
fn text(tally: &Tally) -> String {
    let sum = tally.sum();
    let rate = if tally.seconds > 0.0 { sum.requests() as f64 / tally.seconds } else { 0.0 };
    let mut text = format!("{} requests in {:.1} s, {rate:.0} a second\n", sum.requests(), tally.seconds);
    for route in &tally.routes {
        line(&mut text, route);
    }
    if tally.routes.len() > 1 {
        line(&mut text, &sum);
    }
    text
}

fn line(text: &mut String, route: &RouteTally) {
    let statuses = route.statuses.iter().map(|(status, count)| format!("{count} x {status}"));
    let left = route.left.iter().map(|(status, count)| format!("{count} hung up after {status}"));
    let failures = route.failures.iter().map(|(failure, count)| format!("{count} x {}", failure.name()));
    let outcomes = statuses.chain(left).chain(failures).collect::<Vec<_>>().join(", ");
    let latency = match route.latency.is_empty() {
        true => String::new(),
        false => format!(
            "  p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            route.latency_ms(0.5),
            route.latency_ms(0.9),
            route.latency_ms(0.99),
            route.latency_ms(1.0)
        ),
    };
    let _ = writeln!(text, "  {:<32} {outcomes}{latency}", route.name);
}
