//! malloc and its family, put in front of the C library's (or another allocator's) by LD_PRELOAD; where the agent comes
//! later, the command writes jumps to these functions over the beginnings of glibc's.
//!
//! Blocks are left where the allocator below puts them, and their sizes are as asked for, so that an allocation or a
//! free that does not pass through here does no harm.

use crate::recorder::{self, FILTER};
use crate::sampler::{self, LARGE};
use leakline_table::writer::{Filter, Transit};
use std::arch::naked_asm;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

type Pointer = *mut c_void;

/// A function of the allocator (or the C library) below, looked up at its first call: until then the cell holds a function
/// that does so.
#[repr(transparent)]
pub(super) struct Next<F>(AtomicPtr<c_void>, std::marker::PhantomData<F>);

impl<F: Copy> Next<F> {
    pub(super) const fn new(resolver: *const c_void) -> Self {
        Self(AtomicPtr::new(resolver.cast_mut()), std::marker::PhantomData)
    }

    #[inline(always)]
    pub(super) fn get(&self) -> F {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let function = self.0.load(Ordering::Relaxed);
        // SAFETY: the cell holds a function of type F: the resolver at first, then what dlsym found under the name.
        unsafe { std::mem::transmute_copy(&function) }
    }

    pub(super) fn go_on_at(&self, address: usize) {
        self.0.store(address as *mut c_void, Ordering::Relaxed);
    }

    /// Looks the function up, and says whether there is one; `None` where dlsym itself asks for it.
    #[cold]
    pub(super) fn look_up(&self, name: &std::ffi::CStr) -> Option<bool> {
        /// The thread that is in dlsym.
        static RESOLVING: AtomicUsize = AtomicUsize::new(0);
        // SAFETY: has no preconditions.
        let thread = unsafe { libc::pthread_self() } as usize;
        if RESOLVING.swap(thread, Ordering::Relaxed) == thread {
            return None;
        }
        // SAFETY: a C string. glibc's dlsym allocates only to report an error, and frees the last one's report.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        RESOLVING.store(0, Ordering::Relaxed);
        if !found.is_null() {
            self.0.store(found, Ordering::Relaxed);
        }
        Some(!found.is_null())
    }

    /// `None` where dlsym itself asks for the function that it is to find.
    #[cold]
    pub(super) fn resolve(&self, name: &std::ffi::CStr) -> Option<F> {
        if !self.look_up(name)? {
            // Nobody below has this function, yet the program calls it: there is no way on.
            crate::message::say(&["leakline: no library provides ", name.to_str().unwrap_or("?"), "\n"]);
            // SAFETY: ends the process.
            unsafe { libc::abort() };
        }
        Some(self.get())
    }
}

