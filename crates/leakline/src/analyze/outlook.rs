//! Turns rates into what they lead to: when the memory limit is reached, and what leak would not have been seen at all.
use super::decision::{LEAST_BYTES, survivors_needed};
use super::deposit::{Deposits, Source};
use super::evidence::{Evidence, Tick, Worker};

/// The time that the evidence spans.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Span {
    /// Its beginning, in seconds since the Unix epoch.
    pub start: f64,
    /// Its length in seconds.
    pub seconds: f64,
}

/// From the first moment that any worker remembers to the last one.
pub fn span(evidence: &Evidence) -> Option<Span> {
    let times = || evidence.workers.iter().flat_map(|worker| &worker.ticks).map(|tick| tick.time);
    let start = times().min_by(f64::total_cmp)?;
    let end = times().max_by(f64::total_cmp)?;
    Some(Span { start, seconds: end - start })
}

/// Seconds until the living workers together reach their memory limit, when each request of a source that `is_leaking`
/// leaves `bytes` behind and requests keep coming as they did in the later half of the history.
pub fn limit_reached_in(
    evidence: &Evidence,
    deposits: &Deposits,
    is_leaking: impl Fn(&Source) -> bool,
    bytes: f64,
) -> Option<f64> {
    let living = || evidence.workers.iter().enumerate().filter(|(_, worker)| worker.alive);
    let limit = living().filter_map(|(_, worker)| worker.limit_bytes).min()?;
    let used: u64 = living().map(|(_, worker)| worker.rss_bytes).sum();
    let leaking_per_second: f64 = living()
        .map(|(index, worker)| {
            let histories = deposits.histories.iter().filter(|((of, source), _)| *of == index && is_leaking(source));
            let leaking: u64 = histories.map(|(_, history)| history.requests).sum();
            requests_per_second(worker) * leaking as f64 / worker.requests.max(1) as f64
        })
        .sum();
    let growth = leaking_per_second * bytes;
    (growth > 0.0).then(|| limit.saturating_sub(used) as f64 / growth)
}

fn requests_per_second(worker: &Worker) -> f64 {
    let (Some(first), Some(last)) = (worker.ticks.first(), worker.ticks.last()) else { return 0.0 };
    let half = (first.time + last.time) / 2.0;
    let earlier = worker.ticks.iter().rev().find(|tick| tick.time <= half).unwrap_or(first);
    let between = |one: &Tick, other: &Tick| (other.requests.saturating_sub(one.requests), other.time - one.time);
    match between(earlier, last) {
        (requests, seconds) if seconds > 0.0 => requests as f64 / seconds,
        _ => 0.0,
    }
}

/// The smallest leak, in bytes per request of the busiest route, that would have been found nearly always; `None` when
/// no route has answered enough requests for anything to be found.
pub fn smallest_visible(evidence: &Evidence, deposits: &Deposits, groups: usize) -> Option<f64> {
    let visible = (0..deposits.routes.len()).filter_map(|route| {
        let of_route = |source: &Source| matches!(source, Source::Route(of, _) if of.0 == route);
        let (mut requests, mut longest, mut intervals) = (0.0, 0.0_f64, 0.0);
        let windows = deposits.histories.iter().filter(|((_, source), _)| of_route(source));
        for (&(index, _), history) in windows {
            let Some(window) = history.window else { continue };
            let worker = &evidence.workers[index];
            // The route's requests are taken to be spread evenly over the worker's.
            let of_worker = |request: f64| request / history.requests as f64 * worker.requests as f64;
            let interval = worker.interval_between(of_worker(window.from), of_worker(window.to));
            requests += window.requests();
            longest = longest.max(window.requests());
            intervals += window.requests() * interval;
        }
        let interval = intervals / requests;
        // What is needed falls with the bytes that are there, so it is settled by going round.
        let mut needed = survivors_needed(longest, 0.0, groups);
        for _ in 0..4 {
            needed = survivors_needed(longest, needed * interval, groups);
        }
        // An estimate of as much from so many survivors may be too low by two of its standard deviations.
        let least = LEAST_BYTES * (1.0 + 2.0 * (interval / LEAST_BYTES).sqrt());
        (requests > 0.0).then(|| (needed * interval).max(least) / requests)
    });
    visible.min_by(f64::total_cmp)
}
