//! From a graph to what is told of it: objects and bytes by type, and those who hold most.
use std::collections::HashMap;
use std::ops::Range;

use serde::Serialize;

use super::graph::{Graph, Node};
use super::words::words;

/// Objects of one type.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OfType {
    /// `tp_name`
    #[serde(rename = "type")]
    pub name: String,
    /// How many.
    pub objects: u64,
    /// Their own bytes.
    pub bytes: u64,
}

/// An object that others depend on, or several that are held alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Held {
    /// The way to it in words.
    pub text: String,
    /// The same in steps.
    pub path: Vec<String>,
    /// How many objects are held this way.
    pub objects: u64,
    /// What would be freed with them, bytes.
    pub retained_bytes: u64,
}

/// What a snapshot holds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The process.
    pub pid: u32,
    /// When it was taken, seconds since the Unix epoch.
    pub taken: f64,
    /// `3.11.7`
    pub python: String,
    /// All objects.
    pub objects: u64,
    /// References between them.
    pub references: u64,
    /// Their bytes, buffers included.
    pub bytes: u64,
    /// Processor time that it took to find and write the objects, in the copy, seconds.
    pub walk_seconds: f64,
    /// Names that had no room in the file.
    pub names_dropped: u64,
    /// By type, those with most bytes first.
    pub types: Vec<OfType>,
    /// Who holds most.
    pub holders: Vec<Held>,
}

/// A holder is told where it retains at least this share of all bytes,
const WORTH: f64 = 0.01;
/// and where no single object that depends on it retains so much of it.
const PASSED_ON: f64 = 0.8;
/// Holders that are told at most.
const MOST_HOLDERS: usize = 20;

impl Summary {
    /// Of a whole snapshot.
    pub fn of(graph: &Graph) -> Self {
        let header = &graph.heap.header;
        let [major, minor, micro, _] = header.python_version.to_be_bytes();
        Self {
            pid: header.pid,
            taken: header.taken_ns as f64 / 1e9,
            python: format!("{major}.{minor}.{micro}"),
            objects: header.objects,
            references: header.edges,
            bytes: graph.nodes().map(|node| graph.bytes(node)).sum(),
            walk_seconds: header.walk_ns as f64 / 1e9,
            names_dropped: header.names_dropped,
            types: by_type(graph),
            holders: largest_holders(graph),
        }
    }
}

/// Bytes that pymalloc has given for the objects and their buffers: blocks of at most 512 bytes, in steps of 16.
/// `files` are the stretches of memory that are no allocator's.
pub fn in_small_blocks(graph: &Graph, files: &[Range<u64>]) -> u64 {
    let is_static = |address: u64| {
        let behind = files.partition_point(|range| range.start <= address);
        behind.checked_sub(1).is_some_and(|at| files[at].contains(&address))
    };
    let small = graph.blocks().filter(|(address, bytes)| *bytes <= 512 && !is_static(*address));
    small.map(|(_, bytes)| bytes.next_multiple_of(16)).sum()
}

/// Objects and bytes by type, those with most bytes first.
pub fn by_type(graph: &Graph) -> Vec<OfType> {
    let mut types: Vec<OfType> =
        graph.heap.types.iter().map(|name| OfType { name: name.clone(), ..OfType::default() }).collect();
    for node in graph.nodes() {
        let of = &mut types[graph.object(node).of as usize];
        of.objects += 1;
        of.bytes += graph.bytes(node);
    }
    types.sort_by(|one, other| (other.bytes, &one.name).cmp(&(one.bytes, &other.name)));
    types
}

/// The objects that much depends on, and of which no single part holds nearly all.
fn largest_holders(graph: &Graph) -> Vec<Held> {
    let all: u64 = graph.nodes().map(|node| graph.bytes(node)).sum();
    let mut largest_part = vec![0; graph.heap.objects.len()];
    for node in graph.nodes() {
        if let Some(above) = graph.dominator(node) {
            let part = &mut largest_part[above.0 as usize];
            *part = graph.retained(node).max(*part);
        }
    }
    let is_worth = |node: &Node| {
        let retained = graph.retained(*node) as f64;
        retained >= all as f64 * WORTH && (largest_part[node.0 as usize] as f64) < retained * PASSED_ON
    };
    let mut holders: Vec<Node> = graph.nodes().filter(is_worth).collect();
    holders.sort_by_key(|node| std::cmp::Reverse(graph.retained(*node)));
    holders.truncate(MOST_HOLDERS);
    let held = |node: &Node| {
        let words = words(graph, *node);
        Held { text: words.text, path: words.path, objects: 1, retained_bytes: graph.retained(*node) }
    };
    holders.iter().map(held).collect()
}

/// Who holds the objects of one type: those that are held alike are told together, the most bytes first.
pub fn holders_of_type(graph: &Graph, name: &str) -> Vec<Held> {
    let mut alike: HashMap<Node, (Node, u64, u64)> = HashMap::new();
    for node in graph.nodes().filter(|node| graph.type_name(*node) == name) {
        // Items of one container are held alike; what no object holds is told for itself.
        let holder = graph.before(node).unwrap_or(node);
        let (_, objects, bytes) = alike.entry(holder).or_insert((node, 0, 0));
        *objects += 1;
        *bytes += graph.retained(node);
    }
    let held = |(node, objects, retained_bytes): (Node, u64, u64)| {
        let words = words(graph, node);
        Held { text: words.text, path: words.path, objects, retained_bytes }
    };
    let mut all: Vec<_> = alike.into_values().collect();
    all.sort_by_key(|(node, _, bytes)| (std::cmp::Reverse(*bytes), *node));
    all.truncate(MOST_HOLDERS);
    all.into_iter().map(held).collect()
}

/// What has changed between two snapshots.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// A type's name, or the way to a holder.
    pub what: String,
    /// Objects more.
    pub objects: i64,
    /// Bytes more.
    pub bytes: i64,
}

/// Growth by type, the most first.
pub fn growth_by_type(before: &Summary, after: &Summary) -> Vec<Change> {
    let rows =
        |summary: &Summary| summary.types.iter().map(|of| (of.name.clone(), of.objects, of.bytes)).collect::<Vec<_>>();
    growth(rows(before), rows(after))
}

/// Growth by holder, the most first; one that holds too little to be told counts as nothing.
pub fn growth_by_holder(before: &Summary, after: &Summary) -> Vec<Change> {
    let rows = |summary: &Summary| {
        summary
            .holders
            .iter()
            .map(|held| (held.path.join(" → "), held.objects, held.retained_bytes))
            .collect::<Vec<_>>()
    };
    growth(rows(before), rows(after))
}

fn growth(before: Vec<(String, u64, u64)>, after: Vec<(String, u64, u64)>) -> Vec<Change> {
    let mut changes: HashMap<String, (i64, i64)> = HashMap::new();
    for (rows, sign) in [(before, -1), (after, 1)] {
        for (what, objects, bytes) in rows {
            let change = changes.entry(what).or_default();
            change.0 += sign * objects as i64;
            change.1 += sign * bytes as i64;
        }
    }
    let mut changes: Vec<Change> =
        changes.into_iter().map(|(what, (objects, bytes))| Change { what, objects, bytes }).collect();
    changes.retain(|change| (change.objects, change.bytes) != (0, 0));
    changes.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.what.cmp(&other.what)));
    changes
}
