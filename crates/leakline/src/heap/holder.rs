//! From the survivors of a finding to the container that holds most of them, and to whether its entries come and go.
use std::collections::{BTreeMap, HashMap};

use super::graph::{Graph, Node, Root};
use super::words::{entries, words};
use crate::analyze::Holder;

/// A container is named where it holds more than this share of what was found in the snapshot.
const MOST: f64 = 0.5;

/// CPython keeps the memory of such objects when they die, and gives it to the next ones without an allocation.
const HANDED_ON: [&str; 2] = ["dict", "list"];
/// In these an entry lies behind those that came before it.
const IN_ORDER: [&str; 5] = ["list", "dict", "collections.OrderedDict", "collections.defaultdict", "collections.deque"];
/// So many entries tell whether their order is that of their births, and more are not asked.
const TELLING: std::ops::Range<usize> = 10..500;
/// Of two entries, how much more often the one behind must be the younger one for their memory to be as old as they are:
/// Kendall's rank correlation. It is 1 where entries only come, and 0 where their memory was handed on at random.
const LEAST_ORDER: f64 = 0.5;

/// Finds the container nearest to the survivors, each given by the address of its block and the bytes that it stands for.
/// `None` where none of them belongs to an object of the snapshot.
pub fn holder(graph: &Graph, survivors: &[(u64, f64)]) -> Option<Holder> {
    let mut held = vec![0.0; graph.heap.objects.len()];
    let mut all = 0.0;
    for &(address, weight) in survivors {
        if let Some((node, block)) = graph.owner(address) {
            // A block that has grown since it was sampled stands for all of itself.
            let weight = weight.max(block as f64);
            held[node.0 as usize] += weight;
            all += weight;
        }
    }
    for node in graph.by_distance().rev() {
        if let Some(before) = graph.before(node) {
            held[before.0 as usize] += held[node.0 as usize];
        }
    }
    // Those with more than half lie on one way, so the one farthest from the root is behind all others.
    let Some(nearest) = graph.by_distance().rev().find(|node| held[node.0 as usize] > all * MOST) else {
        return scattered(graph, &held, all);
    };
    let nearest = container(graph, nearest);
    let words = words(graph, nearest);
    let share = held[nearest.0 as usize] / all;
    Some(Holder {
        path: words.path,
        text: words.text,
        share,
        bound_bytes: bound(graph, nearest, held[nearest.0 as usize]),
    })
}

/// Is this the memory of entries that come and go? Where one goes when the next one comes, as in a cache that is full, a block is
/// handed on from one to the other for ever, and nobody sees it lie on a free list in between: it looks as old as the first of
/// them. The blocks' births, of which the container's first entries had as many as any later ones, then look like a leak's. The
/// order of the entries tells: what has been kept since its birth lies behind what was born before it. Each block is given by
/// its address and the number of requests that had ended at its birth.
pub fn comes_and_goes(graph: &Graph, blocks: &[(u64, u64)]) -> bool {
    let mut entries: BTreeMap<Node, Vec<(Node, u64)>> = BTreeMap::new();
    for &(address, born) in blocks {
        let owner = graph.owner(address).filter(|(node, _)| HANDED_ON.contains(&graph.type_name(*node)));
        if let Some((node, container)) = owner.and_then(|(node, _)| Some((node, graph.before(node)?))) {
            entries.entry(container).or_default().push((node, born));
        }
    }
    let Some((&container, entries)) = entries.iter().max_by_key(|(_, entries)| entries.len()) else { return false };
    let is_most = entries.len() * 2 > blocks.len();
    if !is_most || !IN_ORDER.contains(&graph.type_name(container)) || entries.len() < TELLING.start {
        return false;
    }
    let places: HashMap<Node, usize> =
        graph.edges(container).enumerate().map(|(place, (_, node))| (node, place)).collect();
    let every = entries.len().div_ceil(TELLING.end);
    let asked: Vec<(usize, u64)> =
        entries.iter().step_by(every).filter_map(|(node, born)| Some((*places.get(node)?, *born))).collect();
    order(&asked) < LEAST_ORDER
}

