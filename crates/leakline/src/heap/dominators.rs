//! From a graph and its root to each node's immediate dominator: the last node that every way from the root passes, so
//! that freeing it frees the node.
//!
//! The algorithm is semi-NCA (Georgiadis, Linear-Time Algorithms for Dominators and Related Problems, 2005): semidominators
//! with path compression as Lengauer and Tarjan have them, then the nearest common ancestor in the tree built so far.

/// What is not reached, and the root's own dominator.
pub const NONE: u32 = u32::MAX;

/// A graph with nodes from 0 on.
pub trait Edges {
    /// How many nodes there are.
    fn nodes(&self) -> usize;
    /// The `at`th node that `node` leads to; `None` behind the last one. Nodes may repeat.
    fn successor(&self, node: u32, at: usize) -> Option<u32>;
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
    let nodes = graph.nodes();
    // By node: when it was first met in a search in depth, from 0 on. All else goes by these numbers.
    let mut number = vec![NONE; nodes];
    let mut order: Vec<u32> = Vec::new();
    let mut parent: Vec<u32> = Vec::new();
    let mut way: Vec<(u32, usize)> = vec![(root, 0)];
    number[root as usize] = 0;
    order.push(root);
    parent.push(NONE);
    while let Some((node, at)) = way.last_mut() {
        match graph.successor(*node, *at) {
            None => _ = way.pop(),
            Some(next) => {
                *at += 1;
                if number[next as usize] == NONE {
                    let from = number[*node as usize];
                    number[next as usize] = order.len() as u32;
                    order.push(next);
                    parent.push(from);
                    way.push((next, 0));
                }
            }
        }
    }
    let predecessors = Predecessors::of(graph, &order, &number);

    let count = order.len();
    let mut dominator = parent.clone();
    let mut forest =
        Forest { parent, label: (0..count as u32).collect(), semi: (0..count as u32).collect(), path: vec![] };
    for node in (1..count as u32).rev() {
        let above = forest.parent[node as usize];
        let of_predecessors = predecessors.of_node(node).iter().map(|&before| forest.least_semidominator(before, node));
        forest.semi[node as usize] = of_predecessors.fold(above, u32::min);
    }
    for node in 1..count {
        while dominator[node] > forest.semi[node] {
            dominator[node] = dominator[dominator[node] as usize];
        }
    }

    let mut of = vec![NONE; nodes];
    for node in 1..count {
        of[order[node] as usize] = order[dominator[node] as usize];
    }
    Dominators { of, order }
}

/// The search's tree as far as it has been worked off, from the last node towards the root, with its ways shortened.
struct Forest {
    parent: Vec<u32>,
    /// The node of least semidominator on the way that was cut out above.
    label: Vec<u32>,
    semi: Vec<u32>,
    path: Vec<u32>,
}

impl Forest {
    /// The least semidominator on the way from `node` up through what has been worked off: the nodes behind `done`.
    fn least_semidominator(&mut self, node: u32, done: u32) -> u32 {
        let mut top = node;
        while self.parent[top as usize] > done && self.parent[top as usize] != NONE {
            self.path.push(top);
            top = self.parent[top as usize];
        }
        while let Some(below) = self.path.pop() {
            let (label, above) = (self.label[below as usize], self.label[top as usize]);
            if self.semi[above as usize] < self.semi[label as usize] {
                self.label[below as usize] = above;
            }
            self.parent[below as usize] = self.parent[top as usize];
            top = below;
        }
        self.semi[self.label[node as usize] as usize]
    }
}

/// The nodes that lead to each, by number.
struct Predecessors {
    first: Vec<u32>,
    all: Vec<u32>,
}

impl Predecessors {
    fn of(graph: &impl Edges, order: &[u32], number: &[u32]) -> Self {
        let successors = |node: u32| (0..).map_while(move |at| graph.successor(node, at));
        let mut first = vec![0u32; order.len() + 1];
        for &node in order {
            successors(node).for_each(|next| first[number[next as usize] as usize + 1] += 1);
        }
        for at in 0..order.len() {
            first[at + 1] += first[at];
        }
        let mut all = vec![0; first[order.len()] as usize];
        let mut next_place = first.clone();
        for (from, &node) in order.iter().enumerate() {
            for next in successors(node) {
                let place = &mut next_place[number[next as usize] as usize];
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

        fn successor(&self, node: u32, at: usize) -> Option<u32> {
            self.0[node as usize].get(at).copied()
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

        fn successor(&self, node: u32, at: usize) -> Option<u32> {
            let (first, end) = (self.first[node as usize] as usize, self.first[node as usize + 1] as usize);
            self.targets[first..end].get(at).copied()
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
