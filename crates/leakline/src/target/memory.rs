//! From a process id to where its resident memory is: what CPython's and glibc's allocators have given away and what they
//! keep, and what else is there. All of it is read from outside, while the process goes on, so it costs the process
//! nothing but the locks that `/proc` takes.
//!
//! ```text
//! /proc/PID/smaps ─► mappings with their resident bytes ─► files, shared memory, stacks
//!                       └─ anonymous ones: which pages are resident ─► glibc's heaps: along their chunks    (malloc)
//!                                                                      blocks that malloc mapped by themselves
//!                                                                      pools of small objects               (pymalloc)
//!                                                                      what nobody claims: mapped directly
//! ```
//!
//! The process allocates meanwhile. A heap that is changed under the eye is walked again; what remains unclear is part of
//! the residual, like the difference between the sum of all parts and what the kernel says by itself.
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process, VmFlags};
use serde::{Deserialize, Serialize};

use super::limit;
use crate::analyze::evidence::{Kept, Ledger};
use crate::runs;
use crate::symbols::Minor;

mod malloc;
mod pages;
mod pymalloc;
mod remote;

use pages::{Claim, Pages};
use remote::{PAGE, Remote};

/// Bytes of the areas that are looked at each for itself.
const AREA: u64 = 1 << 20;
/// A larger mapping is nobody's heap: its pages are not looked at one by one, bytes.
const MOST_BYTES: u64 = 64 << 30;
/// A guard below a thread's stack is no larger, bytes.
const GUARD_BYTES: u64 = 64 << 10;
/// The zeroed data of a program or library are no larger, bytes.
const ZEROED_DATA: u64 = 1 << 20;
/// How often a heap is walked that changes meanwhile.
const TRIES: usize = 3;
/// Pages whose beginnings are read at once.
const BATCH: usize = 256;

/// One look at a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Where its memory was.
    pub ledger: Ledger,
    /// Where the allocators' areas begin that are mostly free, in ascending order: multiples of [`Look::area_bytes`].
    pub sparse: Vec<u64>,
    /// Bytes of an area.
    pub area_bytes: u64,
    /// Whom the kernel has killed in its control group; `None` where it does not say.
    pub group: Option<Group>,
}

/// A control group's count of processes that the kernel has killed for want of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The file that says it, see [`limit::oom_counter`].
    pub counter: PathBuf,
    /// What it said at the look.
    pub kills: u64,
    /// What it said when the process had ended; `None` before, and where nobody was there to read it.
    pub kills_at_end: Option<u64>,
}

impl Group {
    fn of(pid: u32) -> Option<Self> {
        let counter = limit::oom_counter(pid)?;
        let kills = limit::oom_kills(&counter)?;
        Some(Self { counter, kills, kills_at_end: None })
    }

    /// How many were killed since the look: until the process had ended, or until now.
    pub fn kills_since(&self) -> Option<u64> {
        self.kills_at_end.or_else(|| limit::oom_kills(&self.counter))?.checked_sub(self.kills)
    }
}

impl Look {
    /// What has been read from a file may be anything; sums of it have to stay in range.
    pub fn is_sound(&self) -> bool {
        let ledger = &self.ledger;
        let parts = [ledger.resident, ledger.chunks, ledger.mapped, ledger.stacks, ledger.files, ledger.shared];
        let kept = ledger.arenas.iter().chain([&ledger.python]).flat_map(|kept| [kept.used, kept.free]);
        let all = parts.into_iter().chain([ledger.agent, ledger.trim_would_return]).chain(kept);
        all.clone().all(|bytes| bytes < 1 << 48) && all.count() < 1 << 15 && ledger.time.is_finite()
    }

    /// A block at this address keeps a mostly free area from being given back.
    pub fn pins(&self, address: u64) -> bool {
        self.area_bytes > 0 && self.sparse.binary_search(&(address / self.area_bytes * self.area_bytes)).is_ok()
    }
}

/// Looks at a process that runs a Python of this minor version. `None` where it has ended, or may not be read.
pub fn look(pid: u32, python_minor: Minor) -> Option<Look> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let remote = Remote::open(pid)?;
    let resident = process.status().ok()?.vmrss? * 1024;
    let mappings = mappings(&process)?;
    // One byte tells whether its memory may be read at all.
    let readable = mappings.iter().find(|mapping| mapping.kind == Kind::Stack && mapping.rss > 0)?;
    if remote.read(readable.range.end - PAGE, &mut [0]) == 0 {
        return None;
    }
    let mut sum = Sum::new(&remote, pymalloc::pool_bytes(python_minor));
    mappings.iter().for_each(|mapping| sum.add(mapping));
    Some(Look { group: Group::of(pid), ..sum.look(resident) })
}

