//! Makes the table file of this process and maps it.

use crate::recorder::{self, FILTER, Recorder};
use crate::{attach, clock, config, native, python, sampler, stack};
use leakline_table::layout::{HEADER_BYTES, Header, LEAST_BYTES, MOST_BYTES};
use leakline_table::writer::{Origin, Writer};
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

/// Why there is no table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    /// What could not be done.
    pub(crate) what: &'static str,
    /// The system's error number, 0 for none.
    pub(crate) errno: i32,
}

/// Longest command line that is kept, bytes.
const COMMAND_BYTES: usize = 4096;

/// The process that the table belongs to, 0 for none: a vforked or cloned child that shares our memory must not write.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Is the memory of this process its own? A vforked child works in its parent's.
pub(crate) fn is_of_this_process() -> bool {
    let owner = OWNER.load(Ordering::Relaxed);
    // SAFETY: has no preconditions.
    owner == 0 || owner == unsafe { libc::getpid() as u32 }
}

/// Where it is written that the table is mapped: in a page that the kernel empties for a forked child, since a child of
/// which nobody told us (of the system call, or of `_Fork`) has a copy of all our memory and none of the table's mappings.
/// Where there is no such page, as before Linux 4.14, it is always taken to be mapped.
static IS_MAPPED: AtomicPtr<AtomicBool> = AtomicPtr::new((&raw const ALWAYS).cast_mut());
static ALWAYS: AtomicBool = AtomicBool::new(true);

/// Is the table that the recorder's writer knows mapped in this process?
#[inline]
pub(crate) fn is_mapped() -> bool {
    // SAFETY: a static, or a page that is never given back.
    unsafe { (*IS_MAPPED.load(Ordering::Relaxed)).load(Ordering::Relaxed) }
}

