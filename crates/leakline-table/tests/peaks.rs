//! What a request held at its highest, in which phase, and how a request ends that turns out to have ended otherwise.

mod memory;

use leakline_table::layout::{OWNER_SETTLED, PEAK_BUCKETS, PHASE_SHIFT, Phase};
use leakline_table::writer::{Birth, CodeKey, CodeText, Ending, Life};
use memory::Table;

const MIB: u64 = 1 << 20;

/// A stack of one function.
fn stack(table: &mut Table, function: &str, address: u64) -> u32 {
    let text = CodeText { file: b"app.py", function: function.as_bytes(), line_table: &[], first_line: 1 };
    let code = table.writer.code(CodeKey { address, fingerprint: 1 }, &text);
    table.writer.stack(&[[code, 0]])
}

fn born(table: &mut Table, address: u64, size: u64, stack: u32, request: u64) {
    let birth = Birth { address, size, block: size, weight: size as f64, stack, request, flags: 0, place: 0 };
    let _ = table.writer.born(&birth).expect("there is room");
}

fn end(table: &mut Table, request: u64, outcome: u8) {
    table.writer.end(request, Ending { outcome, now_ns: 0 }, |_| Life::InUse(0));
}

#[test]
fn the_peak_names_its_stack_and_phase_and_what_was_left_of_it() {
    let mut table = Table::new(1);
    let (small, drain) = (stack(&mut table, "handler", 0x10), stack(&mut table, "drain", 0x20));
    let request = table.writer.begin(b"GET", b"/data", 0);
    born(&mut table, 0x1000, MIB, small, request);
    table.writer.phase(request, Phase::Closing);
    for chunk in 0..10 {
        born(&mut table, 0x10_0000 + chunk * 0x1000, 4 * MIB, drain, request);
    }
    for chunk in 0..10 {
        table.writer.died(0x10_0000 + chunk * 0x1000);
    }
    end(&mut table, request, 2);

    let snapshot = table.snapshot();
    let [(peak, Some(top))] = &snapshot.peaks[..] else { panic!("{:?}", snapshot.peaks) };
    assert_eq!(peak.bytes, (41 * MIB) as f64);
    assert_eq!((peak.outcome, peak.phase, peak.ordinal), (2, Phase::Closing as u8, 1));
    assert_eq!(peak.left_bytes, MIB as f64);
    // It was last looked at within a quarter of its height.
    assert!(peak.top_bytes >= 0.75 * (40 * MIB) as f64, "{peak:?}");
    let (code, _) = snapshot.stacks[*top as usize][0].python().expect("it is Python's");
    assert_eq!(snapshot.codes[code as usize].function, "drain");
    let route = &snapshot.routes[peak.route as usize].record;
    // 41 MiB lie between 2^15 and 2^16 KiB.
    assert_eq!((route.peaks[2 * PEAK_BUCKETS + 16], route.peak_bytes[2]), (1, peak.bytes));
    assert_eq!(snapshot.samples[0].record.flags >> PHASE_SHIFT, Phase::Handler as u8);
}

#[test]
fn many_small_peaks_do_not_push_out_the_few_high_ones_of_another_outcome() {
    let mut table = Table::new(1);
    let stack = stack(&mut table, "handler", 0x10);
    let mut pass = |size: u64, outcome: u8| {
        let request = table.writer.begin(b"GET", b"/data", 0);
        born(&mut table, 0x1000, size, stack, request);
        table.writer.died(0x1000);
        end(&mut table, request, outcome);
    };
    pass(2 * MIB, 2);
    (0..500).for_each(|step| pass((3 + step % 50) * MIB, 0));
    let peaks = table.snapshot().peaks;
    assert_eq!(peaks.iter().filter(|(peak, _)| peak.outcome == 2).count(), 1);
    let of_ok: Vec<f64> = peaks.iter().filter(|(peak, _)| peak.outcome == 0).map(|(peak, _)| peak.bytes).collect();
    assert!(of_ok.len() >= 8 && of_ok[..8].iter().all(|bytes| *bytes >= (51 * MIB) as f64), "{of_ok:?}");
}

