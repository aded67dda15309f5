//! Turns what requests held at their highest into balloons: memory that few requests took at once and gave back.
//!
//! A balloon leaves nothing behind that could be found later, yet it sets the size of the process, and two at a time may
//! end it. Agents therefore note each request's peak when it happens: the highest ones with their stack and phase, all of
//! them in a histogram by route and outcome. A peak is reported where it is
//!
//! - **large**: for sure at least 16 MiB, a fifth of its process's highest resident set, and no more than that, or else
//!   it was never resident at once. Where requests leave theirs to the collector, several add up to that fifth;
//! - **over**: at most a quarter of it still lives, and of those like it, so that it is no leak and no cache. Requests of
//!   one outcome whose memory all lives on may have left it in cycles, as an exception does that its own frame holds: as
//!   long as no full collection has run since, they are reported as waiting for one;
//! - **none of start-up's**: the first request that a worker serves imports and compiles for all others;
//! - **unusual**: eight times what half of the requests it is compared with stay below, and reached by few of them.
//!
//! A request that was in flight when its process was killed is reported, too, where it held as much and its route's others don't:
//! who looks for the reason of a process that was killed wants to know what it was at.
//!
//! Who it is compared with depends on what sets it apart: requests that fail or are aborted with the route's others, any
//! request with the whole route. `docs/decision.md` says why.
use std::collections::BTreeMap;

use super::blame::Blamed;
use super::evidence::{Evidence, Frame, NativeFrame, Outcome, Owner, Peak, Phase, Worker};
use super::lines::Libraries;
use super::sockets::{SocketTotals, exchanged};

/// A smaller peak is no balloon, bytes.
const LEAST_BYTES: f64 = 16.0 * 1024.0 * 1024.0;
/// Nor is one below this share of the process's highest resident set.
const LEAST_SHARE: f64 = 0.2;
/// At most this share of it may still live.
const LEFT_AT_MOST: f64 = 0.25;
/// At least this share of what waits for the collector still lives, of so many requests at least: a single one may have
/// filled a cache.
const WAITING_AT_LEAST: f64 = 0.75;
const WAITING_REQUESTS: usize = 3;
/// The most that is claimed of those, since they may as well be a leak.
const WAITING_CONFIDENCE: f64 = 0.9;
/// It is at least so many times what is usual.
const TIMES_USUAL: f64 = 8.0;
/// Of the requests that it is compared with, at most this share holds as much.
const FEW: f64 = 0.1;
/// An outcome is named where so many of its requests would be among those with a high peak by chance no more often than
/// this.
const CHANCE: f64 = 0.05;
/// The most that is ever claimed: that requests of one outcome differ does not yet say that the outcome is the cause.
const MOST_CONFIDENCE: f64 = 0.99;
/// The normal distribution's two-sided 95 %.
const SURE: f64 = 1.96;

/// Memory that few requests took at once and gave back.
#[derive(Clone, Debug, PartialEq)]
pub struct Balloon {
    /// `GET /data/<id>`
    pub route: String,
    /// The outcome that sets these requests apart; `None` where it is only that they are few.
    pub outcome: Option<Outcome>,
    /// What the request was doing.
    pub phase: Phase,
    /// The most that one request held at once, in estimated bytes.
    pub peak_bytes: f64,
    /// Lower bound of its 95 % interval, which allows for its being the highest of several estimates.
    pub low: f64,
    /// Upper bound of its 95 % interval.
    pub high: f64,
    /// Estimated bytes of it that were live when the request ended: garbage that waited for the collector.
    pub left_bytes: f64,
    /// Estimated bytes that still live, of this request and of the others of its kind that held most.
    pub live_bytes: f64,
    /// It was not given back yet, and no full collection has run since that could have done so.
    pub waits: bool,
    /// The highest resident set of its process, bytes.
    pub rss_peak_bytes: u64,
    /// A request that held as many bytes is counted as one that balloons.
    pub level_bytes: u64,
    /// The requests of the route by outcome, those that there were.
    pub outcomes: Vec<Reached>,
    /// Half of the requests that it is compared with held less than so many bytes.
    pub usual_bytes: u64,
    /// 1 less the probability that the outcome is an accident; at most 0.99.
    pub confidence: f64,
    /// The library and function that allocated most of it; `None` where it is CPython itself.
    pub blamed: Option<Blamed>,
    /// The line that allocated most of it.
    pub site: Option<Frame>,
    /// The innermost line of the application's own code on the way there.
    pub application: Option<Frame>,
    /// The native code inside of the allocating line, innermost frame first.
    pub native: Vec<NativeFrame>,
    /// The way from the allocating line outwards.
    pub stack: Vec<Frame>,
    /// The process that was killed in the midst of the request; `None` where the request ended and gave the memory back.
    pub killed: Option<u32>,
    /// The share of that stack, 0 to 1.
    pub share: f64,
    /// What its requests exchanged over sockets, beside what is usual for those that they are compared with.
    pub sockets: Vec<SocketTotals>,
}

