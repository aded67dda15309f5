//! Turns outcomes into counts and latencies, in all and by route, in memory that does not grow with the traffic.
use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    client::{Answer, Failure},
    plan::Plan,
};

/// What came of the traffic so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that the plan asks for.
    pub planned: u64,
    /// Seconds since the start.
    pub seconds: f64,
    /// By route, in the order of the plan.
    pub routes: Vec<RouteTally>,
}

/// What came of the requests of one route.
#[derive(Clone, Debug)]
pub struct RouteTally {
    /// Method and path as in the plan.
    pub name: String,
    /// Whole answers by HTTP status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests whose client hung up before the answer was complete, as the plan wants it, by HTTP status.
    pub left: BTreeMap<u16, u64>,
    /// Requests without a whole answer, by cause.
    pub failures: BTreeMap<Failure, u64>,
    /// Bytes of the bodies that were received whole.
    pub body_bytes: u64,
    /// Microseconds from the moment a request was due to the end of its answer; failed requests are not in here.
    pub latency: Histogram<u64>,
}

impl Tally {
    /// Nothing done yet.
    pub fn new(plan: &Plan) -> Tally {
        let routes = plan.routes.iter().map(|route| RouteTally::new(format!("{} {}", route.method, route.path)));
        Tally { planned: plan.total, seconds: 0.0, routes: routes.collect() }
    }

    /// Counts one request of the plan's route with this index.
    pub fn count(&mut self, route: usize, outcome: Result<Answer, Failure>, took: Duration) {
        let route = &mut self.routes[route];
        match outcome {
            Ok(answer) if answer.left => *route.left.entry(answer.status).or_default() += 1,
            Ok(answer) => {
                *route.statuses.entry(answer.status).or_default() += 1;
                route.body_bytes += answer.body_bytes;
                route.latency.saturating_record(took.as_micros() as u64);
            }
            Err(failure) => *route.failures.entry(failure).or_default() += 1,
        }
    }

    /// All routes as one.
    pub fn sum(&self) -> RouteTally {
        let mut sum = RouteTally::new("all".to_owned());
        for route in &self.routes {
            for (&status, count) in &route.statuses {
                *sum.statuses.entry(status).or_default() += count;
            }
            for (&status, count) in &route.left {
                *sum.left.entry(status).or_default() += count;
            }
            for (&failure, count) in &route.failures {
                *sum.failures.entry(failure).or_default() += count;
            }
            sum.body_bytes += route.body_bytes;
            sum.latency.add(&route.latency).expect("all histograms are made alike");
        }
        sum
    }

    /// The tally as `drive --json` prints it.
    pub fn json(&self) -> impl Serialize + '_ {
        #[derive(Serialize)]
        struct Json<'a> {
            schema: u32,
            seconds: f64,
            requests_per_second: f64,
            #[serde(flatten)]
            all: RouteJson<'a>,
            routes: Vec<RouteJson<'a>>,
        }
        let all = self.sum().json("all");
        let requests_per_second = if self.seconds > 0.0 { all.requests as f64 / self.seconds } else { 0.0 };
        let routes = self.routes.iter().map(|route| route.json(&route.name)).collect();
        Json { schema: 1, seconds: self.seconds, requests_per_second, all, routes }
    }
}

impl RouteTally {
    fn new(name: String) -> RouteTally {
        // From a microsecond to an hour, three significant digits: some 200 kB, whatever is recorded.
        let latency = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are valid");
        RouteTally {
            name,
            statuses: BTreeMap::new(),
            left: BTreeMap::new(),
            failures: BTreeMap::new(),
            body_bytes: 0,
            latency,
        }
    }

    /// Requests that ended, in whatever way.
    pub fn requests(&self) -> u64 {
        self.statuses.values().chain(self.left.values()).sum::<u64>() + self.failed()
    }

    /// Requests without a whole answer.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The latency, in milliseconds, that this share of the whole answers did not exceed.
    pub fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }

    fn json<'a>(&self, name: &'a str) -> RouteJson<'a> {
        RouteJson {
            route: name,
            requests: self.requests(),
            statuses: self.statuses.clone(),
            left: self.left.clone(),
            failures: self.failures.iter().map(|(failure, &count)| (failure.name(), count)).collect(),
            body_bytes: self.body_bytes,
            p50_ms: self.latency_ms(0.5),
            p90_ms: self.latency_ms(0.9),
            p99_ms: self.latency_ms(0.99),
            max_ms: self.latency_ms(1.0),
        }
    }
}

#[derive(Serialize)]
struct RouteJson<'a> {
    route: &'a str,
    requests: u64,
    statuses: BTreeMap<u16, u64>,
    left: BTreeMap<u16, u64>,
    failures: BTreeMap<&'static str, u64>,
    body_bytes: u64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}
