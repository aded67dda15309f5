//! Turns the groups that only a leak explains into findings, those that cost most first.
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::balloons::{Balloon, balloons};
use super::blame::{Blamed, Taken};
use super::decision::{ERROR, Garbage};
use super::deposit::{BlamedId, Deposit, Deposits, FunctionId, LineId, Place, Source};
use super::evidence::{Evidence, Frame, NativeFrame, Outcome, Phase, StackId};
use super::group::{Group, Key, Pool, Scope, groups};
use super::outlook::{limit_reached_in, smallest_visible};
use super::rate::Rate;
use super::retained::{Retained, retained};
use super::routes::{RouteTotals, Unattributed, totals, unattributed};
use super::sockets::{SocketTotals, exchanged};

/// The most that is claimed where cyclic garbage that no full collection has met yet explains the growth too.
const UNCOLLECTED_CONFIDENCE: f64 = 0.9;
/// The most that is ever claimed: the mildest healthy trend is a convention, not a law.
const MOST_CONFIDENCE: f64 = 0.99;
/// A function is named for a whole route where it carries at least this share.
const DOMINANT: f64 = 0.5;
/// A phase is named where it carries at least this share of what grows.
const IN_ONE_PHASE: f64 = 0.95;
/// Sites below this share of a finding are not listed.
const WORTH_LISTING: f64 = 0.05;
/// The least that an object measures which holds a block of a library's, bytes: its head, a pointer and a length.
const HOLDING_OBJECT: f64 = 32.0;
/// So many samples must have been expected before it says something that there is none: by chance that happens once in twenty.
const TELLING: f64 = 3.0;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each request leaves something behind that nothing frees.
    Leak,
    /// The same, in a container that holds no more than so many.
    Cache,
    /// The same, in cycles that nothing refers to and that the collector has not met yet.
    Garbage,
}

/// Who allocates. `docs/decision.md` says how it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Python code, or CPython's own modules.
    Python,
    /// A library by itself.
    Native,
    /// A library that makes objects of Python's, or memory that goes with such objects.
    Mixed,
}

/// A line and its share of a finding's bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// The line that allocates.
    pub site: Frame,
    /// 0 to 1.
    pub share: f64,
}

/// What the requests of one outcome leave behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grown {
    /// The outcome.
    pub outcome: Outcome,
    /// Requests of that outcome on these routes, all workers.
    pub requests: u64,
    /// Bytes that each leaves behind; `None` where there were too few to tell.
    pub rate: Option<Rate>,
}

/// The container that holds what a finding is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// The way to it, the root first.
    pub path: Vec<String>,
    /// The same as one text.
    pub text: String,
    /// The share of the survivors' bytes that it holds, 0 to 1.
    pub share: f64,
    /// What it will hold when it is full, bytes; `None` where nothing bounds it.
    pub bound_bytes: Option<f64>,
}

/// What the container of a finding holds besides, that grows with the same requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Beside {
    /// The line that allocates most of it.
    pub site: Option<Frame>,
    /// Bytes per request, of all requests where it was allocated outside of them.
    pub rate: Rate,
    /// Estimated bytes that have been left behind so far.
    pub live_bytes: f64,
}

/// A live sample that a finding rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Survivor {
    /// Index of its worker.
    pub worker: usize,
    /// Index among the worker's samples.
    pub sample: usize,
}