/// Remembers that it is.
fn set_mapped() {
    const PAGE: usize = 4096;
    let always = (&raw const ALWAYS).cast_mut();
    if IS_MAPPED.load(Ordering::Relaxed) == always
        && let Some(page) = native::map(PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    {
        // SAFETY: a new page, which nobody knows before it does what it is to do.
        unsafe {
            match libc::madvise(page as *mut _, PAGE, libc::MADV_WIPEONFORK) {
                0 => IS_MAPPED.store(page as *mut AtomicBool, Ordering::Relaxed),
                _ => native::unmap(page, PAGE),
            }
        }
    }
    // SAFETY: as in `is_mapped`.
    unsafe { (*IS_MAPPED.load(Ordering::Relaxed)).store(true, Ordering::Relaxed) };
}

/// Address and bytes of the table and of what the writer keeps beside it.
static MAPPED: [(AtomicUsize, AtomicUsize); 2] = [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; 2];

/// Does this process have a table?
pub(crate) fn exists() -> bool {
    OWNER.load(Ordering::Relaxed) != 0
}

/// Is the table that there is this process's own? A vforked child sees its parent's.
pub(crate) fn is_ours() -> bool {
    // SAFETY: has no preconditions.
    OWNER.load(Ordering::Relaxed) == unsafe { libc::getpid() as u32 }
}

/// In a forked child: the mappings were not inherited.
pub(crate) fn forget() {
    OWNER.store(0, Ordering::Relaxed);
    MAPPED.iter().for_each(|(start, _)| start.store(0, Ordering::Relaxed));
}

/// Where the table of a process lies that started at so many clock ticks.
fn path(tables: &CStr, pid: u32, start_ticks: u64) -> Text<4096> {
    named(tables, pid, start_ticks, b".leakline")
}

fn named(tables: &CStr, pid: u32, start_ticks: u64, extension: &[u8]) -> Text<4096> {
    let mut path = Text::new();
    path.put(tables.to_bytes());
    path.put(b"/");
    path.number(u64::from(pid));
    path.put(b"-");
    path.number(start_ticks);
    path.put(extension);
    path
}

/// A mapping of the first page of this process's table for whoever outlives the table's own; `None` where there is none.
pub(crate) fn map_header() -> Option<*mut Header> {
    // While somebody has the lock, nobody takes the table away.
    let _recorder = recorder::surely_enter()?;
    if !is_ours() {
        return None;
    }
    // SAFETY: a shared mapping that `create` made and that is there as long as we have the lock.
    unsafe {
        let page = native::map_again(MAPPED[0].0.load(Ordering::Relaxed), HEADER_BYTES)?;
        libc::madvise(page as *mut _, HEADER_BYTES, libc::MADV_DONTFORK);
        Some(page as *mut Header)
    }
}

/// Where this process's table lies.
pub(crate) fn own_path() -> Text<4096> {
    own(b".leakline")
}

/// Where the heap snapshots of this process lie: beside its table.
pub(crate) fn heap_path() -> Text<4096> {
    own(b".heap")
}

fn own(extension: &[u8]) -> Text<4096> {
    let tables = config::get().map_or(c"", |config| config.tables);
    // SAFETY: has no preconditions.
    let pid = unsafe { libc::getpid() as u32 };
    named(tables, pid, process_start_ticks(), extension)
}

/// Takes away the table that this process has left behind if it was a Python before: a child that a server forks to
/// start another program may allocate in between, and is no server that anybody asks for.
pub(crate) fn remove_predecessor() {
    let Some(config) = config::get() else { return };
    // SAFETY: has no preconditions.
    let pid = unsafe { libc::getpid() as u32 };
    if let Some(path) = path(config.tables, pid, process_start_ticks()).c_str() {
        // SAFETY: a C string. Most often there is no such file.
        unsafe { libc::unlink(path.as_ptr()) };
    }
}

/// Makes the table of this process, in the folder that the configuration names, and gives it to the recorder.
pub(crate) fn create(recorder: &mut Recorder) -> Result<(), Failure> {
    let config = config::get().ok_or(Failure { what: "LEAKLINE_TABLES is not set", errno: 0 })?;
    if !(LEAST_BYTES..=MOST_BYTES).contains(&config.table_bytes) {
        return Err(Failure { what: "LEAKLINE_TABLE_BYTES is out of bounds", errno: 0 });
    }
    let bytes = config.table_bytes.next_multiple_of(4096);
    // SAFETY: getpid and getppid have no preconditions.
    let (pid, parent) = unsafe { (libc::getpid() as u32, libc::getppid() as u32) };
    let start_ticks = process_start_ticks();
    let mut path = path(config.tables, pid, start_ticks);
    let path = path.c_str().ok_or(Failure { what: "the folder's name is too long", errno: 0 })?;

    give_back();
    let file = map_file(path, bytes)?;
    let file_at = (file.as_ptr() as usize, file.len());
    let private = map(-1, Writer::private_bytes(bytes)).inspect_err(|_| {
        // SAFETY: a mapping of our own that nobody uses yet, and a C string.
        unsafe {
            native::unmap(file_at.0, file_at.1);
            libc::unlink(path.as_ptr());
        }
    })?;
    let mapped = [file_at, (private.as_ptr() as usize, private.len())];
    let mut command = [0; COMMAND_BYTES];
    let command_bytes = read_file(c"/proc/self/cmdline", &mut command);
    let origin = Origin {
        pid,
        parent,
        process_start_ticks: start_ticks,
        now_ns: clock::unix_ns(),
        python_version: python::version(),
        command: &command[..command_bytes],
        interval_bytes: sampler::first_interval(),
    };
    let mut writer = Writer::create(file, private, &FILTER, &origin)
        .ok_or(Failure { what: "its table could not be laid out", errno: 0 })?;
    if attach::is_preloaded() {
        writer.tells_end();
    }
    stack::forget(recorder);
    set_mapped();
    recorder.install(Some(writer));
    for ((start, bytes), mapping) in MAPPED.iter().zip(mapped) {
        start.store(mapping.0, Ordering::Relaxed);
        bytes.store(mapping.1, Ordering::Relaxed);
    }
    OWNER.store(pid, Ordering::Relaxed);
    Ok(())
}

/// Ends the recording. The file stays as it is, and its mapping until it is given back: a table whose every page was
/// written to takes the kernel 2 ms, and for this call the server stands still.
pub(crate) fn close(recorder: &mut Recorder) {
    recorder.close();
    OWNER.store(0, Ordering::Relaxed);
}

/// Gives back the memory of a table that was closed, if there is one.
pub(crate) fn give_back() {
    for (start, bytes) in &MAPPED {
        let start = start.swap(0, Ordering::Relaxed);
        if start != 0 {
            // SAFETY: a mapping that `create` made; the writer that was its only user is gone.
            unsafe { native::unmap(start, bytes.load(Ordering::Relaxed)) };
        }
    }
}

/// A new file of that many bytes, mapped. All of its blocks are reserved first: writing to a mapped hole on a full disk
/// would kill the server with SIGBUS.
///
/// So would writing behind the end of a file that somebody has shortened. The file's mode lets nobody open it for writing,
/// not even its owner, unless he changes the mode on purpose; and we ourselves shorten no file that is there already, which
/// a thread of an agent that has left may have mapped, but make another one.
fn map_file(path: &CStr, bytes: usize) -> Result<&'static mut [u8], Failure> {
    // SAFETY: system calls with a valid string and descriptor.
    unsafe {
        libc::unlink(path.as_ptr());
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        let file = libc::open(path.as_ptr(), flags, 0o400);
        if file < 0 {
            return Err(last("cannot make a file in LEAKLINE_TABLES"));
        }
        let reserved = libc::posix_fallocate(file, 0, bytes as libc::off_t);
        let mapped = match reserved {
            0 => map(file, bytes),
            errno => Err(Failure { what: "no room for the table in LEAKLINE_TABLES", errno }),
        };
        libc::close(file);
        if mapped.is_err() {
            libc::unlink(path.as_ptr());
        }
        mapped
    }
}

