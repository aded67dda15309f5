//! Texts that are looked up again and again, each made into a Python string once and for good.

use super::api::{Api, Object};
use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// A text, and the interned string, which makes looking it up a comparison of addresses.
pub(crate) struct Name {
    text: &'static CStr,
    interned: AtomicPtr<c_void>,
}

impl Name {
    pub(crate) const fn new(text: &'static CStr) -> Self {
        Self { text, interned: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Makes the strings.
    ///
    /// # Safety
    /// The GIL is held, no exception is set.
    pub(crate) unsafe fn intern(api: &Api, names: &[&Name]) -> Result<(), &'static str> {
        for name in names {
            // SAFETY: the GIL is held; the reference is kept for good.
            let interned = unsafe { (api.intern)(name.text.as_ptr()) };
            if interned.is_null() {
                // SAFETY: as above.
                unsafe { (api.err_clear)() };
                return Err("there is no memory for its names");
            }
            name.interned.store(interned, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The string, a borrowed reference; null before it was made.
    pub(crate) fn get(&self) -> Object {
        self.interned.load(Ordering::Relaxed)
    }
}

/// What a dict holds, a borrowed reference; null where it holds nothing, or is no dict.
///
/// # Safety
/// The GIL is held, no exception is set, none is afterwards.
pub(crate) unsafe fn item(api: &Api, dict: Object, key: &Name) -> Object {
    // SAFETY: the caller's promise; names live for good.
    unsafe {
        let found = (api.dict_item)(dict, key.get());
        if found.is_null() {
            api.clear_error();
        }
        found
    }
}

/// The text that a dict holds, empty where it holds none.
///
/// # Safety
/// As for `item`; the text lives as long as the dict holds it.
pub(crate) unsafe fn item_text<'a>(api: &Api, dict: Object, key: &Name) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe {
        let found = item(api, dict, key);
        if found.is_null() { &[] } else { super::install::utf8(api, found) }
    }
}
