//! Turns a plan and the address of a server into real traffic, and the traffic into a tally of what came of it.
//!
//! One thread drives every connection. `plan` says what to ask for, `schedule` what comes next and when it is due,
//! `client` performs one request on its connection and treats the answer as the plan says, `ranges` downloads in parts,
//! `objects` compares what was downloaded, `tally` counts.
pub mod client;
mod objects;
pub mod plan;
mod ranges;
pub mod schedule;
pub mod tally;

use std::{
    cell::RefCell,
    fmt, io,
    rc::Rc,
    time::{Duration, Instant},
};

use client::Client;
use objects::Objects;
use plan::Plan;
use schedule::Schedule;
use tally::Tally;
use tokio::{
    runtime,
    task::{LocalSet, spawn_local},
    time::{interval, sleep_until},
};

/// How often the caller is told about the progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// The server to drive: `http://HOST[:PORT]`, without a path.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Name or address to connect to.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(out, "[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{}:{}", self.host, self.port)
        }
    }
}

/// Why there was no traffic at all.
#[derive(Debug)]
pub enum Error {
    /// Nobody accepted the first connection.
    Unreachable(Server, io::Error),
    /// The machine gave no event loop.
    Runtime(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unreachable(server, cause) => {
                write!(out, "cannot connect to {server}: {cause}")
            }
            Error::Runtime(cause) => write!(out, "cannot start an event loop: {cause}"),
        }
    }
}

impl std::error::Error for Error {}

/// Performs the whole plan and tells `progress` a few times a second what has come of it so far.
pub fn run(server: &Server, plan: &Plan, progress: impl FnMut(&Tally)) -> Result<Tally, Error> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    LocalSet::new().block_on(&runtime, drive(server, plan, progress))
}

async fn drive(server: &Server, plan: &Plan, mut progress: impl FnMut(&Tally)) -> Result<Tally, Error> {
    // A server that is not there is one clear error, and not as many failures as there are requests.
    client::connect(server).await.map_err(|cause| Error::Unreachable(server.clone(), cause))?;

    let schedule = Rc::new(RefCell::new(Schedule::new(plan)));
    let tally = Rc::new(RefCell::new(Tally::new(plan)));
    let objects = Rc::new(Objects::default());
    let start = Instant::now();
    let connections: Vec<_> = (0..plan.concurrency)
        .map(|_| {
            let limit = Duration::from_secs_f64(plan.timeout_seconds);
            let client = Client::new(server.clone(), plan.keep_alive, limit, objects.clone());
            spawn_local(keep_asking(client, start, schedule.clone(), tally.clone()))
        })
        .collect();

    let mut ticks = interval(PROGRESS_EVERY);
    while connections.iter().any(|connection| !connection.is_finished()) {
        ticks.tick().await;
        progress(&tally.borrow());
    }
    Ok(tally.take())
}

/// What one connection does: the next request of the schedule, as soon as it is due, until there is none.
async fn keep_asking(mut client: Client, start: Instant, schedule: Rc<RefCell<Schedule>>, tally: Rc<RefCell<Tally>>) {
    loop {
        let Some(request) = schedule.borrow_mut().next() else { return };
        let asked = match request.due.map(|due| start + due) {
            // A request that had to wait for a free connection is late, and its latency says so: measured from its
            // sending, a server that stalls would look faster than it is.
            Some(due) if due < Instant::now() => due,
            Some(due) => {
                sleep_until(due.into()).await;
                Instant::now()
            }
            None => Instant::now(),
        };
        let outcome = client.perform(&request).await;
        let mut tally = tally.borrow_mut();
        tally.count(request.route, outcome, asked.elapsed());
        tally.seconds = start.elapsed().as_secs_f64();
    }
}
