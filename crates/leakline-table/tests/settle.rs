//! Requests: what they are called, how they end, and whom a block belongs to that outlives them.

mod memory;

use leakline_table::layout::{FLAG_OBJECT, FLAG_RECYCLED, FLAG_SMALL, Loss, OWNER_NONE, OWNER_SETTLED, SampleRecord};
use leakline_table::writer::{Birth, CodeKey, CodeText, Collector, Ending, Life, Moment, Transit};
use memory::Table;
use std::collections::BTreeSet;

const OK: Ending = Ending { outcome: 0, now_ns: 0 };

fn born(table: &mut Table, address: u64, request: u64) {
    let _ = sampled(table, address, request);
}

fn sampled(table: &mut Table, address: u64, request: u64) -> Transit {
    let flags = FLAG_SMALL | FLAG_OBJECT;
    table
        .writer
        .born(&Birth { address, size: 64, block: 64, weight: 640.0, stack: 0, request, flags, place: 0 })
        .expect("there is room")
}

fn in_use(_: &SampleRecord) -> Life {
    Life::InUse(0)
}

/// A request from its beginning to its end, which leaves nothing.
fn pass(table: &mut Table, path: &str, ending: Ending, look: impl FnMut(&SampleRecord) -> Life) {
    let request = table.writer.begin(b"GET", path.as_bytes(), 0);
    table.writer.end(request, ending, look);
}

/// The only live sample, and the name of its route.
fn survivor(table: &Table) -> (SampleRecord, String) {
    let snapshot = table.snapshot();
    let [sample] = &snapshot.samples[..] else { panic!("{} samples live", snapshot.samples.len()) };
    (sample.record, snapshot.routes[sample.record.route as usize].name.clone())
}

#[test]
fn a_parked_block_is_dead_and_its_next_life_belongs_to_who_revived_it() {
    let mut table = Table::new(1);
    let request = table.writer.begin(b"GET", b"/healthy", 0);
    born(&mut table, 0x1000, request);
    table.writer.end(request, OK, |_| Life::Parked);
    assert!(table.snapshot().samples.is_empty());

    // It stays where it is while others pass, and is charged to the one after which it is found in use.
    pass(&mut table, "/idle", OK, |_| Life::Parked);
    assert!(table.snapshot().samples.is_empty());
    pass(&mut table, "/report", OK, in_use);
    let (record, route) = survivor(&table);
    assert_eq!((route.as_str(), record.ordinal, record.born), ("GET /report", 1, 2));
    assert_eq!(record.flags & FLAG_RECYCLED, FLAG_RECYCLED);
    assert_eq!(record.weight, 640.0, "its chance of being sampled was fixed when it was carved out");

    // From now on it is in use and belongs to /report, whoever passes.
    pass(&mut table, "/idle", OK, in_use);
    assert_eq!(survivor(&table).1, "GET /report");
    table.writer.died(0x1000);
    assert!(table.snapshot().samples.is_empty());
}

#[test]
fn what_was_born_outside_of_requests_parks_as_well() {
    let mut table = Table::new(1);
    pass(&mut table, "/first", OK, in_use);
    born(&mut table, 0x1000, 0);
    table.writer.look_before_next(|_| Life::Parked);
    assert!(table.snapshot().samples.is_empty());
    pass(&mut table, "/report", OK, in_use);
    assert_eq!(survivor(&table).1, "GET /report");

    // Where no request begins meanwhile, the end of one looks.
    let request = table.writer.begin(b"GET", b"/second", 0);
    table.writer.died(0x1000);
    born(&mut table, 0x2000, 0);
    table.writer.end(request, OK, |_| Life::Parked);
    assert!(table.snapshot().samples.is_empty());
}

#[test]
fn what_parks_just_after_its_request_does_not_stay_with_it() {
    let mut table = Table::new(1);
    let request = table.writer.begin(b"GET", b"/healthy", 0);
    born(&mut table, 0x1000, request);
    table.writer.end(request, OK, in_use);
    assert_eq!(survivor(&table).1, "GET /healthy");
    table.writer.look_before_next(|_| Life::Parked);
    assert!(table.snapshot().samples.is_empty());
    pass(&mut table, "/report", OK, in_use);
    assert_eq!(survivor(&table).1, "GET /report");
    table.writer.look_before_next(in_use);
    assert_eq!(survivor(&table).1, "GET /report");
}

