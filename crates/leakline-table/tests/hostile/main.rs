//! The reader on tables that were cut, flipped, invented: it refuses or reads, and never panics.

mod exercise;
#[path = "../memory/mod.rs"]
mod memory;

use leakline_table::layout::{self, HEADER_BYTES, Header, SECTIONS, SectionEntry, SectionKind};
use leakline_table::reader::{RawFrame, Refusal, header};
use leakline_table::writer::{Birth, CodeKey, CodeText, Collector, Ending, Life, Moment, Random, Way};
use memory::Table;
use std::mem::offset_of;

/// A table with something in every section.
fn genuine() -> Vec<u8> {
    let mut table = Table::new(3);
    table.writer.name_server(b"gunicorn");
    for step in 0..300u64 {
        let key = CodeKey { address: 0x1000 + 16 * step, fingerprint: step };
        let name = format!("function_{step}");
        let text = CodeText { file: b"app.py", function: name.as_bytes(), line_table: &[1; 100], first_line: 1 };
        let code = table.writer.code(key, &text);
        let module = table.writer.module(format!("/lib/lib{}.so", step % 5).as_bytes(), &[(step % 5) as u8; 20], 0);
        let native = [layout::NATIVE | module, step as u32];
        let stack = table.writer.stack(&[native, [code, 2], [1, 4], [2, u32::MAX]]);
        let request = table.writer.begin(b"GET", format!("/r{}", step % 7).as_bytes(), step);
        let (address, size) = (0x10_0000 + 16 * step, 100);
        table.writer.born(&Birth { address, size, block: size, weight: 300_000.0, stack, request, flags: 0, place: 0 });
        let peer = table.writer.peer(b"127.0.0.1:3306");
        table.writer.passed(request, peer, Way::Read, step);
        table.writer.end(request, Ending { outcome: (step % 3) as u8, now_ns: 2 * step }, |_| Life::InUse(0));
        table.writer.tick(&Moment {
            time_ns: step * 1_000_000_000,
            rss_bytes: 1,
            rss_peak_bytes: 1,
            collector: Some(Collector { full_runs: step / 9, is_off: false }),
            agent_ns: 1,
        });
    }
    table.bytes()
}

fn entry(bytes: &[u8], kind: SectionKind) -> SectionEntry {
    header(bytes).expect("it is genuine").directory[kind as usize - 1]
}

/// Where a field of a section's entry in the directory lies in the file.
fn entry_at(kind: SectionKind, field: usize) -> usize {
    offset_of!(Header, directory) + (kind as usize - 1) * SectionEntry::BYTES + field
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn a_genuine_table_is_read_whole() {
    let snapshot = exercise::read(&genuine()).expect("it is genuine");
    assert_eq!((snapshot.samples.len(), snapshot.codes.len(), snapshot.routes.len()), (300, 301, 8));
    assert_eq!((snapshot.server.as_str(), snapshot.command.as_str()), ("gunicorn", "gunicorn\0app:app"));
    assert_eq!((snapshot.header.pid, snapshot.header.parent, snapshot.damaged_records), (77, 7, 0));
    assert_eq!(snapshot.sockets.iter().map(|(record, _)| record.requests).sum::<u64>(), 300);
    assert!(snapshot.samples.iter().all(|sample| sample.stack.is_some()));
    let begins = |frame: &&RawFrame| matches!(frame, RawFrame::Python { instruction: None, .. });
    assert_eq!(snapshot.stacks[5].iter().filter(begins).count(), 1);
    assert_eq!(snapshot.stacks[5][0], RawFrame::Native { module: 1, offset: 5 });
    let named: Vec<&str> = snapshot.modules.iter().map(|module| module.path.as_str()).collect();
    assert_eq!(named, ["", "/lib/lib0.so", "/lib/lib1.so", "/lib/lib2.so", "/lib/lib3.so", "/lib/lib4.so"]);
    assert_eq!(snapshot.modules[4].build_id, [3; 20]);
}

#[test]
fn a_table_cut_short_is_refused_by_what_is_missing() {
    let whole = genuine();
    let last = entry(&whole, SECTIONS[SECTIONS.len() - 1]);
    let end = (last.offset + last.bytes) as usize;
    let sections = SECTIONS.map(|kind| entry(&whole, kind).offset as usize);
    let cuts = sections.iter().flat_map(|at| [at - 1, *at, at + 1]).chain([0, 1, 7, 8, HEADER_BYTES - 1, end - 1]);
    for length in cuts.chain((0..end).step_by(4999)) {
        match exercise::read(&whole[..length]) {
            Err(Refusal::TooShort { bytes }) => assert!(bytes == length && length < HEADER_BYTES),
            Err(Refusal::Damaged { what }) => assert!(what.contains("cut short") && length >= HEADER_BYTES),
            other => panic!("cut to {length}: {other:?}"),
        }
    }
    assert!(exercise::read(&whole[..end]).is_ok(), "behind the last section there is nothing to miss");
}

#[test]
fn what_is_no_table_or_a_later_one_is_refused_by_name() {
    let whole = genuine();
    assert_eq!(exercise::read(&[0; 1 << 16]).unwrap_err(), Refusal::NotATable);
    assert_eq!(exercise::read(&b"#!/usr/bin/python3\n".repeat(300)).unwrap_err(), Refusal::NotATable);
    let with = |at: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        put(&mut bytes, at, value);
        exercise::read(&bytes)
    };
    let version = offset_of!(Header, version);
    assert_eq!(with(version, &2u32.to_le_bytes()).unwrap_err(), Refusal::Newer { version: 2 });
    assert!(matches!(with(version, &[0; 4]).unwrap_err(), Refusal::Damaged { .. }));
    for bad in [f64::NAN, f64::INFINITY, -1.0] {
        for field in [offset_of!(Header, interval_bytes), offset_of!(Header, allocated_bytes)] {
            assert!(matches!(with(field, &bad.to_le_bytes()).unwrap_err(), Refusal::Damaged { .. }));
        }
    }
    // A section of a kind that this version does not know is passed over; one that it needs must be there.
    assert!(with(offset_of!(Header, directory) + SECTIONS.len() * SectionEntry::BYTES, &99u32.to_le_bytes()).is_ok());
    assert!(with(entry_at(SectionKind::Samples, offset_of!(SectionEntry, kind)), &99u32.to_le_bytes()).is_err());
}

