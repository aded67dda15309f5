//! Follows requests from begin to end, and settles what they leave behind.
//!
//! Blame is settled when a block *survives* its request. CPython parks dead dicts, key tables, lists, tuples and floats
//! on free lists and hands them out again without an allocation, so a block that looks alive may be dead, and its next
//! life belongs to another request. Therefore the small blocks of a request are looked at when it ends, and those that
//! stay are watched for some more requests: one that is found parked is dead, one that is found in use again was
//! revived by the request that has just ended.
//!
//! Parked blocks are looked at first and at every end. They are few, because free lists are short, but the next request
//! may take them all, and whoever looks late blames the wrong one.

use super::Writer;
use super::memory::{Carver, Plain};
use super::peaks::Peak;
use super::sockets::{EXCHANGES, Exchange};
use super::watch::{Watch, Watched};
use crate::layout::{
    DURATIONS, FLAG_GROWTH, FLAG_PARKED, FLAG_RECYCLED, FLAG_SMALL, Loss, OWNER_NONE, OWNER_SETTLED, PeakRecord, Phase,
    SampleRecord, variance,
};

/// What a look at a small block shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It lies dead on a free list.
    Parked,
    /// It is in use. What it holds, where that can't change during a life (a float's value, a tuple's first item): a
    /// different mark at the next look means another life. 0 where nothing can be said.
    InUse(u64),
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// 0 ok, 1 error, 2 aborted.
    pub outcome: u8,
    /// ns of the same clock as at its beginning.
    pub now_ns: u64,
}

/// Requests that are followed at the same time.
pub const IN_FLIGHT: usize = 1024;

/// The slot of a request in flight, by its handle.
pub fn slot(handle: u64) -> usize {
    handle as usize % IN_FLIGHT
}

/// Bytes of a request's route, method and path, that are kept until its end.
const NAME_BYTES: usize = 208;
/// Parked blocks that are watched: as many as CPython's lists of dicts, key tables, lists and floats hold, and a part of
/// its lists of tuples. One that gives way to another counts as dead for good.
const PARKED: usize = 2048;
/// Parked blocks that one end of a request looks at. The cost is bounded by the budget: in the sampler's steady state
/// only a few of the parked blocks are sampled.
const PARKED_LOOKS: usize = 256;
/// Blocks that one end of a request finds in use, or that were born since outside of any, and that are looked at before the next
/// one begins.
const FRESH: usize = 256;
/// Blocks in use that are watched.
const IN_USE: usize = 1024;
/// Blocks in use that one end of a request looks at.
const IN_USE_LOOKS: usize = 16;
/// Looks after which a block that stays in use is no longer watched.
const LOOKS_A_BLOCK: u8 = 64;
/// Routes made from paths, for frameworks that name none, or not yet; beyond, such requests share one route a method.
const PATH_ROUTES: u32 = 256;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Request {
    allocated_bytes: f64,
    /// Estimated bytes of its samples that are live now, and at the highest.
    live_bytes: f64,
    /// The variance of that estimate, bytes squared.
    live_variance: f64,
    pub(super) peak: Peak,
    /// What it has exchanged with whom.
    pub(super) exchanges: [Exchange; EXCHANGES],
    began_ns: u64,
    /// Once it has ended: its ordinal among those of its route and outcome.
    ordinal: u64,
    /// Once it has ended: its route and outcome.
    route: u32,
    outcome: u32,
    /// Samples that it left behind.
    left: u32,
    phase: u32,
    /// Head of the list of its samples, a slot + 1.
    pub(super) first: u32,
    /// Part of the handle; odd while the request is in flight.
    generation: u32,
    status: u32,
    /// Bytes of `name` that are the method, with the space behind it.
    method_bytes: u32,
    name_bytes: u32,
    /// The name is a framework's template, not a path.
    is_template: u32,
    /// Its client has left.
    pub(super) client_left: u32,
    /// And that before all that had been written for it was sent.
    pub(super) cut_short: u32,
    name: [u8; NAME_BYTES],
}

// SAFETY: numbers and bytes.
unsafe impl Plain for Request {}

