//! CPython's allocators `mem` and `obj`, for the blocks that pymalloc serves. Larger ones pass through to malloc, where
//! `hooks/native` sees them: each block is seen once.
//!
//! Everything here runs with the GIL held.

use crate::python::api::{Allocator, Api, DOMAIN_MEM, DOMAIN_OBJ};
use crate::recorder::{self, FILTER};
use crate::sampler::{self, LARGE, SMALL};
use leakline_table::layout::{FLAG_OBJECT, FLAG_SMALL};
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

type Pointer = *mut c_void;

/// A domain of CPython's allocators: what was there before us.
struct Domain {
    original: UnsafeCell<Option<Allocator>>,
    flags: u8,
}

// SAFETY: the original is written once, with the GIL held, before the hooks are installed that read it.
unsafe impl Sync for Domain {}

static MEM: Domain = Domain { original: UnsafeCell::new(None), flags: FLAG_SMALL };
static OBJ: Domain = Domain { original: UnsafeCell::new(None), flags: FLAG_SMALL | FLAG_OBJECT };

/// The largest block that the allocator serves without malloc, bytes: pymalloc's 512, less what a debug build of the
/// allocator adds; 0 under PYTHONMALLOC=malloc, where malloc's hooks see everything and these are not installed.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// Puts the hooks in front of both domains, unless malloc serves them.
///
/// # Safety
/// The caller holds the GIL; called once.
pub(crate) unsafe fn install(api: &Api) {
    // SAFETY: the caller holds the GIL, so nobody allocates in these domains meanwhile; both Domains are static.
    unsafe {
        for (number, domain) in [(DOMAIN_MEM, &MEM), (DOMAIN_OBJ, &OBJ)] {
            let mut original = std::mem::MaybeUninit::<Allocator>::uninit();
            (api.get_allocator)(number, original.as_mut_ptr());
            let original = original.assume_init();
            let largest = largest_without_malloc(&original);
            if largest == 0 {
                return;
            }
            LARGEST.store(largest, Ordering::Relaxed);
            *domain.original.get() = Some(original);
            let ctx = std::ptr::from_ref(domain).cast_mut().cast();
            (api.set_allocator)(number, &mut Allocator { ctx, malloc, calloc, realloc, free });
        }
    }
}

/// pymalloc's `SMALL_REQUEST_THRESHOLD`, bytes.
const THRESHOLD: usize = 512;
/// What PYTHONMALLOC=debug adds around a block, bytes: a size, a serial number at most, and fences.
const DEBUG_BYTES: usize = 32;

/// Finds out by trying, since an allocator does not tell: malloc's hook counts every byte that passes.
///
/// # Safety
/// The caller holds the GIL.
unsafe fn largest_without_malloc(allocator: &Allocator) -> usize {
    let reaches_malloc = |bytes| {
        // Another thread's malloc in just this moment looks like ours; three times in a row it does not.
        (0..3).all(|_| {
            let before = LARGE.left();
            // SAFETY: a block of the allocator's own, freed at once.
            unsafe {
                let block = (allocator.malloc)(allocator.ctx, bytes);
                (allocator.free)(allocator.ctx, block);
            }
            LARGE.left() != before
        })
    };
    [THRESHOLD, THRESHOLD - DEBUG_BYTES].into_iter().find(|bytes| !reaches_malloc(*bytes)).unwrap_or(0)
}

/// # Safety
/// `ctx` is one of the two Domains, whose original is set.
#[inline(always)]
unsafe fn domain(ctx: Pointer) -> (&'static Domain, &'static Allocator) {
    // SAFETY: the caller's promise.
    unsafe {
        let domain = &*ctx.cast::<Domain>();
        (domain, (*domain.original.get()).as_ref().unwrap_unchecked())
    }
}

#[inline(always)]
fn is_due(bytes: usize) -> bool {
    bytes <= LARGEST.load(Ordering::Relaxed) && SMALL.pass(bytes)
}

unsafe extern "C" fn malloc(ctx: Pointer, bytes: usize) -> Pointer {
    // SAFETY: CPython hands back the ctx that was set; so in all four.
    let (domain, original) = unsafe { domain(ctx) };
    if !is_due(bytes) {
        // SAFETY: the caller's own call, handed on; so in all four.
        return unsafe { (original.malloc)(original.ctx, bytes) };
    }
    // SAFETY: as above.
    let block = unsafe { (original.malloc)(original.ctx, bytes) };
    if !block.is_null() {
        sampler::small(block as usize, bytes, domain.flags);
    }
    block
}

