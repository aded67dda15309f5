//! From a process's table to a snapshot of its heap: calls the agent inside, and waits for the file that its child writes.
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use leakline_table::heap::Ending;
use leakline_table::layout::{HEADER_BYTES, Header};

use super::limit;
use crate::failure::{Exit, Failure};
use crate::runs::TableFile;

/// Seconds of standing still for a byte of resident memory: measured, 100 ms for a GB, most of it page tables.
const PAUSE_A_BYTE: f64 = 0.1 / 1e9;
/// Seconds that the child may take.
const MOST_SECONDS: u32 = 120;
/// Bytes that a snapshot may have, per byte of resident memory, and at least.
const MOST_SHARE: u64 = 2;
const LEAST_MOST: u64 = 256 << 20;

/// The longest pause and the least headroom with which a snapshot is taken unasked.
pub const PAUSE_LIMIT: f64 = 0.25;
/// Share of the memory limit, or of the machine's memory, that has to be free.
pub const HEADROOM_LIMIT: f64 = 0.2;

/// What a snapshot would cost.
#[derive(Clone, Copy, Debug)]
pub struct Forecast {
    /// How long the server would stand still, seconds.
    pub pause: f64,
    /// The share of memory that is free; the copy takes what the server changes meanwhile.
    pub headroom: Option<f64>,
    /// Resident memory of the process, bytes.
    pub resident: u64,
}

impl Forecast {
    /// For a process that runs.
    pub fn of(table: &TableFile) -> Option<Self> {
        let resident = table.process.resident()?.now;
        Some(Self { pause: resident as f64 * PAUSE_A_BYTE, headroom: limit::headroom(table.process.pid), resident })
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

/// Takes a snapshot of the process that writes this table.
pub fn take(table: &TableFile) -> Result<Taken, Failure> {
    let pid = table.process.pid;
    let Some(forecast) = Forecast::of(table) else {
        let what = format!("process {pid} has ended");
        return Err(Failure::new(Exit::NoTable, what, "see which processes run with `leakline list`"));
    };
    let call = Call::open(&table.path)?;
    if call.word(std::mem::offset_of!(Header, snapshot.listening)).load(Ordering::Acquire) == 0 {
        let what = format!("process {pid} does not listen for calls: it has served no request under the agent yet");
        return Err(Failure::new(Exit::Error, what, "send it a request, or name a worker that `leakline list` shows"));
    }
    call.long(std::mem::offset_of!(Header, snapshot.most_bytes))
        .store((forecast.resident * MOST_SHARE).max(LEAST_MOST), Ordering::Relaxed);
    call.word(std::mem::offset_of!(Header, snapshot.most_seconds)).store(MOST_SECONDS, Ordering::Relaxed);
    let wanted = call.word(std::mem::offset_of!(Header, snapshot.wanted));
    let answered = call.word(std::mem::offset_of!(Header, snapshot.answered));
    let number = wanted.fetch_add(1, Ordering::AcqRel) + 1;
    futex(wanted, libc::FUTEX_WAKE, i32::MAX as u32, None);

    let patience = Instant::now() + Duration::from_secs(u64::from(MOST_SECONDS) + 10);
    loop {
        let seen = answered.load(Ordering::Acquire);
        // Another command's call may be answered together with ours, or after it.
        if seen.wrapping_sub(number) < u32::MAX / 2 {
            break;
        }
        if !table.process.is_alive() || Instant::now() > patience {
            let what = format!("process {pid} has not answered the call for a snapshot");
            return Err(Failure::new(Exit::Error, what, "try again; its report does not need one"));
        }
        futex(answered, libc::FUTEX_WAIT, seen, Some(Duration::from_millis(200)));
    }
    let error = call.word(std::mem::offset_of!(Header, snapshot.error)).load(Ordering::Relaxed);
    if error != 0 {
        return Err(failed(pid, error));
    }
    let pause_ns = call.long(std::mem::offset_of!(Header, snapshot.pause_ns)).load(Ordering::Relaxed);
    Ok(Taken { path: path(table), pause: pause_ns as f64 / 1e9 })
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
struct Call(*mut u8);

impl Call {
    fn open(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path);
        let file = file.map_err(|error| Failure::io("open", path, &error))?;
        let bytes = file.metadata().map_err(|error| Failure::io("look at", path, &error))?.len();
        if bytes < HEADER_BYTES as u64 {
            return Err(Failure::new(Exit::Damaged, format!("{} is no table", path.display()), "name another process"));
        }
        let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of a page that the file has; the agent never shortens its table.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), HEADER_BYTES, read_write, shared, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(Failure::io("map", path, &std::io::Error::last_os_error()));
        }
        Ok(Self(start.cast()))
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: an aligned word within the page, which stays mapped as long as this value; all who share it touch it
        // atomically.
        unsafe { AtomicU32::from_ptr(self.0.add(offset).cast()) }
    }

    fn long(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.0.add(offset).cast()) }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `open`, and its words are borrowed from this value.
        unsafe { libc::munmap(self.0.cast(), HEADER_BYTES) };
    }
}

fn futex(word: &AtomicU32, operation: i32, value: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|time| libc::timespec {
        tv_sec: time.as_secs() as libc::time_t,
        tv_nsec: time.subsec_nanos() as libc::c_long,
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word lives for the call; waking or waiting for nothing does no harm.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, timeout) };
}