#[test]
fn another_mark_is_another_life() {
    let mut table = Table::new(1);
    let request = table.writer.begin(b"GET", b"/first", 0);
    let sample = sampled(&mut table, 0x1000, request);
    table.writer.mark(sample, |_| Life::InUse(11));
    table.writer.end(request, OK, |_| Life::InUse(11));
    let (record, route) = survivor(&table);
    assert_eq!((route.as_str(), record.flags & FLAG_RECYCLED), ("GET /first", 0));

    // Nothing can be said where there is no mark.
    pass(&mut table, "/second", OK, in_use);
    assert_eq!(survivor(&table).1, "GET /first");
    pass(&mut table, "/third", OK, |_| Life::InUse(11));
    pass(&mut table, "/fourth", OK, |_| Life::InUse(12));
    let (record, route) = survivor(&table);
    assert_eq!((route.as_str(), record.flags & FLAG_RECYCLED), ("GET /fourth", FLAG_RECYCLED));

    // A life that began and ended between birth and the request's end shows in the mark that was noted at birth.
    let request = table.writer.begin(b"GET", b"/fifth", 0);
    let sample = sampled(&mut table, 0x2000, request);
    table.writer.mark(sample, |_| Life::InUse(21));
    table.writer.died(0x1000);
    table.writer.end(request, OK, |_| Life::InUse(22));
    assert_eq!(survivor(&table).0.flags & FLAG_RECYCLED, FLAG_RECYCLED);

    // A mark that comes too late, for a block that is gone, changes nothing.
    table.writer.died(0x2000);
    table.writer.mark(sample, |_| panic!("a block that is gone is looked at"));
}

#[test]
fn what_realloc_or_a_new_block_has_taken_over_is_not_looked_at() {
    let mut table = Table::new(1);
    let request = table.writer.begin(b"GET", b"/", 0);
    born(&mut table, 0x1000, request);
    born(&mut table, 0x2000, request);
    table.writer.end(request, OK, in_use);
    table.writer.died(0x1000);
    let transit = table.writer.depart(0x2000).expect("it is sampled");
    pass(&mut table, "/", OK, |_| panic!("a block without an address is looked at"));
    assert_eq!(table.writer.arrive(transit, 0x3000, 64), 0);
    assert_eq!(survivor(&table).0.address, 0x3000);
}

#[test]
fn outcomes_count_by_themselves() {
    let mut table = Table::new(1);
    let mut address = 0;
    for (status, outcome) in [(200, 0), (200, 0), (500, 0), (200, 1), (404, 0), (503, 2), (200, 9)] {
        let request = table.writer.begin(b"POST", b"/pay", 1_000);
        address += 0x1000;
        born(&mut table, address, request);
        table.writer.status(request, status);
        table.writer.end(request, Ending { outcome, now_ns: 3_001_000 }, in_use);
    }
    let snapshot = table.snapshot();
    let route = snapshot.routes.last().expect("there is a route");
    assert_eq!((route.name.as_str(), route.record.requests), ("POST /pay", [3, 2, 2]));
    assert_eq!(route.record.allocated_bytes, [1920.0, 1280.0, 1280.0]);
    assert_eq!(route.record.durations[12], 7, "3 ms are below 2^12 µs");
    let settled: Vec<_> = snapshot.samples.iter().map(|sample| sample.record).collect();
    let told: Vec<_> = settled.iter().map(|record| (record.outcome, record.ordinal, record.born)).collect();
    assert_eq!(told, [(0, 1, 0), (0, 2, 1), (1, 1, 2), (1, 2, 3), (0, 3, 4), (2, 1, 5), (2, 2, 6)]);
    assert!(settled.iter().all(|record| record.owner == OWNER_SETTLED));
}

#[test]
fn a_template_goes_before_the_path_and_the_last_one_counts() {
    let mut table = Table::new(1);
    let request = table.writer.begin(b"GET", b"/data/17?x=1", 0);
    table.writer.route(request, b"/data/<id>");
    table.writer.route(request, b"/v2/data/<id>");
    table.writer.end(request, OK, in_use);
    // Late and foreign handles mean nothing.
    for stale in [0, request, request + 1, u64::MAX, 5 << 16] {
        table.writer.route(stale, b"/wrong");
        table.writer.status(stale, 500);
        table.writer.end(stale, OK, |_| panic!("there is nothing to look at"));
    }
    let snapshot = table.snapshot();
    let names: Vec<_> = snapshot.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["", "GET /v2/data/<id>"]);
    assert_eq!((snapshot.header.requests, snapshot.header.requests_open), (1, 0));
}

#[test]
fn a_request_of_an_earlier_table_means_nothing_to_a_later_one() {
    let (mut earlier, mut later) = (Table::new(1_000_000_000), Table::new(2_000_000_000));
    let before = earlier.writer.begin(b"GET", b"/", 0);
    let now = later.writer.begin(b"GET", b"/", 0);
    assert!(later.writer.in_flight(now) && !later.writer.in_flight(before));
    later.writer.end(before, OK, |_| panic!("there is nothing to look at"));
    assert!(later.writer.in_flight(now));
}

#[test]
fn paths_make_a_bounded_number_of_routes_and_the_first_stay() {
    let mut table = Table::with_bytes(8 << 20, 1);
    for round in 0..2 {
        for word in 0..600u32 {
            // Words that no normalisation can see through.
            let word: String = (0..4).map(|digit| char::from(b'g' + (word >> (4 * digit) & 15) as u8)).collect();
            pass(&mut table, &format!("/{word}/{round}"), OK, in_use);
        }
    }
    let snapshot = table.snapshot();
    let requests = |name: &str| {
        snapshot.routes.iter().find(|route| route.name == name).map_or(0, |route| route.record.requests[0])
    };
    assert_eq!(snapshot.routes.len(), 1 + 256 + 1);
    assert_eq!(requests("GET /gggg/<id>"), 2, "a route that was there first keeps its requests");
    assert_eq!(requests("GET other"), 2 * (600 - 256));
    assert_eq!(snapshot.header.lost[Loss::RoutesFull as usize], 0);
}

