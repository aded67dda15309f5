//! Turns deposits into the groups that are looked at, and each group into its shape and its rate.
//!
//! A slow leak leaves few samples, spread over several lines of a library that several lines of one function call. So
//! evidence is pooled: by function of the application first, by single lines where the function is mixed with something
//! healthy, and by the whole route where the leak has no function of its own. Leaks that only some outcomes have are looked
//! for by outcome as well. Every group that is looked at counts in the correction for having looked so often.
use std::collections::BTreeMap;

use super::decision::{Served, Shape, Survivor};
use super::deposit::{Deposit, Deposits, FunctionId, LineId, RouteIndex, Source};
use super::evidence::Outcome;
use super::rate::Rate;

/// How widely a group pools. The order is that in which groups are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// Everything that one function of the application led to.
    Function(FunctionId),
    /// What one line allocated on behalf of one function of the application.
    Site(FunctionId, LineId),
    /// The whole route.
    Route,
}

/// What a group has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The route; `None` for what ran outside of requests.
    pub route: Option<RouteIndex>,
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
    /// The ages of what survived.
    pub shape: Shape,
    /// Bytes per request.
    pub rate: Rate,
}

/// All groups that have left enough to be looked at.
pub fn groups(deposits: &Deposits) -> Vec<Group> {
    let mut members: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
    for (at, deposit) in deposits.all.iter().enumerate() {
        let (route, outcome) = match deposit.source {
            Source::Route(route, outcome) => (Some(route), Some(outcome)),
            Source::Outside => (None, None),
        };
        let mut pools = vec![Pool::Route];
        if let Some(place) = deposit.place {
            pools.push(Pool::Function(place.function));
            pools.push(Pool::Site(place.function, place.site));
        }
        for pool in pools {
            members.entry(Key { route, pool, outcome: None }).or_default().push(at);
            if outcome.is_some() && route.is_some_and(|route| outcomes(deposits, route).len() > 1) {
                members.entry(Key { route, pool, outcome }).or_default().push(at);
            }
        }
    }
    let groups = members.into_iter().filter_map(|(key, members)| Group::of(deposits, key, members));
    groups.filter(|group| group.shape.is_enough()).collect()
}

/// The outcomes that requests of this route have had.
pub fn outcomes(deposits: &Deposits, route: RouteIndex) -> Vec<Outcome> {
    let had = |outcome: &Outcome| {
        let source = Source::Route(route, *outcome);
        deposits.histories.iter().any(|((_, of), history)| *of == source && history.requests > 0)
    };
    Outcome::ALL.into_iter().filter(had).collect()
}

impl Group {
    /// The group of these deposits; `None` when no request of theirs can testify.
    fn of(deposits: &Deposits, key: Key, members: Vec<usize>) -> Option<Self> {
        let served = served(deposits, key.route, key.outcome)?;
        let survivors: Vec<_> =
            members.iter().filter_map(|&member| survivor(deposits, &deposits.all[member])).collect();
        if survivors.is_empty() {
            return None;
        }
        let shape = Shape::of(&survivors, &served);
        let bytes = survivors.iter().map(|survivor| survivor.bytes).sum();
        let rate = Rate::of(bytes, served.requests, shape.witnesses);
        Some(Self { key, members, shape, rate })
    }

    /// The same group, confined to one outcome; its rate is zero, with an upper bound, where that left nothing.
    pub fn rate_of(&self, deposits: &Deposits, outcome: Outcome) -> Option<Rate> {
        let served = served(deposits, self.key.route, Some(outcome))?;
        let with = |&&member: &&usize| matches!(deposits.all[member].source, Source::Route(_, of) if of == outcome);
        let members: Vec<usize> = self.members.iter().filter(with).copied().collect();
        let key = Key { outcome: Some(outcome), ..self.key };
        let weights = self.members.iter().map(|&member| deposits.all[member].bytes);
        let heaviest = weights.fold(0.0, f64::max);
        let group = Self::of(deposits, key, members);
        Some(group.map_or_else(|| Rate::nothing(served.requests, heaviest), |group| group.rate))
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
        growth: deposit.growth,
        collected: middle <= history.collected,
    })
}

/// The requests that could have left something, over all workers.
fn served(deposits: &Deposits, route: Option<RouteIndex>, outcome: Option<Outcome>) -> Option<Served> {
    let of_group = |source: &Source| match *source {
        Source::Route(of, how) => Some(of) == route && outcome.is_none_or(|only| how == only),
        Source::Outside => route.is_none(),
    };
    let mut served = Served { requests: 0.0, longest: 0.0, collected: 0.0 };
    for ((_, source), history) in &deposits.histories {
        if let Some(window) = history.window.filter(|_| of_group(source)) {
            served.requests += window.requests();
            served.longest = served.longest.max(window.requests());
            served.collected += window.requests_until(history.collected);
        }
    }
    served.collected /= served.requests.max(1.0);
    (served.requests > 0.0).then_some(served)
}
