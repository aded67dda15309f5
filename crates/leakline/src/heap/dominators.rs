//! From a graph and its root to each node's immediate dominator: the last node that every way from the root passes, so
//! that freeing it frees the node.
//!
//! The algorithm is semi-NCA (Georgiadis, Linear-Time Algorithms for Dominators and Related Problems, 2005): semidominators
//! with path compression as Lengauer and Tarjan have them, then the nearest common ancestor in the tree built so far.
//!
//! Of ten million objects nearly every look at another object is a line of memory that the processor has to wait for. So
//! what is needed of a node at the same time lies side by side, and a reference costs one look in each of the passes.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// What is not reached, the root's own dominator, and where an edge leads that leads nowhere.
pub const NONE: u32 = u32::MAX;

/// How many nodes, or references, ahead the processor is told what will be needed.
const AHEAD: u32 = 8;
/// Bytes of a page.
const PAGE: usize = 4096;

/// A graph with nodes from 0 on.
pub trait Edges {
    /// How many nodes there are.
    fn nodes(&self) -> usize;
    /// The nodes that `node` leads to. They may repeat; [`NONE`] is passed over.
    fn successors(&self, node: u32) -> &[u32];
}

/// The dominators of a graph.
#[derive(Clone, Debug)]
pub struct Dominators {
    /// By node: its immediate dominator.
    pub of: Vec<u32>,
    /// The nodes that are reached, each behind its dominator.
    pub order: Vec<u32>,
}

/// Finds the dominators of all nodes that are reached from `root`.
pub fn dominators(graph: &impl Edges, root: u32) -> Dominators {
    let (search, mut met) = Search::of(graph, root);
    let predecessors = Predecessors::of(graph, &search.order, &mut met);
    drop(met);

    let count = search.order.len() as u32;
    let links = search.parent.iter().enumerate().map(|(node, &above)| Link { above, least: node as u32 });
    let mut forest = Forest { links: room(links.len()), path: vec![] };
    forest.links.extend(links);
    let mut semidominator = zeros(count as usize);
    for node in (1..count).rev() {
        let soon = predecessors.of_node(node.saturating_sub(AHEAD));
        soon.iter().filter(|before| **before > node).for_each(|&before| fetch(&forest.links, before));
        let above = search.parent[node as usize];
        let of_predecessors = predecessors.of_node(node).iter().map(|&before| forest.least_semidominator(before, node));
        let least = of_predecessors.fold(above, u32::min);
        semidominator[node as usize] = least;
        forest.links[node as usize].least = least;
    }
    drop((forest, predecessors));
    let Search { order, parent: mut dominator } = search;
    for node in 1..count as usize {
        while dominator[node] > semidominator[node] {
            dominator[node] = dominator[dominator[node] as usize];
        }
    }

    let mut of = room(graph.nodes());
    of.resize(graph.nodes(), NONE);
    for node in 1..count as usize {
        of[order[node] as usize] = order[dominator[node] as usize];
    }
    Dominators { of, order }
}

