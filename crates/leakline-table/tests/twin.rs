//! The writer against a stupid twin: the same random life, once in a table and once in hash maps, told the same way.

mod memory;

use leakline_table::layout::{FLAG_GROWTH, FLAG_SMALL, Loss, OWNER_IN_FLIGHT, OWNER_NONE, OWNER_SETTLED, SampleRecord};
use leakline_table::writer::{Birth, Ending, Life, Moment, Random};
use memory::Table;
use std::collections::{BTreeMap, HashMap};

/// Samples that the least table has room for.
const ROOM: usize = 512;

/// Who a sample belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    InFlight(u64),
    Settled { route: usize, outcome: u8, ordinal: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    size: u64,
    weight: f64,
    function: usize,
    born: u64,
    is_growth: bool,
    owner: Owner,
}

/// A block: its anchor first, then what realloc added.
#[derive(Clone, Debug)]
struct Block {
    bytes: u64,
    samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Request {
    route: usize,
    status: u32,
    allocated_bytes: f64,
}

/// What the table should hold.
#[derive(Default)]
struct Twin {
    blocks: HashMap<u64, Block>,
    requests: BTreeMap<u64, Request>,
    /// Requests that have ended, and as what: their contexts may live on, and their outcome may turn out otherwise.
    settled: BTreeMap<u64, (Request, Owner)>,
    /// Requests and allocated bytes by route and outcome.
    ended: HashMap<(usize, u8), (u64, f64)>,
    requests_ended: u64,
    samples_taken: u64,
    allocated_bytes: f64,
    unattributed_bytes: f64,
    frees_unseen: u64,
}

impl Twin {
    fn sample(&mut self, size: u64, weight: f64, function: usize, request: u64, is_growth: bool) -> Sample {
        self.samples_taken += 1;
        self.allocated_bytes += weight;
        let owner = match self.requests.get_mut(&request) {
            Some(open) => {
                open.allocated_bytes += weight;
                Owner::InFlight(request)
            }
            None => {
                self.unattributed_bytes += weight;
                self.settled.get(&request).map_or(Owner::Nobody, |(_, owner)| *owner)
            }
        };
        Sample { size, weight, function, born: self.requests_ended, is_growth, owner }
    }

    /// A block comes to lie at an address.
    fn place(&mut self, address: u64, block: Block) {
        self.frees_unseen += u64::from(self.blocks.insert(address, block).is_some());
    }

    fn end(&mut self, handle: u64, outcome: u8) {
        let Some(request) = self.requests.remove(&handle) else { return };
        let outcome = if outcome == 0 && request.status >= 500 { 1 } else { outcome };
        let (count, bytes) = self.ended.entry((request.route, outcome)).or_default();
        (*count, *bytes) = (*count + 1, *bytes + request.allocated_bytes);
        let settled = Owner::Settled { route: request.route, outcome, ordinal: *count };
        self.requests_ended += 1;
        self.replace_owner(Owner::InFlight(handle), settled);
        self.settled.insert(handle, (request, settled));
    }

    /// A request that has ended turns out to have ended otherwise.
    fn amend(&mut self, handle: u64, outcome: u8) {
        let Some((request, owner)) = self.settled.get_mut(&handle) else { return };
        let Owner::Settled { route, outcome: before, .. } = *owner else { return };
        if before == outcome {
            return;
        }
        let allocated = request.allocated_bytes;
        let (count, bytes) = self.ended.entry((route, before)).or_default();
        (*count, *bytes) = (*count - 1, *bytes - allocated);
        let (count, bytes) = self.ended.entry((route, outcome)).or_default();
        (*count, *bytes) = (*count + 1, *bytes + allocated);
        let after = Owner::Settled { route, outcome, ordinal: *count };
        let before = std::mem::replace(owner, after);
        self.replace_owner(before, after);
    }

    fn replace_owner(&mut self, before: Owner, after: Owner) {
        for sample in self.blocks.values_mut().flat_map(|block| &mut block.samples) {
            if sample.owner == before {
                sample.owner = after;
            }
        }
    }