/// Maps a file, or zeroed memory of our own where the descriptor is -1. Forked children do not inherit the mapping.
fn map(file: i32, bytes: usize) -> Result<&'static mut [u8], Failure> {
    let kind = if file < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    let start = native::map(bytes, kind | libc::MAP_NORESERVE, file).ok_or_else(|| last("cannot map the table"))?;
    // SAFETY: a new mapping that nobody else knows; it is unmapped when its writer is gone (`close`), so that it may be
    // called static.
    unsafe {
        libc::madvise(start as *mut _, bytes, libc::MADV_DONTFORK);
        Ok(std::slice::from_raw_parts_mut(start as *mut u8, bytes))
    }
}

fn last(what: &'static str) -> Failure {
    // SAFETY: the location of errno is always readable.
    Failure { what, errno: unsafe { *libc::__errno_location() } }
}

/// Field 22 of `/proc/self/stat`, clock ticks since boot; 0 where it cannot be read.
pub(crate) fn process_start_ticks() -> u64 {
    let mut text = [0; 1024];
    let length = read_file(c"/proc/self/stat", &mut text);
    // The second field is the program's name in parentheses, which may hold anything; count from its end.
    let Some(end) = text[..length].iter().rposition(|byte| *byte == b')') else { return 0 };
    let field = text[end + 1..length].split(|byte| *byte == b' ').filter(|field| !field.is_empty()).nth(19);
    field.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Reads the beginning of a file; 0 bytes where it cannot be read.
pub(crate) fn read_file(path: &CStr, into: &mut [u8]) -> usize {
    // SAFETY: system calls on a descriptor of our own and a buffer of known length.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return 0;
        }
        let length = libc::read(file, into.as_mut_ptr().cast(), into.len());
        libc::close(file);
        length.max(0) as usize
    }
}

/// Text in a buffer of its own, for where nothing may be allocated.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
    overflown: bool,
}

impl<const N: usize> Text<N> {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; N], length: 0, overflown: false }
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        match self.bytes.get_mut(self.length..self.length + bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.length += bytes.len();
            }
            None => self.overflown = true,
        }
    }

    pub(crate) fn number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.put(&digits[at..]);
    }

    /// The text, as far as it fitted.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The text as a C string; `None` where it did not fit.
    pub(crate) fn c_str(&mut self) -> Option<&CStr> {
        self.put(&[0]);
        (!self.overflown).then(|| CStr::from_bytes_until_nul(&self.bytes).ok()).flatten()
    }
}

impl<const N: usize> std::fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}
