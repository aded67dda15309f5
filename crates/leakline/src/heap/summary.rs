//! From a graph to what is told of it: objects and bytes by type, and those who hold most.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use serde::Serialize;

use super::graph::{Graph, Node};
use super::words::{Words, words};

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
    /// The way without numbers of items, by which it is known in another snapshot.
    #[serde(skip)]
    pub place: String,
    /// How many objects are held this way; of what a line has allocated, how many of its samples.
    pub objects: u64,
    /// What would be freed with them, or what the samples stand for, bytes.
    pub retained_bytes: u64,
}

impl Held {
    fn new(graph: &Graph, node: Node, objects: u64, retained_bytes: u64) -> Self {
        let Words { path, text, place } = words(graph, node);
        Self { text, path, place, objects, retained_bytes }
    }
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
    /// Interpreters whose objects these are.
    pub interpreters: u32,
    /// Interpreters that have a GIL of their own, and whose objects could not be looked at.
    pub interpreters_left_out: u32,
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
/// What retains less than this share of all bytes has hardly anything.
const FAINT: f64 = 0.001;
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
            interpreters: header.interpreters,
            interpreters_left_out: header.interpreters_left_out,
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
    holders.into_iter().map(|node| Held::new(graph, node, 1, graph.retained(node))).collect()
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
    let mut all: Vec<_> = alike.into_values().collect();
    all.sort_by_key(|(node, _, bytes)| (std::cmp::Reverse(*bytes), *node));
    all.truncate(MOST_HOLDERS);
    all.into_iter().map(|(node, objects, bytes)| Held::new(graph, node, objects, bytes)).collect()
}

/// Who holds the object at an address; nobody where there is none.
pub fn holder_of_object(graph: &Graph, address: u64) -> Option<Held> {
    let node = graph.nodes().find(|node| graph.object(*node).address == address)?;
    Some(Held::new(graph, node, 1, graph.retained(node)))
}

/// Who holds blocks, each given by its address and the bytes that it stands for: those that are held at the same place are
/// told together, the most bytes first.
pub fn holders_of_blocks(graph: &Graph, blocks: &[(u64, f64)]) -> Vec<Held> {
    let mut of_object: BTreeMap<Node, (u64, f64)> = BTreeMap::new();
    for (address, weight) in blocks {
        if let Some((node, _)) = graph.owner(*address) {
            let (blocks, bytes) = of_object.entry(node).or_default();
            *blocks += 1;
            *bytes += weight;
        }
    }
    let mut at_place: BTreeMap<String, Held> = BTreeMap::new();
    for (node, (blocks, bytes)) in of_object {
        let held = Held::new(graph, node, blocks, bytes as u64);
        match at_place.get_mut(&held.place) {
            Some(known) => {
                known.objects += held.objects;
                known.retained_bytes += held.retained_bytes;
            }
            None => _ = at_place.insert(held.place.clone(), held),
        }
    }
    let mut all: Vec<_> = at_place.into_values().collect();
    all.sort_by_key(|held| std::cmp::Reverse(held.retained_bytes));
    all.truncate(MOST_HOLDERS);
    all
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
pub fn growth_by_type(before: &Graph, after: &Graph) -> Vec<Change> {
    let rows = |graph| by_type(graph).into_iter().map(|of| (of.name, of.objects, of.bytes)).collect::<Vec<_>>();
    growth(rows(before), rows(after))
}

/// Growth by holder, the most first, of those that one of the snapshots tells; one that has hardly anything in the other
/// counts as nothing there.
pub fn growth_by_holder(before: &Graph, after: &Graph) -> Vec<Change> {
    let told: HashSet<String> =
        [before, after].into_iter().flat_map(largest_holders).map(|holder| holder.place).collect();
    let rows = |graph| {
        let known = places(graph).into_iter().filter(|held| told.contains(&held.place));
        known.map(|held| (held.place, held.objects, held.retained_bytes)).collect::<Vec<_>>()
    };
    growth(rows(before), rows(after))
}

/// All that retain more than hardly anything. What is at the same place as the object above it is a part of that one, as
/// the dict of an object's attributes is.
fn places(graph: &Graph) -> Vec<Held> {
    let all: u64 = graph.nodes().map(|node| graph.bytes(node)).sum();
    let nodes = graph.nodes().filter(|node| graph.retained(*node) as f64 >= all as f64 * FAINT);
    let held: HashMap<Node, Held> = nodes.map(|node| (node, Held::new(graph, node, 1, graph.retained(node)))).collect();
    let is_part = |node: &Node, of: &Held| {
        let above = graph.dominator(*node).and_then(|above| held.get(&above));
        above.is_some_and(|above| above.place == of.place)
    };
    held.iter().filter(|(node, of)| !is_part(node, of)).map(|(_, of)| of.clone()).collect()
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
