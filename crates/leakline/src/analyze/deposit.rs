//! Turns live samples into deposits: bytes that a stretch of requests of one route and outcome has left behind on a line.
//!
//! Three things stand between a sample and a deposit:
//! - **A tread.** A list that grows by realloc takes its memory in risers, an eighth of its length ahead of need, and
//!   then fills it over the requests that follow. Its riser is therefore spread over the tread behind it.
//! - **A free list.** The stack of a recycled sample is that of an earlier life. Its bytes go to the lines that the
//!   trusted samples of the same route, outcome and size name, in proportion. Where several requests were in flight when
//!   it was revived, nobody knows whose it is: it goes to the routes whose requests are known to keep blocks of its size.
//! - **A collection.** Cyclic garbage lives until a full collection, so it matters whether one has passed over it.
use std::collections::{BTreeMap, HashMap};

use super::blame::{Blamed, Taken};
use super::evidence::{Evidence, Frame, Outcome, Owner, Phase, Sample, Worker};
use super::lines::Libraries;
use super::window::Window;

/// CPython takes at most an eighth more than a list needs, so a riser at the n-th request is filled by n / 8 more.
const TREAD: f64 = 1.0 / 8.0;
/// The relative variance of the place of a sample on its tread, were that left out: that of a uniform place within the
/// riser is 1/12; doubled, because the requests that fill the tread differ.
const RISER_NOISE: f64 = 1.0 / 6.0;

/// Index into [`Deposits::frames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineId(pub usize);

/// Index into [`Deposits::blamed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlamedId(pub usize);

/// A function, or the body of a module, of some file; of a library in a thread that runs no Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionId(pub usize);

/// Index into [`Deposits::routes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteIndex(pub usize);

/// What a deposit was left by: a route's requests of one outcome, or whatever ran outside of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Requests of this route and outcome.
    Route(RouteIndex, Outcome),
    /// Anything else, counted against all requests of the worker.
    Outside,
}

impl Source {
    /// The route, where there is one.
    pub fn route(&self) -> Option<RouteIndex> {
        match *self {
            Self::Route(route, _) => Some(route),
            Self::Outside => None,
        }
    }
}

/// Where a stack allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The innermost line; `None` in a thread that runs no Python.
    pub site: Option<LineId>,
    /// The library and function that took the memory, where it was not CPython alone.
    pub blamed: Option<BlamedId>,
    /// The innermost line of the application's own code.
    pub application: Option<LineId>,
    /// The function of the application's line; that of the innermost line where the application has no part in it.
    pub function: FunctionId,
    /// A stack that shows the way: its worker, and its number there.
    pub stack: (usize, u32),
}

/// Bytes left behind.
#[derive(Clone, Copy, Debug)]
pub struct Deposit {
    /// Index of the worker.
    pub worker: usize,
    /// Index of the sample among the worker's.
    pub sample: usize,
    /// Whose requests left them.
    pub source: Source,
    /// On which line; `None` where nobody knows.
    pub place: Option<Place>,
    /// Estimated bytes.
    pub bytes: f64,
    /// Filled from this request of its source …
    pub from: f64,
    /// … to this one; the same one unless it is a riser.
    pub to: f64,
    /// Variance of `bytes` as a share of `bytes` squared.
    pub noise: f64,
    /// Bytes added to an existing block.
    pub growth: bool,
    /// Bytes of the block that was sampled.
    pub size: u64,
    /// The sample's stack was that of an earlier life.
    pub recycled: bool,
    /// What the request was doing.
    pub phase: Phase,
}

impl Deposit {
    /// The share of the deposit that falls into a window, and the middle of that share.
    pub fn within(&self, window: &Window) -> Option<(f64, f64)> {
        if self.to <= self.from {
            return (self.from > window.from && self.from <= window.to).then_some((1.0, self.from - 0.5));
        }
        let (from, to) = (self.from.max(window.from), self.to.min(window.to));
        (to > from).then(|| ((to - from) / (self.to - self.from), (from + to) / 2.0))
    }
}

/// The requests of one source in one worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct History {
    /// How many there were.
    pub requests: u64,
    /// Those that can testify.
    pub window: Option<Window>,
    /// The last of them that had ended when the collector last ran over everything; 0 when it never did.
    pub collected: f64,
}