/// Where a process has the files of its programs and libraries in its memory, in ascending order: objects that are there were
/// given by no allocator.
pub fn files(pid: u32) -> Option<Vec<Range<u64>>> {
    let mappings = mappings(&Process::new(i32::try_from(pid).ok()?).ok()?)?;
    Some(mappings.into_iter().filter(|mapping| mapping.kind == Kind::File).map(|mapping| mapping.range).collect())
}

/// What a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A private mapping of a file.
    File,
    /// Shared with other processes.
    Shared,
    /// The first thread's stack, or another one's.
    Stack,
    /// What the main arena of malloc has from `brk`.
    Heap,
    /// Private and of no file.
    Anonymous,
    /// leakline's own.
    Agent,
}

struct Mapping {
    range: Range<u64>,
    /// Resident bytes.
    rss: u64,
    kind: Kind,
    /// What stands directly below it in memory.
    below: Below,
}

/// What an anonymous mapping follows directly tells what it is, as far as no allocator claims it: stacks lie above their
/// guards, and the zeroed data of programs and libraries above the rest of their data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    Guard,
    Data,
    Other,
}

/// The process's mappings that have something resident, in ascending order.
fn mappings(process: &Process) -> Option<Vec<Mapping>> {
    let mut found: Vec<Mapping> = Vec::new();
    let mut previous: Option<MemoryMap> = None;
    for map in super::process::mappings(process, "smaps").ok()? {
        let below = previous.as_ref().filter(|below| below.address.1 == map.address.0);
        let rss = map.extension.map.get("Rss").copied().unwrap_or(0);
        if let Some(kind) = kind(&map) {
            let below = below.map_or(Below::Other, what);
            let range = map.address.0..map.address.1;
            match found.last_mut() {
                // Flags that differ cut the heap in pieces.
                Some(last) if kind == Kind::Heap && last.kind == Kind::Heap && last.range.end == range.start => {
                    (last.range.end, last.rss) = (range.end, last.rss + rss);
                }
                _ => found.push(Mapping { range, rss, kind, below }),
            }
        }
        previous = Some(map);
    }
    found.retain(|mapping| mapping.rss > 0);
    Some(found)
}

/// `None` for what the kernel lends and does not count as resident.
fn kind(map: &MemoryMap) -> Option<Kind> {
    let is_shared = map.perms.contains(MMPermissions::SHARED);
    Some(match &map.pathname {
        MMapPath::Path(path) if path.extension().is_some_and(|extension| extension == runs::TABLE) => Kind::Agent,
        MMapPath::Vdso | MMapPath::Vvar | MMapPath::Vsyscall => return None,
        MMapPath::Heap => Kind::Heap,
        MMapPath::Stack | MMapPath::TStack(_) => Kind::Stack,
        _ if is_shared => Kind::Shared,
        MMapPath::Path(_) => Kind::File,
        // Only the agent asks that its children inherit nothing.
        MMapPath::Anonymous if map.extension.vm_flags.contains(VmFlags::DC) => Kind::Agent,
        _ => Kind::Anonymous,
    })
}

fn what(map: &MemoryMap) -> Below {
    let rights = MMPermissions::READ | MMPermissions::WRITE | MMPermissions::EXECUTE;
    match &map.pathname {
        MMapPath::Anonymous if !map.perms.intersects(rights) && map.address.1 - map.address.0 <= GUARD_BYTES => {
            Below::Guard
        }
        MMapPath::Path(_) if map.perms.contains(MMPermissions::WRITE | MMPermissions::PRIVATE) => Below::Data,
        _ => Below::Other,
    }
}

/// Adds mappings up.
struct Sum<'a> {
    remote: &'a Remote,
    pool_bytes: u64,
    ledger: Ledger,
    /// Which place an arena has in the list, by the heap that it lies in; the main one, which lies in none, by 0.
    arenas: HashMap<u64, u16>,
    sparse: Vec<u64>,
}

impl<'a> Sum<'a> {
    fn new(remote: &'a Remote, pool_bytes: u64) -> Self {
        let (ledger, arenas, sparse) = (Ledger::default(), HashMap::new(), Vec::new());
        Self { remote, pool_bytes, ledger, arenas, sparse }
    }

    fn add(&mut self, mapping: &Mapping) {
        match mapping.kind {
            Kind::File => self.ledger.files += mapping.rss,
            Kind::Shared => self.ledger.shared += mapping.rss,
            Kind::Agent => self.ledger.agent += mapping.rss,
            Kind::Stack => self.ledger.stacks += mapping.rss,
            Kind::Heap | Kind::Anonymous => match self.claimed(mapping) {
                Some(claimed) => {
                    let rest = mapping.rss.saturating_sub(claimed);
                    *match mapping.below {
                        Below::Guard => &mut self.ledger.stacks,
                        Below::Data if rest <= ZEROED_DATA => &mut self.ledger.files,
                        _ => &mut self.ledger.mapped,
                    } += rest;
                }
                None => self.ledger.mapped += mapping.rss,
            },
        }
    }

