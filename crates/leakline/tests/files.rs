//! The command's readers on files that were cut, flipped, invented: they refuse or read, and never panic. What is asked of
//! them stands in `exercise.rs`; fuzz targets in `fuzz/` ask the same of whatever libFuzzer comes up with. (Tables and heap
//! snapshots are leakline-table's: its `tests/hostile` and `tests/heap.rs`.)
#[path = "files/exercise.rs"]
mod exercise;
mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fastrand::Rng;
use leakline::runs::Runs;
use leakline::target::memory;
use object::Object;

/// What a reader may take for a number, a string, an end.
const WORDS: [&[u8]; 14] = [
    b"-1",
    b"18446744073709551615",
    b"99999999999999999999999",
    b"1e999",
    b"0.0",
    b"null",
    b"\"",
    b"{",
    b"]",
    b"\\u0000",
    b"\xff\xfe",
    b"/dev/zero",
    b"\0",
    b"..",
];

/// Damages a file the same way at each run: bytes, words and pieces of it that are changed, doubled, cut off.
fn damaged(genuine: &[u8], random: &mut Rng) -> Vec<u8> {
    let mut bytes = genuine.to_vec();
    for _ in 0..=random.usize(..4) {
        let at = random.usize(..=bytes.len());
        let end = (at + random.usize(..=8)).min(bytes.len());
        match random.u8(..8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..end, WORDS[random.usize(..WORDS.len())].iter().copied())),
            2 => drop(bytes.splice(at..at, bytes[at / 2..at].to_vec())),
            3 => drop(bytes.drain(at..end)),
            4 => bytes[at..end].fill(0xff),
            5 => bytes[at..end].fill(0),
            _ => bytes[at..end].iter_mut().take(1).for_each(|byte| *byte ^= 1 << random.u8(..8)),
        }
    }
    bytes
}

/// The genuine file is read; of the damaged ones some are and some are not.
fn torture(genuine: &[u8], rounds: u32, read: impl Fn(&[u8]) -> bool) {
    assert!(read(genuine), "what is whole is read");
    let mut random = Rng::with_seed(7);
    let taken = (0..rounds).filter(|_| read(&damaged(genuine, &mut random))).count();
    assert!(taken > 0 && taken < rounds as usize, "both ways must be tried: {taken} of {rounds} read");
}

/// A folder as runs have it.
fn private(name: &str) -> PathBuf {
    let folder = harness::folder(name).join("run-1-1");
    fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
    folder
}

fn remove(folder: &Path) {
    fs::remove_dir_all(folder.parent().unwrap()).unwrap();
}

#[test]
fn records_of_runs() {
    let folder = private("records");
    let run =
        Runs::create(&folder).unwrap().begin(vec!["gunicorn".into(), "app:\u{e4}".into()], Some(1 << 30)).unwrap();
    let genuine = fs::read(run.folder.join("run.json")).unwrap();
    fs::remove_dir_all(&run.folder).unwrap();
    torture(&genuine, 1500, |bytes| exercise::record(&folder, bytes));
    remove(&folder);
}

#[test]
fn looks_at_memory() {
    let folder = private("looks");
    // A test's own process has a heap and mappings enough; a control group is not everywhere.
    let mut look = memory::look(std::process::id(), 11).expect("it may look at itself");
    look.group = Some(memory::Group { counter: "/sys/fs/cgroup/memory.events".into(), kills: 1, kills_at_end: None });
    let genuine = serde_json::to_vec(&look).unwrap();
    torture(&genuine, 800, |bytes| exercise::look(&folder, bytes));
    // What is no counter is neither waited for nor read for ever.
    let pipe = folder.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for counter in [Path::new("/dev/zero"), &pipe] {
        look.group.as_mut().unwrap().counter = counter.to_owned();
        assert_eq!(look.group.as_ref().unwrap().kills_since(), None);
        assert!(exercise::look(&folder, &serde_json::to_vec(&look).unwrap()));
    }
    remove(&folder);
}

#[test]
fn plans_of_traffic() {
    let genuine = br#"
        total = 20000
        rate = 500
        concurrency = 4
        [[route]]
        path = "/tickets/{number}"
        weight = 8
        parameters = { number = "1..100000" }
        [[route]]
        method = "POST"
        path = "/search?q={word}"
        parameters = { word = "apple,pear,plum" }
        [[route]]
        path = "/export"
        client = { hang-up = 10 }
        [[route]]
        path = "/object"
        client = { ranges = { bytes = 1000, at_once = 3 } }
    "#;
    torture(genuine, 2000, exercise::plan);
}

/// With debug information, compressed; and stripped of it, with the name of the file that has it.
#[test]
fn libraries() {
    let folder = private("libraries");
    let at = |name: &str| folder.join(name);
    fs::write(
        at("library.c"),
        "#include <stdlib.h>\nstatic inline int inner(int x) { return x * rand(); }\n\
         void *outer(int x) { return malloc(inner(x) + inner(x + 1)); }\n",
    )
    .unwrap();
    let done = |command: &mut Command| assert!(command.current_dir(&folder).status().unwrap().success(), "{command:?}");
    done(Command::new("cc").args("-g -O1 -gz=zlib -shared -fPIC -Wl,--build-id=sha1 -o whole.so library.c".split(' ')));
    done(Command::new("objcopy").args(["--only-keep-debug", "whole.so", "whole.debug"]));
    done(Command::new("objcopy").args(["--strip-all", "--add-gnu-debuglink=whole.debug", "whole.so", "linked.so"]));
    for name in ["whole.so", "linked.so"] {
        let genuine = fs::read(at(name)).unwrap();
        let build_id = object::File::parse(&*genuine).unwrap().build_id().unwrap().unwrap().to_vec();
        torture(&genuine, 150, |bytes| exercise::library(&at("damaged.so"), &build_id, bytes));
    }
    remove(&folder);
}

#[test]
fn maps_of_processes() {
    let genuine = fs::read("/proc/self/maps").unwrap();
    torture(&genuine, 400, exercise::maps);
    // Files that are called as System V's shared memory is, or by no letters at all, and that memory itself.
    for path in ["/SYSV", "/SYSV/bin/cp", "/SYSV0000\u{e4}000", "/SYSV0000abcd (deleted)", "/srv/a /SYSV"] {
        let line = format!("7f0000000000-7f0000001000 r--p 00000000 fe:00 7      {path}\n");
        assert!(exercise::maps(&[line.as_bytes(), &genuine].concat()), "{path}");
    }
    assert!(exercise::maps(
        &[b"7f0000000000-7f0000001000 r--p 00000000 fe:00 7      /srv/\xff\n", &genuine[..]].concat()
    ));
}

/// Each encoding is tried by what the others would write, and by what nobody would.
#[test]
fn line_tables() {
    let mut random = Rng::with_seed(7);
    let mut found = BTreeMap::from([(false, 0), (true, 0)]);
    for _ in 0..20_000 {
        let bytes: Vec<u8> =
            (0..random.usize(..40)).map(|_| if random.bool() { random.u8(..8) } else { random.u8(..) }).collect();
        *found.get_mut(&exercise::lines(&bytes)).unwrap() += 1;
    }
    assert!(found.values().all(|times| *times > 100), "both ways must be tried: {found:?}");
}