/// All deposits, and what their indices mean.
pub struct Deposits {
    /// The deposits.
    pub all: Vec<Deposit>,
    /// Names of routes; a route of several workers has one.
    pub routes: Vec<String>,
    /// Lines, as (file, function, line) of some worker's stack.
    pub frames: Vec<Frame>,
    /// Libraries' functions.
    pub blamed: Vec<Blamed>,
    /// What each worker's sources have done.
    pub histories: BTreeMap<(usize, Source), History>,
}

impl Deposits {
    /// Makes the deposits of all workers.
    pub fn of(evidence: &Evidence) -> Self {
        let mut ledger =
            Self { all: vec![], routes: vec![], frames: vec![], blamed: vec![], histories: BTreeMap::new() };
        let places = ledger.places(evidence);
        for (index, worker) in evidence.workers.iter().enumerate() {
            let routes = ledger.routes_of(worker);
            ledger.add_histories(index, worker, &routes);
            let owned = |sample: &Sample| owner(sample, &routes);
            let risers = Treads::of(worker, &owned);
            for (number, sample) in worker.samples.iter().enumerate() {
                let Some((source, ordinal)) = owned(sample) else { continue };
                if !(sample.weight.is_finite() && sample.weight > 0.0) {
                    continue;
                }
                let place = sample.stack.and_then(|stack| *places[index].get(stack.0 as usize)?);
                let taken = (sample.size as f64 / sample.weight).min(1.0);
                let (to, noise) = match sample.growth {
                    true => (risers.end(source, sample, ordinal), 1.0 - taken + taken * RISER_NOISE),
                    false => (ordinal, 1.0),
                };
                let deposit = Deposit {
                    worker: index,
                    sample: number,
                    source,
                    place: place.filter(|_| !sample.recycled),
                    bytes: sample.weight,
                    from: ordinal,
                    to,
                    noise,
                    growth: sample.growth,
                    size: sample.size,
                    recycled: sample.recycled,
                    phase: sample.phase,
                };
                ledger.all.push(deposit);
            }
        }
        ledger.share_out_ambiguous();
        ledger.settle_recycled();
        ledger
    }

    /// Requests of some sources, over all workers.
    pub fn requests_of(&self, belongs: impl Fn(&Source) -> bool) -> u64 {
        self.histories.iter().filter(|((_, source), _)| belongs(source)).map(|(_, history)| history.requests).sum()
    }

    /// How many outcomes the requests of a route have had.
    pub fn outcomes(&self, route: RouteIndex) -> usize {
        let had = |outcome: &Outcome| self.requests_of(|source| *source == Source::Route(route, *outcome)) > 0;
        Outcome::ALL.iter().filter(|outcome| had(outcome)).count()
    }

    /// The places of every stack of every worker.
    fn places(&mut self, evidence: &Evidence) -> Vec<Vec<Option<Place>>> {
        let libraries = Libraries::of(evidence);
        let mut lines: HashMap<&Frame, LineId> = HashMap::new();
        let mut functions: HashMap<(String, String), FunctionId> = HashMap::new();
        let mut known: HashMap<(String, Option<String>, Taken), BlamedId> = HashMap::new();
        let mut places = vec![];
        for (index, worker) in evidence.workers.iter().enumerate() {
            let mut of_worker = vec![];
            for (stack, number) in worker.stacks.iter().zip(0..) {
                let mut line = |frame| {
                    *lines.entry(frame).or_insert_with(|| {
                        self.frames.push(Frame::clone(frame));
                        LineId(self.frames.len() - 1)
                    })
                };
                let blamed = worker.natives.get(number as usize).and_then(|native| Blamed::of(native));
                let blamed = blamed.map(|blamed| {
                    // Wherever in the function it is: the first place that is met stands for all.
                    let function = (blamed.library.clone(), blamed.symbol.clone(), blamed.taken);
                    *known.entry(function).or_insert_with(|| {
                        self.blamed.push(blamed);
                        BlamedId(self.blamed.len() - 1)
                    })
                });
                let application = libraries.application(stack);
                let owner = match (application.or(stack.first()), blamed) {
                    (Some(frame), _) => Some((frame.file.clone(), frame.function.clone())),
                    (None, Some(BlamedId(at))) => {
                        let Blamed { library, symbol, .. } = &self.blamed[at];
                        Some((library.clone(), symbol.clone().unwrap_or_default()))
                    }
                    (None, None) => None,
                };
                of_worker.push(owner.map(|owner| {
                    let next = FunctionId(functions.len());
                    Place {
                        site: stack.first().map(&mut line),
                        blamed,
                        application: application.map(&mut line),
                        function: *functions.entry(owner).or_insert(next),
                        stack: (index, number),
                    }
                }));
            }
            places.push(of_worker);
        }
        places
    }

