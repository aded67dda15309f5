//! What `leakline run` asked for, from the environment, or `leakline attach`, from what it wrote into our memory.
//!
//! ```text
//! LEAKLINE_TABLES       folder for the tables; without it the agent stays idle
//! LEAKLINE_TABLE_BYTES  bytes of a table
//! LEAKLINE_BUDGET       share of one core that sampling may take, such as 0.003
//! LEAKLINE_INTERVAL     bytes from one sample to the next on average, whatever the budget; 1: sample every block
//! LEAKLINE_NATIVE       0: leave native code out of stacks
//! ```

use leakline_table::attachment::Attachment;
use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// The wishes of whoever started the process, or attached to it.
pub(crate) struct Config {
    /// The folder for the tables, absolute.
    pub(crate) tables: &'static CStr,
    /// Bytes of a table.
    pub(crate) table_bytes: usize,
    /// Share of one core.
    pub(crate) budget: f64,
    /// Bytes from one sample to the next on average, whatever the budget; 1 samples every block, 0 keeps to the budget.
    pub(crate) interval: f64,
    /// Walk native code, too.
    pub(crate) native: bool,
}

static TABLES: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());
static TABLE_BYTES: AtomicUsize = AtomicUsize::new(0);
static BUDGET: AtomicU64 = AtomicU64::new(0);
static INTERVAL: AtomicU64 = AtomicU64::new(0);
static NATIVE: AtomicBool = AtomicBool::new(false);

/// Reads the environment. False where the process was not started by leakline.
pub(crate) fn load() -> bool {
    let Some(tables) = variable(c"LEAKLINE_TABLES") else { return false };
    let number = |name| variable(name).and_then(|value| value.to_str().ok());
    set(&Config {
        tables,
        table_bytes: number(c"LEAKLINE_TABLE_BYTES").and_then(|text| text.parse().ok()).unwrap_or(32 << 20),
        budget: number(c"LEAKLINE_BUDGET").and_then(|text| text.parse().ok()).unwrap_or(0.003),
        interval: number(c"LEAKLINE_INTERVAL").and_then(|text| text.parse().ok()).unwrap_or(0.0),
        native: number(c"LEAKLINE_NATIVE") != Some("0"),
    });
    true
}

/// Reads what `leakline attach` has written.
pub(crate) fn load_attached(attachment: &'static Attachment) {
    // SAFETY: the command wrote a text that ends with NUL, and writes again only when this process records no more.
    let tables = unsafe { CStr::from_ptr(attachment.tables.get().cast()) };
    set(&Config {
        tables,
        table_bytes: attachment.table_bytes.load(Ordering::Relaxed) as usize,
        budget: f64::from_bits(attachment.budget.load(Ordering::Relaxed)),
        interval: f64::from(u8::from(attachment.exact.load(Ordering::Relaxed) == 1)),
        native: attachment.native.load(Ordering::Relaxed) == 1,
    });
}

fn set(config: &Config) {
    TABLE_BYTES.store(config.table_bytes, Ordering::Relaxed);
    BUDGET.store(config.budget.to_bits(), Ordering::Relaxed);
    INTERVAL.store(config.interval.to_bits(), Ordering::Relaxed);
    NATIVE.store(config.native, Ordering::Relaxed);
    TABLES.store(config.tables.as_ptr().cast_mut(), Ordering::Release);
}

/// The configuration; `None` before it is loaded.
pub(crate) fn get() -> Option<Config> {
    let tables = TABLES.load(Ordering::Acquire);
    // SAFETY: a C string that is never freed, see `set`.
    let tables = (!tables.is_null()).then(|| unsafe { CStr::from_ptr(tables) })?;
    Some(Config {
        tables,
        table_bytes: TABLE_BYTES.load(Ordering::Relaxed),
        budget: f64::from_bits(BUDGET.load(Ordering::Relaxed)),
        interval: f64::from_bits(INTERVAL.load(Ordering::Relaxed)),
        native: NATIVE.load(Ordering::Relaxed),
    })
}

/// A variable of the environment, copied to memory that nobody frees: the program may change its environment.
fn variable(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: the loader runs constructors before the program can change its environment; strdup's copy is ours.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        (!value.is_null() && *value != 0).then(|| CStr::from_ptr(libc::strdup(value)))
    }
}
