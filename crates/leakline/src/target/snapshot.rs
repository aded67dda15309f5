//! From a process's table to a snapshot of its heap: calls the agent inside, and waits for the file that its child writes.
use std::fs::File;
use std::mem::offset_of;
use std::num::NonZero;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leakline_table::heap::Ending;
use leakline_table::layout::{HEADER_BYTES, Header};
use procfs::{Current, LoadAverage};

use super::limit;
use crate::failure::{Exit, Failure};
use crate::runs::TableFile;

/// What it takes to copy a process where that can't be measured: as on a machine with hardly anything else to do.
const USUAL: Costs = Costs { page: 0.4e-6, mapping: 2e-6 };
/// Pages and mappings by which it is measured, and how often.
const PAGES: usize = 4096;
const MAPPINGS: usize = 512;
const TIMES: usize = 5;
/// How many times as long as ours, which were touched one after the other a moment before, the pages of a process that has worked
/// for a while take at the most: what the kernel knows of them lies scattered in memory (bench/README.md).
const SCATTERED: f64 = 3.0;
/// Bytes of a page.
const PAGE: usize = 4096;
/// Seconds that the kernel's scheduler leaves somebody on a core whom others wait for.
const TURN: f64 = 0.003;
/// Seconds that a snapshot may take where nothing waits for it but whoever asked.
pub const PATIENTLY: u32 = 120;
/// The same where a server's end is put off meanwhile.
pub const IN_TIME: u32 = 3;
/// Bytes that a snapshot may have, per byte of resident memory, and at least.
const MOST_SHARE: u64 = 2;
const LEAST_MOST: u64 = 256 << 20;

/// The last CPython 3 whose collector's lists the agent knows.
const LAST_WALKED: u8 = 13;

/// The longest pause and the least headroom with which a snapshot is taken unasked.
pub const PAUSE_LIMIT: f64 = 0.25;
/// Share of the memory limit, or of the machine's memory, that has to be free.
pub const HEADROOM_LIMIT: f64 = 0.2;

/// What a snapshot would cost.
#[derive(Clone, Copy, Debug)]
pub struct Forecast {
    /// How long the server is likely to stand still, seconds, with those who want its core now.
    pub pause: f64,
    /// The least, if nobody else wanted the core, and the most that may well be.
    pub range: [f64; 2],
    /// The share of memory that is free; the copy takes what the server changes meanwhile.
    pub headroom: Option<f64>,
    /// Resident memory of the process, bytes.
    pub resident: u64,
}

impl Forecast {
    /// For a process that runs.
    pub fn of(table: &TableFile) -> Option<Self> {
        let pid = table.process.pid;
        let resident = table.process.resident()?.now;
        let process = procfs::process::Process::new(pid as i32).ok();
        // What belongs to files is mapped anew when it is asked for, and is not copied.
        let own = process.as_ref().and_then(|process| process.status().ok()).and_then(|status| {
            let kib = status.rssanon? + status.vmswap.unwrap_or(0);
            Some(kib << 10)
        });
        let pages = own.unwrap_or(resident) as f64 / PAGE as f64;
        let mappings = process
            .and_then(|process| super::process::mappings(&process, "maps").ok())
            .map_or(0, |maps| maps.0.len()) as f64;
        let [fastest, median] = measure().unwrap_or([USUAL; 2]);
        let [alone, slow] = [fastest, median].map(|costs| pages * costs.page + mappings * costs.mapping);
        // What takes longer than a turn on the core has to wait for all others who want one.
        let crowd = crowd();
        let among_others = |alone: f64| alone.min(TURN) + (alone - TURN).max(0.0) * crowd;
        // Whoever begins at the end of a turn waits for all others once more.
        let most = SCATTERED * slow.max(alone);
        let range = [alone, among_others(most) + (crowd - 1.0) * TURN];
        Some(Self { pause: among_others(SCATTERED * alone), range, headroom: limit::headroom(pid), resident })
    }

