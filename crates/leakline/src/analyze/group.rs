//! Turns deposits into the groups that are looked at, and each group into its shape and its rate.
//!
//! A slow leak leaves few samples, spread over several lines of a library that several lines of one function call. So
//! evidence is pooled: by function of the application first, by single lines where the function is mixed with something
//! healthy, by function of a library where many functions call it, and by the whole route where the leak has no function
//! of its own. Leaks that only some outcomes have are
//! looked for by outcome as well, and functions that many routes run, as middleware is, over all of these routes. Every
//! group that is looked at counts in the correction for having looked so often.
use std::collections::{BTreeMap, BTreeSet};

use super::blame::Taken;
use super::decision::{Served, Shape, Survivor};
use super::deposit::{BlamedId, Deposit, Deposits, FunctionId, LineId, RouteIndex, Source};
use super::evidence::Outcome;
use super::rate::Rate;

/// Whose requests a group pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// What runs outside of requests.
    Outside,
    /// One route's.
    Route(RouteIndex),
    /// Those of all routes that share a function.
    Shared,
}

/// How widely a group pools. The order is that in which groups are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// Everything that one function of the application led to.
    Function(FunctionId),
    /// What one line allocated on behalf of one function of the application.
    Site(FunctionId, LineId),
    /// Everything that one function of a library took, whoever called it.
    Blamed(BlamedId),
    /// The whole route.
    Route,
}

/// What a group has in common. The order is that in which groups are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Whose requests it pools.
    pub scope: Scope,
    /// How widely it pools.
    pub pool: Pool,
    /// The one outcome that it is confined to.
    pub outcome: Option<Outcome>,
}

/// A group and what it shows.
pub struct Group {
    /// What its deposits have in common.
    pub key: Key,
    /// Indices of its deposits.
    pub members: Vec<usize>,
    /// Whose requests could have left them.
    pub sources: BTreeSet<Source>,
    /// The ages of what survived.
    pub shape: Shape,
    /// Bytes per request.
    pub rate: Rate,
}

/// All groups that have left enough to be looked at, in the order of preference.
pub fn groups(deposits: &Deposits) -> Vec<Group> {
    let divided: BTreeSet<RouteIndex> =
        (0..deposits.routes.len()).map(RouteIndex).filter(|&route| deposits.outcomes(route) > 1).collect();
    let mut members: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
    for (at, deposit) in deposits.all.iter().enumerate() {
        for key in keys(deposits, deposit, &divided) {
            members.entry(key).or_default().push(at);
        }
    }
    let groups = members.into_iter().filter_map(|(key, members)| {
        let sources = sources(deposits, &key, &members);
        let is_shared = sources.iter().filter_map(Source::route).collect::<BTreeSet<_>>().len() > 1;
        if key.scope == Scope::Shared && !is_shared {
            return None;
        }
        Group::of(deposits, key, members, sources)
    });
    groups.filter(|group| group.shape.is_enough()).collect()
}

/// The groups that a deposit belongs to; `divided` are the routes whose requests have had several outcomes.
fn keys(deposits: &Deposits, deposit: &Deposit, divided: &BTreeSet<RouteIndex>) -> Vec<Key> {
    let mut pools = vec![];
    if let Some(place) = deposit.place {
        pools.push(Pool::Function(place.function));
        pools.extend(place.site.map(|site| Pool::Site(place.function, site)));
        let is_third_party = |blamed: &BlamedId| deposits.blamed[blamed.0].taken != Taken::ByPython;
        pools.extend(place.blamed.filter(is_third_party).map(Pool::Blamed));
    }
    let Source::Route(route, outcome) = deposit.source else {
        if deposit.recycled && deposit.place.is_none() {
            // It was some request's, and nobody knows which: no work outside of requests.
            return vec![];
        }
        // Nor is all such work together looked at: what no function stands out in names nobody, and objects that only go
        // with others' come from everywhere, as the contexts and connections of tasks that outlive their requests do.
        return pools.into_iter().map(|pool| Key { scope: Scope::Outside, pool, outcome: None }).collect();
    };
    pools.push(Pool::Route);
    let mut keys = vec![];
    for pool in pools {
        keys.push(Key { scope: Scope::Route(route), pool, outcome: None });
        if divided.contains(&route) {
            keys.push(Key { scope: Scope::Route(route), pool, outcome: Some(outcome) });
        }
        if matches!(pool, Pool::Function(_) | Pool::Blamed(_)) {
            keys.push(Key { scope: Scope::Shared, pool, outcome: None });
        }
    }
    keys
}