pub(super) struct Requests<'a> {
    slots: &'a mut [Request],
    /// Where the search for a free slot begins.
    next: usize,
    parked: Watch<'a>,
    /// What the last end of a request found in use, and what was born since outside of any.
    fresh: Watch<'a>,
    in_use: Watch<'a>,
    path_routes: u32,
    /// What is added to generations in handles, an even number: a process may have several tables in its life, and a
    /// request that began under another one must not pass for one of ours.
    first_generation: u32,
}

impl<'a> Requests<'a> {
    pub(super) fn private_bytes() -> usize {
        IN_FLIGHT * size_of::<Request>() + (PARKED + FRESH + IN_USE) * size_of::<Watched>()
    }

    pub(super) fn new(private: &mut Carver<'a>, now_ns: u64) -> Option<Self> {
        let slots = private.take(IN_FLIGHT)?;
        let parked = Watch::new(private.take(PARKED)?);
        let (fresh, in_use) = (Watch::new(private.take(FRESH)?), Watch::new(private.take(IN_USE)?));
        // A slot is used twice in such a time at most.
        let first_generation = (now_ns >> 10) as u32 & !1;
        Some(Self { slots, next: 0, parked, fresh, in_use, path_routes: 0, first_generation })
    }

    pub(super) fn slot(&mut self, index: u32) -> &mut Request {
        &mut self.slots[index as usize]
    }

    /// From now on looks whether a small block parks, that was born outside of requests when so many had ended.
    pub(super) fn watch(&mut self, slot: u32, generation: u32, seen: u32) {
        self.fresh.add(Watched { slot, generation, seen });
    }

    /// The slot of a request that has ended, from its handle, as long as no other one has got it.
    pub(super) fn ended(&self, handle: u64) -> Option<u32> {
        let index = (handle & 0xFFFF) as usize;
        let request = self.slots.get(index)?;
        let generation = self.generation(handle)?;
        (request.generation == generation.wrapping_add(1)).then_some(index as u32)
    }

    /// The slot of a request that is in flight, from its handle.
    pub(super) fn open(&self, handle: u64) -> Option<u32> {
        let index = (handle & 0xFFFF) as usize;
        let request = self.slots.get(index)?;
        (request.generation % 2 == 1 && Some(request.generation) == self.generation(handle)).then_some(index as u32)
    }

    /// The generation of a request, from its handle.
    fn generation(&self, handle: u64) -> Option<u32> {
        let told = u32::try_from(handle >> 16).ok().filter(|_| handle != 0)?;
        Some(told.wrapping_sub(self.first_generation))
    }
}