/// Memory that grows, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Who allocates.
    pub origin: Origin,
    /// False where a library took the memory by itself and, by the samples, objects of Python's may hold it all the same; and
    /// where nobody looked at native code.
    pub origin_is_certain: bool,
    /// The routes whose requests leak, the busiest first; none for what runs outside of requests.
    pub routes: Vec<String>,
    /// The only outcome that leaks; `None` where all do, as far as one can tell.
    pub outcome: Option<Outcome>,
    /// What each outcome leaves behind, for comparison; empty where there was only one.
    pub outcomes: Vec<Grown>,
    /// What the requests were doing when they allocated it; `None` where that differs.
    pub phase: Option<Phase>,
    /// Bytes per request of that route and outcome.
    pub rate: Rate,
    /// Estimated bytes that have been left behind so far.
    pub live_bytes: f64,
    /// The probability that growth which is slowing down or being freed would look like this by chance, corrected for all
    /// the groups that were looked at.
    pub doubt: f64,
    /// Whether the growth could be garbage that was not collected yet.
    pub garbage: Garbage,
    /// Samples that show it.
    pub samples: usize,
    /// Which these are.
    pub survivors: Vec<Survivor>,
    /// What holds them; `None` where no heap snapshot has told.
    pub holder: Option<Holder>,
    /// What that holds besides, most first.
    pub beside: Vec<Beside>,
    /// The share of them, by bytes, that lay where nothing pointed to when a heap snapshot was taken; `None` where none
    /// has told.
    pub lost: Option<f64>,
    /// Requests of the route and outcome, all workers.
    pub requests: u64,
    /// The library and function that take most of it; `None` where it is CPython itself.
    pub blamed: Option<Blamed>,
    /// The line that allocates most of it; `None` in threads that run no Python.
    pub site: Option<Frame>,
    /// The line of the application's own code that leads there most.
    pub application: Option<Frame>,
    /// The native code inside of the allocating line, innermost frame first, by the stack that carries most.
    pub native: Vec<NativeFrame>,
    /// The way from the allocating line outwards, by the same stack.
    pub stack: Vec<Frame>,
    /// The lines that allocate it, most first.
    pub sites: Vec<Share>,
    /// What those requests exchanged over sockets, beside what is usual for their routes.
    pub sockets: Vec<SocketTotals>,
    /// When the living workers reach their memory limit at this rate, in seconds.
    pub limit_reached_in_seconds: Option<f64>,
}

impl Finding {
    /// How sure it is: without doubt 0.99 at most, and 0.9 where nobody knows whether it is garbage that the collector frees.
    pub fn confidence(&self) -> f64 {
        let most = if self.garbage == Garbage::Untested { UNCOLLECTED_CONFIDENCE } else { MOST_CONFIDENCE };
        (1.0 - self.doubt).clamp(0.0, most)
    }

    /// Is the other one a part of this leak? One container holds both, and whose requests fill it is known from this one.
    fn explains(&self, other: &Self) -> bool {
        let is_of_same_requests = other.routes.is_empty()
            || other.routes.iter().all(|route| self.routes.contains(route))
                && (self.outcome.is_none() || self.outcome == other.outcome);
        [self.kind, other.kind] == [Kind::Leak; 2]
            && is_of_same_requests
            && self.holder.as_ref().zip(other.holder.as_ref()).is_some_and(|(one, other)| one.path == other.path)
    }
}

/// What the evidence shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Analysis {
    /// Memory that grows, that which holds most first.
    pub findings: Vec<Finding>,
    /// Memory that few requests took at once and gave back, the most first.
    pub balloons: Vec<Balloon>,
    /// Free memory that the allocators keep, where it is much.
    pub retained: Option<Retained>,
    /// What each route did, that which holds most first.
    pub routes: Vec<RouteTotals>,
    /// What ran outside of requests.
    pub unattributed: Unattributed,
    /// The smallest leak, in bytes per request, that would have been found.
    pub smallest_visible: Option<f64>,
}

impl Analysis {
    /// Makes one finding of those that one container holds. What it keeps for each request may have been made in several
    /// functions, and some of it by the server before the request began.
    pub fn join_by_holder(&mut self) {
        for finding in std::mem::take(&mut self.findings) {
            match self.findings.iter_mut().find(|known| known.explains(&finding)) {
                Some(known) => {
                    let Finding { site, rate, live_bytes, .. } = finding;
                    known.beside.push(Beside { site, rate, live_bytes });
                }
                None => self.findings.push(finding),
            }
        }
    }
}

