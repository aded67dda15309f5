//! From the survivors of a finding to the container that holds most of them.
use super::graph::{Graph, Node, Root};
use super::words::{entries, words};
use crate::analyze::Holder;

/// A container is named where it holds more than this share of what was found in the snapshot.
const MOST: f64 = 0.5;

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
