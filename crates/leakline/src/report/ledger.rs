//! Turns the workers' ledgers into one, and that into three lines for a terminal.
use std::fmt::Write;

use serde::Serialize;

use super::text::size;
use crate::analyze::evidence::{self, Kept};

/// Where resident memory is, bytes of resident pages.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ledger {
    /// The resident set that is split here, as the kernel counts it, of all processes that were looked at.
    pub resident: u64,
    /// When the last of them was looked at, seconds since the Unix epoch.
    pub time: f64,
    /// Small Python objects.
    pub python_used: u64,
    /// What pymalloc keeps for more of them.
    pub python_free: u64,
    /// Blocks of malloc's.
    pub native_used: u64,
    /// What malloc keeps for more of them.
    pub native_free: u64,
    /// Mapped directly, by libraries or by allocators that are not known.
    pub mapped: u64,
    /// Stacks.
    pub stacks: u64,
    /// Programs and libraries, with their data.
    pub files: u64,
    /// Shared with other processes.
    pub shared: u64,
    /// leakline's own.
    pub agent: u64,
    /// What the sum of these misses of `resident`, or has too much.
    pub residual: i64,
    /// malloc's arenas, of which there is one for each few threads.
    pub arenas: Vec<Kept>,
    /// See [`evidence::Ledger::trim_would_return`]; the report has it beside.
    #[serde(skip)]
    pub trim_would_return: u64,
}

/// Free and directly mapped memory is shown where it is at least this share of what is resident.
const WORTH_A_LOOK: f64 = 0.25;
/// And so many bytes.
const WORTH_BYTES: u64 = 16 << 20;

impl Ledger {
    /// The sum of the workers' ledgers; `None` where there are none.
    pub fn sum<'a>(ledgers: impl Iterator<Item = &'a evidence::Ledger>) -> Option<Self> {
        let mut sum = None;
        for one in ledgers {
            let sum = sum.get_or_insert_with(Self::default);
            let native = one.native();
            sum.time = sum.time.max(one.time);
            sum.residual += one.residual();
            sum.arenas.extend(&one.arenas);
            for (sum, bytes) in [
                (&mut sum.resident, one.resident),
                (&mut sum.python_used, one.python.used),
                (&mut sum.python_free, one.python.free),
                (&mut sum.native_used, native.used),
                (&mut sum.native_free, native.free),
                (&mut sum.mapped, one.mapped),
                (&mut sum.stacks, one.stacks),
                (&mut sum.files, one.files),
                (&mut sum.shared, one.shared),
                (&mut sum.agent, one.agent),
                (&mut sum.trim_would_return, one.trim_would_return),
            ] {
                *sum += bytes;
            }
        }
        sum
    }

    /// What is in use, what is kept free, and what else there is; `None` where most is in use.
    pub(super) fn text(&self) -> Option<String> {
        let unexplained = self.python_free + self.native_free + self.mapped;
        if unexplained < WORTH_BYTES || (unexplained as f64) < self.resident as f64 * WORTH_A_LOOK {
            return None;
        }
        let size = |bytes: u64| size(bytes as f64);
        let mut text = String::new();
        let mut row = |name: &str, used: u64, free: u64, what: &str| {
            writeln!(text, "  {name:<8} {:>9} in use {:>9} free   {what}", size(used), size(free)).is_ok()
        };
        let arenas = match self.arenas.len() {
            1 => "1 arena".to_owned(),
            arenas => format!("{arenas} arenas"),
        };
        let trim = size(self.trim_would_return);
        let native = format!("malloc: {arenas}; malloc_trim(0) would return {trim}");
        row("python", self.python_used, self.python_free, "small objects");
        row("native", self.native_used, self.native_free, &native);
        let others = [
            ("mapped directly", self.mapped),
            ("programs and libraries", self.files),
            ("stacks", self.stacks),
            ("shared", self.shared),
            ("leakline's own", self.agent),
            ("not accounted for", self.residual.unsigned_abs()),
        ];
        let others: Vec<String> = others
            .into_iter()
            .filter(|(_, bytes)| *bytes >= WORTH_BYTES / 16)
            .map(|(what, bytes)| format!("{} {what}", size(bytes)))
            .collect();
        let rest = if others.is_empty() { String::new() } else { format!("  other    {}\n", others.join(", ")) };
        Some(text + &rest)
    }
}
