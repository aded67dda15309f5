//! What `leakline run` asked for, from the environment.
//!
//! ```text
//! LEAKLINE_TABLES       folder for the tables; without it the agent stays idle
//! LEAKLINE_TABLE_BYTES  bytes of a table
//! LEAKLINE_BUDGET       share of one core that sampling may take, such as 0.005
//! LEAKLINE_EXACT        1: sample every block
//! ```

use std::ffi::CStr;
use std::sync::OnceLock;

/// The wishes of whoever started the process.
pub(crate) struct Config {
    /// The folder for the tables, absolute.
    pub(crate) tables: &'static CStr,
    /// Bytes of a table.
    pub(crate) table_bytes: usize,
    /// Share of one core.
    pub(crate) budget: f64,
    /// Sample every block.
    pub(crate) exact: bool,
}

static CONFIG: OnceLock<Config> = OnceLock::new();

/// Reads the environment. False where the process was not started by leakline.
pub(crate) fn load() -> bool {
    let Some(tables) = variable(c"LEAKLINE_TABLES") else { return false };
    let number = |name| variable(name).and_then(|value| value.to_str().ok());
    let config = Config {
        tables,
        table_bytes: number(c"LEAKLINE_TABLE_BYTES").and_then(|text| text.parse().ok()).unwrap_or(32 << 20),
        budget: number(c"LEAKLINE_BUDGET").and_then(|text| text.parse().ok()).unwrap_or(0.005),
        exact: number(c"LEAKLINE_EXACT") == Some("1"),
    };
    CONFIG.set(config).is_ok()
}

/// The configuration; `None` before [`load`].
pub(crate) fn get() -> Option<&'static Config> {
    CONFIG.get()
}

/// A variable of the environment, copied to memory that nobody frees: the program may change its environment.
fn variable(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: the loader runs constructors before the program can change its environment; strdup's copy is ours.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        (!value.is_null() && *value != 0).then(|| CStr::from_ptr(libc::strdup(value)))
    }
}