    /// Everything that a reader can tell apart, in an order of its own.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (address, block) in &self.blocks {
            for (index, sample) in block.samples.iter().enumerate() {
                let address = if index == 0 { *address } else { 0 };
                let owner = match sample.owner {
                    Owner::Nobody => "nobody".to_owned(),
                    Owner::InFlight(_) => "in flight".to_owned(),
                    Owner::Settled { route, outcome, ordinal } => format!("{} {outcome} {ordinal}", route_name(route)),
                };
                let Sample { size, weight, function, born, is_growth, .. } = sample;
                lines.push(format!("{address:x} {size} {weight} f{function} {born} {is_growth} {owner}"));
            }
        }
        lines.sort();
        lines
    }
}

fn route_name(route: usize) -> String {
    format!("GET /r{route}")
}

/// What the table holds, as [`Twin::lines`] says it.
fn lines(table: &Table) -> Vec<String> {
    let snapshot = table.snapshot();
    let line = |sample: &leakline_table::reader::RawSample| {
        let SampleRecord { address, size, weight, born, outcome, ordinal, .. } = sample.record;
        let stack = &snapshot.stacks[sample.stack.expect("each sample has a stack") as usize];
        let (code, _) = stack[0].python().expect("it is Python's");
        let function = &snapshot.codes[code as usize].function;
        let is_growth = sample.record.flags & FLAG_GROWTH != 0;
        let owner = match sample.record.owner {
            OWNER_NONE => "nobody".to_owned(),
            OWNER_IN_FLIGHT => "in flight".to_owned(),
            OWNER_SETTLED => format!("{} {outcome} {ordinal}", snapshot.routes[sample.record.route as usize].name),
            other => panic!("owner {other}"),
        };
        format!("{address:x} {size} {weight} {function} {born} {is_growth} {owner}")
    };
    let mut lines: Vec<String> = snapshot.samples.iter().map(line).collect();
    lines.sort();
    lines
}

/// One of `0..below`.
fn pick(random: &mut Random, below: usize) -> usize {
    (random.bits() % below as u64) as usize
}