impl Writer<'_> {
    /// Looks once more at what the last request that ended had in use, before another one begins. A request ends in
    /// the middle of its own things, its environment and its response: they park a moment later, and where the next
    /// request revives them, only a look in between tells.
    pub fn look_before_next(&mut self, mut look: impl FnMut(&SampleRecord) -> Life) {
        while let Some(block) = self.requests.fresh.turn() {
            self.requests.fresh.forget();
            let Some(record) = self.watched(block) else { continue };
            match look(record) {
                Life::Parked => {
                    record.flags |= FLAG_PARKED;
                    self.requests.parked.add(block);
                }
                Life::InUse(_) => self.requests.in_use.add(block),
            }
        }
    }

    /// A request begins. Returns its handle, which fits in 48 bits; 0 where too many are in flight.
    pub fn begin(&mut self, method: &[u8], path: &[u8], now_ns: u64) -> u64 {
        let slots = &mut *self.requests.slots;
        let from = self.requests.next;
        let Some(index) =
            (0..slots.len()).map(|step| (from + step) % slots.len()).find(|at| slots[*at].generation.is_multiple_of(2))
        else {
            self.lose(Loss::RequestsFull);
            return 0;
        };
        self.requests.next = (index + 1) % slots.len();
        let request = &mut slots[index];
        request.generation = request.generation.wrapping_add(1);
        request.began_ns = now_ns;
        (request.allocated_bytes, request.live_bytes, request.live_variance) = (0.0, 0.0, 0.0);
        request.peak = Peak::NONE;
        (request.first, request.left, request.status, request.is_template) = (0, 0, 0, 0);
        (request.exchanges, request.client_left, request.cut_short) = ([Exchange::NONE; EXCHANGES], 0, 0);
        request.phase = Phase::Handler as u32;
        let method = &method[..method.len().min(16)];
        request.name[..method.len()].copy_from_slice(method);
        request.name[method.len()] = b' ';
        request.method_bytes = method.len() as u32 + 1;
        request.set_path(path);
        self.header.requests_open += 1;
        u64::from(request.generation.wrapping_add(self.requests.first_generation)) << 16 | index as u64
    }

    /// Is the request of this handle in flight?
    pub fn in_flight(&self, handle: u64) -> bool {
        self.requests.open(handle).is_some()
    }

    /// The request's route as its framework calls it. The last call counts.
    pub fn route(&mut self, handle: u64, template: &[u8]) {
        if let Some(index) = self.requests.open(handle) {
            let request = self.requests.slot(index);
            request.is_template = 1;
            request.set_path(template);
        }
    }

    /// The response's status.
    pub fn status(&mut self, handle: u64, status: u32) {
        if let Some(index) = self.requests.open(handle) {
            self.requests.slot(index).status = status;
        }
    }

    /// A request has ended: its samples are settled and the watched blocks looked at. `look` is given records whose
    /// block was served by pymalloc and has not been freed.
    pub fn end(&mut self, handle: u64, ending: Ending, mut look: impl FnMut(&SampleRecord) -> Life) {
        let Some(index) = self.requests.open(handle) else { return };
        let request = *self.requests.slot(index);
        let outcome = match ending.outcome {
            0 if request.status >= 500 => 1,
            0 if request.cut_short != 0 => 2,
            outcome => outcome.min(2),
        };
        let route = self.route_of(&request);
        let ordinal = self.count(route, outcome, &request, ending.now_ns);
        let settle = |record: &mut SampleRecord| {
            record.owner = if route == 0 { OWNER_NONE } else { OWNER_SETTLED };
            (record.route, record.outcome, record.ordinal) = (route, outcome, ordinal);
        };

        // Where requests overlap, an end may follow another one with no beginning in between.
        while let Some(block) = self.requests.fresh.turn() {
            self.requests.fresh.forget();
            self.requests.in_use.add(block);
        }
        // The older ones first, so that what this request leaves behind is not looked at twice.
        self.look_at_parked(&mut look, settle);
        self.look_at_in_use(&mut look, settle);
        let ended = self.header.requests as u32;
        let seen = ended.wrapping_add(1);
        let mut left = 0;
        while let Some(slot) = self.requests.slot(index).first.checked_sub(1) {
            left += 1;
            self.samples.leave_request(slot, &mut self.requests.slots[index as usize].first);
            let generation = self.samples.generation(slot);
            let record = self.samples.record(slot);
            settle(record);
            if record.flags & (FLAG_SMALL | FLAG_GROWTH) == FLAG_SMALL && record.address != 0 {
                match look(record) {
                    Life::Parked => {
                        record.flags |= FLAG_PARKED;
                        self.requests.parked.add(Watched { slot, generation, seen });
                    }
                    Life::InUse(mark) => {
                        // Its life began after this request did: it was not there at any end before.
                        let block = Watched { slot, generation, seen };
                        if is_another_life(record.mark, mark) {
                            self.revived(Watched { seen: ended, ..block }, mark, settle);
                        } else {
                            record.mark = mark;
                        }
                        self.requests.fresh.add(block);
                    }
                }
            }
        }
        self.keep_peak(index, route, outcome, ordinal);
        let request = self.requests.slot(index);
        request.generation = request.generation.wrapping_add(1);
        (request.route, request.outcome, request.ordinal) = (route, u32::from(outcome), ordinal);
        request.left = left;
        self.count_exchanges(index);
        self.header.requests += 1;
        self.header.requests_open -= 1;
    }

    /// The phase of a request that is in flight.
    pub fn phase(&mut self, handle: u64, phase: Phase) {
        if let Some(index) = self.requests.open(handle) {
            self.requests.slot(index).phase = phase as u32;
        }
    }

    /// A request that has ended turns out to have ended otherwise: servers learn late that a client has gone. It is
    /// counted anew, and what it left behind goes with it. Nothing happens when it ended long ago.
    pub fn amend(&mut self, handle: u64, outcome: u8) {
        let Some(index) = self.requests.ended(handle) else { return };
        let request = *self.requests.slot(index);
        let (before, outcome) = (request.outcome as u8, outcome.min(2));
        let Some(route) = self.names.routes.get_mut(request.route as usize) else { return };
        if before == outcome || request.route == 0 {
            return;
        }
        route.requests[before as usize] = route.requests[before as usize].saturating_sub(1);
        // Sums of floats do not come apart exactly, and no total may fall below zero.
        let total = &mut route.allocated_bytes[before as usize];
        *total = (*total - request.allocated_bytes).max(0.0);
        route.requests[outcome as usize] += 1;
        route.allocated_bytes[outcome as usize] += request.allocated_bytes;
        let ordinal = route.requests[outcome as usize];
        self.move_peak(&request, outcome, ordinal);
        self.take_exchanges_back(index);
        let is_of_request = |record: &SampleRecord| {
            record.owner == OWNER_SETTLED
                && (record.route, record.outcome, record.ordinal) == (request.route, before, request.ordinal)
        };
        // Only where something was left is there something to look for.
        if request.left > 0 {
            for record in self.samples.all().iter_mut().filter(|record| is_of_request(record)) {
                (record.outcome, record.ordinal) = (outcome, ordinal);
            }
        }
        let request = self.requests.slot(index);
        (request.outcome, request.ordinal) = (u32::from(outcome), ordinal);
        self.count_exchanges(index);
    }

    /// Gives a new sample to a request that has ended, whose context it still carries.
    pub(super) fn settle_late(&mut self, index: u32, slot: u32) {
        let request = self.requests.slot(index);
        request.left += 1;
        let (route, outcome, ordinal) = (request.route, request.outcome as u8, request.ordinal);
        if route != 0 {
            let record = self.samples.record(slot);
            record.owner = OWNER_SETTLED;
            (record.route, record.outcome, record.ordinal) = (route, outcome, ordinal);
        }
    }

    /// Counts a request that ends; returns its ordinal.
    fn count(&mut self, route: u32, outcome: u8, request: &Request, now_ns: u64) -> u64 {
        let Some(record) = self.names.routes.get_mut(route as usize) else { return 0 };
        record.requests[outcome as usize] += 1;
        record.allocated_bytes[outcome as usize] += request.allocated_bytes;
        record.durations[bucket(now_ns.saturating_sub(request.began_ns))] += 1;
        record.requests[outcome as usize]
    }

    /// Looks at the parked blocks: one that is in use was revived by the request that has just ended.
    fn look_at_parked(&mut self, look: &mut impl FnMut(&SampleRecord) -> Life, settle: impl Fn(&mut SampleRecord)) {
        let seen = (self.header.requests as u32).wrapping_add(1);
        for _ in 0..PARKED_LOOKS.min(self.requests.parked.count()) {
            let Some(block) = self.requests.parked.turn() else { return };
            let Some(record) = self.watched(block) else {
                self.requests.parked.forget();
                continue;
            };
            match look(record) {
                Life::Parked => self.requests.parked.keep(seen),
                Life::InUse(mark) => {
                    self.revived(block, mark, &settle);
                    self.requests.parked.forget();
                    self.requests.fresh.add(Watched { seen, ..block });
                }
            }
        }
    }

    /// Looks at some of the blocks in use, in turn.
    fn look_at_in_use(&mut self, look: &mut impl FnMut(&SampleRecord) -> Life, settle: impl Fn(&mut SampleRecord)) {
        let seen = (self.header.requests as u32).wrapping_add(1);
        for _ in 0..IN_USE_LOOKS.min(self.requests.in_use.count()) {
            let Some(block) = self.requests.in_use.turn() else { return };
            let Some(record) = self.watched(block) else {
                self.requests.in_use.forget();
                continue;
            };
            match look(record) {
                Life::Parked => {
                    record.flags |= FLAG_PARKED;
                    self.requests.in_use.forget();
                    self.requests.parked.add(Watched { seen, ..block });
                }
                Life::InUse(mark) if is_another_life(record.mark, mark) => {
                    self.revived(block, mark, &settle);
                    self.requests.in_use.keep(seen);
                }
                Life::InUse(mark) => {
                    record.mark = mark;
                    record.looks += 1;
                    if record.looks < LOOKS_A_BLOCK {
                        self.requests.in_use.keep(seen);
                    } else {
                        self.requests.in_use.forget();
                    }
                }
            }
        }
    }

    /// The record of a watched block, unless it has been freed, or realloc has moved it on: then it is no object that a
    /// free list takes.
    fn watched(&mut self, block: Watched) -> Option<&mut SampleRecord> {
        let is_live = self.samples.is_live(block.slot, block.generation);
        let record = self.samples.record(block.slot);
        (is_live && record.address != 0).then_some(record)
    }

    /// A block has got another life, from the request that has just ended or, where others are in flight or have ended
    /// since the last look, from one of them: then nobody can tell, and it is left to the analysis, which knows who keeps
    /// blocks of its size.
    fn revived(&mut self, block: Watched, mark: u64, settle: impl Fn(&mut SampleRecord)) {
        let born = self.header.requests;
        let is_of_another = self.header.requests_open > 1 || block.seen != born as u32;
        let record = self.samples.record(block.slot);
        record.flags = record.flags & !FLAG_PARKED | FLAG_RECYCLED;
        (record.mark, record.born, record.looks) = (mark, born, 0);
        if is_of_another {
            (record.owner, record.route, record.outcome, record.ordinal) = (OWNER_NONE, 0, 0, 0);
        } else {
            settle(record);
        }
    }

    /// The name of a request's route, as a string of the table: its framework's template, or else its path, normalised.
    pub(super) fn name_of(&mut self, request: &Request) -> u32 {
        let mut name = [0; NAME_BYTES];
        let mut length = request.route_name(&mut name);
        if let Some(known) = self.names.known_string(&name[..length]) {
            return known;
        }
        if request.is_template == 0 {
            if self.requests.path_routes < PATH_ROUTES {
                self.requests.path_routes += 1;
            } else {
                length = request.method_bytes as usize + 5;
                name[request.method_bytes as usize..length].copy_from_slice(b"other");
            }
        }
        let id = self.string(&name[..length]);
        self.publish_names();
        id
    }

    fn route_of(&mut self, request: &Request) -> u32 {
        let method_bytes = request.method_bytes as usize;
        let mut name = [0; NAME_BYTES];
        let length = request.route_name(&mut name);
        let routes = self.names.used().routes;
        let may_add = request.is_template != 0 || self.requests.path_routes < PATH_ROUTES;
        let mut route = self.names.route(&name[..length], may_add);
        if request.is_template == 0 {
            if route.is_none() {
                name[method_bytes..method_bytes + 5].copy_from_slice(b"other");
                route = self.names.route(&name[..method_bytes + 5], true);
            }
            self.requests.path_routes += self.names.used().routes - routes;
        }
        if self.names.used().routes != routes {
            self.publish_names();
        }
        route.unwrap_or_else(|| {
            self.lose(Loss::RoutesFull);
            0
        })
    }
}