/// Looks at all evidence.
pub fn findings(evidence: &Evidence) -> Analysis {
    let deposits = Deposits::of(evidence);
    let groups = groups(&deposits);
    let looked_at = groups.len();
    let is_leak = |group: &&Group| group.shape.is_even() && group.shape.doubt() * looked_at as f64 <= ERROR;
    let leaks: Vec<&Group> = groups.iter().filter(is_leak).collect();
    let mut findings: Vec<Finding> = without_repeats(&deposits, &leaks)
        .into_iter()
        .map(|group| finding(evidence, &deposits, group, &groups))
        .collect();
    findings.sort_by(|one, other| other.live_bytes.total_cmp(&one.live_bytes));
    let mut balloons = balloons(evidence);
    // What is known to be a leak waits for nothing.
    balloons.retain(|balloon| !balloon.waits || !findings.iter().any(|leak| leak.routes.contains(&balloon.route)));
    Analysis {
        findings,
        balloons,
        retained: retained(evidence),
        routes: totals(evidence, &deposits),
        unattributed: unattributed(evidence),
        smallest_visible: smallest_visible(evidence, &deposits, looked_at),
    }
}

/// One group for each leak. Groups come in the order of preference: functions before their lines, all outcomes before
/// one of them, a whole route only where none of its functions speaks.
fn without_repeats<'a>(deposits: &Deposits, leaks: &[&'a Group]) -> Vec<&'a Group> {
    let mut chosen: Vec<&Group> = vec![];
    let (shared, others): (Vec<&Group>, Vec<&Group>) = leaks.iter().partition(|group| group.key.scope == Scope::Shared);
    for group in others {
        if !chosen.iter().any(|known| repeats(deposits, group, known)) {
            chosen.push(group);
        }
    }
    let (libraries, shared): (Vec<&Group>, Vec<&Group>) =
        shared.into_iter().partition(|group| matches!(group.key.pool, Pool::Blamed(_)));
    // Routes that share a function are told together where none of them leaks enough to be seen by itself, or where
    // several do at rates that may be the same. One route alone is told alone: that others share it proves nothing.
    for group in shared {
        let alone: Vec<&Group> =
            chosen.iter().filter(|known| function_of(known) == function_of(group)).copied().collect();
        let lowest = alone.iter().map(|known| known.rate.high).fold(f64::INFINITY, f64::min);
        let highest = alone.iter().map(|known| known.rate.low).fold(0.0, f64::max);
        if alone.len() != 1 && highest <= lowest {
            chosen.retain(|known| function_of(known) != function_of(group) || known.key.scope == Scope::Outside);
            chosen.push(group);
        }
    }
    // A library's function is told for all routes together where no route alone speaks of it.
    for group in libraries {
        if !chosen.iter().any(|known| is_mostly(deposits, known, group)) {
            chosen.push(group);
        }
    }
    chosen
}

/// Does most of what one group holds belong to another one, too?
fn is_mostly(deposits: &Deposits, group: &Group, other: &Group) -> bool {
    let bytes = |members: &mut dyn Iterator<Item = &usize>| members.map(|&at| deposits.all[at].bytes).sum::<f64>();
    let common = bytes(&mut group.members.iter().filter(|member| other.members.binary_search(member).is_ok()));
    common > bytes(&mut group.members.iter()) * DOMINANT
}

fn repeats(deposits: &Deposits, group: &Group, known: &Group) -> bool {
    let shares_outcome =
        known.key.outcome.is_none() || group.key.outcome.is_none() || known.key.outcome == group.key.outcome;
    let shares_pool = match (group.key.pool, known.key.pool) {
        (Pool::Function(one) | Pool::Site(one, _), Pool::Function(other)) => one == other,
        (Pool::Route, _) => true,
        (Pool::Blamed(_), _) => is_mostly(deposits, group, known),
        (one, other) => one == other,
    };
    known.key.scope == group.key.scope && shares_outcome && shares_pool
}

fn function_of(group: &Group) -> Option<FunctionId> {
    match group.key.pool {
        Pool::Function(function) | Pool::Site(function, _) => Some(function),
        Pool::Blamed(_) | Pool::Route => None,
    }
}

