//! Turns the groups that only a leak explains into findings, those that cost most first.
use std::collections::{BTreeMap, BTreeSet};

use super::decision::{ERROR, Garbage};
use super::deposit::{Deposits, LineId, Source};
use super::evidence::{Evidence, Frame, Outcome};
use super::group::{Group, Pool, groups, line_of, outcomes};
use super::outlook::{limit_reached_in, smallest_visible};
use super::rate::Rate;
use super::routes::{RouteTotals, Unattributed, totals, unattributed};

/// The most that is claimed where no full collection has passed over the growth, so that cyclic garbage explains it too.
const UNCOLLECTED_CONFIDENCE: f64 = 0.9;
/// The most that is ever claimed: the mildest healthy trend is a convention, not a law.
const MOST_CONFIDENCE: f64 = 0.99;
/// A line is named for a whole route where it carries at least this share.
const DOMINANT: f64 = 0.5;
/// Sites below this share of a finding are not listed.
const WORTH_LISTING: f64 = 0.05;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each request leaves something behind that nothing frees.
    Leak,
}

/// Who allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Python code.
    Python,
}

/// A line and its share of a finding's bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// The line that allocates.
    pub site: Frame,
    /// 0 to 1.
    pub share: f64,
}

/// Memory that grows, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Who allocates.
    pub origin: Origin,
    /// The route whose requests leak; `None` for what runs outside of requests.
    pub route: Option<String>,
    /// The only outcome that leaks; `None` where all do, as far as one can tell.
    pub outcome: Option<Outcome>,
    /// Bytes per request of that route and outcome.
    pub rate: Rate,
    /// Estimated bytes that have been left behind so far.
    pub live_bytes: f64,
    /// 1 less the probability that growth which is slowing down or being freed would look like this by chance,
    /// corrected for all the groups that were looked at; at most 0.99, and at most 0.9 where no full collection of
    /// cyclic garbage has passed over the growth.
    pub confidence: f64,
    /// Whether the growth could be garbage that was not collected yet.
    pub garbage: Garbage,
    /// Samples that show it.
    pub samples: usize,
    /// Requests of the route and outcome, all workers.
    pub requests: u64,
    /// The line that allocates most of it.
    pub site: Option<Frame>,
    /// The innermost line of the application's own code that leads there.
    pub application: Option<Frame>,
    /// The way from the allocating line outwards, by the stack that carries most.
    pub stack: Vec<Frame>,
    /// The lines that allocate it, most first.
    pub sites: Vec<Share>,
    /// When the living workers reach their memory limit at this rate, in seconds.
    pub limit_reached_in_seconds: Option<f64>,
}

/// What the evidence shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Analysis {
    /// What was found, that which costs most first.
    pub findings: Vec<Finding>,
    /// What each route did, that which holds most first.
    pub routes: Vec<RouteTotals>,
    /// What ran outside of requests.
    pub unattributed: Unattributed,
    /// The smallest leak, in bytes per request, that would have been found.
    pub smallest_visible: Option<f64>,
}

/// Looks at all evidence.
pub fn findings(evidence: &Evidence) -> Analysis {
    let deposits = Deposits::of(evidence);
    let groups = groups(&deposits);
    let looked_at = groups.len();
    let is_leak = |group: &&Group| group.shape.is_even() && group.shape.doubt() * looked_at as f64 <= ERROR;
    let leaks: Vec<&Group> = groups.iter().filter(is_leak).collect();
    let mut findings: Vec<Finding> =
        without_repeats(&leaks).into_iter().map(|group| finding(evidence, &deposits, group, looked_at)).collect();
    findings.sort_by(|one, other| other.live_bytes.total_cmp(&one.live_bytes));
    Analysis {
        findings,
        routes: totals(evidence, &deposits),
        unattributed: unattributed(evidence),
        smallest_visible: smallest_visible(evidence, &deposits, looked_at.max(1)),
    }
}

/// One group for each leak: a line is preferred to its sites, all outcomes together to one of them, and a whole route
/// only speaks where none of its lines does.
fn without_repeats<'a>(leaks: &[&'a Group]) -> Vec<&'a Group> {
    let mut chosen: Vec<&Group> = vec![];
    let mut told = BTreeSet::new();
    // The order of keys is that of preference: within a route, lines before sites before the route, and within each
    // of them all outcomes before a single one.
    for group in leaks {
        let key = group.key;
        let line = match key.pool {
            Pool::Line(line) | Pool::Site(line, _) => Some(line),
            Pool::Route => None,
        };
        let repeats = chosen.iter().any(|known| match (known.key.pool, line) {
            _ if known.key.route != key.route => false,
            (_, None) => true,
            (Pool::Line(other), Some(line)) => other == line && (known.key.outcome.is_none() || group.key.outcome.is_none() || known.key.outcome == key.outcome),
            (Pool::Site(..), Some(_)) => known.key.pool == key.pool && known.key.outcome.is_none(),
            (Pool::Route, Some(_)) => false,
        });
        if !repeats && told.insert(key) {
            chosen.push(group);
        }
    }
    chosen
}

