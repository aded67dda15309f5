//! CPython's allocators `mem` and `obj`, for the blocks that pymalloc serves. Larger ones pass through to malloc, where
//! `hooks/native` sees them: each block is seen once.
//!
//! Everything here runs with the GIL held.

use crate::python::api::{Allocator, Api, DOMAIN_MEM, DOMAIN_OBJ};
use crate::recorder::{self, FILTER};
use crate::sampler::{self, LARGE, SMALL};
use leakline_table::layout::{FLAG_OBJECT, FLAG_SMALL};
use leakline_table::writer::Filter;
use std::arch::naked_asm;
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::mem::{MaybeUninit, offset_of};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

type Pointer = *mut c_void;

/// What served the domains before us: `mem`, then `obj`. The hooks get its `ctx`, not one of ours, so that they reach it
/// without a detour.
#[repr(transparent)]
struct Originals(UnsafeCell<MaybeUninit<[Allocator; 2]>>);

// SAFETY: written with the GIL held, before the hooks are installed that read it.
unsafe impl Sync for Originals {}

static ORIGINALS: Originals = Originals(UnsafeCell::new(MaybeUninit::uninit()));

/// The largest block that the allocator serves without malloc, bytes: pymalloc's 512, less what a debug build of the
/// allocator adds; 0 under PYTHONMALLOC=malloc, where malloc's hooks see everything and these are not installed.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// The hooks are in the chain of functions that serve the domains.
static IN_PLACE: AtomicBool = AtomicBool::new(false);

/// Puts the hooks in front of both domains, unless malloc serves them, or they are there still.
///
/// # Safety
/// The caller holds the GIL.
pub(crate) unsafe fn install(api: &Api) {
    if IN_PLACE.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: the caller holds the GIL, so nobody allocates in these domains meanwhile.
    unsafe {
        let original = |domain| {
            let mut original = MaybeUninit::uninit();
            (api.get_allocator)(domain, original.as_mut_ptr());
            original.assume_init()
        };
        let originals = [original(DOMAIN_MEM), original(DOMAIN_OBJ)];
        let [mem, obj] = originals.each_ref().map(|original| largest_without_malloc(original));
        // Nobody serves one of them by malloc and the other one otherwise; if somebody did, we would see less than all.
        let largest = mem.min(obj);
        if largest == 0 {
            return;
        }
        LARGEST.store(largest, Ordering::Relaxed);
        (*ORIGINALS.0.get()).write(originals);
        (api.set_allocator)(DOMAIN_MEM, &mut hooks::<false>(originals[0].ctx));
        (api.set_allocator)(DOMAIN_OBJ, &mut hooks::<true>(originals[1].ctx));
    }
    IN_PLACE.store(true, Ordering::Relaxed);
}

/// Takes the hooks out again. Where somebody else has come in front of them, as tracemalloc does, they stay and pass on.
///
/// # Safety
/// The caller holds the GIL.
pub(crate) unsafe fn remove(api: &Api) {
    if !IN_PLACE.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: the caller holds the GIL; the cells were written before the hooks came in.
    unsafe {
        let front = |domain| {
            let mut current = MaybeUninit::<Allocator>::uninit();
            (api.get_allocator)(domain, current.as_mut_ptr());
            current.assume_init().malloc as usize
        };
        let ours = [malloc::<false> as *const () as usize, malloc::<true> as *const () as usize];
        if [front(DOMAIN_MEM), front(DOMAIN_OBJ)] != ours {
            return;
        }
        let mut originals = (*ORIGINALS.0.get()).assume_init();
        (api.set_allocator)(DOMAIN_MEM, &mut originals[0]);
        (api.set_allocator)(DOMAIN_OBJ, &mut originals[1]);
    }
    IN_PLACE.store(false, Ordering::Relaxed);
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
    // SAFETY: `install` writes the originals before it installs the hooks, and nobody writes them later.
    unsafe { &(*ORIGINALS.0.get()).assume_init_ref()[OBJECT as usize] }
}

/// Where the original of a domain lies in [`ORIGINALS`], bytes.
const fn offset<const OBJECT: bool>() -> usize {
    OBJECT as usize * size_of::<Allocator>()
}

// The countdown is lowered by all bytes, also by those of blocks that are too large for pymalloc. Where it runs out
// within such a block, no sample is taken and the countdown is drawn anew; since it has no memory, that changes nothing
// for the small blocks, and saves a comparison in every allocation.

