//! Looks at the memory of a running server's processes, and writes down where it was, so that this is still known when
//! one of them has been killed.
//!
//! ```text
//! <run>/4712-815.leakline      the process's table, which its agent writes
//! <run>/4712-815.look          the last look at it, which we write: JSON
//! ```
//! The agent could look from inside. But malloc tells its figures only to whoever walks its free lists under its locks,
//! while the server waits; from outside the server does not notice.
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
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
/// A look is no longer, bytes: it has a number for each MiB of sparse memory.
const MOST_LOOK: u64 = 64 << 20;
/// The time between two visits of the run's folder for what can be deleted.
const BETWEEN_UPKEEPS: Duration = Duration::from_secs(30);

/// Looks at the processes of a run, in a thread of its own, so that nobody who waits for a server waits for a look.
#[derive(Debug)]
pub struct Watch {
    run: PathBuf,
    looking: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Watch {
    /// Watches a run that begins now. Without room for a thread nothing is seen, and the server goes on.
    pub fn start(run: &Run) -> Self {
        let (stop, stopped) = mpsc::channel();
        let folder = run.folder.clone();
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(move || watch(&folder, &stopped));
        Self { run: run.folder.clone(), looking: thread.ok().map(|thread| (stop, thread)) }
    }

    /// Ends it, and notes what has become of the processes that ended meanwhile.
    pub fn end(self) {
        if let Some((stop, thread)) = self.looking {
            drop(stop);
            // A look that failed is as good as none.
            let _ = thread.join();
        }
        if let Ok(run) = Run::open(&self.run) {
            look(&run);
        }
    }
}

fn watch(folder: &Path, stopped: &Receiver<()>) {
    let mut upkeep = Instant::now() + BETWEEN_UPKEEPS;
    let mut pause = BETWEEN_LOOKS;
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        // A run whose folder has been deleted is not worth a word.
        let Ok(run) = Run::open(folder) else { return };
        pause = look(&run);
        if Instant::now() >= upkeep {
            run.keep_latest();
            upkeep = Instant::now() + BETWEEN_UPKEEPS;
        }
    }
}

/// Looks at each process once, and at what has become of those that ended; how long to wait before the next time.
pub fn look(run: &Run) -> Duration {
    let start = Instant::now();
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
        let file = reader::open(&self.look_path()).ok()?.take(MOST_LOOK);
        let look: Look = serde_json::from_reader(BufReader::new(file)).ok()?;
        look.is_sound().then_some(look)
    }
}
