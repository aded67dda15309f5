//! From the objects and edges of a snapshot to a graph: who is reached from where, what would be freed with each object,
//! and whose memory an address is.
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use leakline_table::heap::{Edge, Heap, HeapObject, LIMITED};

use super::dominators::{Edges, NONE, dominators};

/// An object, by its index in the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(pub u32);

/// Why an object lives that no other is known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// A module, which the interpreter's table of modules holds.
    Module,
    /// More references than objects are known to hold: a frame that runs, a C extension, the interpreter itself.
    Unknown,
    /// Nobody: cyclic garbage that has not been collected, or immortal objects that nobody uses.
    Nobody,
}

/// A snapshot and what follows from it.
#[derive(Debug)]
pub struct Graph {
    /// The snapshot.
    pub heap: Heap,
    /// By edge of the snapshot: where it leads, `NONE` for what is no object of the snapshot.
    targets: Vec<u32>,
    roots: Vec<(Node, Root)>,
    /// By node: the edge that the shortest way to it takes last; `NONE` for roots.
    last_edge: Vec<u32>,
    /// By node: the one before it on that way; `NONE` for roots.
    before: Vec<u32>,
    /// All nodes in the order of their distance from a root.
    by_distance: Vec<u32>,
    /// By node: what would be freed with it, bytes.
    retained: Vec<u64>,
    /// By node: what all ways to it pass; `NONE` for those that are held from several roots.
    dominator: Vec<u32>,
    /// Where memory begins, how long it is, and whose it is; by address.
    blocks: Vec<(u64, u64, u32)>,
}

/// Addresses are as good as random above their lowest bits: one multiplication spreads them (Knuth 6.4).
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only addresses are hashed");
    }

    fn write_u64(&mut self, address: u64) {
        self.0 = (address >> 3).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(20);
    }
}

impl Graph {
    /// Finds out who holds what.
    pub fn new(heap: Heap) -> Self {
        let mut index: HashMap<u64, u32, BuildHasherDefault<AddressHasher>> = HashMap::default();
        index.reserve(heap.objects.len());
        for (node, object) in heap.objects.iter().enumerate() {
            index.insert(object.address, node as u32);
        }
        let targets = heap.edges.iter().map(|edge| index.get(&edge.target).copied().unwrap_or(NONE)).collect();
        drop(index);
        let nodes = heap.objects.len();
        let mut graph = Self {
            heap,
            targets,
            roots: vec![],
            last_edge: vec![NONE; nodes],
            before: vec![NONE; nodes],
            by_distance: Vec::with_capacity(nodes),
            retained: vec![],
            dominator: vec![],
            blocks: vec![],
        };
        graph.apply_limits();
        graph.find_ways();
        graph.find_retained();
        graph.find_blocks();
        graph
    }

    /// An object of the snapshot.
    pub fn object(&self, node: Node) -> &HeapObject {
        &self.heap.objects[node.0 as usize]
    }