/// How many requests of an outcome held much at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reached {
    /// The outcome.
    pub outcome: Outcome,
    /// Its requests.
    pub requests: u64,
    /// Those that reached [`Balloon::level_bytes`].
    pub reached: u64,
}

/// The balloons of all routes, the highest first.
pub fn balloons(evidence: &Evidence) -> Vec<Balloon> {
    let libraries = Libraries::of(evidence);
    let mut routes: BTreeMap<&str, Heights> = BTreeMap::new();
    for worker in &evidence.workers {
        for route in &worker.routes {
            let heights = routes.entry(&route.name).or_default();
            for (heights, served) in heights.0.iter_mut().zip(&route.served) {
                heights.iter_mut().zip(served.peaks).for_each(|(sum, count)| *sum += count);
            }
        }
    }
    let mut found: Vec<Balloon> =
        routes.iter().flat_map(|(route, heights)| of_route(evidence, &libraries, route, heights)).collect();
    found.extend(cut_off(evidence, &libraries, &routes));
    found.sort_by(|one, other| other.peak_bytes.total_cmp(&one.peak_bytes));
    found
}

fn of_route(evidence: &Evidence, libraries: &Libraries, route: &str, heights: &Heights) -> Vec<Balloon> {
    let mut found = vec![];
    let mut others = Outcome::ALL.to_vec();
    // That requests which succeed hold more than those which fail early is no news.
    for outcome in [Outcome::Error, Outcome::Aborted] {
        let rest: Vec<Outcome> = Outcome::ALL.into_iter().filter(|other| *other != outcome).collect();
        let known = peaks(evidence, route, &[outcome]);
        let over = highest(&known);
        let waits = over.is_none();
        let Some(highest) = over.or_else(|| waiting(&known)) else { continue };
        let level = level(highest.peak.bytes);
        let (reached, requests) = (heights.reached(&[outcome], level), heights.requests(&[outcome]));
        let (reached_else, requests_else) = (heights.reached(&rest, level), heights.requests(&rest));
        let chance = chance(reached, requests, reached + reached_else, requests + requests_else);
        if chance <= CHANCE && heights.is_unusual(highest.peak.bytes, level, &rest) {
            let told = Balloon {
                outcome: Some(outcome),
                confidence: (1.0 - chance).min(if waits { WAITING_CONFIDENCE } else { MOST_CONFIDENCE }),
                waits,
                sockets: exchanged(evidence, &[route.to_owned()], &[outcome], &rest),
                ..balloon(libraries, heights, highest, &known, &rest)
            };
            found.push(match waits {
                true => Balloon { live_bytes: live_bytes(evidence, route, outcome), ..told },
                false => told,
            });
            others.retain(|other| *other != outcome);
        }
    }
    let known = peaks(evidence, route, &others);
    if let Some(highest) =
        highest(&known).filter(|one| heights.is_unusual(one.peak.bytes, level(one.peak.bytes), &others))
    {
        let sockets = exchanged(evidence, &[route.to_owned()], &others, &others);
        found.push(Balloon { sockets, ..balloon(libraries, heights, highest, &known, &others) });
    }
    found
}

/// The highest that is large, over, and none of start-up's.
fn highest<'a, 'b>(known: &'b [Candidate<'a>]) -> Option<&'b Candidate<'a>> {
    let may_be = known.iter().filter(|one| one.peak.after > 0 && one.is_large() && is_over(one, known));
    may_be.max_by(|one, other| one.peak.bytes.total_cmp(&other.peak.bytes))
}

