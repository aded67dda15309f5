//! From a graph and its roots to each node's immediate dominator: the last node that every way from a root passes, so that
//! freeing it frees the node.
//!
//! The algorithm is semi-NCA (Georgiadis, Linear-Time Algorithms for Dominators and Related Problems, 2005): semidominators
//! with path compression as Lengauer and Tarjan have them, then the nearest common ancestor in the tree built so far.
//!
//! Of ten million objects nearly every look at another object is a line of memory that the processor has to wait for. So
//! what is needed of a node at the same time lies side by side; what will be needed is fetched ahead; and an edge is looked
//! up once, when the search comes to it, and handed on in batches that fit into the processor's own cache.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Of what is not reached, and of what is held from several roots or is one; where an edge leads that leads nowhere.
pub const NONE: u32 = u32::MAX;

/// How many nodes, or edges, ahead the processor is told what will be needed.
const AHEAD: usize = 8;
/// How many nodes' predecessors are sorted at a time: as many as the processor's own cache has room for.
const BATCH: usize = 1 << 15;
/// Bytes of a page.
const PAGE: usize = 4096;

/// A graph with nodes from 0 on.
#[derive(Clone, Copy, Debug)]
pub struct Edges<'g> {
    /// By node, and once more at the end: the place of the first one among `targets`.
    pub first: &'g [u32],
    /// The nodes that are led to. They may repeat; [`NONE`] is passed over.
    pub targets: &'g [u32],
    /// The nodes that are reached by themselves.
    pub roots: &'g [u32],
}

/// The dominators of a graph.
#[derive(Clone, Debug)]
pub struct Dominators {
    /// By node: its immediate dominator.
    pub of: Vec<u32>,
    /// The nodes that are reached, each behind its dominator.
    pub order: Vec<u32>,
}

/// Finds the dominators of all nodes that are reached from the roots.
pub fn dominators(graph: Edges<'_>) -> Dominators {
    let nodes = graph.first.len() - 1;
    let Search { mut order, parent, others } = Search::of(graph);
    let semidominator = semidominators(&parent, others);
    let mut dominator = parent;
    for node in 1..order.len() {
        while dominator[node] > semidominator[node] {
            dominator[node] = dominator[dominator[node] as usize];
        }
    }

    let mut of = room(nodes);
    of.resize(nodes, NONE);
    for node in 1..order.len() {
        of[order[node] as usize] = order[dominator[node] as usize];
    }
    order.remove(0);
    Dominators { of, order }
}