/// A random life of `steps` events, which never needs more room than there is.
fn live(seed: u64, steps: usize) {
    let (mut table, mut twin, mut random) = (Table::new(seed), Twin::default(), Random::new(seed));
    let stacks: Vec<u32> = (0..20).map(|function| table.stack(&format!("f{function}"), function)).collect();
    let in_use = |_: &SampleRecord| Life::InUse(0);
    for step in 0..steps {
        // Few addresses, so that blocks land on one another and the index has long runs and gaps to close.
        let address = 0x10_0000 + 16 * pick(&mut random, 700) as u64;
        let function = pick(&mut random, stacks.len());
        let handles: Vec<u64> = twin.requests.keys().copied().collect();
        let past: Vec<u64> = twin.settled.keys().copied().collect();
        let request = match pick(&mut random, 10) {
            0 => *past.get(pick(&mut random, past.len() + 1)).unwrap_or(&0),
            _ => *handles.get(pick(&mut random, handles.len() + 1)).unwrap_or(&0),
        };
        let live: usize = twin.blocks.values().map(|block| block.samples.len()).sum();
        let event = if live >= ROOM - 2 { 40 } else { pick(&mut random, 100) };
        match event {
            0..40 => {
                let (size, stack) = (1 + pick(&mut random, 5000) as u64, stacks[function]);
                let flags = if size <= 512 { FLAG_SMALL } else { 0 };
                let weight = size as f64 * 3.0;
                table.writer.born(&Birth { address, size, block: size, weight, stack, request, flags, place: 0 });
                let sample = twin.sample(size, weight, function, request, false);
                twin.place(address, Block { bytes: size, samples: vec![sample] });
            }
            40..60 => {
                table.writer.died(address);
                twin.blocks.remove(&address);
            }
            60..80 => {
                let transit = table.writer.depart(address);
                let block = twin.blocks.remove(&address);
                assert_eq!(transit.is_some(), block.is_some());
                let (Some(transit), Some(mut block)) = (transit, block) else { continue };
                match pick(&mut random, 10) {
                    0 => table.writer.give_up(transit),
                    1 => {
                        table.writer.stay(transit, address);
                        twin.blocks.insert(address, block);
                    }
                    _ => {
                        let to = 0x10_0000 + 16 * pick(&mut random, 700) as u64;
                        let bytes = 1 + pick(&mut random, 8000) as u64;
                        let added = table.writer.arrive(transit, to, bytes);
                        assert_eq!(added, bytes.saturating_sub(block.bytes));
                        let before = std::mem::replace(&mut block.bytes, bytes);
                        if bytes < before {
                            let share = bytes as f64 / before as f64;
                            for sample in &mut block.samples {
                                sample.weight *= share;
                                sample.size = (sample.size as f64 * share) as u64;
                            }
                        } else if added > 0 {
                            table.writer.grown(transit, added, stacks[function], request);
                            block.samples.push(twin.sample(added, added as f64, function, request, true));
                        }
                        twin.place(to, block);
                    }
                }
            }
            80..88 if twin.requests.len() < 50 => {
                let route = pick(&mut random, 12);
                let handle = table.writer.begin(b"GET", format!("/r{route}?id={step}").as_bytes(), 0);
                assert!(table.writer.in_flight(handle));
                twin.requests.insert(handle, Request { route, ..Request::default() });
            }
            88..90 => {
                let route = pick(&mut random, 12);
                table.writer.route(request, format!("/r{route}").as_bytes());
                if let Some(open) = twin.requests.get_mut(&request) {
                    open.route = route;
                }
            }
            90..92 => {
                let status = [200, 404, 500, 503][pick(&mut random, 4)];
                table.writer.status(request, status);
                if let Some(open) = twin.requests.get_mut(&request) {
                    open.status = status;
                }
            }
            _ => {
                let outcome = pick(&mut random, 3) as u8;
                table.writer.end(request, Ending { outcome, now_ns: 0 }, in_use);
                // A handle that is used after its request's end means nothing.
                table.writer.end(request, Ending { outcome, now_ns: 0 }, in_use);
                twin.end(request, outcome);
                // At once, as servers do: later another request may have got the same ordinal.
                if twin.settled.contains_key(&request) && handles.contains(&request) && random.coin() {
                    let otherwise = pick(&mut random, 3) as u8;
                    table.writer.amend(request, otherwise);
                    twin.amend(request, otherwise);
                }
                assert!(!table.writer.in_flight(request));
            }
        }
        if step % 250 == 0 || step == steps - 1 {
            compare(&table, &twin);
        }
    }
    for address in twin.blocks.keys() {
        table.writer.died(*address);
    }
    assert!(lines(&table).is_empty());
    let left = twin.blocks.keys().filter(|address| table.filter.may_hold(**address as usize)).count();
    assert_eq!(left, 0, "the filter remembers blocks that are gone");
}

fn compare(table: &Table, twin: &Twin) {
    let (found, expected) = (lines(table), twin.lines());
    let differs = found.iter().zip(&expected).find(|(found, expected)| found != expected);
    assert_eq!((found.len(), differs), (expected.len(), None));
    let snapshot = table.snapshot();
    let header = &snapshot.header;
    assert_eq!((header.requests, header.requests_open), (twin.requests_ended, twin.requests.len() as u64));
    assert_eq!((header.samples_taken, header.allocated_bytes), (twin.samples_taken, twin.allocated_bytes));
    assert_eq!(header.unattributed_allocated_bytes, twin.unattributed_bytes);
    assert_eq!(header.lost[Loss::FreeUnseen as usize], twin.frees_unseen);
    assert_eq!(header.lost[Loss::Thinned as usize], 0);
    for ((route, outcome), (count, bytes)) in &twin.ended {
        let name = route_name(*route);
        let record = snapshot.routes.iter().find(|known| known.name == name).expect("the route is known").record;
        assert_eq!((record.requests[*outcome as usize], record.allocated_bytes[*outcome as usize]), (*count, *bytes));
    }
    assert!(twin.blocks.keys().all(|address| table.filter.may_hold(*address as usize)), "a block would be missed");
}

#[test]
fn the_table_tells_the_same_as_hash_maps() {
    for seed in 1..=8 {
        live(seed, 6_000);
    }
}

/// Bytes that are live at the end of [`crowd`]: in blocks that were born so large, in grown ones, in shrunk ones.
const CROWD: [u64; 3] = [900 * 1000, 300 * 1500, 300 * 250];

