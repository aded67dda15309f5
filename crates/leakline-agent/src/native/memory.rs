//! The memory of the agent itself: mapped for it alone, so that nothing it needs passes through the allocator that it
//! watches.
//!
//! Hardly anything asks for memory: the unwinder, for its cache and for the list of modules, which grows by the libraries
//! that a server loads. So blocks are cut off the front of a mapping and never given back.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are mapped at once. A mapping costs memory only where it has been written to.
const CHUNK: usize = 1 << 20;

struct Chunks {
    /// The next free byte of the chunk in use. Its chunk ends at the next multiple of [`CHUNK`]; 0 before there is any.
    next: AtomicUsize,
}

#[global_allocator]
static MEMORY: Chunks = Chunks { next: AtomicUsize::new(0) };

// SAFETY: blocks are cut off a mapping by one atomic exchange, so no two overlap; what does not fit is refused.
unsafe impl GlobalAlloc for Chunks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut next = self.next.load(Ordering::Relaxed);
        loop {
            let start = next.next_multiple_of(layout.align());
            let end = start + layout.size();
            let fits = next != 0 && end <= next.next_multiple_of(CHUNK);
            let (start, end) = match fits {
                true => (start, end),
                false => match chunk(layout) {
                    Some(start) => (start, start + layout.size()),
                    None => return std::ptr::null_mut(),
                },
            };
            // Another thread that was faster costs the rest of a chunk at most.
            match self.next.compare_exchange(next, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return start as *mut u8,
                Err(now) => next = now,
            }
        }
    }

    unsafe fn dealloc(&self, _block: *mut u8, _layout: Layout) {}
}

/// A new chunk, aligned to its own size. None where the block would not fit: nothing of the agent's is that large.
fn chunk(layout: Layout) -> Option<usize> {
    if layout.size() >= CHUNK || layout.align() > CHUNK {
        return None;
    }
    let start = map(2 * CHUNK, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    let aligned = start.next_multiple_of(CHUNK);
    // SAFETY: the ends of a mapping that nobody else knows yet.
    unsafe {
        unmap(start, aligned - start);
        unmap(aligned + CHUNK, start + CHUNK - aligned);
    }
    Some(aligned)
}

/// Maps memory, or a file; `None` where the system refuses, and errno says why. The system is asked directly, here and
/// below: the library's functions are watched, by way of the table that is mapped here and in a child that takes no lock.
pub(crate) fn map(bytes: usize, kind: c_int, file: c_int) -> Option<usize> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // Whole words: of a shorter one that is passed on the stack, as the offset is, the rest is left as it was.
    const NOWHERE: usize = 0;
    const OFFSET: usize = 0;
    // SAFETY: a new mapping, in place of no other.
    let start =
        unsafe { libc::syscall(libc::SYS_mmap, NOWHERE, bytes, protection, kind & !libc::MAP_FIXED, file, OFFSET) };
    usize::try_from(start).ok()
}

/// Maps what a shared mapping shows a second time, elsewhere.
///
/// # Safety
/// The shared mapping is there, and has so many bytes.
pub(crate) unsafe fn map_again(start: usize, bytes: usize) -> Option<usize> {
    // SAFETY: the caller's promise. Told that it had no bytes, mremap leaves a shared mapping where it is (mremap(2)).
    unsafe { extend(start, 0, bytes) }
}

/// Makes a mapping longer, wherever there is room for it.
///
/// # Safety
/// The mapping is the caller's alone.
pub(crate) unsafe fn extend(start: usize, before: usize, bytes: usize) -> Option<usize> {
    // SAFETY: the caller's promise; mremap keeps what the mapping holds.
    usize::try_from(unsafe { libc::syscall(libc::SYS_mremap, start, before, bytes, libc::MREMAP_MAYMOVE) }).ok()
}

/// Gives a mapping back.
///
/// # Safety
/// The mapping is the caller's alone, and nothing of it is used any more.
pub(crate) unsafe fn unmap(start: usize, bytes: usize) {
    // SAFETY: the caller's promise. What can't be given back stays mapped, which harms nobody.
    unsafe { libc::syscall(libc::SYS_munmap, start, bytes) };
}