macro_rules! next {
    ($($cell:ident $resolver:ident $name:literal: fn($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        static $cell: Next<unsafe extern "C" fn($($type),*) $(-> $result)?> = Next::new($resolver as *const c_void);

        unsafe extern "C" fn $resolver($($argument: $type),*) $(-> $result)? {
            match $cell.resolve($name) {
                // SAFETY: the caller's own call, handed on.
                Some(function) => unsafe { function($($argument),*) },
                // A null pointer, or a small block of dlsym's own that is not freed.
                // SAFETY: pointers, integers and nothing at all may be zero.
                None => unsafe { std::mem::zeroed() },
            }
        }
    )*

    /// Looks all of them up before the program runs. Left to the first call, that call might come from the middle of
    /// dlerror, as asprintf's realloc does there, and dlsym would free the report that dlerror goes on to write into.
    pub(crate) fn resolve_all() {
        $($cell.look_up($name);)*
    }

    /// From now on the hooks go on at other addresses. False where one of them has none.
    pub(crate) fn go_on_at(address: impl Fn(&std::ffi::CStr) -> Option<usize>) -> bool {
        $(
            let Some(next) = address($name) else { return false };
            $cell.go_on_at(next);
        )*
        true
    }};
}

pub(super) use next;

next! {
    MALLOC resolve_malloc c"malloc": fn(bytes: usize) -> Pointer;
    CALLOC resolve_calloc c"calloc": fn(count: usize, bytes: usize) -> Pointer;
    REALLOC resolve_realloc c"realloc": fn(block: Pointer, bytes: usize) -> Pointer;
    FREE resolve_free c"free": fn(block: Pointer);
    MEMALIGN resolve_memalign c"memalign": fn(alignment: usize, bytes: usize) -> Pointer;
    ALIGNED_ALLOC resolve_aligned_alloc c"aligned_alloc": fn(alignment: usize, bytes: usize) -> Pointer;
    POSIX_MEMALIGN resolve_posix_memalign c"posix_memalign": fn(into: *mut Pointer, alignment: usize, bytes: usize) -> c_int;
    VALLOC resolve_valloc c"valloc": fn(bytes: usize) -> Pointer;
    PVALLOC resolve_pvalloc c"pvalloc": fn(bytes: usize) -> Pointer;
    USABLE_SIZE resolve_usable_size c"malloc_usable_size": fn(block: Pointer) -> usize;
}

/// Hands a block on to the sampler if the countdown says so.
#[inline(always)]
fn pass(block: Pointer, bytes: usize) -> Pointer {
    if LARGE.pass(bytes) && !block.is_null() {
        sampler::large(block as usize, bytes);
    }
    block
}

/// malloc below serves what wants no more than this alignment, bytes, in memalign's stead, and we have seen the block
/// there: glibc's does, for 16, where its compiler did not copy malloc into memalign.
static RELAYED: AtomicUsize = AtomicUsize::new(0);

/// The same for a block of some alignment.
fn pass_aligned(block: Pointer, alignment: usize, bytes: usize) -> Pointer {
    if alignment <= RELAYED.load(Ordering::Relaxed) { block } else { pass(block, bytes) }
}

/// Finds out whether memalign comes through malloc, when the hooks are in front of both and nothing is recorded yet.
pub(crate) fn try_relays() {
    const MALLOC_ALIGNMENT: usize = 16;
    // Another thread's malloc in just this moment looks like memalign's; eight times in a row it does not.
    let is_relayed = (0..8).all(|_| {
        let before = LARGE.left();
        // SAFETY: a block of the allocator's own, freed at once.
        unsafe { FREE.get()(MEMALIGN.get()(MALLOC_ALIGNMENT, MALLOC_ALIGNMENT)) };
        LARGE.left() != before
    });
    RELAYED.store(if is_relayed { MALLOC_ALIGNMENT } else { 0 }, Ordering::Relaxed);
}

/// See malloc(3).
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(bytes: usize) -> Pointer {
    naked_asm!(
        "sub qword ptr [rip + {countdown}], rdi",
        "js {due}",
        "jmp qword ptr [rip + {next}]",
        countdown = sym LARGE,
        due = sym malloc_due,
        next = sym MALLOC,
    )
}

/// malloc where the countdown has run out.
#[cold]
#[inline(never)]
extern "C" fn malloc_due(bytes: usize) -> Pointer {
    // SAFETY: the caller's own call, handed on; so everywhere below.
    let block = unsafe { MALLOC.get()(bytes) };
    if !block.is_null() {
        sampler::large(block as usize, bytes);
    }
    block
}

/// See calloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calloc(count: usize, bytes: usize) -> Pointer {
    // SAFETY: as in malloc_due. A product that overflows makes the call fail.
    pass(unsafe { CALLOC.get()(count, bytes) }, count.wrapping_mul(bytes))
}

/// See free(3).
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: Pointer) {
    naked_asm!(
        jump_if_tracked!("edi"),
        "jmp qword ptr [rip + {next}]",
        spread = const Filter::SPREAD,
        shift = const Filter::SHIFT,
        filter = sym FILTER,
        tracked = sym free_tracked,
        next = sym FREE,
    )
}