/// An empty array for so many values. The kernel is asked to give its memory in large pages, without which the processor would
/// have to look up the place of nearly every page anew at nearly every look.
fn room<T: Copy>(length: usize) -> Vec<T> {
    let mut values: Vec<T> = Vec::with_capacity(length);
    let (start, bytes) = (values.as_mut_ptr() as usize, length * size_of::<T>());
    let (first, end) = (start.next_multiple_of(PAGE), (start + bytes) / PAGE * PAGE);
    if first < end {
        // SAFETY: pages that belong to the array alone; their contents stay what they are. Nothing is lost by a refusal.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
    values
}

/// Has the processor fetch a value that will be needed soon; nothing happens where there is none.
fn fetch<T>(values: &[T], at: u32) {
    if let Some(value) = values.get(at as usize) {
        // SAFETY: a hint; every x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>((&raw const *value).cast()) };
    }
}

fn zeros(length: usize) -> Vec<u32> {
    let mut values = room(length);
    values.resize(length, 0);
    values
}

/// A search in depth, which numbers the nodes in the order in which they are first met. All else goes by these numbers.
struct Search {
    /// By number: the node.
    order: Vec<u32>,
    /// By number: the number of the node from which it was met.
    parent: Vec<u32>,
}

/// What the search knows of a node.
#[derive(Clone, Copy)]
struct Met {
    number: u32,
    /// Edges that lead to it; afterwards the place of the next one among all predecessors.
    edges: u32,
}

impl Search {
    fn of(graph: &impl Edges, root: u32) -> (Self, Vec<Met>) {
        let nodes = graph.nodes();
        let mut met = room(nodes);
        met.resize(nodes, Met { number: NONE, edges: 0 });
        let mut found = Self { order: room(nodes), parent: room(nodes) };
        found.order.push(root);
        found.parent.push(NONE);
        let mut way = vec![(0, graph.successors(root).iter())];
        met[root as usize].number = 0;
        while let Some((from, rest)) = way.last_mut() {
            let Some(&next) = rest.next() else {
                way.pop();
                continue;
            };
            if next == NONE {
                continue;
            }
            let at = &mut met[next as usize];
            at.edges += 1;
            if at.number == NONE {
                at.number = found.order.len() as u32;
                found.order.push(next);
                found.parent.push(*from);
                let successors = graph.successors(next);
                way.push((at.number, successors.iter()));
                successors.iter().take(AHEAD as usize).for_each(|&after| fetch(&met, after));
            }
        }
        (found, met)
    }
}

/// The search's tree as far as it has been worked off, from the last node towards the root, with its ways shortened.
struct Forest {
    links: Vec<Link>,
    path: Vec<u32>,
}

/// A way up from a node.
#[derive(Clone, Copy)]
struct Link {
    above: u32,
    /// The least semidominator of the nodes from this one to the one below `above`; a node's own number until its
    /// semidominator is known.
    least: u32,
}

impl Forest {
    /// The least semidominator on the way from `node` up through what has been worked off: the nodes behind `done`.
    fn least_semidominator(&mut self, node: u32, done: u32) -> u32 {
        if node <= done {
            return node;
        }
        let mut top = node;
        let mut link = self.links[node as usize];
        while link.above > done {
            self.path.push(top);
            top = link.above;
            link = self.links[top as usize];
        }
        while let Some(below) = self.path.pop() {
            let shortened = &mut self.links[below as usize];
            link = Link { above: link.above, least: link.least.min(shortened.least) };
            *shortened = link;
        }
        link.least
    }
}

/// The nodes that lead to each, by number.
struct Predecessors {
    first: Vec<u32>,
    all: Vec<u32>,
}

impl Predecessors {
    fn of(graph: &impl Edges, order: &[u32], met: &mut [Met]) -> Self {
        let mut first = room(order.len() + 1);
        let mut sum = 0;
        for &node in order {
            first.push(sum);
            sum += std::mem::replace(&mut met[node as usize].edges, sum);
        }
        first.push(sum);
        let mut all = zeros(sum as usize);
        for (from, &node) in order.iter().enumerate() {
            for &next in graph.successors(node).iter().filter(|next| **next != NONE) {
                let place = &mut met[next as usize].edges;
                all[*place as usize] = from as u32;
                *place += 1;
            }
        }
        Self { first, all }
    }

    fn of_node(&self, node: u32) -> &[u32] {
        &self.all[self.first[node as usize] as usize..self.first[node as usize + 1] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lists(Vec<Vec<u32>>);

    impl Edges for Lists {
        fn nodes(&self) -> usize {
            self.0.len()
        }

        fn successors(&self, node: u32) -> &[u32] {
            &self.0[node as usize]
        }
    }

    /// What is reached from node 0 when one node is taken out.
    fn reached(graph: &Lists, without: Option<u32>) -> Vec<bool> {
        let mut reached = vec![false; graph.0.len()];
        let mut way = vec![0];
        while let Some(node) = way.pop() {
            if Some(node) != without && !std::mem::replace(&mut reached[node as usize], true) {
                way.extend(&graph.0[node as usize]);
            }
        }
        reached
    }

    #[test]
    fn dominators_are_those_without_which_nothing_is_reached() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..600 {
            let nodes = random.u32(2..14);
            let mut graph = Lists(vec![vec![]; nodes as usize]);
            for _ in 0..random.u32(1..3 * nodes) {
                graph.0[random.u32(..nodes) as usize].push(random.u32(..nodes));
            }
            let found = dominators(&graph, 0);
            let without: Vec<Vec<bool>> = (0..nodes).map(|node| reached(&graph, Some(node))).collect();
            let all = reached(&graph, None);
            for node in 1..nodes {
                if !all[node as usize] {
                    assert_eq!(found.of[node as usize], NONE);
                    continue;
                }
                let dominates = |one: u32| one != node && all[one as usize] && !without[one as usize][node as usize];
                // The nearest of a node's dominators is the one that all others dominate.
                let others = (0..nodes).filter(|one| dominates(*one)).count();
                let nearest = (0..nodes).filter(|one| dominates(*one)).find(|one| {
                    (0..nodes)
                        .filter(|other| dominates(*other))
                        .all(|other| other == *one || !without[other as usize][*one as usize])
                });
                assert!(others > 0);
                assert_eq!(Some(found.of[node as usize]), nearest, "of {node} in {:?}", graph.0);
            }
            let place = |node: u32| found.order.iter().position(|other| *other == node);
            assert!(found.order[1..].iter().all(|node| place(found.of[*node as usize]) < place(*node)));
        }
    }

    /// A graph as one array of targets.
    struct Packed {
        first: Vec<u32>,
        targets: Vec<u32>,
    }

    impl Edges for Packed {
        fn nodes(&self) -> usize {
            self.first.len() - 1
        }

        fn successors(&self, node: u32) -> &[u32] {
            &self.targets[self.first[node as usize] as usize..self.first[node as usize + 1] as usize]
        }
    }

    /// Objects as programs have them: each was made for one that was there before, and two references more lead to what is
    /// near, or to what everybody refers to, or anywhere.
    #[test]
    #[ignore = "a measurement: cargo test --release -p leakline --lib ten_million -- --ignored --nocapture"]
    fn ten_million_objects() {
        const NODES: u32 = 10_000_000;
        let mut random = fastrand::Rng::with_seed(3);
        let mut edges: Vec<(u32, u32)> = Vec::with_capacity(3 * NODES as usize);
        for node in 1..NODES {
            edges.push((random.u32(node.saturating_sub(1000)..node), node));
            edges.push((node, random.u32(node.saturating_sub(50)..(node + 50).min(NODES))));
            edges.push((node, if random.bool() { random.u32(..1000) } else { random.u32(..NODES) }));
        }
        edges.sort_unstable();
        let first = |node: u32| edges.partition_point(|(from, _)| *from < node) as u32;
        let graph =
            Packed { first: (0..=NODES).map(first).collect(), targets: edges.iter().map(|(_, to)| *to).collect() };
        drop(edges);
        let myself = procfs::process::Process::myself().expect("this process is there");
        let resident = |field: fn(procfs::process::Status) -> Option<u64>| {
            myself.status().ok().and_then(field).unwrap_or(0) / 1024
        };
        let busy = || myself.stat().map_or(0, |stat| stat.utime + stat.stime) as f64 / 100.0;
        std::fs::write("/proc/self/clear_refs", "5").expect("the peak can be forgotten");
        let (before, began) = (resident(|status| status.vmrss), busy());
        let found = dominators(&graph, 0);
        let seconds = busy() - began;
        println!("{NODES} objects, {} references: {seconds:.1} s of processor time", graph.targets.len());
        println!("{} MiB at most, {before} of them the graph", resident(|status| status.vmhwm));
        assert_eq!(found.order.len(), NODES as usize);
    }
}