fn finding(evidence: &Evidence, deposits: &Deposits, group: &Group, looked_at: usize) -> Finding {
    let (outcome, rate) = leaking_outcome(deposits, group);
    let is_leaking = |source: Source| match source {
        Source::Route(route, how) => group.key.route == Some(route) && outcome.is_none_or(|only| only == how),
        Source::Outside => group.key.route.is_none(),
    };
    let members = || group.members.iter().map(|&member| &deposits.all[member]).filter(|one| is_leaking(one.source));
    let live_bytes = members().map(|deposit| deposit.bytes).sum();
    let requests = deposits.histories.iter().filter(|((_, source), _)| is_leaking(*source));
    let collected = if group.shape.garbage == Garbage::Survived { MOST_CONFIDENCE } else { UNCOLLECTED_CONFIDENCE };

    let line = named_line(deposits, group, live_bytes);
    let mut by_site: BTreeMap<LineId, f64> = BTreeMap::new();
    let mut by_stack: BTreeMap<(LineId, (usize, u32)), f64> = BTreeMap::new();
    for deposit in members() {
        let Some(place) = deposit.place.filter(|place| line == Some(line_of(place))) else { continue };
        *by_site.entry(place.site).or_default() += deposit.bytes;
        *by_stack.entry((place.site, place.stack)).or_default() += deposit.bytes;
    }
    let mut sites: Vec<_> = by_site.into_iter().collect();
    sites.sort_by(|one, other| other.1.total_cmp(&one.1));
    let site = sites.first().map(|&(site, _)| site);
    let stacks = by_stack.into_iter().filter(|((of, _), _)| Some(*of) == site);
    let stack = stacks.max_by(|one, other| one.1.total_cmp(&other.1)).map(|((_, stack), _)| stack);
    let stack = stack.map_or(vec![], |(worker, stack)| evidence.workers[worker].stacks[stack as usize].clone());
    let frame = |line: LineId| deposits.frames[line.0].clone();
    let has_application = |line: &LineId| {
        members().filter_map(|deposit| deposit.place).any(|place| place.application == Some(*line))
    };
    Finding {
        kind: Kind::Leak,
        origin: Origin::Python,
        route: group.key.route.map(|route| deposits.routes[route.0].clone()),
        outcome,
        rate,
        live_bytes,
        confidence: (1.0 - group.shape.doubt() * looked_at as f64).clamp(0.0, collected),
        garbage: group.shape.garbage,
        samples: members().count(),
        requests: requests.map(|(_, history)| history.requests).sum(),
        site: site.map(frame),
        application: line.filter(has_application).map(frame),
        stack,
        sites: sites
            .iter()
            .map(|&(site, bytes)| Share { site: frame(site), share: bytes / live_bytes })
            .filter(|share| share.share >= WORTH_LISTING)
            .collect(),
        limit_reached_in_seconds: limit_reached_in(evidence, deposits, is_leaking, rate.bytes),
    }
}

/// The line that the group stands for; that of a whole route is the one that carries most of it, if one does.
fn named_line(deposits: &Deposits, group: &Group, live_bytes: f64) -> Option<LineId> {
    match group.key.pool {
        Pool::Line(line) | Pool::Site(line, _) => Some(line),
        Pool::Route => {
            let mut lines: BTreeMap<LineId, f64> = BTreeMap::new();
            for deposit in group.members.iter().map(|&member| &deposits.all[member]) {
                if let Some(place) = deposit.place {
                    *lines.entry(line_of(&place)).or_default() += deposit.bytes;
                }
            }
            let dominant = lines.into_iter().max_by(|one, other| one.1.total_cmp(&other.1));
            dominant.filter(|&(_, bytes)| bytes >= live_bytes * DOMINANT).map(|(line, _)| line)
        }
    }
}

/// The outcome that leaks more than all others for sure, with its rate; no single one where several do, or where there
/// is nothing to tell them by.
fn leaking_outcome(deposits: &Deposits, group: &Group) -> (Option<Outcome>, Rate) {
    let known = match group.key.route {
        Some(route) => outcomes(deposits, route),
        None => vec![],
    };
    if group.key.outcome.is_some() || known.len() < 2 {
        return (group.key.outcome, group.rate);
    }
    let rates: Vec<(Outcome, Option<Rate>)> =
        known.into_iter().map(|outcome| (outcome, group.rate_of(deposits, outcome))).collect();
    let alone = rates.iter().find(|(outcome, rate)| {
        let others = rates.iter().filter(|(other, _)| other != outcome);
        let exceeds = |other: &Option<Rate>| rate.zip(*other).is_some_and(|(rate, other)| rate.low > other.high);
        others.map(|(_, other)| other).all(exceeds)
    });
    match alone {
        Some(&(outcome, Some(rate))) => (Some(outcome), rate),
        _ => (None, group.rate),
    }
}
