//! From the tables that a run has written to those that are worth keeping, at the size that they need.
use std::fs;

use leakline_table::layout::{HEADER_BYTES, Header};
use leakline_table::reader::extent;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{Run, TableFile};
use crate::reader;
use crate::target::snapshot;

/// The most tables of ended processes that a run keeps while it goes on.
const ENDED_TABLES: usize = 32;
const PAGE: u64 = HEADER_BYTES as u64;

impl Run {
    /// While the server runs: servers that restart their workers, as gunicorn does with `--max-requests`, would fill the
    /// disk with tables of the dead. Only the latest are kept.
    pub fn keep_latest(&self) {
        let ended: Vec<_> = self.ended_tables().collect();
        let (oldest, latest) = ended.split_at(ended.len().saturating_sub(ENDED_TABLES));
        oldest.iter().for_each(|table| forget(table));
        latest.iter().for_each(|table| shrink(table));
    }

    /// After its end: tables of processes that never served a request, the server's parent and helpers, are deleted.
    /// Where no process served any, all are kept: they are all that there is.
    pub fn keep_telling(&self) {
        let is_idle = |table: &TableFile| reader::header(&table.path).is_ok_and(|header| header.requests == 0);
        let (idle, telling): (Vec<_>, Vec<_>) = self.ended_tables().partition(|table| is_idle(table));
        telling.iter().for_each(|table| shrink(table));
        if telling.is_empty() {
            idle.iter().for_each(|table| shrink(table));
        } else {
            idle.iter().for_each(|table| forget(table));
        }
    }

    fn ended_tables(&self) -> impl Iterator<Item = &TableFile> {
        self.tables.iter().filter(|table| !table.process.is_alive())
    }
}

/// One that can't be deleted does no harm.
fn forget(table: &TableFile) {
    let _ = fs::remove_file(&table.path);
    let _ = fs::remove_file(table.look_path());
    let _ = fs::remove_file(snapshot::path(table));
}

/// The agent reserves all of a table's blocks when it makes it, so that a full disk can't kill the server. What it never
/// used is given back when its process has ended; for a reader nothing changes, holes read as the zeros they were. A file
/// system that knows no holes keeps the file as it is.
fn shrink(table: &TableFile) {
    let Ok(header) = reader::header(&table.path) else { return };
    let Ok(file) = table.open_for_writing() else { return };
    for (start, end) in unused(&header, file.metadata().map_or(0, |metadata| metadata.len())) {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let _ = fallocate(&file, hole, start as i64, (end - start) as i64);
    }
}

/// Whole pages of a file of `bytes` that lie behind what a section has used and before its end, and behind all sections.
fn unused(header: &Header, bytes: u64) -> Vec<(u64, u64)> {
    let sections = header.directory.iter().take_while(|section| section.kind != 0);
    let extent = extent(header);
    let behind_used = sections.map(|section| {
        let used = u64::from(section.used) * u64::from(section.record_bytes);
        (section.offset.saturating_add(used), section.offset.saturating_add(section.bytes))
    });
    behind_used
        .chain([(if extent == 0 { bytes } else { extent }, bytes)])
        .map(|(start, end)| (start.min(bytes).next_multiple_of(PAGE), end.min(bytes) / PAGE * PAGE))
        .filter(|(start, end)| start < end)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakline_table::layout::{LEAST_BYTES, SectionEntry, directory};

    #[test]
    fn nothing_that_is_in_use_is_given_back() {
        let file = LEAST_BYTES as u64;
        let mut header = Header::decode(&[0; HEADER_BYTES]).expect("a header's worth of bytes");
        header.directory = directory(LEAST_BYTES);
        let full = |section: &SectionEntry| section.bytes.checked_div(section.record_bytes.into()).unwrap_or(0) as u32;
        header.directory.iter_mut().for_each(|section| section.used = full(section).min(20));
        let used = |section: &SectionEntry| {
            (section.offset, section.offset + u64::from(section.used) * u64::from(section.record_bytes))
        };
        let holes = unused(&header, file);
        for (start, end) in &holes {
            assert!(start % PAGE == 0 && end % PAGE == 0 && *start >= PAGE && *end <= file);
            for (from, to) in header.directory.iter().filter(|section| section.kind != 0).map(used) {
                assert!(*end <= from || to <= *start, "{start}..{end} is in use at {from}..{to}");
            }
        }
        assert!(holes.iter().map(|(start, end)| end - start).sum::<u64>() > file * 3 / 4);
    }

    #[test]
    fn a_directory_of_nonsense_stays_inside_the_file() {
        let mut header = Header::decode(&[0; HEADER_BYTES]).expect("a header's worth of bytes");
        header.directory.fill(SectionEntry {
            kind: 1,
            version: 1,
            offset: u64::MAX - 5,
            bytes: u64::MAX,
            record_bytes: u32::MAX,
            used: u32::MAX,
        });
        assert!(unused(&header, 1 << 20).iter().all(|(_, end)| *end <= 1 << 20));
    }
}
