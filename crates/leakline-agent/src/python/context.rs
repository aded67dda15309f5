//! Finds the value of a context variable by raw loads, for threads that may not hold the GIL, and changes it where it lies.
//!
//! No other thread changes what is read here. A context is entered by one thread at a time, and only that thread puts
//! another tree of values into it; the trees themselves (`Python/hamt.c`, hash array mapped tries) are never changed
//! once they are made, but for a value that no other context has, and live as long as the context that holds them. What
//! a signal interrupts has either put its new tree in place or still holds the old one.

use super::api::{Api, Object, ThreadState};
use super::frames::readable_word;
use super::layout::{self, Layout};
use super::text;

/// `PyContext.ctx_vars`, `PyHamtObject.h_root` (Include/internal/pycore_context.h and pycore_hamt.h, 3.7 to 3.13).
const CONTEXT_VALUES: usize = 24;
const TREE_ROOT: usize = 16;
/// `ob_refcnt` and `ob_type` of any object, and `tp_name` of a type.
const REFERENCES: usize = 0;
const TYPE: usize = 8;
const TYPE_NAME: usize = 24;
/// `b_bitmap` and `b_array` of a bitmap node, `a_array` of an array node, `ob_size` and `c_array` of a collision node.
const BITMAP: usize = 24;
const BITMAP_ENTRIES: usize = 32;
const ARRAY_ENTRIES: usize = 16;
const COLLISION_SIZE: usize = 16;
const COLLISION_ENTRIES: usize = 32;
/// The letter of a node's type's name that tells: hamt_bitmap_node, hamt_array_node, hamt_collision_node.
const TELLING: usize = 5;
/// Bits of the hash that each level of a tree takes, and the levels that there are with the collisions' own.
const LEVEL_BITS: u32 = 5;
const LEVELS: u32 = 8;
/// Size (from 3.12 on a tag) and digits of an integer, and the bits of a digit.
const INTEGER_SIZE: usize = 16;
const INTEGER_DIGITS: usize = 24;
const DIGIT_BITS: u32 = 30;

/// A context variable whose values are integers below 2^60.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variable {
    address: usize,
    /// Its hash, folded to 32 bits as `hamt_hash` does.
    hash: u32,
}

/// A variable's value, an integer.
struct Found {
    object: usize,
    /// Nobody but this context holds it, nor any part of the tree on the way to it.
    is_sole: bool,
}

impl Variable {
    /// Gets to know a variable that lives for good, and checks the offsets by which it will be found: against a value
    /// that is set for it, and by loads that the kernel refuses where there is nothing. `None` where they are wrong.
    /// The variable is 0 in this context afterwards.
    ///
    /// # Safety
    /// The GIL is held, no exception is set.
    pub(crate) unsafe fn new(api: &Api, variable: Object) -> Option<Self> {
        const PROBE: u64 = 0x0123_4567_89AB_CDEF >> 8;
        // SAFETY: the GIL is held; references are dropped once.
        unsafe {
            let set = |value| {
                let object = (api.long_from)(value);
                let token = if object.is_null() { object } else { (api.context_var_set)(variable, object) };
                api.release([object, token]);
                !token.is_null()
            };
            let hash = (api.hash)(variable);
            let folded = hash as u32 ^ (hash as u64 >> 32) as u32;
            // `hamt_hash` leaves -1 to errors.
            let known =
                Self { address: variable as usize, hash: if folded == u32::MAX { u32::MAX - 1 } else { folded } };
            let found = set(PROBE).then(|| known.find((api.thread_state_unchecked)(), readable_word)).flatten();
            let value = found.and_then(|found| integer(layout::chosen(), found.object, readable_word));
            let is_right = set(0) && value == Some(PROBE);
            (api.err_clear)();
            is_right.then_some(known)
        }
    }

    /// Its value in the context of a thread; 0 where it has none.
    ///
    /// # Safety
    /// The thread state is the calling thread's own, and `new` has found the offsets to be right.
    pub(crate) unsafe fn value(&self, thread: ThreadState) -> u64 {
        // SAFETY: see above: what the offsets lead to lives and does not change meanwhile.
        let load = |address| Some(unsafe { text::word(address) });
        self.find(thread, load).and_then(|found| integer(layout::chosen(), found.object, load)).unwrap_or(0)
    }