#[unsafe(naked)]
unsafe extern "C" fn malloc<const OBJECT: bool>(ctx: Pointer, bytes: usize) -> Pointer {
    naked_asm!(
        "sub qword ptr [rip + {countdown}], rsi",
        "js {due}",
        "jmp qword ptr [rip + {originals} + {malloc}]",
        countdown = sym SMALL,
        due = sym malloc_due::<OBJECT>,
        originals = sym ORIGINALS,
        malloc = const offset::<OBJECT>() + offset_of!(Allocator, malloc),
    )
}

#[unsafe(naked)]
unsafe extern "C" fn calloc<const OBJECT: bool>(ctx: Pointer, count: usize, bytes: usize) -> Pointer {
    naked_asm!(
        // A product that overflows makes the call fail.
        "mov rax, rdx",
        "imul rax, rsi",
        "sub qword ptr [rip + {countdown}], rax",
        "js {due}",
        "jmp qword ptr [rip + {originals} + {calloc}]",
        countdown = sym SMALL,
        due = sym calloc_due::<OBJECT>,
        originals = sym ORIGINALS,
        calloc = const offset::<OBJECT>() + offset_of!(Allocator, calloc),
    )
}

#[unsafe(naked)]
unsafe extern "C" fn free<const OBJECT: bool>(ctx: Pointer, block: Pointer) {
    naked_asm!(
        jump_if_tracked!("esi"),
        "jmp qword ptr [rip + {originals} + {free}]",
        spread = const Filter::SPREAD,
        shift = const Filter::SHIFT,
        filter = sym FILTER,
        tracked = sym free_tracked::<OBJECT>,
        originals = sym ORIGINALS,
        free = const offset::<OBJECT>() + offset_of!(Allocator, free),
    )
}

/// A large block is seen by malloc's realloc, or by its malloc where pymalloc hands a block over that has grown.
#[unsafe(naked)]
unsafe extern "C" fn realloc<const OBJECT: bool>(ctx: Pointer, block: Pointer, bytes: usize) -> Pointer {
    naked_asm!(
        jump_if_tracked!("esi"),
        "cmp rdx, qword ptr [rip + {largest}]",
        "ja 2f",
        "sub qword ptr [rip + {countdown}], rdx",
        "js {due}",
        "2: jmp qword ptr [rip + {originals} + {realloc}]",
        spread = const Filter::SPREAD,
        shift = const Filter::SHIFT,
        filter = sym FILTER,
        tracked = sym resize_tracked::<OBJECT>,
        largest = sym LARGEST,
        countdown = sym SMALL,
        due = sym grow::<OBJECT>,
        originals = sym ORIGINALS,
        realloc = const offset::<OBJECT>() + offset_of!(Allocator, realloc),
    )
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

/// free of a block that may be sampled.
///
/// # Safety
/// As for free.
#[cold]
#[inline(never)]
unsafe extern "C" fn free_tracked<const OBJECT: bool>(ctx: Pointer, block: Pointer) {
    recorder::freed(block as usize);
    // SAFETY: the caller's own call, handed on.
    unsafe { (original::<OBJECT>().free)(ctx, block) }
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
unsafe extern "C" fn resize_tracked<const OBJECT: bool>(ctx: Pointer, block: Pointer, bytes: usize) -> Pointer {
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
unsafe extern "C" fn grow<const OBJECT: bool>(ctx: Pointer, block: Pointer, bytes: usize) -> Pointer {
    let offset = (bytes as i64 + SMALL.left()).max(0) as usize;
    let before = if block.is_null() { 0 } else { small_size(block as usize).unwrap_or(bytes) };
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
fn small_size(block: usize) -> Option<usize> {
    /// `POOL_OVERHEAD` and the place of `szidx` (Objects/obmalloc.c, from 3.12 on Include/internal/pycore_obmalloc.h).
    const OVERHEAD: usize = 48;
    const SIZE_INDEX: usize = 36;
    let pool = block & !(crate::python::pool_bytes() - 1);
    // A block of malloc's has no pool: one in its heap, or in a mapping of its own, which starts 16 bytes before the block.
    // SAFETY: sbrk(0) only reads.
    let in_heap = block < unsafe { libc::sbrk(0) } as usize;
    if in_heap || block & 0xFFF == 0x10 || block - pool < OVERHEAD {
        return None;
    }
    // Other blocks may be malloc's, too, and begin within a pool's size of a mapping: what lies before that is nobody's.
    let index = crate::python::readable_word(pool + SIZE_INDEX - 4)? >> 32;
    let class = (index + 1) * 16;
    (index < 32 && (block - pool - OVERHEAD).is_multiple_of(class)).then_some(class)
}
