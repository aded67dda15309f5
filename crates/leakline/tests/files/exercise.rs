//! What is asked of the readers of all files but tables and heap snapshots, for any bytes at all: that they refuse them, or
//! that what they return can be relied upon. The fuzz targets in `fuzz/` have these for their bodies.
//!
//! Each returns whether the bytes were read.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fastrand::Rng;
use leakline::drive::{plan::Plan, schedule::Schedule};
use leakline::runs::Run;
use leakline::symbols::{self, native};
use leakline::target::attach::memory::{Library, Maps};
use leakline::target::process;
use leakline_table::reader::Module;

/// A `run.json`, in a folder that is there for it.
pub fn record(folder: &Path, bytes: &[u8]) -> bool {
    fs::write(folder.join("run.json"), bytes).expect("the folder is ours");
    let run = Run::open(folder).expect("whatever is in the record, the folder is there");
    assert!(run.tables.is_empty() && !run.name().is_empty());
    _ = run.is_alive();
    run.record.is_some()
}

/// A look at a process's memory, in a folder that is there for it.
pub fn look(folder: &Path, bytes: &[u8]) -> bool {
    fs::write(folder.join("7-7.leakline"), b"").expect("the folder is ours");
    fs::write(folder.join("7-7.look"), bytes).expect("the folder is ours");
    let run = Run::open(folder).expect("the folder is there");
    let Some(look) = run.tables[0].last_look() else { return false };
    // The file that it names may be any file, and any device.
    _ = look.group.as_ref().and_then(|group| group.kills_since());
    _ = look.pins(0x7f00_0000_0000);
    let ledger = &look.ledger;
    let arenas = ledger.arenas.iter().chain([&ledger.python]).map(|kept| kept.used + kept.free);
    assert!(arenas.sum::<u64>() + ledger.mapped + ledger.stacks + ledger.files + ledger.shared < u64::MAX / 2);
    true
}

/// A plan of traffic.
pub fn plan(bytes: &[u8]) -> bool {
    let Ok(plan) = std::str::from_utf8(bytes).map_err(|_| ()).and_then(|text| Plan::parse(text).map_err(|_| ())) else {
        return false;
    };
    if plan.check().is_err() {
        return false;
    }
    assert!(Schedule::new(&plan).take(20).all(|request| request.path.starts_with('/')));
    true
}

/// A library, by its symbols and by those that it exports: read from `file`, which is written for it.
pub fn library(file: &Path, build_id: &[u8], bytes: &[u8]) -> bool {
    fs::write(file, bytes).expect("the folder is ours");
    let module = Module { path: file.to_string_lossy().into_owned(), build_id: build_id.to_vec(), flags: 0 };
    let addresses: BTreeSet<u32> = (0..0x2000).step_by(64).collect();
    let named = native::functions(&module, Path::new("/"), &addresses);
    assert!(named.iter().all(|(address, functions)| addresses.contains(address) && !functions.is_empty()));
    let exported = Library::at(bytes, 0x7f00_0000_0000, file);
    if let Some(library) = &exported {
        for name in ["malloc", "outer", "inner", ""] {
            assert!(library.range(name).is_none_or(|range| range.start <= range.end));
        }
    }
    !named.is_empty()
}

/// What is mapped in a process.
pub fn maps(bytes: &[u8]) -> bool {
    let Ok(maps) = process::mappings_in(bytes) else { return false };
    let maps = Maps::new(std::process::id(), maps);
    for file in maps.files() {
        for range in maps.code(file).into_iter().chain(maps.data(file)) {
            _ = maps.file_at(range.start);
        }
    }
    _ = maps.named("libpython");
    _ = maps.hole_near(0x5555_0000_0000, 4096);
    !maps.files().is_empty()
}

/// A line table, in the encoding of each Python.
pub fn lines(bytes: &[u8]) -> bool {
    let mut random = Rng::with_seed(bytes.len() as u64);
    let found = [7, 10, 11].map(|minor| symbols::line(minor, bytes, random.u32(..), random.u32(..256) & !1));
    found.iter().all(Option::is_some)
}