/// The highest of those that are large and none of start-up's and live on, where several do and no full collection has
/// run since.
fn waiting<'a, 'b>(known: &'b [Candidate<'a>]) -> Option<&'b Candidate<'a>> {
    let is_waiting = |one: &&Candidate| {
        one.live_bytes() >= one.peak.bytes * WAITING_AT_LEAST
            && one.worker.full_collections.iter().all(|collection| collection.requests <= one.peak.after)
    };
    let may_be = known.iter().filter(|one| one.peak.after > 0 && one.is_large()).filter(is_waiting);
    let highest = may_be.clone().max_by(|one, other| one.peak.bytes.total_cmp(&other.peak.bytes))?;
    let level = level_bytes(level(highest.peak.bytes)) as f64;
    (may_be.filter(|other| other.peak.bytes >= level).count() >= WAITING_REQUESTS).then_some(highest)
}

/// What still lives of a route's requests of one outcome.
fn live_bytes(evidence: &Evidence, route: &str, outcome: Outcome) -> f64 {
    let live = evidence.workers.iter().flat_map(|worker| {
        worker.samples.iter().filter(move |sample| match sample.owner {
            Owner::Request(request) => {
                request.outcome == outcome
                    && worker.routes.get(request.route.0 as usize).is_some_and(|known| known.name == route)
            }
            _ => false,
        })
    });
    live.fold(0.0, |sum, sample| sum + sample.weight)
}

/// Little of it lives, and of those like it: thinning drops samples, so that one alone may seem freed when it is not.
fn is_over(one: &Candidate, known: &[Candidate]) -> bool {
    let alike = || known.iter().filter(|other| other.peak.bytes >= level_bytes(level(one.peak.bytes)) as f64);
    let live = alike().fold(0.0, |sum, other| sum + other.live_bytes());
    let held = alike().fold(0.0, |sum, other| sum + other.peak.bytes);
    one.live_bytes() <= one.peak.bytes * LEFT_AT_MOST && live <= held * LEFT_AT_MOST
}

/// The peaks that are known of a route's requests with these outcomes.
fn peaks<'a>(evidence: &'a Evidence, route: &str, outcomes: &[Outcome]) -> Vec<Candidate<'a>> {
    let peaks = evidence.workers.iter().flat_map(|worker| worker.peaks.iter().map(move |peak| (worker, peak)));
    let of_kind = peaks.filter_map(|(worker, peak)| {
        let known = worker.routes.get(peak.request.route.0 as usize)?;
        let served = &known.served[peak.request.outcome as usize];
        let alike = served.peaks[level(peak.bytes)..].iter().sum();
        let is_meant = known.name == route && outcomes.contains(&peak.request.outcome);
        is_meant.then_some(Candidate { worker, peak, alike })
    });
    of_kind.collect()
}

/// A peak that may be a balloon's.
struct Candidate<'a> {
    worker: &'a Worker,
    peak: &'a Peak,
    /// Requests of the same worker, route and outcome that reached its level.
    alike: u64,
}

impl Candidate<'_> {
    /// The highest of n estimates of the same is up to sqrt(2 ln n) deviations too high on average.
    fn low(&self) -> f64 {
        let chosen = (2.0 * (self.alike.max(1) as f64).ln()).sqrt();
        (self.peak.bytes - (SURE + chosen) * self.peak.deviation).max(0.0)
    }

    fn high(&self) -> f64 {
        self.peak.bytes + SURE * self.peak.deviation
    }

    fn is_large(&self) -> bool {
        let resident = self.worker.rss_peak_bytes as f64;
        let waits = self.peak.left_bytes > self.peak.bytes * LEFT_AT_MOST;
        let at_once = if waits { self.alike as f64 } else { 1.0 };
        self.low() >= LEAST_BYTES && self.low() <= resident && self.peak.bytes * at_once >= resident * LEAST_SHARE
    }

    /// What still lives of the request. What was freed since its end is over as well.
    fn live_bytes(&self) -> f64 {
        let of_request = self.worker.samples.iter().filter(|sample| sample.owner == Owner::Request(self.peak.request));
        of_request.fold(0.0, |sum, sample| sum + sample.weight)
    }
}

