//! From addresses in another process to the bytes that lie there, without its help and without its notice.
//!
//! Only pages that are resident are read: looking at others would fetch them from the swap, or make pages where none
//! have been.
use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// Bytes of a page. (x86-64 is the only machine that leakline knows.)
pub(super) const PAGE: u64 = 4096;

/// Bit 63 of an entry of `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
/// Entries of the page map that are read at once.
const ENTRIES: usize = 8192;
/// Ranges that one system call takes (`IOV_MAX`).
const RANGES: usize = 1024;

/// The memory of another process.
pub(super) struct Remote {
    pid: Pid,
    pagemap: File,
}

impl Remote {
    /// `None` where the process has ended or is none of ours.
    pub(super) fn open(pid: u32) -> Option<Self> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).ok()?;
        Some(Self { pid: Pid::from_raw(i32::try_from(pid).ok()?), pagemap })
    }

    /// Which of the pages from `start` to `end` are resident.
    pub(super) fn resident(&self, pages: Range<u64>) -> Option<Vec<bool>> {
        let mut resident = Vec::with_capacity(((pages.end - pages.start) / PAGE) as usize);
        let mut entries = [0; ENTRIES * 8];
        let mut page = pages.start;
        while page < pages.end {
            let wanted = (((pages.end - page) / PAGE) as usize).min(ENTRIES) * 8;
            self.pagemap.read_exact_at(&mut entries[..wanted], page / PAGE * 8).ok()?;
            let words =
                entries[..wanted].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or([0; 8])));
            resident.extend(words.map(|entry| entry & PRESENT != 0));
            page += wanted as u64 / 8 * PAGE;
        }
        Some(resident)
    }

    /// Reads from `address` on. How many bytes could be read.
    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> usize {
        let from = [RemoteIoVec { base: address as usize, len: into.len() }];
        process_vm_readv(self.pid, &mut [IoSliceMut::new(into)], &from).unwrap_or(0)
    }

    /// Reads the first N bytes at each address; `None` where there is nothing to read any more.
    pub(super) fn heads<const N: usize>(&self, addresses: &[u64]) -> Vec<Option<[u8; N]>> {
        let mut heads = Vec::with_capacity(addresses.len());
        let mut buffer = vec![0; RANGES * N];
        while let Some(rest) = addresses.get(heads.len()..).filter(|rest| !rest.is_empty()) {
            let from: Vec<_> =
                rest.iter().take(RANGES).map(|&address| RemoteIoVec { base: address as usize, len: N }).collect();
            let wanted = &mut buffer[..from.len() * N];
            let bytes = process_vm_readv(self.pid, &mut [IoSliceMut::new(wanted)], &from).unwrap_or(0);
            let read = wanted[..bytes].chunks_exact(N).map(|head| head.try_into().ok());
            heads.extend(read);
            // The call ends at the first address that cannot be read: the others are asked for in the next round.
            if bytes < from.len() * N {
                heads.push(None);
            }
        }
        heads
    }
}
