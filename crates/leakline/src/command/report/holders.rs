//! From findings to what holds their memory, or to that it is garbage: one snapshot of the worker that has most of it, or
//! its last one.
use std::collections::HashSet;

use leakline_table::heap::Search;

use crate::analyze::decision::Garbage;
use crate::analyze::evidence::{Evidence, Worker};
use crate::analyze::{Analysis, Finding, Kind, Survivor};
use crate::heap::{self, Graph, graph::Root, holder};
use crate::runs::TableFile;
use crate::target::snapshot::{self, Forecast};

use super::super::say;

/// What is true of more than this share of a finding's survivors, by bytes, is said of the finding.
const MOST: f64 = 0.5;

/// Fills in the holders of what grows, as far as a snapshot tells. Whatever goes wrong, the report does without, and says so.
/// `tables` are those of the evidence's workers. A worker that runs is asked where `ask_seconds` says how long that may take.
pub fn find(analysis: &mut Analysis, evidence: &Evidence, tables: &[&TableFile], ask_seconds: Option<u32>) {
    let bytes_of = |worker: usize| -> f64 {
        let survivors = analysis.findings.iter().flat_map(|finding| &finding.survivors);
        let samples = &evidence.workers[worker].samples;
        survivors.filter(|survivor| survivor.worker == worker).map(|survivor| samples[survivor.sample].weight).sum()
    };
    let workers = (0..tables.len()).map(|worker| (worker, bytes_of(worker))).filter(|(_, bytes)| *bytes > 0.0);
    let Some((worker, _)) = workers.max_by(|one, other| one.1.total_cmp(&other.1)) else { return };
    let Some(graph) = snapshot_of(tables[worker], ask_seconds) else { return };
    let header = &graph.heap.header;
    if header.search == Search::OutOfTime as u64 {
        say("whether anything still points to what is left behind is not known: it is too much memory for the time");
    }
    let lost: Option<HashSet<u64>> =
        (header.search == Search::Done as u64).then(|| graph.heap.lost.iter().copied().collect());
    let reasons = graph.reasons();
    for finding in &mut analysis.findings {
        let survivors = finding.survivors.iter().filter(|survivor| survivor.worker == worker);
        let blocks: Vec<(u64, f64)> =
            survivors.filter_map(|survivor| block(&evidence.workers[worker], survivor.sample, &graph)).collect();
        finding.lost = lost.as_ref().and_then(|lost| share(&blocks, |address| lost.contains(&address)));
        let is_most = |share: Option<f64>| share.is_some_and(|share| share > MOST);
        let lives_by = |why| {
            let is_so = |address| graph.owner(address).is_some_and(|(node, _)| reasons[node.0 as usize] == why);
            is_most(share(&blocks, is_so))
        };
        // What most of it has not got is no holder of it.
        finding.holder = holder::holder(&graph, &blocks).filter(|_| !is_most(finding.lost));
        // Garbage has pointers to itself. A reference that nobody knows of is no proof that somebody has it.
        if is_most(finding.lost) || lives_by(Root::Module) {
            finding.garbage = Garbage::RuledOut;
        } else if finding.garbage == Garbage::Untested && lives_by(Root::Nobody) {
            finding.garbage = Garbage::Seen;
            // What nobody collects is as good as kept.
            if !evidence.workers[worker].collector_is_off {
                finding.kind = Kind::Garbage;
                finding.limit_reached_in_seconds = None;
            }
        }
        if finding.holder.as_ref().is_some_and(|holder| holder.bound_bytes.is_some()) {
            finding.kind = Kind::Cache;
        }
    }
    analysis
        .findings
        .retain(|finding| finding.kind != Kind::Leak || !comes_and_goes(finding, evidence, worker, &graph));
    analysis.join_by_holder();
}

/// Is it the memory of a container's entries that come and go?
fn comes_and_goes(finding: &Finding, evidence: &Evidence, worker: usize, graph: &Graph) -> bool {
    let worker_of = |survivor: &&Survivor| survivor.worker == worker;
    let born = |survivor: &Survivor| {
        let (address, _) = block(&evidence.workers[worker], survivor.sample, graph)?;
        Some((address, evidence.workers[worker].samples[survivor.sample].born))
    };
    let blocks: Vec<(u64, u64)> = finding.survivors.iter().filter(worker_of).filter_map(born).collect();
    holder::comes_and_goes(graph, &blocks)
}

/// The share of blocks, by the bytes that they stand for, of which something is true; `None` where there are none.
fn share(blocks: &[(u64, f64)], is_true: impl Fn(u64) -> bool) -> Option<f64> {
    let sum = |of: &dyn Fn(u64) -> bool| -> f64 {
        blocks.iter().filter(|(address, _)| of(*address)).map(|(_, bytes)| bytes).sum()
    };
    let all = sum(&|_| true);
    (all > 0.0).then(|| sum(&is_true) / all)
}

/// A snapshot taken now, or the last one.
fn snapshot_of(table: &TableFile, ask_seconds: Option<u32>) -> Option<Graph> {
    let path = snapshot::path(table);
    if let (Some(forecast), Some(seconds)) = (Forecast::of(table), ask_seconds) {
        let taken = match forecast.objection() {
            Some(objection) => Err(format!("what holds the memory is not known: {objection}")),
            None => snapshot::take(table, seconds).map_err(|failure| failure.to_string()),
        };
        if let Err(why) = taken {
            say(&why);
        }
    }
    path.exists().then(|| heap::open(&path))?.inspect_err(|failure| say(&failure.to_string())).ok()
}

/// Where a sample lies and what it stands for, if it lay there when the snapshot was taken. (Growth has no address: the
/// block that has grown is another sample's.)
pub fn block(worker: &Worker, sample: usize, graph: &Graph) -> Option<(u64, f64)> {
    let address = worker.addresses.get(sample).copied().filter(|address| *address != 0)?;
    let sample = &worker.samples[sample];
    (sample.born <= graph.heap.header.requests).then_some((address, sample.weight))
}