    /// Changes its value in the context of a thread where it lies, which takes a tenth of what PyContextVar_Set takes: that
    /// makes the way to the value anew. False, and nothing is done, where the value has a place in another context as well
    /// (they share what they have in common with those they were copied from), where somebody else holds it, or where it is
    /// not as long as the new one.
    ///
    /// Nobody can tell this from a value that was set: an integer with one reference is known to its tree alone, and to
    /// CPython's cache of the variable, which keeps its address.
    ///
    /// # Safety
    /// The GIL is held, the thread state is the calling thread's own, `new` has found the offsets to be right, and all
    /// values of the variable were made for it.
    pub(crate) unsafe fn change(&self, thread: ThreadState, value: u64) -> bool {
        let layout = layout::chosen();
        // SAFETY: as in `value`.
        let load = |address| Some(unsafe { text::word(address) });
        let Some(found) = self.find(thread, load).filter(|found| found.is_sole) else { return false };
        let (low, high) = (value & ((1 << DIGIT_BITS) - 1), value >> DIGIT_BITS);
        if integer_digits(layout, found.object, load) != Some(2) || high == 0 || high >> DIGIT_BITS != 0 {
            return false;
        }
        // SAFETY: both digits of an integer, which start at a multiple of 8 bytes; written at once, since a signal's handler
        // may read them in between.
        unsafe { ((found.object + INTEGER_DIGITS) as *mut u64).write(low | high << 32) };
        true
    }

    fn find(&self, thread: ThreadState, load: impl Fn(usize) -> Option<usize>) -> Option<Found> {
        let layout = layout::chosen();
        let context = load(thread as usize + layout.thread_context).filter(|context| *context != 0)?;
        let tree = load(context + CONTEXT_VALUES)?;
        let mut node = load(tree + TREE_ROOT)?;
        let mut is_sole = load(tree + REFERENCES)? == 1;
        for level in 0..LEVELS {
            is_sole &= load(node + REFERENCES)? == 1;
            let part = self.hash.checked_shr(level * LEVEL_BITS).unwrap_or(0) & 0x1F;
            let name = load(load(node + TYPE)? + TYPE_NAME)?;
            // Names of types are longer than the word that is read.
            match load(name + TELLING)?.to_le_bytes()[0] {
                b'b' => {
                    let bitmap = load(node + BITMAP)? as u32;
                    if bitmap & 1 << part == 0 {
                        return None;
                    }
                    let entry = node + BITMAP_ENTRIES + 16 * (bitmap & ((1 << part) - 1)).count_ones() as usize;
                    let (key, value) = (load(entry)?, load(entry + 8)?);
                    match key {
                        // A deeper node.
                        0 => node = value,
                        key if key == self.address => {
                            is_sole &= load(value + REFERENCES)? == 1;
                            return Some(Found { object: value, is_sole });
                        }
                        _ => return None,
                    }
                }
                b'a' => node = load(node + ARRAY_ENTRIES + 8 * part as usize)?,
                b'c' => {
                    // Key and value in turn; more than a few that share all bits of their hashes there never are.
                    let entries = (load(node + COLLISION_SIZE)? / 2).min(16);
                    let at = |index: usize| node + COLLISION_ENTRIES + 16 * index;
                    let index = (0..entries).find(|index| load(at(*index)) == Some(self.address))?;
                    let value = load(at(index) + 8)?;
                    is_sole &= load(value + REFERENCES)? == 1;
                    return Some(Found { object: value, is_sole });
                }
                _ => return None,
            }
            if node == 0 {
                return None;
            }
        }
        None
    }
}

/// The value of an integer below 2^60; 0 for others. CPython's own function takes 200 instructions for what does not fit
/// into one digit.
///
/// # Safety
/// The object is an integer that lives.
pub(crate) unsafe fn unsigned(object: Object) -> u64 {
    // SAFETY: the caller's promise.
    integer(layout::chosen(), object as usize, |address| Some(unsafe { text::word(address) })).unwrap_or(0)
}

/// How many digits an integer has that is not negative.
fn integer_digits(layout: &Layout, object: usize, load: impl Fn(usize) -> Option<usize>) -> Option<usize> {
    let size = load(object + INTEGER_SIZE)?;
    Some(if layout.minor >= 12 { size >> 3 } else { size })
}

/// The value of an integer of two digits at most.
fn integer(layout: &Layout, object: usize, load: impl Fn(usize) -> Option<usize>) -> Option<u64> {
    let digits = load(object + INTEGER_DIGITS)? as u64;
    let (low, high) = (digits & 0xFFFF_FFFF, digits >> 32);
    match integer_digits(layout, object, load)? {
        0 => Some(0),
        1 => Some(low),
        2 => Some(low | high << DIGIT_BITS),
        _ => None,
    }
}