    /// All objects.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (0..self.heap.objects.len() as u32).map(Node)
    }

    /// The name of an object's type.
    pub fn type_name(&self, node: Node) -> &str {
        &self.heap.types[self.object(node).of as usize]
    }

    /// What a module, class or function is called.
    pub fn label(&self, node: Node) -> Option<&str> {
        self.object(node).label.map(|label| self.heap.labels[label as usize].as_str())
    }

    /// Its own bytes and those of its buffers.
    pub fn bytes(&self, node: Node) -> u64 {
        own_bytes(self.object(node))
    }

    /// What would be freed with it, bytes.
    pub fn retained(&self, node: Node) -> u64 {
        self.retained[node.0 as usize]
    }

    /// What has to be freed for it to be freed; `None` where it is held from several sides.
    pub fn dominator(&self, node: Node) -> Option<Node> {
        is_some(self.dominator[node.0 as usize])
    }

    /// The edges of an object, each with the object that it leads to.
    pub fn edges(&self, node: Node) -> impl Iterator<Item = (&Edge, Node)> {
        let first = self.object(node).first_edge as usize;
        let edges = self.heap.edges_of(node.0 as usize).iter().enumerate();
        edges.filter_map(move |(at, edge)| Some((edge, is_some(self.targets[first + at])?)))
    }

    /// The shortest way to an object: the root, why it lives, and each step's edge and object.
    pub fn way(&self, node: Node) -> (Node, Root, Vec<(&Edge, Node)>) {
        let mut steps = Vec::new();
        let mut at = node;
        while let Some(before) = is_some(self.before[at.0 as usize]) {
            steps.push((&self.heap.edges[self.last_edge[at.0 as usize] as usize], at));
            at = before;
        }
        steps.reverse();
        let first = self.roots.partition_point(|(root, _)| *root < at);
        let root = self.roots.get(first).filter(|(root, _)| *root == at).map_or(Root::Nobody, |(_, root)| *root);
        (at, root, steps)
    }

    /// By node: why the root lives that its shortest way begins at.
    pub fn reasons(&self) -> Vec<Root> {
        let mut reasons = vec![Root::Nobody; self.heap.objects.len()];
        // Where an object lives for several reasons, the first one counts, as for its way.
        for &(root, why) in self.roots.iter().rev().filter(|(root, _)| self.before(*root).is_none()) {
            reasons[root.0 as usize] = why;
        }
        for node in self.by_distance() {
            if let Some(before) = self.before(node) {
                reasons[node.0 as usize] = reasons[before.0 as usize];
            }
        }
        reasons
    }

    /// The object before it on the shortest way from a root.
    pub fn before(&self, node: Node) -> Option<Node> {
        is_some(self.before[node.0 as usize])
    }

    /// Objects that live by themselves, and why.
    pub fn roots(&self) -> impl Iterator<Item = (Node, Root)> {
        self.roots.iter().copied()
    }

    /// All objects, the nearest to a root first.
    pub fn by_distance(&self) -> impl DoubleEndedIterator<Item = Node> {
        self.by_distance.iter().map(|&node| Node(node))
    }

    /// Whose memory an address is, and how long that stretch of it is, bytes.
    pub fn owner(&self, address: u64) -> Option<(Node, u64)> {
        let at = self.blocks.partition_point(|(start, ..)| *start <= address).checked_sub(1)?;
        let (start, bytes, node) = self.blocks[at];
        (address - start < bytes).then_some((Node(node), bytes))
    }

    /// A cache that is written in Python keeps its items in one attribute and their greatest number in another.
    fn apply_limits(&mut self) {
        for limit in std::mem::take(&mut self.heap.limits) {
            let is_name = |name: Option<u32>, wanted| name.is_some_and(|name| self.heap.names[name as usize] == wanted);
            let limited = LIMITED.iter().filter(|(name, _)| is_name(Some(limit.name), *name));
            let stores = limited.flat_map(|(_, store)| {
                self.edges(Node(limit.object)).filter(|(edge, _)| is_name(edge.name, *store)).map(|(_, node)| node)
            });
            for store in stores.collect::<Vec<_>>() {
                self.heap.objects[store.0 as usize].bound = Some(limit.most);
            }
        }
    }

    /// Where the memory of objects begins and how long each stretch of it is, bytes; by address.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, u64)> {
        self.blocks.iter().map(|&(start, bytes, _)| (start, bytes))
    }

    /// The shortest ways from modules come first; what they don't lead to is asked for from other roots.
    fn find_ways(&mut self) {
        let mut known = vec![0u64; self.heap.objects.len()];
        for (edge, &target) in self.heap.edges.iter().zip(&self.targets) {
            if let Some(known) = known.get_mut(target as usize) {
                *known = known.saturating_add(edge.count);
            }
        }
        let is_module = self.heap.types.iter().map(|name| name == "module").collect::<Vec<_>>();
        let modules = self.nodes().filter(|&node| is_module[self.object(node).of as usize]);
        let modules: Vec<Node> = modules.collect();
        let held = self.nodes().filter(|&node| self.object(node).references > known[node.0 as usize]);
        let held: Vec<Node> = held.collect();
        let all: Vec<Node> = self.nodes().collect();
        let mut reached = vec![false; self.heap.objects.len()];
        for (roots, kind) in [(modules, Root::Module), (held, Root::Unknown), (all, Root::Nobody)] {
            let mut first = self.by_distance.len();
            for root in roots {
                let is_new = !std::mem::replace(&mut reached[root.0 as usize], true);
                // Also where a shorter way leads to it: it does not depend on that way alone.
                if is_new || kind == Root::Unknown {
                    self.roots.push((root, kind));
                }
                if is_new {
                    self.by_distance.push(root.0);
                }
                // Each one's garbage for itself: one root is enough for a cycle.
                if kind == Root::Nobody {
                    first = self.spread(first, &mut reached);
                }
            }
            self.spread(first, &mut reached);
        }
        self.roots.sort_by_key(|(root, _)| *root);
    }

    /// Search in breadth from what lies in `by_distance` behind `first`.
    fn spread(&mut self, mut first: usize, reached: &mut [bool]) -> usize {
        while let Some(&node) = self.by_distance.get(first) {
            first += 1;
            let edges = self.heap.objects[node as usize].first_edge as usize;
            for at in 0..self.heap.edges_of(node as usize).len() {
                let target = self.targets[edges + at];
                if target != NONE && !std::mem::replace(&mut reached[target as usize], true) {
                    self.before[target as usize] = node;
                    self.last_edge[target as usize] = (edges + at) as u32;
                    self.by_distance.push(target);
                }
            }
        }
        first
    }

    fn find_retained(&mut self) {
        let objects = &self.heap.objects;
        let roots: Vec<u32> = self.roots.iter().map(|(root, _)| root.0).collect();
        let firsts = objects.iter().map(|object| object.first_edge as u32);
        let first: Vec<u32> = firsts.chain([self.targets.len() as u32]).collect();
        let found = dominators(Edges { first: &first, targets: &self.targets, roots: &roots });
        let mut retained: Vec<u64> = objects.iter().map(own_bytes).collect();
        for &node in found.order.iter().rev() {
            if let Some(above) = is_some(found.of[node as usize]) {
                let sum = retained[above.0 as usize].saturating_add(retained[node as usize]);
                retained[above.0 as usize] = sum;
            }
        }
        (self.retained, self.dominator) = (retained, found.of);
    }

    fn find_blocks(&mut self) {
        let mut blocks = Vec::with_capacity(self.heap.objects.len());
        for (node, object) in self.heap.objects.iter().enumerate() {
            blocks.push((object.address.saturating_sub(object.front), object.bytes, node as u32));
            let buffers = object.buffers.iter().filter(|buffer| buffer.bytes > 0);
            blocks.extend(buffers.map(|buffer| (buffer.address, buffer.bytes, node as u32)));
        }
        blocks.sort_unstable();
        self.blocks = blocks;
    }
}