fn finding(evidence: &Evidence, deposits: &Deposits, group: &Group, groups: &[Group]) -> Finding {
    let outcomes = by_outcome(deposits, group, groups);
    let (outcome, rate) = leaking_outcome(group, &outcomes);
    let is_leaking = |source: &Source| {
        let fits = |only| matches!(*source, Source::Route(_, how) if how == only);
        group.sources.contains(source) && outcome.is_none_or(fits)
    };
    let members = group.members.iter().map(|&member| &deposits.all[member]);
    let members: Vec<&Deposit> = members.filter(|deposit| is_leaking(&deposit.source)).collect();
    let live_bytes = bytes(&members);
    let function = named_function(group, &members);
    let places = || members.iter().filter_map(|deposit| Some((deposit.place?, deposit.bytes)));
    let of_function = || places().filter(|(place, _)| Some(place.function) == function);

    let sites = largest_first(of_function().filter_map(|(place, bytes)| Some((place.site?, bytes))));
    let site = sites.first().map(|&(site, _)| site);
    let of_site = of_function().filter(|(place, _)| place.site == site);
    let stack = largest_first(of_site).first().map(|&(place, _)| place);
    let frame = |line: LineId| deposits.frames[line.0].clone();
    let calls = |place: Place| evidence.workers[place.stack.0].calls(Some(StackId(place.stack.1)));
    let (native, calls) = stack.map(calls).unwrap_or_default();
    let (origin, blamed) = blame(deposits, &members);
    let objects = blamed.as_ref().map_or(0.0, |blamed| expected_objects(evidence, deposits, &members, blamed));
    // A thread that runs no Python makes no objects.
    let is_certain = origin != Origin::Native || site.is_none() || objects >= TELLING;
    let origin_is_certain = is_certain && evidence.workers.iter().any(|worker| worker.walks_native);

    let mut routes: Vec<_> = group.sources.iter().filter_map(Source::route).collect();
    routes.dedup();
    routes.sort_by_cached_key(|route| Reverse(deposits.requests_of(|source| source.route() == Some(*route))));
    let routes: Vec<String> = routes.into_iter().map(|route| deposits.routes[route.0].clone()).collect();
    let outcome_or_all = outcome.as_ref().map_or(&Outcome::ALL[..], std::slice::from_ref);
    Finding {
        kind: Kind::Leak,
        origin,
        origin_is_certain,
        sockets: exchanged(evidence, &routes, outcome_or_all, &Outcome::ALL),
        routes,
        outcome,
        outcomes,
        phase: Phase::ALL.into_iter().find(|&phase| in_phase(&members, phase) >= live_bytes * IN_ONE_PHASE),
        rate,
        live_bytes,
        doubt: (group.shape.doubt() * groups.len() as f64).min(1.0),
        garbage: group.shape.garbage,
        samples: members.len(),
        survivors: survivors(&members),
        holder: None,
        beside: vec![],
        lost: None,
        requests: deposits.requests_of(is_leaking),
        blamed,
        site: site.map(frame),
        application: stack.and_then(|place| place.application).map(frame),
        native,
        stack: calls,
        sites: sites
            .iter()
            .map(|&(site, bytes)| Share { site: frame(site), share: bytes / live_bytes })
            .filter(|share| share.share >= WORTH_LISTING)
            .collect(),
        limit_reached_in_seconds: limit_reached_in(evidence, deposits, is_leaking, rate.bytes),
    }
}

/// Who allocates most of a finding, and the library and function to blame for it.
///
/// Memory that a library has taken by itself may be held by an object of Python's, as an array's is. Then the library has
/// made as many objects, which stay behind with the blocks, and the sampler has seen them, too.
fn blame(deposits: &Deposits, members: &[&Deposit]) -> (Origin, Option<Blamed>) {
    let blamed_of = |deposit: &Deposit| deposit.place?.blamed.map(|BlamedId(at)| &deposits.blamed[at]);
    let shares = largest_first(members.iter().filter_map(|deposit| Some((blamed_of(deposit)?, deposit.bytes))));
    let by_libraries: f64 = shares.iter().map(|(_, bytes)| bytes).sum();
    let known = shares.first().filter(|_| by_libraries > bytes(members) * DOMINANT);
    let Some(&(blamed, _)) = known else { return (Origin::Python, None) };
    let blocks = |taken| -> f64 {
        let is_meant = |of: &Blamed| of.library == blamed.library && of.taken == taken;
        let meant = members.iter().filter(|deposit| !deposit.growth && deposit.size > 0);
        let meant = meant.filter(|deposit| blamed_of(deposit).is_some_and(is_meant));
        meant.map(|deposit| deposit.bytes / deposit.size as f64).sum()
    };
    let origin = match blamed.taken {
        Taken::ByPython => Origin::Python,
        Taken::ThroughPython => Origin::Mixed,
        Taken::ByItself if blocks(Taken::ThroughPython) >= blocks(Taken::ByItself) / 2.0 => Origin::Mixed,
        Taken::ByItself => Origin::Native,
    };
    (origin, Some(blamed.clone()))
}

