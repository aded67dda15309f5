//! Turns ledgers into free memory that the allocators keep: resident, given back by the program, and not by malloc or
//! pymalloc to the system. It looks like a leak from outside, and is none: the next requests use it again.
//!
//! It is reported where it is large, a third of what is resident, and more than what ordinary requests take anyway and
//! so would take again at once. `docs/decision.md` says why.
use std::collections::BTreeMap;

use super::evidence::{Evidence, Frame, Kept, Ledger, Peak, Sample, Worker};
use super::finding::Share;
use super::lines::Libraries;

/// Less is no finding, bytes: the healthy cases keep 1 to 8 MB.
const LEAST_BYTES: u64 = 32 << 20;
/// Nor is a smaller share of the resident set.
const LEAST_SHARE: f64 = 1.0 / 3.0;
/// What this share of requests reaches is what they take ordinarily.
const ORDINARY: f64 = 0.1;
/// A request's peak explains what is kept if it was at least this share of it.
const EXPLAINS: f64 = 0.5;
/// A remedy is named where it is about this share of what is kept.
const WORTH_A_REMEDY: f64 = 0.25;
/// Sites that are named.
const SITES: usize = 5;

/// Free memory that the allocators keep.
#[derive(Clone, Debug, PartialEq)]
pub struct Retained {
    /// Processes that keep so much.
    pub workers: usize,
    /// Their requests.
    pub requests: u64,
    /// What they keep, resident bytes.
    pub bytes: u64,
    /// Of these, what pymalloc keeps.
    pub python_bytes: u64,
    /// Their resident sets when they were looked at, bytes.
    pub resident_bytes: u64,
    /// malloc's arenas.
    pub arenas: usize,
    /// What `malloc_trim(0)` would give back, bytes.
    pub trim_would_return: u64,
    /// The request that held most at once, if that explains what is kept.
    pub after: Option<After>,
    /// Estimated bytes of the blocks that lie in the areas that are mostly free, and keep them from being given back.
    pub pinning_bytes: f64,
    /// Samples of such blocks.
    pub samples: usize,
    /// The lines that allocated these, most first: the application's own, where it has a part in them.
    pub pinned_by: Vec<Share>,
    /// The way to the first of these, from the allocating line outwards.
    pub stack: Vec<Frame>,
    /// What helps, the best first.
    pub remedies: Vec<Remedy>,
}

/// A request that took much at once.
#[derive(Clone, Debug, PartialEq)]
pub struct After {
    /// `GET /export`
    pub route: String,
    /// What it held at its highest, in estimated bytes.
    pub bytes: f64,
}

/// What may be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// `malloc_trim(0)` gives back much of it.
    Trim,
    /// Fewer arenas share what they keep.
    FewerArenas,
    /// malloc's holes are smaller than a page: jemalloc packs blocks by size.
    OtherAllocator,
    /// pymalloc gives an arena back when nothing lives in it: only taking less at once helps, or a process that ends.
    LessAtOnce,
}

/// What the workers keep together, those that keep much. The living ones count, or the dead, if none lives.
pub fn retained(evidence: &Evidence) -> Option<Retained> {
    let any_lives = evidence.workers.iter().any(|worker| worker.alive);
    let looked_at = evidence.workers.iter().filter(|worker| worker.alive || !any_lives);
    let keeping: Vec<(&Worker, &Ledger)> =
        looked_at.filter_map(|worker| Some((worker, worker.ledger.as_ref()?))).filter(keeps_much).collect();
    if keeping.is_empty() {
        return None;
    }
    let sum = |of: &dyn Fn(&Ledger) -> u64| keeping.iter().map(|(_, ledger)| of(ledger)).sum::<u64>();
    let libraries = Libraries::of(evidence);
    let mut pins = Pins::default();
    for (worker, _) in &keeping {
        worker.samples.iter().filter(|sample| sample.pins).for_each(|sample| pins.add(worker, sample, &libraries));
    }
    let mut found = Retained {
        workers: keeping.len(),
        requests: keeping.iter().map(|(worker, _)| worker.requests).sum(),
        bytes: sum(&free),
        python_bytes: sum(&|ledger| ledger.python.free),
        resident_bytes: sum(&|ledger| ledger.resident),
        arenas: keeping.iter().map(|(_, ledger)| ledger.arenas.len()).sum(),
        trim_would_return: sum(&|ledger| ledger.trim_would_return),
        after: None,
        pinning_bytes: pins.bytes,
        samples: pins.samples,
        pinned_by: vec![],
        stack: vec![],
        remedies: vec![],
    };
    found.after = after(&keeping, found.bytes / keeping.len() as u64);
    found.remedies = remedies(&found, &keeping);
    (found.pinned_by, found.stack) = pins.named();
    Some(found)
}