/// Kendall's rank correlation of places and births, over the pairs that differ in both; 1 where there are none.
fn order(entries: &[(usize, u64)]) -> f64 {
    let (mut pairs, mut agreeing) = (0, 0);
    for (at, one) in entries.iter().enumerate() {
        for other in entries[..at].iter().filter(|other| one.0 != other.0 && one.1 != other.1) {
            pairs += 1;
            agreeing += i64::from((one.0 < other.0) == (one.1 < other.1));
        }
    }
    if pairs == 0 { 1.0 } else { (2 * agreeing - pairs) as f64 / pairs as f64 }
}

/// The dict of an object's attributes says less than the object.
fn container(graph: &Graph, node: Node) -> Node {
    let is_attributes = |before: &Node| {
        let is_dict = |name: u32| graph.heap.names[name as usize] == "__dict__";
        graph.edges(*before).any(|(edge, target)| target == node && edge.name.is_some_and(is_dict))
    };
    graph.before(node).filter(is_attributes).unwrap_or(node)
}

/// No object holds most of them, as where a C extension has taken a reference to each, or where they are garbage: if most
/// are held alike, the one that holds most stands for all.
fn scattered(graph: &Graph, held: &[f64], all: f64) -> Option<Holder> {
    let of_root = |wanted| graph.roots().filter(move |(_, why)| *why == wanted).map(|(node, _)| node);
    let bytes = |node: &Node| held[node.0 as usize];
    [Root::Unknown, Root::Nobody].into_iter().find_map(|why| {
        let share = of_root(why).map(|node| bytes(&node)).sum::<f64>() / all;
        let largest = of_root(why).max_by(|one, other| bytes(one).total_cmp(&bytes(other)));
        let words = words(graph, largest.filter(|_| share > MOST)?);
        Some(Holder { path: words.path, text: words.text, share, bound_bytes: None })
    })
}

/// What the container holds when it is full: as many items as it may have, each as large as those that it has are on
/// average. A bounded container farther up bounds nothing, since what grows lies in one of its items. Items that others hold
/// too, and that would not be freed with it, count by the survivors among them, of so many bytes.
fn bound(graph: &Graph, node: Node, held: f64) -> Option<f64> {
    let (most, items) = (graph.object(node).bound?, entries(graph, node).filter(|items| *items > 0)?);
    Some(held.max(graph.retained(node) as f64) / items as f64 * most as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::graph::tests::heap;

    const ENTRIES: usize = 40;

    /// A module that holds a container, whose entries are of a type, and where each entry lies.
    fn graph(container: &str, entry: &str) -> (Graph, Vec<u64>) {
        let mut edges = vec![vec![1], (2..2 + ENTRIES as u32).collect()];
        edges.resize(2 + ENTRIES, vec![]);
        let mut heap = heap(&edges, |_| 1);
        heap.types = vec!["module".into(), container.into(), entry.into()];
        for object in &mut heap.objects {
            object.bytes = 64;
        }
        for object in &mut heap.objects[2..] {
            object.of = 2;
        }
        let addresses = heap.objects[2..].iter().map(|object| object.address).collect();
        (Graph::new(heap), addresses)
    }

    #[test]
    fn entries_whose_memory_is_older_than_they_are_come_and_go() {
        let blocks = |addresses: &[u64], born: &dyn Fn(u64) -> u64| -> Vec<(u64, u64)> {
            addresses.iter().zip(0..).map(|(address, entry)| (*address, born(entry))).collect()
        };
        let by_chance = |entry: u64| entry * 17 % ENTRIES as u64;
        let told = |container, entry, born: &dyn Fn(u64) -> u64| {
            let (graph, addresses) = graph(container, entry);
            comes_and_goes(&graph, &blocks(&addresses, born))
        };
        assert!(told("collections.OrderedDict", "dict", &by_chance));
        assert!(!told("collections.OrderedDict", "dict", &|entry| entry), "they only come");
        assert!(!told("list", "list", &|entry| entry + by_chance(entry) / 10), "nearly");
        assert!(!told("set", "dict", &by_chance), "it has no order");
        assert!(!told("list", "bytes", &by_chance), "their memory goes back to the allocator");
        let (graph, addresses) = graph("list", "dict");
        assert!(!comes_and_goes(&graph, &blocks(&addresses[..9], &by_chance)), "too few");
        let entries = blocks(&addresses, &by_chance);
        let others: Vec<_> = (0..50).map(|other| (other, 0)).chain(entries).collect();
        assert!(!comes_and_goes(&graph, &others), "most is something else");
    }
}
