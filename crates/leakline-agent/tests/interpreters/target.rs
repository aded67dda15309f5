//! Runs programs under the agent, each with a folder of its own for tables, and reads what they left there.

use leakline_table::reader::Snapshot;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// The agent as released servers get it, built anew where a source is newer.
pub fn agent() -> PathBuf {
    static BUILT: Once = Once::new();
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo's folder for tests lies in target");
    let agent = target.join("agent/libleakline_agent.so");
    BUILT.call_once(|| {
        let sources = ["leakline-agent/src", "leakline-agent/shim", "leakline-table/src"];
        let newest = sources.iter().map(|folder| newest(&root.join("crates").join(folder))).max();
        if agent.metadata().and_then(|file| file.modified()).ok() > newest {
            return;
        }
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "leakline-agent", "--profile", "agent", "--target-dir"]).arg(target);
        assert!(build.current_dir(root).status().unwrap().success(), "the agent can't be built");
    });
    agent
}

/// When a file below the folder was changed last.
fn newest(folder: &Path) -> SystemTime {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let changed = |path: PathBuf| match path.is_dir() {
        true => newest(&path),
        false => path.metadata().unwrap().modified().unwrap(),
    };
    entries.map(changed).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A file of this test's folder.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interpreters").join(name)
}

/// A folder for tables, deleted at the end of a test that did not fail.
pub struct Folder(pub PathBuf);

impl Folder {
    /// A new one, whose name is not in ASCII.
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("größe-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// The tables in it, each with its file's name, ordered by process id.
    pub fn tables(&self) -> Vec<Snapshot> {
        let files = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        let tables = files.filter(|path| path.extension().is_some_and(|extension| extension == "leakline"));
        let mut tables: Vec<Snapshot> = tables
            .map(|path| {
                let table = Snapshot::read(&fs::read(&path).unwrap()).unwrap();
                let named = format!("{}-{}.leakline", table.header.pid, table.header.process_start_ticks);
                assert_eq!(path.file_name().unwrap().to_str(), Some(named.as_str()));
                assert_eq!(table.damaged_records, 0);
                table
            })
            .collect();
        tables.sort_by_key(|table| table.header.pid);
        tables
    }

    /// The only table in it.
    pub fn table(&self) -> Snapshot {
        let mut tables = self.tables();
        assert_eq!(tables.len(), 1, "one process should have left one table");
        tables.remove(0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A program that will run under the agent, which is to put its tables at `tables`.
pub fn under_agent(program: impl AsRef<Path>, tables: &Path) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env("LD_PRELOAD", agent()).env("LEAKLINE_TABLES", tables).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env_remove("PYTHONMALLOC").env_remove("LEAKLINE_INTERVAL").env_remove("LEAKLINE_REFUSED");
    // A program that hangs is ended by the kernel, so that its test fails instead of hanging, too. Never a measure.
    // SAFETY: alarm is a system call; the alarm outlives exec.
    unsafe {
        command.pre_exec(|| {
            libc::alarm(300);
            Ok(())
        })
    };
    command
}

/// Runs a program to its end. It must end well and say nothing on stderr. Returns what it said, `NAME NUMBER` a line.
pub fn said(command: &mut Command) -> Vec<(String, f64)> {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{command:?}: {}\n{errors}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let (name, number) = line.split_once(' ').unwrap_or_else(|| panic!("{command:?} said {line:?}"));
        (name.to_owned(), number.parse().unwrap())
    };
    text.lines().map(line).collect()
}

/// What is live of one function's allocations.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Estimated bytes.
    pub bytes: f64,
    /// The estimate's variance: of each sample w² (1 - p), where p = z / w is the chance that it had, z its bytes and w
    /// its weight (Horvitz and Thompson 1952).
    pub variance: f64,
    /// Bytes by the offset of the instruction that allocated.
    pub instructions: BTreeMap<u32, f64>,
}

/// Since 3.10 pymalloc finds its arenas by a radix tree, whose nodes it takes from malloc: in 3.10 one of 256 entries of 8
/// bytes for every 256 MiB of addresses, later one of 16,384 for every 16 GiB (`arena_map_bot_t` in Objects/obmalloc.c).
/// Whoever needs the first arena in such a stretch allocates it, which address space randomisation lets happen now and
/// then.
const RADIX_NODES: [u64; 2] = [2_048, 131_072];

/// What is live by function of one file, whichever of its functions is innermost on the stack, without pymalloc's own.
pub fn live_by_function(table: &Snapshot, file: &Path) -> BTreeMap<String, Live> {
    let mut functions = BTreeMap::<String, Live>::new();
    for sample in &table.samples {
        let Some(stack) = sample.stack.filter(|_| !RADIX_NODES.contains(&sample.record.size)) else { continue };
        let frames = table.stacks[stack as usize].iter().filter_map(|frame| frame.python());
        let mut named = frames.map(|(code, instruction)| (instruction, &table.codes[code as usize]));
        let Some((instruction, code)) = named.find(|(_, code)| Path::new(&code.file) == file) else { continue };
        let live = functions.entry(code.function.clone()).or_default();
        let (size, weight) = (sample.record.size as f64, sample.record.weight);
        live.bytes += weight;
        live.variance += weight * (weight - size).max(0.0);
        *live.instructions.entry(instruction.expect("a function that allocates has begun")).or_default() += weight;
    }
    functions
}