/// By number: the least number from which a way leads to the node through greater numbers only.
fn semidominators(parent: &[u32], others: Vec<Vec<Edge>>) -> Vec<u32> {
    let links = parent.iter().enumerate().map(|(node, &above)| Link { above, least: node as u32 });
    let mut forest = Forest { links: room(parent.len()), path: vec![] };
    forest.links.extend(links);
    let mut semidominator = room(parent.len());
    semidominator.extend_from_slice(parent);
    let mut predecessors = Predecessors::default();
    for (batch, edges) in others.into_iter().enumerate().rev() {
        predecessors.sort(&edges);
        drop(edges);
        let first = batch * BATCH;
        for node in (first.max(1)..parent.len().min(first + BATCH)).rev() {
            let place = node - first;
            // Three steps up from those whose way is not shortened to one: each line that is fetched says which is next.
            let soon = |ahead| {
                let all = place.checked_sub(ahead).map_or(&[][..], |soon| predecessors.of_node(soon));
                all.iter().copied().filter(|&before| before > node as u32)
            };
            soon(3 * AHEAD).for_each(|before| fetch(&forest.links, before));
            soon(2 * AHEAD).for_each(|before| fetch(&forest.links, forest.above(before)));
            soon(AHEAD).for_each(|before| fetch(&forest.links, forest.above(forest.above(before))));
            let of_predecessors = predecessors.of_node(place).iter();
            let least = of_predecessors.map(|&before| forest.least_semidominator(before, node as u32));
            let least = least.fold(parent[node], u32::min);
            semidominator[node] = least;
            forest.links[node].least = least;
        }
    }
    semidominator
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

/// An edge between two numbers.
#[derive(Clone, Copy)]
struct Edge {
    from: u32,
    to: u32,
}

/// A search in depth, which numbers the nodes in the order in which they are first met. All else goes by these numbers. 0 is
/// what leads to the roots.
struct Search {
    /// By number: the node.
    order: Vec<u32>,
    /// By number: the number of the node from which it was met.
    parent: Vec<u32>,
    /// All edges but those by which a node was met, in batches of the numbers that they lead to.
    others: Vec<Vec<Edge>>,
}

/// What the search knows of a node.
#[derive(Clone, Copy)]
struct Met {
    number: u32,
    /// Its first edge.
    first: u32,
}

impl Search {
    fn of(graph: Edges<'_>) -> Self {
        let nodes = graph.first.len() - 1;
        let mut met = room(nodes + 1);
        met.extend(graph.first.iter().map(|&first| Met { number: NONE, first }));
        let others = vec![vec![]; (nodes + 1).div_ceil(BATCH)];
        let mut found = Self { order: room(nodes + 1), parent: room(nodes + 1), others };
        found.order.push(NONE);
        found.parent.push(NONE);
        let mut ahead: Vec<Edge> = graph.roots.iter().rev().map(|&to| Edge { from: 0, to }).collect();
        while let Some(Edge { from, to: node }) = ahead.pop() {
            let place = node as usize;
            if met[place].number != NONE {
                found.add(from, met[place].number);
                continue;
            }
            let number = found.order.len() as u32;
            met[place].number = number;
            found.order.push(node);
            found.parent.push(from);
            // Two steps, since what is fetched first says where the next lies.
            let soon = |steps| ahead.len().checked_sub(steps).map(|at| ahead[at].to);
            soon(AHEAD).into_iter().for_each(|next| fetch(&met, next));
            soon(AHEAD / 2).into_iter().for_each(|next| fetch(graph.targets, met[next as usize].first));
            let successors = &graph.targets[met[place].first as usize..met[place + 1].first as usize];
            successors.iter().take(4 * AHEAD).for_each(|&next| fetch(&met, next));
            for &next in successors.iter().rev().filter(|next| **next != NONE) {
                let next_met = met[next as usize];
                if next_met.number == NONE {
                    ahead.push(Edge { from: number, to: next });
                    fetch(graph.targets, next_met.first);
                } else {
                    found.add(number, next_met.number);
                }
            }
        }
        found
    }

    fn add(&mut self, from: u32, to: u32) {
        self.others[to as usize / BATCH].push(Edge { from, to });
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
    /// Where the way up from a node leads; only the first node has none.
    fn above(&self, node: u32) -> u32 {
        self.links[node as usize].above
    }

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

/// The nodes that lead to each of a batch, but for the one from which the search came.
#[derive(Default)]
struct Predecessors {
    first: Vec<u32>,
    all: Vec<u32>,
}

impl Predecessors {
    fn sort(&mut self, edges: &[Edge]) {
        self.first.clear();
        self.first.resize(BATCH + 1, 0);
        self.all.resize(edges.len(), 0);
        for edge in edges {
            self.first[edge.to as usize % BATCH] += 1;
        }
        // What is counted becomes where each node's end, and by and by where they begin.
        let mut sum = 0;
        for first in &mut self.first {
            sum += *first;
            *first = sum;
        }
        for edge in edges {
            let place = &mut self.first[edge.to as usize % BATCH];
            *place -= 1;
            self.all[*place as usize] = edge.from;
        }
    }

    /// By the place within the batch.
    fn of_node(&self, node: usize) -> &[u32] {
        &self.all[self.first[node] as usize..self.first[node + 1] as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use procfs::Current;

    use super::*;

    /// What is reached from some nodes when one node is taken out.
    fn reached(graph: &[Vec<u32>], roots: &[u32], without: Option<u32>) -> Vec<bool> {
        let mut reached = vec![false; graph.len()];
        let mut way = roots.to_vec();
        while let Some(node) = way.pop() {
            if Some(node) != without && !std::mem::replace(&mut reached[node as usize], true) {
                way.extend(&graph[node as usize]);
            }
        }
        reached
    }

    /// A graph as one array of targets.
    struct Packed {
        first: Vec<u32>,
        targets: Vec<u32>,
    }

    impl Packed {
        /// Of edges that are sorted.
        fn of(nodes: u32, edges: &[(u32, u32)]) -> Self {
            let first = |node: u32| edges.partition_point(|(from, _)| *from < node) as u32;
            Self { first: (0..=nodes).map(first).collect(), targets: edges.iter().map(|(_, to)| *to).collect() }
        }

        fn dominators(&self, roots: &[u32]) -> Dominators {
            dominators(Edges { first: &self.first, targets: &self.targets, roots })
        }
    }

    #[test]
    fn dominators_are_those_without_which_nothing_is_reached() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..1000 {
            let nodes = random.u32(1..14);
            let mut graph = vec![vec![]; nodes as usize];
            for _ in 0..random.u32(..3 * nodes) {
                graph[random.u32(..nodes) as usize].push(random.u32(..nodes));
            }
            let roots: Vec<u32> = (0..random.u32(..4)).map(|_| random.u32(..nodes)).collect();
            let edges = graph.iter().enumerate().flat_map(|(from, to)| to.iter().map(move |to| (from as u32, *to)));
            let found = Packed::of(nodes, &edges.collect::<Vec<_>>()).dominators(&roots);
            let without: Vec<Vec<bool>> = (0..nodes).map(|node| reached(&graph, &roots, Some(node))).collect();
            let all = reached(&graph, &roots, None);
            for node in 0..nodes {
                let dominates = |one: u32| one != node && all[one as usize] && !without[one as usize][node as usize];
                let mut others = (0..nodes).filter(|one| all[node as usize] && dominates(*one));
                // The nearest of a node's dominators is the one that all others dominate.
                let nearest = others
                    .clone()
                    .find(|one| others.clone().all(|other| other == *one || !without[other as usize][*one as usize]));
                assert_eq!(nearest.is_none(), others.next().is_none());
                assert_eq!(found.of[node as usize], nearest.unwrap_or(NONE), "of {node} from {roots:?} in {graph:?}");
            }
            let place = |node: u32| found.order.iter().position(|other| *other == node);
            let above = |node: u32| found.of[node as usize];
            assert!(found.order.iter().all(|&node| above(node) == NONE || place(above(node)) < place(node)));
            assert_eq!(found.order.len(), all.iter().filter(|reached| **reached).count());
        }
    }

    /// Of few nodes all lie in one batch, and nothing is far ahead. Dominators of many are checked by what they are: the
    /// least fixed point of the nearest common ancestors of what leads to each (Cooper, Harvey and Kennedy, 2001).
    #[test]
    fn dominators_of_many_batches_are_those_that_iteration_finds() {
        let nodes = 3 * BATCH as u32 + 5;
        let mut random = fastrand::Rng::with_seed(5);
        for far in [20, 1000, nodes] {
            let mut edges = vec![];
            for node in 1..nodes {
                edges.push((random.u32(node.saturating_sub(far)..node), node));
                for _ in 0..random.u32(..3) {
                    edges.push((node, random.u32(node.saturating_sub(far)..(node + far).min(nodes))));
                }
            }
            edges.sort_unstable();
            let graph = Packed::of(nodes, &edges);
            let roots = [0, nodes / 2, nodes - 1];
            assert_eq!(graph.dominators(&roots).of, iterated(&graph, &roots));
        }
    }

    /// By places in the reverse of the order in which a search leaves the nodes: the root's is the last.
    fn iterated(graph: &Packed, roots: &[u32]) -> Vec<u32> {
        let nodes = graph.first.len() - 1;
        let successors =
            |node: u32| &graph.targets[graph.first[node as usize] as usize..graph.first[node as usize + 1] as usize];
        let (mut left, mut met) = (vec![], vec![false; nodes]);
        for &root in roots {
            let mut way = if std::mem::replace(&mut met[root as usize], true) { vec![] } else { vec![(root, 0)] };
            while let Some((node, next)) = way.last_mut() {
                match successors(*node).get(*next) {
                    Some(&after) => {
                        *next += 1;
                        if !std::mem::replace(&mut met[after as usize], true) {
                            way.push((after, 0));
                        }
                    }
                    None => {
                        left.push(*node);
                        way.pop();
                    }
                }
            }
        }
        let top = left.len();
        let mut place = vec![top; nodes];
        left.iter().enumerate().for_each(|(at, node)| place[*node as usize] = at);
        let mut before = vec![vec![]; top];
        roots.iter().for_each(|root| before[place[*root as usize]].push(top));
        for (at, &node) in left.iter().enumerate() {
            successors(node).iter().for_each(|after| before[place[*after as usize]].push(at));
        }
        let mut above = vec![usize::MAX; top + 1];
        above[top] = top;
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for at in (0..top).rev() {
                let known = before[at].iter().copied().filter(|before| above[*before] != usize::MAX);
                let common = known.reduce(|mut one, mut other| {
                    while one != other {
                        let lower = if one < other { &mut one } else { &mut other };
                        *lower = above[*lower];
                    }
                    one
                });
                changed |= std::mem::replace(&mut above[at], common.expect("the search came here")) != above[at];
            }
        }
        let of = |node: usize| match place[node] {
            place if place == top => NONE,
            place => left.get(above[place]).copied().unwrap_or(NONE),
        };
        (0..nodes).map(of).collect()
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
        let graph = Packed::of(NODES, &edges);
        drop(edges);
        let myself = procfs::process::Process::myself().expect("this process is there");
        let resident = |field: fn(procfs::process::Status) -> Option<u64>| {
            myself.status().ok().and_then(field).unwrap_or(0) / 1024
        };
        let busy = || myself.stat().map_or(0, |stat| stat.utime + stat.stime) as f64 / 100.0;
        std::fs::write("/proc/self/clear_refs", "5").expect("the peak can be forgotten");
        let (before, busy_before, began) = (resident(|status| status.vmrss), busy(), Instant::now());
        let found = graph.dominators(&[0]);
        let (seconds, wall) = (busy() - busy_before, began.elapsed().as_secs_f64());
        println!("{NODES} objects, {} references: {seconds:.1} s of processor time", graph.targets.len());
        println!(
            "{wall:.1} s by the clock, with load {:.1}",
            procfs::LoadAverage::current().map_or(0.0, |load| load.one)
        );
        println!("{} MiB at most, {before} of them the graph", resident(|status| status.vmhwm));
        assert_eq!(found.order.len(), NODES as usize);
    }
}