/// Samples of Python's objects that there would be, had the library made one for each block that it took.
fn expected_objects(evidence: &Evidence, deposits: &Deposits, members: &[&Deposit], blamed: &Blamed) -> f64 {
    let is_of_library = |deposit: &Deposit| {
        let of = deposit.place.and_then(|place| place.blamed).map(|BlamedId(at)| &deposits.blamed[at]);
        of.is_some_and(|of| of.library == blamed.library && of.taken == Taken::ByItself)
    };
    let blocks = members.iter().filter(|deposit| !deposit.growth && deposit.size > 0 && is_of_library(deposit));
    let expected = blocks.map(|deposit| {
        let worker = &evidence.workers[deposit.worker];
        let born = worker.samples[deposit.sample].born as f64;
        let interval = worker.interval_between(born, born + 1.0).max(1.0);
        deposit.bytes / deposit.size as f64 * -(-HOLDING_OBJECT / interval).exp_m1()
    });
    expected.sum()
}

/// Each once: a sample that several may have revived is shared out.
fn survivors(members: &[&Deposit]) -> Vec<Survivor> {
    let all = members.iter().map(|deposit| Survivor { worker: deposit.worker, sample: deposit.sample });
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The function that a group stands for: that of a whole route is the one that carries most of it, if one does.
fn named_function(group: &Group, members: &[&Deposit]) -> Option<FunctionId> {
    function_of(group).or_else(|| {
        let of_place = |deposit: &&Deposit| Some((deposit.place?.function, deposit.bytes));
        let functions = largest_first(members.iter().filter_map(of_place));
        functions.first().filter(|(_, most)| *most >= bytes(members) * DOMINANT).map(|&(function, _)| function)
    })
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

fn in_phase(members: &[&Deposit], phase: Phase) -> f64 {
    members.iter().filter(|deposit| deposit.phase == phase).map(|deposit| deposit.bytes).sum()
}

/// What each outcome leaves behind of what a group is about. A group of one outcome is compared by the one that pools
/// them all, if that had enough to be looked at.
fn by_outcome(deposits: &Deposits, group: &Group, groups: &[Group]) -> Vec<Grown> {
    let key = Key { outcome: None, ..group.key };
    let whole = groups.iter().find(|other| other.key == key).unwrap_or(group);
    let known = whole.outcomes(deposits);
    if known.len() < 2 {
        return vec![];
    }
    let grown = |outcome| {
        let fits = |source: &Source| {
            matches!(source, Source::Route(_, of) if *of == outcome) && whole.sources.contains(source)
        };
        Grown { outcome, requests: deposits.requests_of(fits), rate: whole.rate_of(deposits, outcome) }
    };
    known.into_iter().map(grown).collect()
}

/// The outcome that leaks more than all others for sure, with its rate; no single one where several do, or where there
/// is nothing to tell them by.
fn leaking_outcome(group: &Group, outcomes: &[Grown]) -> (Option<Outcome>, Rate) {
    if group.key.outcome.is_some() {
        return (group.key.outcome, group.rate);
    }
    let alone = outcomes.iter().find(|one| {
        let others = outcomes.iter().filter(|other| other.outcome != one.outcome);
        let exceeds = |other: &Grown| one.rate.zip(other.rate).is_some_and(|(rate, other)| rate.low > other.high);
        others.into_iter().all(exceeds)
    });
    match alone {
        Some(&Grown { outcome, rate: Some(rate), .. }) => (Some(outcome), rate),
        _ => (None, group.rate),
    }
}
