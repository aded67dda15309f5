//! Turns the groups that only a leak explains into findings, those that cost most first.
use std::collections::BTreeMap;

use super::decision::{ERROR, Garbage};
use super::deposit::{Deposit, Deposits, FunctionId, LineId, Place, Source};
use super::evidence::{Evidence, Frame, Outcome};
use super::group::{Group, Pool, groups, outcomes};
use super::outlook::{limit_reached_in, smallest_visible};
use super::rate::Rate;
use super::routes::{RouteTotals, Unattributed, totals, unattributed};

/// The most that is claimed where no full collection has passed over the growth, so that cyclic garbage explains it too.
const UNCOLLECTED_CONFIDENCE: f64 = 0.9;
/// The most that is ever claimed: the mildest healthy trend is a convention, not a law.
const MOST_CONFIDENCE: f64 = 0.99;
/// A function is named for a whole route where it carries at least this share.
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
    /// The line of the application's own code that leads there most.
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

/// One group for each leak: the groups come in the order of preference, and each that repeats one before it is left out.
/// Functions are preferred to their lines, all outcomes together to one of them, and a whole route only speaks where
/// none of its functions does.
fn without_repeats<'a>(leaks: &[&'a Group]) -> Vec<&'a Group> {
    let mut chosen: Vec<&Group> = vec![];
    for group in leaks {
        if !chosen.iter().any(|known| repeats(group, known)) {
            chosen.push(group);
        }
    }
    chosen
}

fn repeats(group: &Group, known: &Group) -> bool {
    let shares_outcome =
        known.key.outcome.is_none() || group.key.outcome.is_none() || known.key.outcome == group.key.outcome;
    let shares_pool = match (group.key.pool, known.key.pool) {
        (Pool::Function(one) | Pool::Site(one, _), Pool::Function(other)) => one == other,
        (Pool::Route, _) => true,
        (one, other) => one == other,
    };
    known.key.route == group.key.route && shares_outcome && shares_pool
}

fn finding(evidence: &Evidence, deposits: &Deposits, group: &Group, looked_at: usize) -> Finding {
    let (outcome, rate) = leaking_outcome(deposits, group);
    let is_leaking = |source: Source| match source {
        Source::Route(route, how) => group.key.route == Some(route) && outcome.is_none_or(|only| only == how),
        Source::Outside => group.key.route.is_none(),
    };
    let members = group.members.iter().map(|&member| &deposits.all[member]);
    let members: Vec<&Deposit> = members.filter(|deposit| is_leaking(deposit.source)).collect();
    let live_bytes = bytes(&members);
    let function = function(group, &members);
    let places = || members.iter().filter_map(|deposit| Some((deposit.place?, deposit.bytes)));
    let of_function = || places().filter(|(place, _)| Some(place.function) == function);

    let sites = largest_first(of_function().map(|(place, bytes)| (place.site, bytes)));
    let site = sites.first().map(|&(site, _)| site);
    let of_site = of_function().filter(|(place, _)| Some(place.site) == site);
    let stack = largest_first(of_site).first().map(|&(place, _)| place);
    let frame = |line: LineId| deposits.frames[line.0].clone();
    let frames = |place: Place| evidence.workers[place.stack.0].stacks[place.stack.1 as usize].clone();

    let most = if group.shape.garbage == Garbage::Survived { MOST_CONFIDENCE } else { UNCOLLECTED_CONFIDENCE };
    let requests = deposits.histories.iter().filter(|((_, source), _)| is_leaking(*source));
    Finding {
        kind: Kind::Leak,
        origin: Origin::Python,
        route: group.key.route.map(|route| deposits.routes[route.0].clone()),
        outcome,
        rate,
        live_bytes,
        confidence: (1.0 - group.shape.doubt() * looked_at as f64).clamp(0.0, most),
        garbage: group.shape.garbage,
        samples: members.len(),
        requests: requests.map(|(_, history)| history.requests).sum(),
        site: site.map(frame),
        application: stack.and_then(|place| place.application).map(frame),
        stack: stack.map_or(vec![], frames),
        sites: sites
            .iter()
            .map(|&(site, bytes)| Share { site: frame(site), share: bytes / live_bytes })
            .filter(|share| share.share >= WORTH_LISTING)
            .collect(),
        limit_reached_in_seconds: limit_reached_in(evidence, deposits, is_leaking, rate.bytes),
    }
}

/// The function that a group stands for: that of a whole route is the one that carries most of it, if one does.
fn function(group: &Group, members: &[&Deposit]) -> Option<FunctionId> {
    match group.key.pool {
        Pool::Function(function) | Pool::Site(function, _) => Some(function),
        Pool::Route => {
            let of_place = |deposit: &&Deposit| Some((deposit.place?.function, deposit.bytes));
            let functions = largest_first(members.iter().filter_map(of_place));
            functions.first().filter(|(_, most)| *most >= bytes(members) * DOMINANT).map(|&(function, _)| function)
        }
    }
}

fn bytes(deposits: &[&Deposit]) -> f64 {
    deposits.iter().map(|deposit| deposit.bytes).sum()
}

/// Sums bytes by key, and puts the keys with most bytes first.
fn largest_first<Key: Ord>(bytes: impl Iterator<Item = (Key, f64)>) -> Vec<(Key, f64)> {
    let mut sums: BTreeMap<Key, f64> = BTreeMap::new();
    for (key, bytes) in bytes {
        *sums.entry(key).or_default() += bytes;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|one, other| other.1.total_cmp(&one.1));
    sums
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
