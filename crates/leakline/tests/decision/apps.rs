//! The servers that the simulator runs: those that leak, and those that only look like it.
use std::collections::{HashMap, VecDeque};

use leakline::analyze::evidence::{Outcome, RouteId, StackId};

use super::simulator::{Block, Server};

/// What one route of a server does with memory in each request.
pub trait Handler {
    fn handle(&mut self, server: &mut Server);
}

/// Keeps `blocks` of these sizes, each from its own line, in each request.
pub struct Keeps {
    pub lines: Vec<(StackId, u64)>,
    /// One request in so many does.
    pub one_in: u32,
}

impl Handler for Keeps {
    fn handle(&mut self, server: &mut Server) {
        if server.rng.u32(0..self.one_in) == 0 {
            for &(line, size) in &self.lines {
                server.allocate(line, size);
            }
        }
    }
}

/// Appends pointers to one list, as CPython does: an eighth more than is needed whenever it is full.
pub struct AppendsTo {
    line: StackId,
    added: u64,
    length: u64,
    capacity: u64,
    list: Block,
    /// Length at which it stops to grow.
    bound: u64,
}

impl AppendsTo {
    pub fn list(line: StackId, added: u64, bound: u64) -> Self {
        Self { line, added, length: 0, capacity: 0, list: Block::default(), bound }
    }
}

impl Handler for AppendsTo {
    fn handle(&mut self, server: &mut Server) {
        if self.length >= self.bound {
            return;
        }
        self.length += self.added;
        if self.length > self.capacity {
            let capacity = (self.length + (self.length >> 3) + 6) & !3;
            server.grow(&mut self.list, self.line, (capacity - self.capacity) * 8);
            self.capacity = capacity;
        }
    }
}

/// `functools.lru_cache`: random keys, the least recently used goes when it is full.
pub struct LruCache {
    pub line: StackId,
    pub keys: u64,
    pub bound: usize,
    pub entry: u64,
    entries: HashMap<u64, (u64, Block)>,
    uses: VecDeque<(u64, u64)>,
    clock: u64,
}

impl LruCache {
    pub fn new(line: StackId, keys: u64, bound: usize, entry: u64) -> Self {
        Self { line, keys, bound, entry, entries: HashMap::new(), uses: VecDeque::new(), clock: 0 }
    }
}

impl Handler for LruCache {
    fn handle(&mut self, server: &mut Server) {
        self.clock += 1;
        let key = server.rng.u64(0..self.keys);
        self.uses.push_back((key, self.clock));
        if let Some((used, _)) = self.entries.get_mut(&key) {
            *used = self.clock;
            return;
        }
        let block = server.allocate(self.line, self.entry);
        self.entries.insert(key, (self.clock, block));
        while self.entries.len() > self.bound {
            let Some((key, at)) = self.uses.pop_front() else { break };
            if self.entries.get(&key).is_some_and(|&(used, _)| used == at) {
                let (_, block) = self.entries.remove(&key).expect("it was just seen");
                server.free(block);
            }
        }
    }
}

/// Sessions, or any queue: what is older than `lifetime` requests goes.
pub struct Expires {
    pub line: StackId,
    pub size: u64,
    pub lifetime: usize,
    pub alive: VecDeque<Block>,
}

impl Handler for Expires {
    fn handle(&mut self, server: &mut Server) {
        let block = server.allocate(self.line, self.size);
        self.alive.push_back(block);
        if self.alive.len() > self.lifetime {
            let block = self.alive.pop_front().expect("it has just been filled");
            server.free(block);
        }
    }
}

/// Cyclic garbage that a full collection frees, or a buffer that is flushed: everything goes at once, now and then.
pub struct Sawtooth {
    pub line: StackId,
    pub size: u64,
    pub period: u64,
    pub is_garbage: bool,
    pub served: u64,
    pub kept: Vec<Block>,
}

impl Handler for Sawtooth {
    fn handle(&mut self, server: &mut Server) {
        self.served += 1;
        let block = server.allocate(self.line, self.size);
        self.kept.push(block);
        if self.served.is_multiple_of(self.period) {
            for block in self.kept.drain(..) {
                server.free(block);
            }
            if self.is_garbage {
                server.collected();
            }
        }
    }
}

/// Things that are made once and stay: imports by the first requests, a cache for each of `threads` threads when it
/// serves for the first time, connections of a pool when so many are in use at once for the first time.
pub struct Once {
    pub line: StackId,
    pub sizes: Vec<u64>,
    /// The chance that a request is the first to need the next one.
    pub chance: f64,
}

impl Handler for Once {
    fn handle(&mut self, server: &mut Server) {
        if !self.sizes.is_empty() && server.rng.f64() < self.chance {
            let size = self.sizes.pop().expect("it is not empty");
            // As modules and caches are: many small blocks.
            for _ in 0..size / 400 {
                server.allocate(self.line, 400);
            }
        }
    }
}

/// A store with a fixed set of keys whose values are replaced.
pub struct Replaces {
    pub line: StackId,
    pub size: u64,
    pub keys: usize,
    pub values: HashMap<usize, Block>,
}

impl Handler for Replaces {
    fn handle(&mut self, server: &mut Server) {
        let key = server.rng.usize(0..self.keys);
        let block = server.allocate(self.line, self.size);
        if let Some(old) = self.values.insert(key, block) {
            server.free(old);
        }
    }
}

/// Makes blocks and drops them, which parks them on the free list.
pub struct Drops {
    pub line: StackId,
    pub count: usize,
    pub size: u64,
}

impl Handler for Drops {
    fn handle(&mut self, server: &mut Server) {
        let blocks: Vec<Block> = (0..self.count).map(|_| server.reuse(self.line, self.size)).collect();
        blocks.into_iter().for_each(|block| server.park(block));
    }
}

/// Makes blocks, from the free list where it can, and keeps them.
pub struct Hoards {
    pub line: StackId,
    pub count: usize,
    pub size: u64,
}

impl Handler for Hoards {
    fn handle(&mut self, server: &mut Server) {
        for _ in 0..self.count {
            server.reuse(self.line, self.size);
        }
    }
}

/// A server's route, how often it is asked, how often it fails, and what it does then.
pub struct Endpoint {
    pub route: RouteId,
    pub weight: f64,
    pub errors: f64,
    pub handlers: Vec<Box<dyn Handler>>,
    pub on_error: Vec<Box<dyn Handler>>,
}

impl Endpoint {
    pub fn new(server: &mut Server, name: &str, weight: f64, handlers: Vec<Box<dyn Handler>>) -> Self {
        Self { route: server.route(name), weight, errors: 0.0, handlers, on_error: vec![] }
    }
}

/// Drives the endpoints with random traffic.
pub fn drive(server: &mut Server, endpoints: &mut [Endpoint], requests: u64) {
    let total: f64 = endpoints.iter().map(|endpoint| endpoint.weight).sum();
    for _ in 0..requests {
        let mut pick = server.rng.f64() * total;
        let chosen = endpoints.iter().position(|endpoint| {
            pick -= endpoint.weight;
            pick <= 0.0
        });
        let endpoint = &mut endpoints[chosen.unwrap_or(0)];
        let fails = server.rng.f64() < endpoint.errors;
        let outcome = if fails { Outcome::Error } else { Outcome::Ok };
        let (handlers, on_error) = (&mut endpoint.handlers, &mut endpoint.on_error);
        server.serve(endpoint.route, outcome, |server| {
            handlers.iter_mut().for_each(|handler| handler.handle(server));
            if fails {
                on_error.iter_mut().for_each(|handler| handler.handle(server));
            }
        });
    }
}