impl Request {
    /// A sample of it was taken.
    pub(super) fn allocated(&mut self, weight: f64) {
        self.allocated_bytes += weight;
    }

    /// A sample of `size` bytes that weighs so much lives.
    pub(super) fn kept(&mut self, size: u64, weight: f64) {
        self.live_bytes += weight;
        self.live_variance += variance(size, weight);
    }

    /// It does no longer.
    pub(super) fn freed(&mut self, size: u64, weight: f64) {
        self.live_bytes -= weight;
        self.live_variance -= variance(size, weight);
    }

    pub(super) fn live_bytes(&self) -> f64 {
        // Sums of floats do not come apart exactly.
        self.live_bytes.max(0.0)
    }

    /// The variance of that estimate, bytes squared.
    pub(super) fn live_variance(&self) -> f64 {
        self.live_variance.max(0.0)
    }

    pub(super) fn phase(&self) -> u8 {
        self.phase as u8
    }

    /// Is the record the peak of this request, which has ended?
    pub(super) fn owns(&self, record: &PeakRecord) -> bool {
        record.bytes > 0.0
            && (record.route, u32::from(record.outcome), record.ordinal) == (self.route, self.outcome, self.ordinal)
    }

    pub(super) fn outcome(&self) -> usize {
        self.outcome as usize
    }