/// free of a block that may be sampled.
#[cold]
#[inline(never)]
extern "C" fn free_tracked(block: Pointer) {
    recorder::freed(block as usize);
    // SAFETY: as in malloc_due.
    unsafe { FREE.get()(block) }
}

/// See realloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: Pointer, bytes: usize) -> Pointer {
    if block.is_null() {
        // Not by the realloc below, which may come back to us through malloc where we stand in front of the latter's code.
        if LARGE.pass(bytes) {
            return malloc_due(bytes);
        }
        // SAFETY: as in malloc; realloc of null is malloc.
        return unsafe { MALLOC.get()(bytes) };
    }
    // SAFETY: `block` is a block of the allocator below, as the caller of realloc promises.
    let before = unsafe { USABLE_SIZE.get()(block) };
    if FILTER.may_hold(block as usize)
        && let Some(transit) = sampler::depart(block as usize)
    {
        return resize_sampled(transit, block, bytes);
    }
    // Only here: the growth of a sampled block is recorded for certain, and what is recorded for certain must not also
    // bring the next sample nearer.
    let added = bytes.saturating_sub(before);
    if LARGE.pass(added) {
        return grow(block, added, bytes);
    }
    // SAFETY: as in malloc_due.
    unsafe { REALLOC.get()(block, bytes) }
}

/// realloc of a sampled block, which has been taken off its address.
#[cold]
#[inline(never)]
fn resize_sampled(transit: Transit, block: Pointer, bytes: usize) -> Pointer {
    // SAFETY: as in malloc_due.
    let moved = unsafe { REALLOC.get()(block, bytes) };
    if bytes == 0 && moved.is_null() {
        sampler::give_up(transit);
    } else if moved.is_null() {
        sampler::stay(transit, block as usize);
    } else {
        sampler::arrive(transit, moved as usize, bytes);
    }
    moved
}

/// realloc of a block that is not sampled, where the countdown has run out.
#[cold]
#[inline(never)]
fn grow(block: Pointer, added: usize, bytes: usize) -> Pointer {
    // SAFETY: as in malloc_due.
    let moved = unsafe { REALLOC.get()(block, bytes) };
    if added > 0 && !moved.is_null() {
        sampler::large_growth(moved as usize, added, bytes);
    }
    moved
}

/// See reallocarray(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(block: Pointer, count: usize, bytes: usize) -> Pointer {
    match count.checked_mul(bytes) {
        // SAFETY: the caller's own call.
        Some(bytes) => unsafe { realloc(block, bytes) },
        None => {
            // SAFETY: the location of errno is always writable.
            unsafe { *libc::__errno_location() = libc::ENOMEM };
            std::ptr::null_mut()
        }
    }
}

/// See memalign(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memalign(alignment: usize, bytes: usize) -> Pointer {
    // SAFETY: as in malloc.
    pass_aligned(unsafe { MEMALIGN.get()(alignment, bytes) }, alignment, bytes)
}

/// See aligned_alloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aligned_alloc(alignment: usize, bytes: usize) -> Pointer {
    // SAFETY: as in malloc.
    pass_aligned(unsafe { ALIGNED_ALLOC.get()(alignment, bytes) }, alignment, bytes)
}

/// See posix_memalign(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(into: *mut Pointer, alignment: usize, bytes: usize) -> c_int {
    // SAFETY: as in malloc_due; on success `into` holds the block.
    unsafe {
        let result = POSIX_MEMALIGN.get()(into, alignment, bytes);
        if result == 0 {
            pass_aligned(*into, alignment, bytes);
        }
        result
    }
}

/// See valloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valloc(bytes: usize) -> Pointer {
    // SAFETY: as in malloc_due.
    pass(unsafe { VALLOC.get()(bytes) }, bytes)
}

/// See pvalloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvalloc(bytes: usize) -> Pointer {
    // SAFETY: as in malloc_due.
    pass(unsafe { PVALLOC.get()(bytes) }, bytes)
}
