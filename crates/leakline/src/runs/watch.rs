//! Looks at the memory of a running server's processes, and writes down where it was, so that this is still known when
//! one of them has been killed.
//!
//! ```text
//! <run>/4712-815.leakline      the process's table, which its agent writes
//! <run>/4712-815.look          the last look at it, which we write: JSON
//! ```
//! The agent could look from inside. But malloc tells its figures only to whoever walks its free lists under its locks,
//! while the server waits; from outside the server does not notice.
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Run, TableFile, write_whole};
use crate::failure::Failure;
use crate::reader;
use crate::target::limit;
use crate::target::memory::Look;

/// The least time between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// Looks may take one part in so many of the time: half a percent of one core.
const SHARE: u32 = 200;
/// The time between two visits of the run's folder for what can be deleted.
const BETWEEN_UPKEEPS: Duration = Duration::from_secs(30);

/// Looks at the processes of a run.
#[derive(Debug)]
pub struct Watch {
    folder: PathBuf,
    upkeep: Instant,
}

impl Watch {
    /// Watches a run that begins now.
    pub fn new(run: &Run) -> Self {
        Self { folder: run.folder.clone(), upkeep: Instant::now() + BETWEEN_UPKEEPS }
    }

    /// Looks at each process once, and at what has become of those that ended. How long to wait until the next time.
    pub fn look(&mut self) -> Duration {
        let start = Instant::now();
        // A run whose folder has been deleted is not worth a word: the server goes on.
        let Ok(run) = Run::open(&self.folder) else { return BETWEEN_UPKEEPS };
        if start >= self.upkeep {
            run.keep_latest();
            self.upkeep = start + BETWEEN_UPKEEPS;
        }
        for table in &run.tables {
            let look = match table.process.is_alive() {
                true => reader::header(&table.path).ok().and_then(|header| reader::look(table, &header)),
                false => table.last_look().and_then(after_end),
            };
            // Without room on the disk the last look stays.
            let _ = look.map(|look| table.write_look(&look));
        }
        BETWEEN_LOOKS.max(start.elapsed() * SHARE)
    }
}

/// The last look with the count of those that the kernel has killed since, if that was not noted yet.
fn after_end(mut look: Look) -> Option<Look> {
    let group = look.group.as_mut().filter(|group| group.kills_at_end.is_none())?;
    group.kills_at_end = Some(limit::oom_kills(&group.counter)?);
    Some(look)
}

impl TableFile {
    pub(super) fn look_path(&self) -> PathBuf {
        self.path.with_extension("look")
    }

    fn write_look(&self, look: &Look) -> Result<(), Failure> {
        let text = serde_json::to_vec(look).expect("strings and numbers always have a JSON form");
        write_whole(&self.look_path(), &text)
    }

    /// The last look at the process while it ran, if there was one.
    pub fn last_look(&self) -> Option<Look> {
        let look: Look = serde_json::from_reader(reader::open(&self.look_path()).ok()?).ok()?;
        look.is_sound().then_some(look)
    }
}