    /// Why it had better not be taken; `None` where nothing speaks against it.
    pub fn objection(&self) -> Option<String> {
        if self.pause > PAUSE_LIMIT {
            let (pause, limit) = (self.pause * 1e3, PAUSE_LIMIT * 1e3);
            return Some(format!("the server would stand still for about {pause:.0} ms, more than {limit:.0} ms"));
        }
        let headroom = self.headroom.filter(|headroom| *headroom < HEADROOM_LIMIT)?;
        let (free, limit) = (headroom * 100.0, HEADROOM_LIMIT * 100.0);
        Some(format!("only {free:.0} % of its memory limit is free, less than {limit:.0} %"))
    }
}

/// Seconds that it takes to copy a process.
#[derive(Clone, Copy, Debug)]
struct Costs {
    /// For each page that is its own.
    page: f64,
    /// For each stretch of memory that is mapped.
    mapping: f64,
}

/// What it takes this machine, by some copies of this process, with memory and mappings of known number beside its own: the
/// fastest ones, and the median.
fn measure() -> Option<[Costs; 2]> {
    let bare = copies()?;
    // In small pages, as an interpreter's memory is.
    let memory = Memory::new(PAGES)?;
    memory.touch();
    let with_pages = copies()?;
    drop(memory);
    // Every other page has other rights, so that none can be one mapping with its neighbour.
    let memory = Memory::new(MAPPINGS)?;
    memory.touch();
    memory.protect_every_other();
    let with_mappings = copies()?;
    let costs = |at: usize| {
        let page = (with_pages[at] - bare[at]).max(0.0) / PAGES as f64;
        let mapping = (with_mappings[at] - bare[at]).max(0.0) / MAPPINGS as f64;
        Costs { page, mapping: (mapping - page).max(0.0) }
    };
    Some([costs(0), costs(1)])
}

/// How long this process takes to copy: the least of some tries, and the median.
fn copies() -> Option<[f64; 2]> {
    let mut seconds = [0.0; TIMES];
    for seconds in &mut seconds {
        let began = Instant::now();
        // SAFETY: the child does nothing but end.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
        match child {
            0 => loop {
                // SAFETY: ends the process.
                unsafe { libc::syscall(libc::SYS_exit_group, 0) };
            },
            -1 => return None,
            child => {
                *seconds = began.elapsed().as_secs_f64();
                // SAFETY: this process's own child.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            }
        }
    }
    seconds.sort_by(f64::total_cmp);
    Some([seconds[0], seconds[TIMES / 2]])
}

/// Memory to be copied.
struct Memory {
    start: *mut libc::c_void,
    pages: usize,
}

impl Memory {
    fn new(pages: usize) -> Option<Self> {
        let (read_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), pages * PAGE, read_write, private, -1, 0) };
        (start != libc::MAP_FAILED).then_some(Self { start, pages })
    }

    fn touch(&self) {
        // SAFETY: within the mapping, which nobody else knows.
        unsafe {
            libc::madvise(self.start, self.pages * PAGE, libc::MADV_NOHUGEPAGE);
            (0..self.pages).for_each(|page| self.start.cast::<u8>().add(page * PAGE).write_volatile(1));
        }
    }

    fn protect_every_other(&self) {
        for page in (0..self.pages).step_by(2) {
            // SAFETY: within the mapping, to which nothing is written any more.
            unsafe { libc::mprotect(self.start.add(page * PAGE), PAGE, libc::PROT_READ) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing refers to it.
        unsafe { libc::munmap(self.start, self.pages * PAGE) };
    }
}

/// How many want to run for each core, 1 at least: over the last minute or now, whichever is more.
fn crowd() -> f64 {
    // One of those who want to run now is this process.
    let load = LoadAverage::current().map_or(0.0, |load| f64::from(load.one).max(f64::from(load.cur) - 1.0));
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (load / cores as f64).max(1.0)
}

/// A snapshot that has been taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The file.
    pub path: PathBuf,
    /// How long the server stood still, seconds.
    pub pause: f64,
}

/// The place of a process's snapshot: beside its table.
pub fn path(table: &TableFile) -> PathBuf {
    table.path.with_extension("heap")
}

