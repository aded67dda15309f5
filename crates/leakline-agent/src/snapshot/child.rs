//! The child that writes a snapshot: what it does before it looks at the first object, and how it ends.
//!
//! It is a copy of one thread. Whatever lock another thread held stays locked for good here, so nothing is called that
//! takes any: neither malloc nor anything of Python's but `tp_traverse` and the like, which only read.

use super::lost::Blocks;
use super::walk::Walk;
use crate::python::api::Api;
use crate::python::version;
use crate::{clock, sampler};
use leakline_table::heap::{Encoder, Ending, HeapHeader, MAGIC, Search, Sink, VERSION};
use std::ffi::CStr;

/// What the child is to do, made by its parent.
pub(super) struct Task<'t> {
    pub(super) api: &'t Api,
    /// Where the finished snapshot belongs.
    pub(super) path: &'t CStr,
    /// Where it is written.
    pub(super) unfinished: &'t CStr,
    /// The parent's table.
    pub(super) table: &'t CStr,
    pub(super) most_bytes: u64,
    pub(super) most_seconds: u32,
    /// What the header says; the child fills in what it counts.
    pub(super) header: HeapHeader,
}

/// Ends the child; nothing of the parent's is run or flushed.
pub(super) fn end(ending: Ending) -> ! {
    loop {
        // The C library's `_exit` is ours, and speaks for the server.
        // SAFETY: ends the process.
        unsafe { libc::syscall(libc::SYS_exit_group, ending as i32) };
    }
}

/// What a header says before anything was counted.
pub(super) fn header(pid: u32, process_start_ticks: u64, requests: u64, collector_head: usize) -> HeapHeader {
    HeapHeader {
        magic: MAGIC,
        version: VERSION,
        pid,
        process_start_ticks,
        taken_ns: clock::unix_ns(),
        requests,
        python_version: version(),
        complete: 0,
        objects: 0,
        edges: 0,
        stream_bytes: 0,
        names_dropped: 0,
        collector_head: collector_head as u64,
        walk_ns: 0,
        search: Search::Impossible as u64,
        searched: 0,
        lost: 0,
        interpreters: 0,
        interpreters_left_out: 0,
    }
}

/// Runs in the child, and nowhere else.
///
/// # Safety
/// The process is a clone that was made with the GIL held, has this one thread, and shares no memory with its parent.
pub(super) unsafe fn run(task: Task<'_>) -> ! {
    sampler::stop();
    // SAFETY: system calls that concern only this process.
    unsafe {
        become_harmless(task.most_seconds);
        // What takes longer than half of the time may be left undone; without the objects all is in vain.
        let until_ns = clock::monotonic_ns() + u64::from(task.most_seconds) * 500_000_000;
        let mut blocks = Blocks::note(task.table, task.header.requests, (&raw const until_ns) as usize + 64);
        let mut file = File::create(task.unfinished, task.most_bytes);
        let header = task.header;
        file.put(std::slice::from_raw_parts((&raw const header).cast(), HeapHeader::BYTES));
        let mut walk = Walk::new(task.api, Encoder::new(file));
        let interpreters = walk.all();
        let walk_ns = clock::process_cpu_ns();
        blocks.search(until_ns);
        let (mut file, objects, edges, names_dropped) = walk.finish(blocks.lost());
        file.flush();
        let header = HeapHeader {
            complete: 1,
            objects,
            edges,
            stream_bytes: file.written - HeapHeader::BYTES as u64,
            names_dropped,
            walk_ns,
            search: blocks.outcome() as u64,
            searched: blocks.len() as u64,
            lost: blocks.lost().count() as u64,
            interpreters: interpreters.looked_at,
            interpreters_left_out: interpreters.left_out,
            ..header
        };
        let written = libc::pwrite(file.descriptor, (&raw const header).cast(), HeapHeader::BYTES, 0);
        if written != HeapHeader::BYTES as isize || libc::rename(task.unfinished.as_ptr(), task.path.as_ptr()) != 0 {
            file.give_up(Ending::NotWritten);
        }
    }
    end(Ending::Done)
}

/// Cuts what ties a copy of the server to the world: a client whose connection the server closes must not wait for the
/// child's copy of the socket; signals to the group must not run the server's handlers; when memory runs out, the child
/// goes first; it can outlive neither its time nor its parent.
///
/// # Safety
/// Only in the child.
unsafe fn become_harmless(most_seconds: u32) {
    // SAFETY: system calls on this process; the structures are on the stack and zero is a value of theirs.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            libc::sigaction(signal, &default, std::ptr::null_mut());
        }
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_UNBLOCK, &all, std::ptr::null_mut());
        libc::alarm(most_seconds.max(1));
        if libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) != 0 {
            // Before Linux 5.9.
            let mut limit = none;
            libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
            (0..limit.rlim_cur.min(1 << 16) as i32).for_each(|descriptor| _ = libc::close(descriptor));
        }
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        libc::write(score, c"1000".as_ptr().cast(), 4);
        libc::close(score);
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}

/// The snapshot's file, with a buffer in front of it.
pub(super) struct File {
    descriptor: i32,
    path: *const libc::c_char,
    buffer: super::memory::Growing<u8>,
    used: usize,
    written: u64,
    most: u64,
}

/// Bytes that are written at once.
const AT_ONCE: usize = 256 << 10;

impl File {
    /// # Safety
    /// The path lives as long as the file.
    unsafe fn create(path: &CStr, most: u64) -> Self {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        // SAFETY: a C string.
        let descriptor = unsafe { libc::open(path.as_ptr(), flags, 0o600) };
        if descriptor < 0 {
            end(Ending::NoFile);
        }
        let mut buffer = super::memory::Growing::new();
        buffer.extend_zeroed(AT_ONCE);
        Self { descriptor, path: path.as_ptr(), buffer, used: 0, written: 0, most }
    }

    fn flush(&mut self) {
        if self.written + self.used as u64 > self.most {
            self.give_up(Ending::TooLarge);
        }
        let mut at = 0;
        while at < self.used {
            let rest = &self.buffer[at..self.used];
            // SAFETY: a descriptor of our own, and a buffer of known length.
            match unsafe { libc::write(self.descriptor, rest.as_ptr().cast(), rest.len()) } {
                count @ 1.. => at += count as usize,
                _ => self.give_up(Ending::NotWritten),
            }
        }
        self.written += self.used as u64;
        self.used = 0;
    }

    fn give_up(&self, ending: Ending) -> ! {
        // SAFETY: `create`'s promise.
        unsafe { libc::unlink(self.path) };
        end(ending)
    }
}

impl Sink for File {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        if self.used + bytes.len() > AT_ONCE {
            self.flush();
        }
        self.buffer[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }
}