/// Four times as many blocks as the table has room for, some of which die again or grow. Returns the estimated bytes
/// that are live, by the request that kept them.
fn crowd(seed: u64) -> [f64; 3] {
    let mut table = Table::new(seed);
    let stack = table.stack("crowd", 1);
    table.writer.tick(&Moment { time_ns: 1, rss_bytes: 1, rss_peak_bytes: 1, collector: None, agent_ns: 0 });
    let requests: Vec<u64> =
        (0..3).map(|route| table.writer.begin(b"GET", format!("/r{route}").as_bytes(), 0)).collect();
    // As if each byte were sampled: what is estimated then is known exactly before the table is thinned.
    let born = |table: &mut Table, address: u64, size: u64, block: u64, route: usize| {
        let flags = if size < block { FLAG_GROWTH } else { 0 };
        let (weight, request) = (size as f64, requests[route]);
        table.writer.born(&Birth { address, size, block, weight, stack, request, flags, place: 0 });
    };
    let pages = (0..300).map(|page| 0x100_0000 + 0x1000 * page);
    for page in pages.clone() {
        for place in [0x10, 0x20, 0x30] {
            born(&mut table, page + place, 1000, 1000, 0);
        }
        born(&mut table, page + 0x100, 100, 100, 1);
        born(&mut table, page + 0x200, 1000, 1000, 2);
        born(&mut table, page + 0x300, 5000, 5000, 2);
        born(&mut table, page + 0x400, 5000, 5000, 2);
    }
    for page in pages {
        table.writer.died(page + 0x300);
        table.writer.died(page + 0x400);
        for (from, to, before, bytes, route) in
            [(0x100, 0x800, 100, 800, 1), (0x800, 0x110, 800, 1500, 1), (0x200, 0x200, 1000, 250, 2)]
        {
            match table.writer.depart(page + from) {
                Some(transit) => {
                    let added = table.writer.arrive(transit, page + to, bytes);
                    if added > 0 {
                        table.writer.grown(transit, added, stack, requests[route]);
                    }
                }
                // The growth of a block that was not kept may be sampled like any allocation.
                None if bytes > before => born(&mut table, page + to, bytes - before, bytes, route),
                None => {}
            }
        }
    }
    for request in requests {
        table.writer.end(request, Ending { outcome: 0, now_ns: 0 }, |_| Life::InUse(0));
    }
    let snapshot = table.snapshot();
    assert!(snapshot.header.lost[Loss::Thinned as usize] > 1000, "the table was never full");
    assert!(table.writer.interval_bytes() >= 4.0 * 4096.0);
    // What is left of that time's samples stands for as much as what comes.
    assert_eq!(snapshot.ticks[0].interval_bytes, table.writer.interval_bytes());
    assert!(snapshot.samples.len() <= ROOM);
    let mut live = [0.0; 3];
    for sample in &snapshot.samples {
        let route = (0..3).find(|route| route_name(*route) == snapshot.routes[sample.record.route as usize].name);
        live[route.expect("each sample has a route")] += sample.record.weight;
    }
    live
}

/// The mean over 400 fixed seeds may differ from the truth by 4.5 standard errors: by chance once in 150,000. The seeds
/// are fixed, so the test either holds for good or not at all.
#[test]
fn thinning_leaves_the_sums_unbiased() {
    const RUNS: usize = 400;
    let runs: Vec<[f64; 3]> = (0..RUNS).map(|seed| crowd(0x9E37_79B9 * (seed as u64 + 1))).collect();
    for (route, truth) in CROWD.into_iter().enumerate() {
        let values = runs.iter().map(|run| run[route]);
        let mean = values.clone().sum::<f64>() / RUNS as f64;
        let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / (RUNS - 1) as f64;
        let error = (variance / RUNS as f64).sqrt();
        assert!(error > 0.0 && error < 0.05 * truth as f64, "route {route}: error {error} of {truth}");
        let sigmas = (mean - truth as f64) / error;
        assert!(sigmas.abs() < 4.5, "route {route}: {mean} instead of {truth}, {sigmas} standard errors off");
    }
}