#[test]
fn a_request_that_ends_otherwise_takes_along_what_it_left_its_count_and_its_peak() {
    let mut table = Table::new(1);
    let stack = stack(&mut table, "handler", 0x10);
    let other = table.writer.begin(b"GET", b"/data", 0);
    end(&mut table, other, 0);
    let request = table.writer.begin(b"GET", b"/data", 0);
    born(&mut table, 0x1000, MIB, stack, request);
    end(&mut table, request, 0);
    table.writer.amend(request, 2);

    let snapshot = table.snapshot();
    let record = snapshot.samples[0].record;
    assert_eq!((record.owner, record.outcome, record.ordinal), (OWNER_SETTLED, 2, 1));
    let route = &snapshot.routes[record.route as usize].record;
    assert_eq!(route.requests, [1, 0, 1]);
    assert_eq!(route.allocated_bytes, [0.0, 0.0, MIB as f64]);
    assert_eq!((snapshot.peaks[0].0.outcome, snapshot.peaks[0].0.ordinal), (2, 1));
    assert_eq!(route.peaks[PEAK_BUCKETS..].iter().sum::<u32>(), 1);
}

#[test]
fn work_that_carries_the_context_on_belongs_to_the_request_that_has_ended() {
    let mut table = Table::new(1);
    let stack = stack(&mut table, "task", 0x10);
    let request = table.writer.begin(b"GET", b"/data", 0);
    end(&mut table, request, 0);
    born(&mut table, 0x1000, MIB, stack, request);
    let record = table.snapshot().samples[0].record;
    assert_eq!((record.owner, record.outcome, record.ordinal), (OWNER_SETTLED, 0, 1));
    assert_eq!(record.flags >> PHASE_SHIFT, Phase::After as u8);
    table.writer.amend(request, 2);
    assert_eq!(table.snapshot().samples[0].record.outcome, 2);
}

#[test]
fn a_request_in_flight_that_holds_much_is_shown_until_it_ends() {
    let mut table = Table::new(1);
    let (small, large) = (stack(&mut table, "handler", 0x10), stack(&mut table, "pages", 0x20));
    let other = table.writer.begin(b"GET", b"/other", 0);
    born(&mut table, 0x500, MIB, small, other);
    let request = table.writer.begin(b"GET", b"/pages/17?q=1", 0);
    table.writer.phase(request, Phase::Streaming);
    for page in 0..10 {
        born(&mut table, 0x10_0000 + page * 0x1000, 4 * MIB, large, request);
    }
    let snapshot = table.snapshot();
    let [(peak, name)] = &snapshot.in_flight[..] else { panic!("{:?}", snapshot.in_flight) };
    assert_eq!((name.as_str(), peak.phase), ("GET /pages/<id>", Phase::Streaming as u8));
    assert!(peak.bytes >= 0.75 * (40 * MIB) as f64 && snapshot.peaks.is_empty());
    let of_it = snapshot.samples.iter().filter(|sample| sample.record.ordinal == peak.ordinal);
    assert_eq!(of_it.map(|sample| sample.record.weight).sum::<f64>(), (40 * MIB) as f64);

    // Its framework names the route, and it grows on.
    table.writer.route(request, b"/pages/<int:number>");
    born(&mut table, 0x20_0000, 40 * MIB, large, request);
    assert_eq!(table.snapshot().in_flight[0].1, "GET /pages/<int:number>");
    end(&mut table, request, 0);
    let snapshot = table.snapshot();
    assert!(snapshot.in_flight.is_empty() && snapshot.peaks.len() == 1);
    end(&mut table, other, 0);

    // There is room for so many; the others are followed all the same.
    let requests: Vec<u64> = (0..30).map(|_| table.writer.begin(b"GET", b"/", 0)).collect();
    for (number, request) in requests.iter().enumerate() {
        born(&mut table, 0x100_0000 + number as u64 * 0x1000, 8 * MIB, small, *request);
    }
    assert_eq!(table.snapshot().in_flight.len(), 16);
    requests.iter().for_each(|request| end(&mut table, *request, 0));
    assert!(table.snapshot().in_flight.is_empty());
}
