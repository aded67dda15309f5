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

/// What served a domain before us. The hooks get its `ctx`, not one of ours, so that they reach it without a detour.
struct Original(UnsafeCell<Option<Allocator>>);

// SAFETY: the original is written once, with the GIL held, before the hooks are installed that read it.
unsafe impl Sync for Original {}

static MEM: Original = Original(UnsafeCell::new(None));
static OBJ: Original = Original(UnsafeCell::new(None));

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
        for (number, cell) in [(DOMAIN_MEM, &MEM), (DOMAIN_OBJ, &OBJ)] {
            let mut original = std::mem::MaybeUninit::<Allocator>::uninit();
            (api.get_allocator)(number, original.as_mut_ptr());
            let original = original.assume_init();
            let largest = largest_without_malloc(&original);
            if largest == 0 {
                return;
            }
            LARGEST.store(largest, Ordering::Relaxed);
            *cell.0.get() = Some(original);
            let mut hooks =
                if number == DOMAIN_OBJ { hooks::<true>(original.ctx) } else { hooks::<false>(original.ctx) };
            (api.set_allocator)(number, &mut hooks);
        }
    }
}

fn hooks<const OBJECT: bool>(ctx: Pointer) -> Allocator {
    Allocator {
        ctx,
        malloc: malloc::<OBJECT>,
        calloc: calloc::<OBJECT>,
        realloc: realloc::<OBJECT>,
        free: free::<OBJECT>,
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

/// What served this domain before us.
///
/// # Safety
/// The hooks of the domain are installed.
#[inline(always)]
unsafe fn original<const OBJECT: bool>() -> &'static Allocator {
    let cell = if OBJECT { &OBJ } else { &MEM };
    // SAFETY: `install` writes the cell before it installs the hooks, and nobody writes it later.
    unsafe { (*cell.0.get()).as_ref().unwrap_unchecked() }
}

// The hooks count all bytes, also those of blocks that are too large for pymalloc. Where the countdown runs out within
// such a block, no sample is taken and the countdown is drawn anew; since it has no memory, that changes nothing for the
// small blocks, and saves a comparison in every allocation. What happens seldom is a function of its own, so that the
// rest needs no stack: malloc is 6 instructions more than without us, free 9.

unsafe extern "C" fn malloc<const OBJECT: bool>(ctx: Pointer, bytes: usize) -> Pointer {
    if SMALL.pass(bytes) {
        // SAFETY: the caller's own call, handed on; so in all four.
        return unsafe { malloc_due::<OBJECT>(ctx, bytes) };
    }
    // SAFETY: as above.
    unsafe { (original::<OBJECT>().malloc)(ctx, bytes) }
}

unsafe extern "C" fn calloc<const OBJECT: bool>(ctx: Pointer, count: usize, bytes: usize) -> Pointer {
    // A product that overflows makes the call fail.
    let all = count.wrapping_mul(bytes);
    if SMALL.pass(all) {
        // SAFETY: as in malloc.
        return unsafe { calloc_due::<OBJECT>(ctx, count, bytes) };
    }
    // SAFETY: as in malloc.
    unsafe { (original::<OBJECT>().calloc)(ctx, count, bytes) }
}

unsafe extern "C" fn free<const OBJECT: bool>(ctx: Pointer, block: Pointer) {
    if FILTER.may_hold(block as usize) {
        recorder::freed(block as usize);
    }
    // SAFETY: as in malloc.
    unsafe { (original::<OBJECT>().free)(ctx, block) }
}

unsafe extern "C" fn realloc<const OBJECT: bool>(ctx: Pointer, block: Pointer, bytes: usize) -> Pointer {
    if FILTER.may_hold(block as usize) {
        // SAFETY: as in malloc.
        return unsafe { resize_tracked::<OBJECT>(ctx, block, bytes) };
    }
    if bytes <= LARGEST.load(Ordering::Relaxed) && SMALL.pass(bytes) {
        // SAFETY: as in malloc.
        return unsafe { grow::<OBJECT>(ctx, block, bytes) };
    }
    // A large block is seen by malloc's realloc, or by its malloc where pymalloc hands a block over that has grown.
    // SAFETY: as in malloc.
    unsafe { (original::<OBJECT>().realloc)(ctx, block, bytes) }
}

/// malloc where the countdown has run out.
///
/// # Safety
/// As for malloc.
#[cold]
#[inline(never)]
unsafe extern "C" fn malloc_due<const OBJECT: bool>(ctx: Pointer, bytes: usize) -> Pointer {
    // SAFETY: the caller's own call, handed on.
    let block = unsafe { (original::<OBJECT>().malloc)(ctx, bytes) };
    born::<OBJECT>(block, bytes);
    block
}

/// calloc where the countdown has run out.
///
/// # Safety
/// As for calloc.
#[cold]
#[inline(never)]
unsafe extern "C" fn calloc_due<const OBJECT: bool>(ctx: Pointer, count: usize, bytes: usize) -> Pointer {
    // SAFETY: the caller's own call, handed on.
    let block = unsafe { (original::<OBJECT>().calloc)(ctx, count, bytes) };
    born::<OBJECT>(block, count.wrapping_mul(bytes));
    block
}

/// Samples a new block, unless malloc's hook sees it.
fn born<const OBJECT: bool>(block: Pointer, bytes: usize) {
    if bytes > LARGEST.load(Ordering::Relaxed) {
        sampler::pass_over(bytes);
    } else if !block.is_null() {
        sampler::small(block as usize, bytes, flags::<OBJECT>());
    }
}

const fn flags<const OBJECT: bool>() -> u8 {
    if OBJECT { FLAG_SMALL | FLAG_OBJECT } else { FLAG_SMALL }
}

/// realloc of a block that may be sampled.
///
/// # Safety
/// As for realloc.
#[cold]
#[inline(never)]
unsafe fn resize_tracked<const OBJECT: bool>(ctx: Pointer, block: Pointer, bytes: usize) -> Pointer {
    // SAFETY: the caller's own call, handed on.
    let forward = || unsafe { (original::<OBJECT>().realloc)(ctx, block, bytes) };
    if bytes > LARGEST.load(Ordering::Relaxed) {
        // Either malloc's realloc sees the block by itself, or pymalloc copies it to a new block of malloc's, which is
        // seen as born, and frees the small one without telling us.
        let was_small = sampler::holds_small(block as usize);
        let moved = forward();
        if was_small && !moved.is_null() {
            recorder::freed(block as usize);
        }
        return moved;
    }
    if let Some(transit) = sampler::depart(block as usize) {
        let moved = forward();
        if moved.is_null() {
            sampler::stay(transit, block as usize);
        } else {
            sampler::arrive(transit, moved as usize, bytes);
        }
        return moved;
    }
    if SMALL.pass(bytes) {
        // SAFETY: as above.
        return unsafe { grow::<OBJECT>(ctx, block, bytes) };
    }
    forward()
}

/// realloc of a block that is not sampled. The countdown ran out within the new size. Only the added part counts, so the
/// sample is taken only if it ran out there: growth is sampled by its bytes, like any allocation.
///
/// # Safety
/// As for realloc.
#[cold]
#[inline(never)]
unsafe fn grow<const OBJECT: bool>(ctx: Pointer, block: Pointer, bytes: usize) -> Pointer {
    let offset = (bytes as i64 + SMALL.left()).max(0) as usize;
    // SAFETY: a block of pymalloc's, or of malloc's below it, not freed yet.
    let before = if block.is_null() { 0 } else { unsafe { small_size(block as usize) }.unwrap_or(bytes) };
    // SAFETY: the caller's own call, handed on.
    let moved = unsafe { (original::<OBJECT>().realloc)(ctx, block, bytes) };
    if moved.is_null() || (offset < before && !sampler::is_exact()) || bytes <= before {
        sampler::pass_over(bytes);
    } else {
        sampler::small_growth(moved as usize, bytes - before, bytes, flags::<OBJECT>());
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
