//! The memory of the agent itself: mapped for it alone, so that nothing it needs passes through the allocator that it
//! watches.
//!
//! Hardly anything asks for memory: the unwinder, for its cache and for the list of modules, which grows by the libraries
//! that a server loads. So blocks are cut off the front of a mapping and never given back.

use std::alloc::{GlobalAlloc, Layout};
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
    // SAFETY: a new mapping; what is not aligned is unmapped again. The system is asked directly, since the library's
    // mmap is one of the functions that are watched.
    unsafe {
        let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let start = libc::syscall(libc::SYS_mmap, 0, 2 * CHUNK, protection, kind, -1, 0);
        let start = usize::try_from(start).ok()?;
        let aligned = start.next_multiple_of(CHUNK);
        libc::syscall(libc::SYS_munmap, start, aligned - start);
        libc::syscall(libc::SYS_munmap, aligned + CHUNK, start + CHUNK - aligned);
        Some(aligned)
    }
}