unsafe extern "C" fn calloc(ctx: Pointer, count: usize, bytes: usize) -> Pointer {
    // SAFETY: as in malloc.
    let (domain, original) = unsafe { domain(ctx) };
    let all = count.saturating_mul(bytes);
    // SAFETY: as in malloc.
    let block = unsafe { (original.calloc)(original.ctx, count, bytes) };
    if is_due(all) && !block.is_null() {
        sampler::small(block as usize, all, domain.flags);
    }
    block
}

unsafe extern "C" fn free(ctx: Pointer, block: Pointer) {
    // SAFETY: as in malloc.
    let (_, original) = unsafe { domain(ctx) };
    if FILTER.may_hold(block as usize) {
        recorder::freed(block as usize);
    }
    // SAFETY: as in malloc.
    unsafe { (original.free)(original.ctx, block) }
}

unsafe extern "C" fn realloc(ctx: Pointer, block: Pointer, bytes: usize) -> Pointer {
    // SAFETY: as in malloc.
    let (domain, original) = unsafe { domain(ctx) };
    // SAFETY: as in malloc.
    let forward = || unsafe { (original.realloc)(original.ctx, block, bytes) };
    let tracked = FILTER.may_hold(block as usize);
    if bytes > LARGEST.load(Ordering::Relaxed) {
        // Either malloc's realloc sees the block by itself, or pymalloc copies it to a new block of malloc's, which is
        // seen as born, and frees the small one without telling us.
        let was_small = tracked && sampler::holds_small(block as usize);
        let moved = forward();
        if was_small && !moved.is_null() {
            recorder::freed(block as usize);
        }
        return moved;
    }
    if tracked {
        if let Some(transit) = sampler::depart(block as usize) {
            let moved = forward();
            if moved.is_null() {
                sampler::stay(transit, block as usize);
            } else {
                sampler::arrive(transit, moved as usize, bytes);
            }
            return moved;
        }
    }
    if !is_due(bytes) {
        return forward();
    }
    // The countdown ran out within the new size. Only the added part counts, so the sample is taken only if it ran out
    // there: growth is sampled by its bytes, like any allocation.
    let offset = (bytes as i64 + SMALL.left()).max(0) as usize;
    // SAFETY: a block of pymalloc's, or of malloc's below it, not freed yet.
    let before = if block.is_null() { 0 } else { unsafe { small_size(block as usize) }.unwrap_or(bytes) };
    let moved = forward();
    if moved.is_null() || (offset < before && !sampler::is_exact()) || bytes <= before {
        sampler::pass_over(bytes);
    } else {
        sampler::small_growth(moved as usize, bytes - before, bytes, domain.flags);
    }
    moved
}

/// Bytes of the size class of a pymalloc block, from its pool's header: `None` where the block may be none.
///
/// # Safety
/// The block is live.
unsafe fn small_size(block: usize) -> Option<usize> {
    /// `POOL_OVERHEAD` and the place of `szidx` (Objects/obmalloc.c, from 3.12 on Include/internal/pycore_obmalloc.h).
    const OVERHEAD: usize = 48;
    const SIZE_INDEX: usize = 36;
    let pool = block & !(crate::python::pool_bytes() - 1);
    // A block of malloc's has no pool, and the address where it would be may not be mapped: below the beginning of the
    // heap, or before a mapping of its own, which starts 16 bytes before the block.
    // SAFETY: sbrk(0) only reads.
    let in_heap = block < unsafe { libc::sbrk(0) } as usize;
    if in_heap || block & 0xFFF == 0x10 || block - pool < OVERHEAD {
        return None;
    }
    // SAFETY: pymalloc's pools are mapped as a whole; for what is left, the checks above and the ones below.
    let index = unsafe { ((pool + SIZE_INDEX) as *const u32).read() } as usize;
    let class = (index + 1) * 16;
    (index < 32 && (block - pool - OVERHEAD).is_multiple_of(class)).then_some(class)
}