    fn routes_of(&mut self, worker: &Worker) -> Vec<RouteIndex> {
        let mut index = |name: &String| {
            RouteIndex(self.routes.iter().position(|known| known == name).unwrap_or_else(|| {
                self.routes.push(name.clone());
                self.routes.len() - 1
            }))
        };
        worker.routes.iter().map(|route| index(&route.name)).collect()
    }

    fn add_histories(&mut self, index: usize, worker: &Worker, routes: &[RouteIndex]) {
        let collection = Collection::of(worker, routes);
        for (route, &global) in worker.routes.iter().zip(routes) {
            for (outcome, served) in Outcome::ALL.into_iter().zip(route.served) {
                let history = self.histories.entry((index, Source::Route(global, outcome))).or_default();
                history.requests += served.requests;
            }
        }
        self.histories.entry((index, Source::Outside)).or_default().requests = worker.requests;
        for (&(_, source), history) in self.histories.iter_mut().filter(|((of, _), _)| *of == index) {
            history.window = Window::of(history.requests);
            history.collected = collection.last_request(source, history.requests);
        }
    }

    /// Gives the bytes of recycled samples that any of several requests may have revived to the routes and outcomes that
    /// are known to keep blocks of that size in that worker, in proportion. The ordinal is that of the request of the
    /// same relative age.
    fn share_out_ambiguous(&mut self) {
        // Those whose stacks are trusted are the better witnesses; only where there is none do the others speak.
        let mut keepers: HashMap<(usize, u64), BTreeMap<Source, f64>> = HashMap::new();
        for with_recycled in [false, true] {
            let mut found: HashMap<(usize, u64), BTreeMap<Source, f64>> = HashMap::new();
            let speaks = |deposit: &&Deposit| {
                deposit.source != Source::Outside && deposit.recycled == with_recycled && !deposit.growth
            };
            for deposit in self.all.iter().filter(speaks) {
                let sources = found.entry((deposit.worker, deposit.size)).or_default();
                *sources.entry(deposit.source).or_default() += deposit.bytes;
            }
            for (size, sources) in found {
                keepers.entry(size).or_insert(sources);
            }
        }
        for at in 0..self.all.len() {
            let deposit = self.all[at];
            let keepers = keepers.get(&(deposit.worker, deposit.size));
            let ambiguous = deposit.recycled && deposit.source == Source::Outside;
            let Some(keepers) = keepers.filter(|_| ambiguous) else { continue };
            let total: f64 = keepers.values().sum();
            let requests = |source| {
                let history = self.histories.get(&(deposit.worker, source));
                history.map_or(1, |history| history.requests.max(1)) as f64
            };
            let age = deposit.from / requests(Source::Outside);
            let shares: Vec<Deposit> = keepers
                .iter()
                .map(|(&source, &bytes)| {
                    let ordinal = (age * requests(source)).ceil().clamp(1.0, requests(source));
                    Deposit { source, bytes: deposit.bytes * bytes / total, from: ordinal, to: ordinal, ..deposit }
                })
                .collect();
            let mut shares = shares.into_iter();
            self.all[at] = shares.next().unwrap_or(deposit);
            self.all.extend(shares);
        }
    }

    /// Gives the bytes of recycled samples to the lines that the trusted samples of their route, outcome and size name.
    /// What was there before any request that can testify, as all imports leave behind, says nothing of what came later.
    fn settle_recycled(&mut self) {
        let mut witnesses: HashMap<(Source, u64), Witnesses> = HashMap::new();
        for deposit in &self.all {
            let window = self.histories.get(&(deposit.worker, deposit.source)).and_then(|history| history.window);
            let testifies = window.is_some_and(|window| deposit.within(&window).is_some());
            if let Some(place) = deposit.place.filter(|_| testifies) {
                let places = witnesses.entry((deposit.source, deposit.size)).or_default();
                places.entry((place.site, place.function)).or_insert((0.0, place)).0 += deposit.bytes;
            }
        }
        for at in 0..self.all.len() {
            let deposit = self.all[at];
            let places = witnesses.get(&(deposit.source, deposit.size));
            let Some(places) = places.filter(|_| deposit.recycled) else { continue };
            let total: f64 = places.values().map(|(bytes, _)| bytes).sum();
            let mut shares = places.values().map(|&(bytes, place)| Deposit {
                place: Some(place),
                bytes: deposit.bytes * bytes / total,
                ..deposit
            });
            self.all[at] = shares.next().unwrap_or(deposit);
            self.all.extend(shares);
        }
    }
}