#[test]
fn records_that_contradict_the_table_are_left_out_and_counted() {
    let mut bytes = genuine();
    let samples = entry(&bytes, SectionKind::Samples).offset as usize;
    let field = |slot: usize, field: usize| samples + 64 * slot + field;
    use layout::SampleRecord;
    put(&mut bytes, field(0, offset_of!(SampleRecord, weight)), &f64::NAN.to_le_bytes());
    put(&mut bytes, field(1, offset_of!(SampleRecord, route)), &8u32.to_le_bytes());
    put(&mut bytes, field(2, offset_of!(SampleRecord, outcome)), &[3]);
    put(&mut bytes, field(3, offset_of!(SampleRecord, owner)), &[9]);
    put(&mut bytes, field(4, offset_of!(SampleRecord, stack)), &u32::MAX.to_le_bytes());
    let snapshot = exercise::read(&bytes).expect("the rest is sound");
    assert_eq!((snapshot.samples.len(), snapshot.damaged_records), (296, 5));
}

#[test]
fn a_small_file_cannot_be_blown_up_to_a_huge_one() {
    let mut bytes = genuine();
    // Every code object is called by one name of 100 kB, and there are as many as there is room for.
    let strings = entry(&bytes, SectionKind::Strings);
    put(&mut bytes, strings.offset as usize + 64, &100_000u32.to_le_bytes());
    put(
        &mut bytes,
        entry_at(SectionKind::Strings, offset_of!(SectionEntry, used)),
        &(strings.bytes as u32).to_le_bytes(),
    );
    let codes = entry(&bytes, SectionKind::Codes);
    let count = codes.bytes as u32 / codes.record_bytes;
    put(&mut bytes, entry_at(SectionKind::Codes, offset_of!(SectionEntry, used)), &count.to_le_bytes());
    let section = &mut bytes[codes.offset as usize..(codes.offset + codes.bytes) as usize];
    section.chunks_exact_mut(4).for_each(|word| word.copy_from_slice(&64u32.to_le_bytes()));
    let snapshot = exercise::read(&bytes).expect("it is odd, but whole");
    assert!(snapshot.damaged_records > 4000, "what was left out is counted");
}

/// Seeded mutations of a genuine table, most of them where they matter: in the header, the directory, the records that
/// are in use.
#[test]
fn flipped_and_random_bytes_do_no_harm() {
    let whole = genuine();
    let mut random = Random::new(11);
    let mut pick = |below: usize| (random.bits() % below as u64) as usize;
    let places: Vec<(usize, usize)> = SECTIONS
        .map(|kind| entry(&whole, kind))
        .map(|entry| (entry.offset as usize, (entry.used * entry.record_bytes) as usize))
        .into_iter()
        .chain([(0, 256), (offset_of!(Header, directory), SECTIONS.len() * SectionEntry::BYTES)])
        .collect();
    let (mut readable, mut refused) = (0, 0);
    for round in 0..3000 {
        let mut bytes = whole.clone();
        for _ in 0..=pick(if round % 2 == 0 { 2 } else { 200 }) {
            let (start, length) = places[pick(places.len())];
            let at = (start + pick(length)) & !3;
            let word = [0, 1, 64, u32::MAX, u32::MAX / 2, whole.len() as u32, 1 << pick(32), pick(1 << 32) as u32];
            put(&mut bytes, at, &word[pick(word.len())].to_le_bytes());
        }
        // The magic and the version would end most rounds at once.
        put(&mut bytes, 0, &whole[..12]);
        match exercise::read(&bytes) {
            Ok(_) => readable += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(readable > 500 && refused > 500, "both ways must be tried: {readable} read, {refused} refused");

    for length in [0, 100, HEADER_BYTES, 3 * HEADER_BYTES] {
        for _ in 0..200 {
            let mut bytes: Vec<u8> = (0..length).map(|_| pick(256) as u8).collect();
            assert!(exercise::read(&bytes).is_err());
            if length >= HEADER_BYTES {
                put(&mut bytes, 0, &whole[..12]);
                assert!(matches!(exercise::read(&bytes), Err(Refusal::Damaged { .. })));
            }
        }
    }
}