/// What a route's requests held at their highest over all workers, by outcome: bucket i stays below 2^i KiB.
#[derive(Default)]
struct Heights([[u64; 24]; 3]);

impl Heights {
    fn requests(&self, outcomes: &[Outcome]) -> u64 {
        self.reached(outcomes, 0)
    }

    /// Requests whose peak is in this bucket or in a higher one.
    fn reached(&self, outcomes: &[Outcome], level: usize) -> u64 {
        outcomes.iter().flat_map(|&outcome| &self.0[outcome as usize][level..]).sum()
    }

    /// How many requests of each outcome that there was reached a level.
    fn outcomes(&self, level: usize) -> Vec<Reached> {
        let reached = |outcome| Reached {
            outcome,
            requests: self.requests(&[outcome]),
            reached: self.reached(&[outcome], level),
        };
        Outcome::ALL.map(reached).into_iter().filter(|reached| reached.requests > 0).collect()
    }

    /// Half of the requests stayed below so many bytes.
    fn usual_bytes(&self, outcomes: &[Outcome]) -> u64 {
        let requests = self.requests(outcomes);
        let is_below = |bucket: &usize| self.reached(outcomes, bucket + 1) * 2 <= requests;
        1024 << (0..23).find(is_below).unwrap_or(23)
    }

    fn is_unusual(&self, bytes: f64, level: usize, among: &[Outcome]) -> bool {
        let few = self.reached(among, level) as f64 <= self.requests(among) as f64 * FEW;
        few && bytes >= self.usual_bytes(among) as f64 * TIMES_USUAL
    }
}

/// The bucket from which on a request counts as one that balloons as another one did: half as high, rounded down to a
/// power of two, so that noise and sizes that differ do not divide them.
fn level(peak_bytes: f64) -> usize {
    let kib = (peak_bytes / 2048.0) as u64;
    kib.checked_ilog2().map_or(0, |log| log as usize + 1).min(23)
}

/// The lower bound of a bucket, bytes.
fn level_bytes(level: usize) -> u64 {
    512 << level
}

/// The probability that at least `reached` of `requests` are among `reached_in_all` of `requests_in_all` when these are
/// drawn blindly: Fisher's exact test, one-sided.
fn chance(reached: u64, requests: u64, reached_in_all: u64, requests_in_all: u64) -> f64 {
    let of_all = |part: u64, all: u64| part as f64 / all.max(1) as f64;
    if of_all(reached, requests) <= of_all(reached_in_all, requests_in_all) {
        return 1.0;
    }
    let ln_choose = |n: u64, k: u64| {
        let ln_factorial = |n: u64| libm::lgamma(n as f64 + 1.0);
        ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
    };
    let low_in_all = requests_in_all - reached_in_all;
    let mut sum = 0.0;
    // Above the mean each term is smaller than the one before, so the sum may end where they no longer count.
    for high in reached.max(requests.saturating_sub(low_in_all))..=reached_in_all.min(requests) {
        let ways = ln_choose(reached_in_all, high) + ln_choose(low_in_all, requests - high);
        let term = (ways - ln_choose(requests_in_all, requests)).exp();
        sum += term;
        if term <= sum * 1e-6 {
            break;
        }
    }
    sum.min(1.0)
}

/// A balloon of requests that are unusual among those of the `compared` outcomes.
fn balloon(
    libraries: &Libraries,
    heights: &Heights,
    highest: &Candidate,
    known: &[Candidate],
    compared: &[Outcome],
) -> Balloon {
    let Candidate { worker, peak, .. } = *highest;
    let level = level(peak.bytes);
    let level_bytes = level_bytes(level);
    let of_kind = known.iter().filter(|other| other.peak.bytes >= level_bytes as f64);
    let (native, stack) = worker.calls(peak.stack);
    Balloon {
        route: worker.routes[peak.request.route.0 as usize].name.clone(),
        outcome: None,
        phase: peak.phase,
        peak_bytes: peak.bytes,
        low: highest.low(),
        high: highest.high(),
        left_bytes: peak.left_bytes,
        live_bytes: of_kind.fold(0.0, |sum, other| sum + other.live_bytes()),
        rss_peak_bytes: worker.rss_peak_bytes,
        level_bytes,
        outcomes: heights.outcomes(level),
        usual_bytes: heights.usual_bytes(compared),
        confidence: MOST_CONFIDENCE,
        blamed: Blamed::of(&native),
        site: stack.first().cloned(),
        application: libraries.application(&stack).cloned(),
        killed: None,
        waits: false,
        share: (peak.top_bytes / peak.bytes).min(1.0),
        sockets: vec![],
        native,
        stack,
    }
}