/// Takes a snapshot of the process that writes this table, which may take so many seconds.
pub fn take(table: &TableFile, most_seconds: u32) -> Result<Taken, Failure> {
    let pid = table.process.pid;
    let Some(resident) = table.process.resident() else {
        let what = format!("process {pid} has ended");
        return Err(Failure::new(Exit::NoTable, what, "see which processes run with `leakline list`"));
    };
    let call = Call::open(table)?;
    if call.word(offset_of!(Header, snapshot.listening))? == 0 {
        let [_, minor, ..] = call.word(offset_of!(Header, python_version))?.to_be_bytes();
        if minor > LAST_WALKED {
            let what = format!("process {pid} runs Python 3.{minor}, whose heap leakline can't walk yet");
            return Err(Failure::new(Exit::Error, what, "its report does without a holder"));
        }
        let what = format!("process {pid} does not listen for calls: it has served no request under the agent yet");
        return Err(Failure::new(Exit::Error, what, "send it a request, or name a worker that `leakline list` shows"));
    }
    let most_bytes = (resident.now * MOST_SHARE).max(LEAST_MOST);
    call.put(offset_of!(Header, snapshot.most_bytes), &most_bytes.to_ne_bytes())?;
    call.put(offset_of!(Header, snapshot.most_seconds), &most_seconds.to_ne_bytes())?;
    let (wanted, answered) = (offset_of!(Header, snapshot.wanted), offset_of!(Header, snapshot.answered));
    // Two commands at a time may want the same number: then one snapshot is for both.
    let number = call.word(wanted)?.wrapping_add(1);
    call.put(wanted, &number.to_ne_bytes())?;
    call.futex(wanted, libc::FUTEX_WAKE, i32::MAX as u32, None);

    let patience = Instant::now() + Duration::from_secs(u64::from(most_seconds) + 2);
    loop {
        let seen = call.word(answered)?;
        // Another command's call may be answered together with ours, or after it.
        if seen.wrapping_sub(number) < u32::MAX / 2 {
            break;
        }
        if !table.process.is_alive() || Instant::now() > patience {
            let what = format!("process {pid} has not answered the call for a snapshot");
            return Err(Failure::new(Exit::Error, what, "try again; its report does not need one"));
        }
        call.futex(answered, libc::FUTEX_WAIT, seen, Some(Duration::from_millis(200)));
    }
    let error = call.word(offset_of!(Header, snapshot.error))?;
    if error != 0 {
        return Err(failed(pid, error));
    }
    let pause_ns = call.get(offset_of!(Header, snapshot.pause_ns)).map(u64::from_ne_bytes)?;
    Ok(Taken { path: path(table), pause: pause_ns as f64 / 1e9 })
}

/// A process that was told to expect a call before it ends; dropped, it need not wait any more.
#[derive(Debug)]
pub struct Expecting<'a>(Call<'a>);

impl<'a> Expecting<'a> {
    /// Tells the process that writes this table. `None` where it listens for no calls.
    pub fn tell(table: &'a TableFile) -> Option<Self> {
        let call = Call::open(table).ok()?;
        if call.word(offset_of!(Header, snapshot.listening)).ok()? == 0 {
            return None;
        }
        call.put(offset_of!(Header, snapshot.expected), &1u32.to_ne_bytes()).ok()?;
        Some(Self(call))
    }
}

impl Drop for Expecting<'_> {
    fn drop(&mut self) {
        // A process whose table can't be written to any more waits as long as it has to.
        let _ = self.0.put(offset_of!(Header, snapshot.expected), &0u32.to_ne_bytes());
    }
}