#[test]
fn more_requests_than_are_followed_are_counted_as_lost() {
    let mut table = Table::new(1);
    let handles: BTreeSet<u64> = (0..1024).map(|_| table.writer.begin(b"GET", b"/", 0)).collect();
    assert_eq!(handles.len(), 1024);
    assert!(handles.iter().all(|handle| *handle != 0 && *handle < 1 << 48));
    assert_eq!(table.writer.begin(b"GET", b"/", 0), 0);
    born(&mut table, 0x1000, 0);
    let snapshot = table.snapshot();
    assert_eq!(snapshot.header.lost[Loss::RequestsFull as usize], 1);
    assert_eq!((snapshot.header.requests_open, snapshot.samples[0].record.owner), (1024, OWNER_NONE));
    for handle in &handles {
        table.writer.end(*handle, OK, in_use);
    }
    let again = table.writer.begin(b"GET", b"/", 0);
    assert!(again != 0 && !handles.contains(&again), "a handle must not name two requests");
}

#[test]
fn a_code_object_is_written_once_however_many_share_its_place() {
    let mut table = Table::with_bytes(4 << 20, 1);
    // As many as the memory of known ones has cells, so that many of them push each other out.
    let name = |code: u64| format!("function_{code}");
    let mut ids = BTreeSet::new();
    for _ in 0..5 {
        for code in 0..2048 {
            let key = CodeKey { address: 0x7F00_0000_0000 + 0x1B0 * code, fingerprint: code };
            let function = name(code);
            let text = CodeText { file: b"app.py", function: function.as_bytes(), line_table: b"", first_line: 1 };
            ids.insert(table.writer.known_code(key).unwrap_or_else(|| table.writer.code(key, &text)));
        }
    }
    let snapshot = table.snapshot();
    assert_eq!((ids.len(), snapshot.codes.len()), (2048, 2049));
    assert_eq!(snapshot.losses().count(), 0);
    assert!(ids.iter().zip(0..).all(|(id, code)| snapshot.codes[*id as usize].function == name(code)));

    // Another code object at the same address is told by its fingerprint.
    let key = CodeKey { address: 0x7F00_0000_0000, fingerprint: 1 << 40 };
    assert_eq!(table.writer.known_code(key), None);
}

#[test]
fn ticks_thin_out_and_collections_go_round() {
    let mut table = Table::new(1);
    for second in 0..1000 {
        pass(&mut table, "/", OK, in_use);
        table.writer.tick(&Moment {
            time_ns: (1_000_000 + second) * 1_000_000_000,
            rss_bytes: 1000 + second,
            rss_peak_bytes: 5000 - second,
            collector: Some(Collector { full_runs: second / 4, is_off: second == 999 }),
            agent_ns: second,
        });
    }
    let snapshot = table.snapshot();
    let header = &snapshot.header;
    assert!((64..=128).contains(&snapshot.ticks.len()));
    assert_eq!(header.tick_seconds, 8);
    assert!(snapshot.ticks.is_sorted_by(|a, b| a.time_ns + 7_000_000_000 <= b.time_ns), "ticks keep their distance");
    assert_eq!(snapshot.ticks[0].requests, 1, "the first tick stays");
    assert_eq!((header.rss_bytes, header.rss_peak_bytes, header.agent_ns), (1999, 5000, 999));
    assert_eq!((snapshot.collections.len(), header.full_collections, header.collector_is_off), (64, 249, 1));
    assert_eq!(snapshot.collections.last().map(|last| last.requests), Some(997));
    assert!(snapshot.collections.is_sorted_by(|a, b| a.requests + 4 == b.requests), "the last 64, without a gap");
}

#[test]
fn a_block_revived_while_several_requests_are_in_flight_is_nobodys() {
    let mut table = Table::new(1);
    let request = table.writer.begin(b"GET", b"/healthy", 0);
    born(&mut table, 0x1000, request);
    table.writer.end(request, OK, |_| Life::Parked);
    let (leaking, idle) = (table.writer.begin(b"GET", b"/report", 0), table.writer.begin(b"GET", b"/idle", 0));
    table.writer.end(idle, OK, in_use);
    let (record, route) = survivor(&table);
    assert_eq!((route.as_str(), record.owner, record.flags & FLAG_RECYCLED), ("", OWNER_NONE, FLAG_RECYCLED));

    // A temporary of the other one: it is parked again, and then somebody's who is alone.
    table.writer.end(leaking, OK, |_| Life::Parked);
    assert!(table.snapshot().samples.is_empty());
    pass(&mut table, "/report", OK, in_use);
    assert_eq!(survivor(&table).1, "GET /report");
}