fn free(ledger: &Ledger) -> u64 {
    ledger.python.free + ledger.native().free
}

fn keeps_much((worker, ledger): &(&Worker, &Ledger)) -> bool {
    let beyond = free(ledger).saturating_sub(ordinary_bytes(worker));
    beyond >= LEAST_BYTES && beyond as f64 >= ledger.resident as f64 * LEAST_SHARE
}

/// What one request in ten holds at once, rounded up to a power of two.
fn ordinary_bytes(worker: &Worker) -> u64 {
    let mut peaks = [0u64; 24];
    for served in worker.routes.iter().flat_map(|route| &route.served) {
        peaks.iter_mut().zip(served.peaks).for_each(|(sum, count)| *sum += count);
    }
    let requests: u64 = peaks.iter().sum();
    let is_rare = |bucket: &usize| peaks[bucket + 1..].iter().sum::<u64>() as f64 <= requests as f64 * ORDINARY;
    1024 << (0..23).find(is_rare).unwrap_or(23)
}

/// The highest peak of a request of these workers, where it is much of what each of them keeps.
fn after(keeping: &[(&Worker, &Ledger)], bytes_each: u64) -> Option<After> {
    let peaks = keeping.iter().flat_map(|(worker, _)| worker.peaks.iter().map(move |peak| (worker, peak)));
    let (worker, Peak { request, bytes, .. }) =
        peaks.max_by(|(_, one), (_, other)| one.bytes.total_cmp(&other.bytes))?;
    let route = worker.routes.get(request.route.0 as usize)?;
    (*bytes >= bytes_each as f64 * EXPLAINS).then(|| After { route: route.name.clone(), bytes: *bytes })
}

fn remedies(found: &Retained, keeping: &[(&Worker, &Ledger)]) -> Vec<Remedy> {
    let worth = |bytes: u64| bytes as f64 >= found.bytes as f64 * WORTH_A_REMEDY;
    // The main arena comes first.
    let others = |ledger: &&Ledger| ledger.arenas.iter().skip(1).map(|arena: &Kept| arena.free).sum::<u64>();
    let in_other_arenas: u64 = keeping.iter().map(|(_, ledger)| others(ledger)).sum();
    let in_holes = (found.bytes - found.python_bytes).saturating_sub(found.trim_would_return.max(in_other_arenas));
    [
        (Remedy::Trim, worth(found.trim_would_return)),
        (Remedy::FewerArenas, worth(in_other_arenas)),
        (Remedy::OtherAllocator, worth(in_holes)),
        (Remedy::LessAtOnce, worth(found.python_bytes)),
    ]
    .into_iter()
    .filter_map(|(remedy, helps)| helps.then_some(remedy))
    .collect()
}

/// Blocks that lie in areas that are mostly free, by line.
#[derive(Default)]
struct Pins<'a> {
    bytes: f64,
    samples: usize,
    lines: BTreeMap<&'a Frame, (f64, &'a [Frame])>,
}

impl<'a> Pins<'a> {
    fn add(&mut self, worker: &'a Worker, sample: &Sample, libraries: &Libraries) {
        self.bytes += sample.weight;
        self.samples += 1;
        // The stack of a block's earlier life says nothing of who holds it now.
        let stack = sample.stack.filter(|_| !sample.recycled).and_then(|stack| worker.stacks.get(stack.0 as usize));
        let Some(stack) = stack else { return };
        if let Some(line) = libraries.application(stack).or(stack.first()) {
            self.lines.entry(line).or_insert((0.0, stack)).0 += sample.weight;
        }
    }

    /// The lines with most bytes, and a stack of the first one.
    fn named(self) -> (Vec<Share>, Vec<Frame>) {
        let mut lines: Vec<_> = self.lines.into_iter().collect();
        lines.sort_by(|(_, one), (_, other)| other.0.total_cmp(&one.0));
        let stack = lines.first().map_or(vec![], |(_, (_, stack))| stack.to_vec());
        let share = |(line, (bytes, _)): (&Frame, (f64, _))| Share { site: line.clone(), share: bytes / self.bytes };
        (lines.into_iter().take(SITES).map(share).collect(), stack)
    }
}