    /// Finds what allocators have in a mapping, and how many of its resident bytes that are.
    fn claimed(&mut self, mapping: &Mapping) -> Option<u64> {
        let range = mapping.range.clone();
        if range.end - range.start > MOST_BYTES {
            return None;
        }
        let mut pages = Pages::new(range.start, self.remote.resident(range.clone())?);
        if mapping.kind == Kind::Heap {
            self.heap(&mut pages, range.clone(), 0);
        } else {
            let mut start = range.start.next_multiple_of(malloc::HEAP_ALIGNMENT);
            while start < range.end {
                if let Some(head) = malloc::heap_head(self.remote, start).filter(|_| pages.is_resident(start)) {
                    self.heap(&mut pages, start..(start + head.bytes).min(range.end), head.arena);
                }
                start += malloc::HEAP_ALIGNMENT;
            }
            self.blocks(&mut pages);
        }
        Some(self.enter(&pages))
    }

    /// A heap of malloc's, of the arena that lies in the heap `arena` (0: the main one).
    fn heap(&mut self, pages: &mut Pages, heap: Range<u64>, arena: u64) {
        for last in (0..TRIES).map(|attempt| attempt + 1 == TRIES) {
            let Some(walked) = malloc::walk(self.remote, heap.clone(), pages, arena == 0) else { return };
            if walked.end < heap.end && !last {
                let Some(resident) = self.remote.resident(heap.clone()) else { return };
                pages.renew(heap.start, &resident);
                continue;
            }
            let next = self.arenas.len() as u16;
            let number = *self.arenas.entry(arena).or_insert(next);
            pages.claim(heap.start..heap.end, Claim::Unknown);
            pages.claim(heap.start..walked.end, Claim::Arena(number));
            self.ledger.trim_would_return += walked.whole_pages;
            return;
        }
    }

    /// Blocks that malloc mapped by themselves, and pools of small objects.
    fn blocks(&mut self, pages: &mut Pages) {
        let end = pages.range().end;
        let mut from = pages.range().start;
        loop {
            let batch: Vec<u64> = pages.unclaimed_from(from).take(BATCH).collect();
            let Some(last) = batch.last() else { return };
            from = last + PAGE;
            for (&page, head) in batch.iter().zip(self.remote.heads::<{ pymalloc::HEADER }>(&batch)) {
                let Some(head) = head.filter(|_| pages.is_unclaimed(page)) else { continue };
                let beginning = std::array::from_fn(|at| head[at]);
                if let Some(bytes) = malloc::mapped_chunk(&beginning).filter(|bytes| *bytes <= end - page) {
                    pages.claim(page..page + bytes, Claim::Chunk);
                } else if let Some(pool) = self.pool(page, &head) {
                    pages.claim(page..page + self.pool_bytes, Claim::Python);
                    pages.use_up(page..page + pool.used);
                }
            }
        }
    }

    fn pool(&self, page: u64, head: &[u8; pymalloc::HEADER]) -> Option<pymalloc::Pool> {
        page.is_multiple_of(self.pool_bytes).then(|| pymalloc::pool(head, self.pool_bytes))?
    }

    /// Enters a mapping's pages into the ledger; how many bytes of them are an allocator's.
    fn enter(&mut self, pages: &Pages) -> u64 {
        let mut claimed = 0;
        let mut areas: Vec<(u64, Kept)> = Vec::new();
        self.ledger.arenas.resize_with(self.arenas.len(), Kept::default);
        for (page, claim, used) in pages.resident() {
            let kept = Kept { used, free: PAGE - used };
            match claim {
                Claim::Nobody => continue,
                Claim::Python => self.ledger.python += kept,
                Claim::Arena(number) => self.ledger.arenas[usize::from(number)] += kept,
                Claim::Chunk => self.ledger.chunks += PAGE,
                // What is not entered remains for the residual.
                Claim::Unknown => {}
            }
            claimed += PAGE;
            if matches!(claim, Claim::Python | Claim::Arena(_)) {
                let area = page / AREA * AREA;
                match areas.last_mut() {
                    Some((last, sum)) if *last == area => *sum += kept,
                    _ => areas.push((area, kept)),
                }
            }
        }
        self.sparse.extend(areas.into_iter().filter(|(_, kept)| kept.free > kept.used).map(|(area, _)| area));
        claimed
    }

    fn look(mut self, resident: u64) -> Look {
        self.sparse.sort_unstable();
        self.sparse.dedup();
        self.ledger.time = runs::now();
        self.ledger.resident = resident;
        Look { ledger: self.ledger, sparse: self.sparse, area_bytes: AREA, group: None }
    }
}