/// Whose requests could have left the deposits of a group: those of the routes that its deposits are from.
fn sources(deposits: &Deposits, key: &Key, members: &[usize]) -> BTreeSet<Source> {
    let routes: BTreeSet<_> = members.iter().map(|&member| deposits.all[member].source.route()).collect();
    let belongs = |source: &&Source| {
        let fits = |only| matches!(**source, Source::Route(_, outcome) if outcome == only);
        routes.contains(&source.route()) && key.outcome.is_none_or(fits)
    };
    deposits.histories.keys().map(|(_, source)| source).filter(belongs).copied().collect()
}

impl Group {
    /// The group of these deposits; `None` when no request of theirs can testify.
    fn of(deposits: &Deposits, key: Key, members: Vec<usize>, sources: BTreeSet<Source>) -> Option<Self> {
        let served = served(deposits, &sources)?;
        let survivors: Vec<_> =
            members.iter().filter_map(|&member| survivor(deposits, &deposits.all[member])).collect();
        if survivors.is_empty() {
            return None;
        }
        let shape = Shape::of(&survivors, &served);
        let bytes = survivors.iter().map(|survivor| survivor.bytes).sum();
        let rate = Rate::of(bytes, served.requests, shape.witnesses);
        Some(Self { key, members, sources, shape, rate })
    }

    /// The rate of one outcome alone; zero, with an upper bound, where it left nothing, and `None` where it had too few
    /// requests to tell.
    pub fn rate_of(&self, deposits: &Deposits, outcome: Outcome) -> Option<Rate> {
        let is_so = |source: &Source| matches!(source, Source::Route(_, of) if *of == outcome);
        let sources: BTreeSet<Source> = self.sources.iter().filter(|source| is_so(source)).copied().collect();
        let served = served(deposits, &sources)?;
        let (members, others): (Vec<usize>, Vec<usize>) =
            self.members.iter().partition(|&&member| is_so(&deposits.all[member].source));
        let heaviest = others.iter().map(|&other| deposits.all[other].bytes).fold(0.0, f64::max);
        let key = Key { outcome: Some(outcome), ..self.key };
        let confined = Self::of(deposits, key, members, sources);
        Some(confined.map_or_else(|| Rate::nothing(served.requests, heaviest), |group| group.rate))
    }

    /// The outcomes that requests of this group have had.
    pub fn outcomes(&self, deposits: &Deposits) -> Vec<Outcome> {
        let had = |outcome: &Outcome| {
            let is_so = |source: &Source| matches!(source, Source::Route(_, of) if of == outcome);
            deposits.requests_of(|source| is_so(source) && self.sources.contains(source)) > 0
        };
        Outcome::ALL.into_iter().filter(had).collect()
    }
}

/// A deposit as a survivor of its history's window.
fn survivor(deposits: &Deposits, deposit: &Deposit) -> Option<Survivor<(usize, Source, u64)>> {
    let history = deposits.histories.get(&(deposit.worker, deposit.source))?;
    let window = history.window?;
    let (share, middle) = deposit.within(&window)?;
    Some(Survivor {
        request: (deposit.worker, deposit.source, deposit.from as u64),
        age: ((middle - window.from) / window.requests()).clamp(0.0, 1.0),
        bytes: deposit.bytes * share,
        noise: deposit.noise,
        growth: if deposit.growth { deposit.size } else { 0 },
        collected: middle <= history.collected,
    })
}

/// The requests that could have left something, over all workers.
fn served(deposits: &Deposits, sources: &BTreeSet<Source>) -> Option<Served> {
    let mut served = Served { requests: 0.0, longest: 0.0, collected: 0.0 };
    for ((_, source), history) in &deposits.histories {
        if let Some(window) = history.window.filter(|_| sources.contains(source)) {
            served.requests += window.requests();
            served.longest = served.longest.max(window.requests());
            served.collected += window.requests_until(history.collected);
        }
    }
    served.collected /= served.requests.max(1.0);
    (served.requests > 0.0).then_some(served)
}