fn failed(pid: u32, error: u32) -> Failure {
    let because = |why: &str, next: &str| {
        Failure::new(Exit::Error, format!("there is no snapshot of process {pid}: {why}"), next.to_owned())
    };
    let is = |ending: Ending| error == ending as u32;
    match error {
        _ if is(Ending::NoFile) => because("its file could not be made", "look at the folder of tables"),
        _ if is(Ending::TooLarge) => because("its file would have become too large", "report it, with the RSS"),
        _ if is(Ending::NotWritten) => because("its file could not be written", "make room in the folder of tables"),
        _ if is(Ending::NoMemory) => because("the copy had no memory", "take it when more memory is free"),
        256.. => {
            let error = std::io::Error::from_raw_os_error(error as i32 - 256);
            because(&format!("the server could not be copied ({error})"), "take it when more memory is free")
        }
        _ if error == 128 + libc::SIGALRM as u32 => because("its time was up", "take it when the machine is less busy"),
        129.. => because(&format!("the copy ended with signal {}", error - 128), "report it, with the Python version"),
        _ => because(&format!("the copy ended with {error}"), "report it"),
    }
}

/// The first page of a table, shared with the agent.
///
/// It is read and written as a file, never through the mapping: whoever shortens the file would end us with SIGBUS. The
/// mapping is for the kernel alone, which finds those who wait on a futex by it, and says EFAULT.
#[derive(Debug)]
struct Call<'a> {
    file: File,
    path: &'a Path,
    page: *mut libc::c_void,
}

impl<'a> Call<'a> {
    fn open(table: &'a TableFile) -> Result<Self, Failure> {
        let path = &table.path;
        let file = table.open_for_writing().map_err(|error| Failure::io("open", path, &error))?;
        let metadata = file.metadata().map_err(|error| Failure::io("look at", path, &error))?;
        if !metadata.is_file() || metadata.len() < HEADER_BYTES as u64 {
            return Err(Failure::new(Exit::Damaged, format!("{} is no table", path.display()), "name another process"));
        }
        let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, which nothing in this process reads or writes.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), HEADER_BYTES, read_write, shared, file.as_raw_fd(), 0) };
        if page == libc::MAP_FAILED {
            return Err(Failure::io("map", path, &std::io::Error::last_os_error()));
        }
        Ok(Self { file, path, page })
    }

    fn get<const BYTES: usize>(&self, offset: usize) -> Result<[u8; BYTES], Failure> {
        let mut bytes = [0; BYTES];
        let read = self.file.read_exact_at(&mut bytes, offset as u64);
        read.map_err(|error| Failure::io("read", self.path, &error)).map(|()| bytes)
    }

    fn word(&self, offset: usize) -> Result<u32, Failure> {
        self.get(offset).map(u32::from_ne_bytes)
    }

    fn put(&self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all_at(bytes, offset as u64).map_err(|error| Failure::io("write", self.path, &error))
    }

    /// Wakes those who wait for the word at `offset`, or waits until it is no longer `value`.
    fn futex(&self, offset: usize, operation: i32, value: u32, timeout: Option<Duration>) {
        let timeout = timeout.map(|time| libc::timespec {
            tv_sec: time.as_secs() as libc::time_t,
            tv_nsec: time.subsec_nanos() as libc::c_long,
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let word = self.page.wrapping_byte_add(offset);
        // SAFETY: the kernel checks the address; waking or waiting for nothing does no harm.
        let done = unsafe { libc::syscall(libc::SYS_futex, word, operation, value, timeout) };
        if done == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT) {
            // The page is gone. What the file says is asked for again in a while, and fails.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `open`, and nothing refers to it.
        unsafe { libc::munmap(self.page, HEADER_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_pause_and_little_free_memory_speak_against_a_snapshot() {
        let of = |pause, headroom| Forecast { pause, range: [0.01, 1.0], headroom, resident: 1 << 30 }.objection();
        assert_eq!(of(PAUSE_LIMIT, Some(HEADROOM_LIMIT)), None);
        assert_eq!(of(0.1, None), None);
        assert!(of(0.3, Some(0.9)).is_some_and(|why| why.contains("300 ms")));
        assert!(of(0.1, Some(0.1)).is_some_and(|why| why.contains("10 %")));
    }

    #[test]
    fn what_a_copy_takes_can_be_measured() {
        assert!(measure().is_some());
        assert!(copies().is_some_and(|[fastest, median]| 0.0 < fastest && fastest <= median));
    }
}