/// The bytes that trusted samples have on each line and function, and one of their stacks.
type Witnesses = BTreeMap<(Option<LineId>, FunctionId), (f64, Place)>;

/// Who owns a sample, and the number of the request among its owner's; `None` while the request is being served.
fn owner(sample: &Sample, routes: &[RouteIndex]) -> Option<(Source, f64)> {
    match sample.owner {
        Owner::Request(settled) => {
            let route = *routes.get(settled.route.0 as usize)?;
            Some((Source::Route(route, settled.outcome), settled.ordinal as f64))
        }
        Owner::Unattributed => Some((Source::Outside, sample.born as f64)),
        Owner::InFlight => None,
    }
}

/// The collector's last full run in a worker, in terms of each source's own requests.
struct Collection {
    /// The share of the worker's requests that had ended by then.
    share: f64,
    /// The samples of each source that were born nearest to it: the last request before, the first one after.
    nearest: HashMap<Source, (Option<f64>, Option<f64>)>,
}

impl Collection {
    fn of(worker: &Worker, routes: &[RouteIndex]) -> Self {
        let requests = worker.full_collections.last().map_or(0, |collection| collection.requests);
        let mut nearest: HashMap<Source, (Option<f64>, Option<f64>)> = HashMap::new();
        for sample in &worker.samples {
            let Some((source, ordinal)) = owner(sample, routes) else { continue };
            let (before, after) = nearest.entry(source).or_default();
            match sample.born <= requests {
                true => *before = Some(before.map_or(ordinal, |known| known.max(ordinal))),
                false => *after = Some(after.map_or(ordinal, |known| known.min(ordinal))),
            }
        }
        Self { share: requests as f64 / worker.requests.max(1) as f64, nearest }
    }

    /// The number of the last request of a source that had ended by then. Samples know their place in both counts, and
    /// the gap that they leave is halved; where one side has none, the source's requests are taken to have come evenly.
    fn last_request(&self, source: Source, requests: u64) -> f64 {
        match self.nearest.get(&source) {
            Some((Some(before), Some(after))) => (before + after) / 2.0,
            _ => requests as f64 * self.share,
        }
    }
}

/// Where the treads of growing blocks end.
struct Treads {
    risers: HashMap<(Source, Option<u32>), Vec<f64>>,
}

impl Treads {
    fn of(worker: &Worker, owned: &impl Fn(&Sample) -> Option<(Source, f64)>) -> Self {
        let mut risers: HashMap<_, Vec<f64>> = HashMap::new();
        for sample in worker.samples.iter().filter(|sample| sample.growth) {
            if let Some((source, ordinal)) = owned(sample) {
                risers.entry((source, sample.stack.map(|stack| stack.0))).or_default().push(ordinal);
            }
        }
        for ordinals in risers.values_mut() {
            ordinals.sort_by(f64::total_cmp);
            ordinals.dedup();
        }
        Self { risers }
    }

    /// The request that fills what the riser at `ordinal` took: at the latest the one before the next riser from the
    /// same stack. A block is filled no earlier than the first request, which bounds the tread even where the sampler
    /// missed the next riser, or where there is none yet.
    fn end(&self, source: Source, sample: &Sample, ordinal: f64) -> f64 {
        let risers = &self.risers[&(source, sample.stack.map(|stack| stack.0))];
        let next = risers.partition_point(|&riser| riser <= ordinal);
        let longest = ordinal + ordinal * TREAD;
        let likely = match risers.get(next) {
            Some(&riser) => riser,
            None if next >= 2 => ordinal + (ordinal - risers[next - 2]) * (1.0 + TREAD),
            None => ordinal,
        };
        likely.min(longest).max(ordinal)
    }
}