/// The requests that held much when their process was killed in the midst of them: of each route the one that held most.
fn cut_off(evidence: &Evidence, libraries: &Libraries, routes: &BTreeMap<&str, Heights>) -> Vec<Balloon> {
    let killed = evidence.workers.iter().filter(|worker| worker.killed);
    let requests = killed.flat_map(|worker| worker.in_flight.iter().map(move |request| (worker, request)));
    let mut highest: BTreeMap<&str, Balloon> = BTreeMap::new();
    for (worker, request) in requests {
        let deviation = SURE * request.deviation;
        let none = Heights::default();
        let heights = routes.get(request.route.as_str()).unwrap_or(&none);
        let level = level(request.bytes);
        let is_large =
            request.bytes - deviation >= LEAST_BYTES && request.bytes >= worker.rss_peak_bytes as f64 * LEAST_SHARE;
        let is_known = highest.get(request.route.as_str()).is_some_and(|known| known.peak_bytes >= request.bytes);
        if !is_large || is_known || !heights.is_unusual(request.bytes, level, &Outcome::ALL) {
            continue;
        }
        let (native, stack) = worker.calls(request.stack);
        let balloon = Balloon {
            route: request.route.clone(),
            outcome: None,
            phase: request.phase,
            peak_bytes: request.bytes,
            low: request.bytes - deviation,
            high: request.bytes + deviation,
            left_bytes: 0.0,
            live_bytes: request.bytes,
            rss_peak_bytes: worker.rss_peak_bytes,
            level_bytes: level_bytes(level),
            outcomes: heights.outcomes(level),
            usual_bytes: heights.usual_bytes(&Outcome::ALL),
            confidence: MOST_CONFIDENCE,
            blamed: Blamed::of(&native),
            site: stack.first().cloned(),
            application: libraries.application(&stack).cloned(),
            native,
            killed: Some(worker.pid),
            waits: false,
            share: (request.top_bytes / request.bytes).min(1.0),
            sockets: exchanged(evidence, std::slice::from_ref(&request.route), &Outcome::ALL, &Outcome::ALL),
            stack,
        };
        highest.insert(&request.route, balloon);
    }
    highest.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_half_of_the_peak_rounded_down_to_a_power_of_two() {
        let bytes = |peak: f64| level_bytes(level(peak));
        assert_eq!(bytes(64e6), 16_777_216);
        assert_eq!(bytes(68e6), 33_554_432);
        // The last bucket is open.
        assert_eq!(level(1e15), 23);
    }

    #[test]
    fn half_of_the_requests_stay_below_what_is_usual() {
        let mut heights = Heights::default();
        heights.0[0][5] = 10;
        heights.0[2][16] = 9;
        assert_eq!(heights.usual_bytes(&Outcome::ALL), 1024 << 5);
        heights.0[2][16] = 11;
        assert_eq!(heights.usual_bytes(&Outcome::ALL), 1024 << 16);
        assert_eq!((heights.reached(&Outcome::ALL, 6), heights.requests(&Outcome::ALL)), (11, 21));
    }

    #[test]
    fn chance_is_that_of_fishers_exact_test() {
        // The lady tasting tea: all four right, and three of four.
        assert!((chance(4, 4, 4, 8) - 1.0 / 70.0).abs() < 1e-9);
        assert!((chance(3, 4, 4, 8) - 17.0 / 70.0).abs() < 1e-9);
        assert!((chance(1, 1, 1, 26) - 1.0 / 26.0).abs() < 1e-9);
        assert_eq!(chance(1, 10, 5, 50), 1.0);
        assert_eq!(chance(0, 0, 0, 0), 1.0);
    }

    #[test]
    fn chance_ends_however_many_requests_there_were() {
        let many = u64::from(u32::MAX);
        assert!(chance(many / 2 + many / 4, many, many, many * 2) < 1e-9);
    }
}