    pub(super) fn route(&self) -> u32 {
        self.route
    }

    /// Writes the method and the template, or the normalised path, and returns the bytes written.
    fn route_name(&self, into: &mut [u8; NAME_BYTES]) -> usize {
        let (method_bytes, name_bytes) = (self.method_bytes as usize, self.name_bytes as usize);
        into[..name_bytes].copy_from_slice(&self.name[..name_bytes]);
        match self.is_template {
            0 => method_bytes + normalise(&self.name[method_bytes..name_bytes], &mut into[method_bytes..]),
            _ => name_bytes,
        }
    }

    fn set_path(&mut self, path: &[u8]) {
        let from = self.method_bytes as usize;
        let length = path.len().min(NAME_BYTES - from);
        self.name[from..from + length].copy_from_slice(&path[..length]);
        self.name_bytes = (from + length) as u32;
    }
}

fn is_another_life(before: u64, now: u64) -> bool {
    before != 0 && now != 0 && before != now
}

/// The bucket of a duration: below 2^i µs.
fn bucket(ns: u64) -> usize {
    ((ns / 1000).checked_ilog2().map_or(0, |log| log as usize + 1)).min(DURATIONS - 1)
}

/// Turns a path into a route: segments that hold a number, or are long and hexadecimal (with dashes: UUIDs), become
/// `<id>`; the query is cut off. Returns the bytes written, at most as many as there is room for.
fn normalise(path: &[u8], into: &mut [u8]) -> usize {
    let path = path.split(|byte| *byte == b'?').next().unwrap_or(path);
    let mut length = 0;
    let mut put = |bytes: &[u8]| {
        let room = bytes.len().min(into.len() - length);
        into[length..length + room].copy_from_slice(&bytes[..room]);
        length += room;
    };
    for (index, segment) in path.split(|byte| *byte == b'/').enumerate() {
        if index > 0 {
            put(b"/");
        }
        let hexadecimal = segment.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
        let is_id = segment.iter().any(u8::is_ascii_digit)
            && (segment.iter().all(u8::is_ascii_digit) || segment.len() >= 8 && hexadecimal);
        put(if is_id { b"<id>" } else { segment });
    }
    length
}

#[cfg(test)]
mod tests {
    use super::{bucket, normalise};

    fn route(path: &str) -> String {
        let mut into = [0; 64];
        let length = normalise(path.as_bytes(), &mut into);
        String::from_utf8_lossy(&into[..length]).into_owned()
    }

    #[test]
    fn numbers_and_hexadecimal_names_become_ids() {
        assert_eq!(route("/"), "/");
        assert_eq!(route("/users/42/posts"), "/users/<id>/posts");
        assert_eq!(route("/o/6fa459ea-ee8a-3ca4-894e-db77e160355e?x=1"), "/o/<id>");
        assert_eq!(route("/v2/feed/cafe"), "/v2/feed/cafe");
    }

    #[test]
    fn a_path_longer_than_the_room_is_cut() {
        assert_eq!(route(&"/long".repeat(40)).len(), 64);
    }

    #[test]
    fn durations_fall_into_powers_of_two_of_a_microsecond() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(1_000), 1);
        assert_eq!(bucket(3_000), 2);
        assert_eq!(bucket(u64::MAX), 31);
    }
}