fn own_bytes(object: &HeapObject) -> u64 {
    object.buffers.iter().fold(object.bytes, |sum, buffer| sum.saturating_add(buffer.bytes))
}

fn is_some(node: u32) -> Option<Node> {
    (node != NONE).then_some(Node(node))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use leakline_table::heap::HeapHeader;

    /// Objects of one byte or more; each edge leads from one to another. The first is a module.
    pub fn heap(edges: &[Vec<u32>], references: impl Fn(usize) -> u64) -> Heap {
        let mut heap = Heap {
            header: HeapHeader::decode(&[0; HeapHeader::BYTES]).unwrap(),
            types: vec!["module".into(), "list".into()],
            names: vec![],
            labels: vec![],
            objects: vec![],
            edges: vec![],
            limits: vec![],
            lost: vec![],
        };
        let address = |node: usize| 0x1000 + 0x100 * node as u64;
        for (node, targets) in edges.iter().enumerate() {
            heap.objects.push(HeapObject {
                address: address(node),
                of: u32::from(node > 0),
                references: references(node),
                bytes: 1 << node,
                front: 0,
                length: None,
                bound: None,
                label: None,
                is_tracked: true,
                is_class: false,
                buffers: Default::default(),
                first_edge: heap.edges.len() as u64,
            });
            let edge = |target: &u32| Edge { target: address(*target as usize), name: None, count: 1 };
            heap.edges.extend(targets.iter().map(edge));
        }
        heap
    }

    /// What is reached from the module and from what is held from outside, when one object is taken out.
    fn bytes_without(graph: &Graph, edges: &[Vec<u32>], without: Option<u32>) -> u64 {
        let mut reached = vec![false; edges.len()];
        let mut way: Vec<u32> = graph.roots.iter().map(|(root, _)| root.0).collect();
        while let Some(node) = way.pop() {
            if Some(node) != without && !std::mem::replace(&mut reached[node as usize], true) {
                way.extend(&edges[node as usize]);
            }
        }
        (0..edges.len()).filter(|node| reached[*node]).map(|node| 1u64 << node).sum()
    }

    #[test]
    fn what_is_retained_is_what_is_lost_without_it() {
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..400 {
            let nodes = random.usize(1..20);
            let mut edges = vec![vec![]; nodes];
            let mut incoming = vec![0; nodes];
            for _ in 0..random.usize(..3 * nodes) {
                let (from, to) = (random.usize(..nodes), random.usize(..nodes));
                edges[from].push(to as u32);
                incoming[to] += 1;
            }
            let outside: Vec<u64> = (0..nodes).map(|_| u64::from(random.u8(..5) == 0)).collect();
            let graph = Graph::new(heap(&edges, |node| incoming[node] + outside[node]));
            let all = bytes_without(&graph, &edges, None);
            assert_eq!(all, (1u64 << nodes) - 1, "everything is held by a root, if only as garbage");
            let reasons = graph.reasons();
            for node in graph.nodes() {
                assert_eq!(
                    graph.retained(node),
                    all - bytes_without(&graph, &edges, Some(node.0)),
                    "{node:?} {edges:?}"
                );
                // The shortest way is one.
                let (root, why, steps) = graph.way(node);
                assert!(graph.roots.contains(&(root, why)) && reasons[node.0 as usize] == why);
                let mut at = root;
                for (_, next) in steps {
                    assert!(edges[at.0 as usize].contains(&next.0));
                    at = next;
                }
                assert_eq!(at, node);
            }
            assert_eq!(graph.by_distance().count(), nodes);
        }
    }

    #[test]
    fn an_address_belongs_to_the_object_whose_memory_it_is_in() {
        let mut heap = heap(&[vec![1], vec![]], |_| 1);
        heap.objects[1].bytes = 64;
        heap.objects[1].front = 16;
        heap.objects[1].buffers[0] = leakline_table::heap::Buffer { address: 0x9000, bytes: 800 };
        let graph = Graph::new(heap);
        assert_eq!(graph.owner(0x10F0), Some((Node(1), 64)));
        assert_eq!(graph.owner(0x112F), Some((Node(1), 64)));
        assert_eq!(graph.owner(0x1130), None);
        assert_eq!(graph.owner(0x9000), Some((Node(1), 800)));
        assert_eq!(graph.owner(0x931F), Some((Node(1), 800)));
        assert_eq!((graph.owner(0x9320), graph.owner(0)), (None, None));
    }
}
