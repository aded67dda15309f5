//! Native stacks of real processes: every function of malloc's family is seen and blamed on who called it, by name, as
//! far as the library's file allows; and the agent's unwinder agrees with libgcc's.
mod harness;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::victim::Victim;
use harness::{LEAKLINE, Tables};
use leakline::analyze::evidence::Worker;
use leakline::reader;
use leakline::runs::Runs;
use leakline_table::reader::{RawFrame, Snapshot};

/// A file of these tests.
fn fixture(name: &str) -> PathBuf {
    harness::root().join("crates/leakline/tests/native").join(name)
}

/// Runs a program of the system that must succeed.
fn must(program: &str, arguments: &[&Path]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a shared library of a source, with debug information and a build-id.
fn library(source: &str, folder: &Path) -> PathBuf {
    let library = folder.join(format!("lib{}.so", source.replace('.', "_")));
    let compiler = if source.ends_with(".cc") { "c++" } else { "cc" };
    let flags = ["-shared", "-fPIC", "-O2", "-g", "-fno-builtin", "-Wl,--build-id", "-o"];
    let arguments: Vec<PathBuf> =
        flags.map(PathBuf::from).into_iter().chain([library.clone(), fixture(source)]).collect();
    must(compiler, &arguments.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    library
}

/// Runs a script with each of its blocks sampled, behind the agent and what is preloaded behind that. Returns the bytes of
/// its table.
fn table(python: &Path, preloaded: &[&Path], arguments: &[String], folder: &Path) -> Vec<u8> {
    harness::build_agent();
    let agent = Path::new(LEAKLINE).ancestors().nth(2).unwrap().join("agent/libleakline_agent.so");
    let preload: Vec<&str> = [agent.as_path()].iter().chain(preloaded).map(|path| path.to_str().unwrap()).collect();
    let output = Command::new(python)
        .args(arguments)
        .env("LD_PRELOAD", preload.join(":"))
        .env("LEAKLINE_TABLES", folder)
        .env("LEAKLINE_INTERVAL", "1")
        .env("LEAKLINE_TABLE_BYTES", (128 << 20).to_string())
        .env("WITNESS", folder.join("witness"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{python:?}: {}\n{errors}", output.status);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let tables: Vec<PathBuf> = files.filter(|file| file.extension().is_some_and(|is| is == "leakline")).collect();
    assert_eq!(tables.len(), 1);
    let bytes = fs::read(&tables[0]).unwrap();
    fs::remove_file(&tables[0]).unwrap();
    bytes
}

/// Live bytes of the samples whose native stack passes through each function of a library.
fn live(worker: &Worker, library: &Path) -> BTreeMap<String, f64> {
    let mut bytes = BTreeMap::new();
    for sample in &worker.samples {
        let native = sample.stack.map_or(&[][..], |stack| &worker.natives[stack.0 as usize]);
        for frame in native.iter().filter(|frame| Path::new(&frame.library) == library) {
            *bytes.entry(frame.symbol.clone().unwrap_or_default()).or_default() += sample.weight;
        }
    }
    bytes
}

/// The build-id of a library, as a table has it.
fn build_id(table: &[u8], library: &Path) -> Vec<u8> {
    let modules = Snapshot::read(table).unwrap().modules;
    modules.into_iter().find(|module| Path::new(&module.path) == library).unwrap().build_id
}

/// A CPython with what a file requires; `None` where there is none, which is said.
fn any_python(requirements: &str) -> Option<PathBuf> {
    ["3.13", "3.11", "system"].iter().find_map(|version| harness::python(version, &fixture(requirements)))
}

#[test]
fn every_function_of_the_family_is_seen_and_named() {
    let Some(python) = any_python("none.txt") else { return };
    let folder = harness::folder("family");
    let (c, cpp) = (library("family.c", &folder), library("family.cc", &folder));
    let functions = [
        "by_malloc",
        "by_calloc",
        "by_realloc",
        "by_reallocarray",
        "by_aligned_alloc",
        "by_memalign",
        "by_valloc",
        "by_pvalloc",
        "by_posix_memalign",
        "by_strdup",
        "by_mmap",
        "by_mremap",
        "by_inlined",
    ];
    let of = |library: &Path, name: &str| format!("{}:{name}", library.display());
    let mut arguments = vec![fixture("family.py").display().to_string(), of(&cpp, "by_new")];
    arguments.extend(["given_back", "unmapped"].map(|name| of(&c, name)));
    arguments.extend(functions.iter().map(|name| of(&c, name)));
    let bytes = table(&python, &[], &arguments, &folder);
    let worker = reader::decode(&bytes, Path::new("/")).unwrap();

    let found = live(&worker, &c);
    for name in functions {
        assert_eq!(found.get(name), Some(&(64.0 * 4096.0)), "{name}: {found:?}");
    }
    assert_eq!(found.get("inlined"), found.get("by_inlined"), "inlined functions are named, too");
    assert_eq!((found.get("given_back"), found.get("unmapped")), (None, None), "{found:?}");
    let found = live(&worker, &cpp);
    assert_eq!(found.get("shop::keep(unsigned long)"), Some(&(64.0 * 4096.0)), "C++ is demangled: {found:?}");

    // What was stripped off a library is found beside it, by the name that the library gives.
    let debug = PathBuf::from(format!("{}.debug", c.display()));
    must("objcopy", &[Path::new("--only-keep-debug"), &c, &debug]);
    must("strip", &[&c]);
    let link = PathBuf::from(format!("--add-gnu-debuglink={}", debug.display()));
    must("objcopy", &[&link, &c]);
    let found = live(&reader::decode(&bytes, Path::new("/")).unwrap(), &c);
    assert_eq!(found.get("inlined"), Some(&(64.0 * 4096.0)), "{found:?}");
    let away = folder.join("away.debug");
    fs::rename(&debug, &away).unwrap();
    let found = live(&reader::decode(&bytes, Path::new("/")).unwrap(), &c);
    assert_eq!((found.get("inlined"), found.get("by_inlined")), (None, Some(&(64.0 * 4096.0))), "{found:?}");

    // Another file under the same name is not believed, nor is one that is gone missed: the library and the offset stay.
    fs::copy(&cpp, &c).unwrap();
    let found = live(&reader::decode(&bytes, Path::new("/")).unwrap(), &c);
    assert_eq!(found.keys().collect::<Vec<_>>(), [""], "{found:?}");
    fs::remove_file(&c).unwrap();
    assert_eq!(live(&reader::decode(&bytes, Path::new("/")).unwrap(), &c), found);

    // Where its debug file is kept by build-id, as distributions do, names are known when the container with the library is
    // long gone.
    let [first, rest @ ..] = &build_id(&bytes, &c)[..] else { panic!("the library has a build-id") };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let kept = folder.join("usr/lib/debug/.build-id").join(hex(&[*first]));
    fs::create_dir_all(&kept).unwrap();
    fs::rename(&away, kept.join(hex(rest) + ".debug")).unwrap();
    let found = live(&reader::decode(&bytes, &folder).unwrap(), &c);
    for name in functions.iter().chain(&["inlined"]) {
        assert_eq!(found.get(*name), Some(&(64.0 * 4096.0)), "{name}: {found:?}");
    }
    fs::remove_dir_all(&folder).unwrap();
}

/// Allocators that users preload stand below the agent: it hands each call on to whoever would have got it without it.
#[test]
fn other_allocators_are_seen_as_glibcs_is() {
    let Some(python) = any_python("allocators/requirements.txt") else { return };
    let folder = harness::folder("allocators");
    let family = library("family.c", &folder);
    // pvalloc is glibc's own: not every allocator has it, and a block of another's must not be freed by this one.
    let functions = ["by_malloc", "by_calloc", "by_realloc", "by_aligned_alloc", "by_posix_memalign", "by_strdup"];
    let words = ["given_back"].iter().chain(&functions).map(|name| format!("{}:{name}", family.display()));
    let arguments: Vec<String> = [fixture("family.py").display().to_string()].into_iter().chain(words).collect();
    for name in ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"] {
        let allocator = Path::new("/usr/lib/x86_64-linux-gnu").join(name);
        let bytes = table(&python, &[&allocator], &arguments, &folder);
        let worker = reader::decode(&bytes, Path::new("/")).unwrap();
        let found = live(&worker, &family);
        for function in functions {
            assert_eq!(found.get(function), Some(&(64.0 * 4096.0)), "{name}: {found:?}");
        }
        assert_eq!(found.get("given_back"), None, "{name}");
    }
    fs::remove_dir_all(&folder).unwrap();
}

/// Where nobody wants native code on stacks, the lines of Python are the same, whether leakline starts the process or comes
/// later.
#[test]
fn without_native_code_the_lines_are_the_same() {
    let Some(python) = any_python("none.txt") else { return };
    let folder = harness::folder("lines-only");
    let library = library("family.c", &folder);
    let script = fixture("family.py");
    let functions = ["by_malloc", "by_calloc", "by_realloc", "by_mmap"];
    let words = functions.map(|name| format!("{}:{name}", library.display()));
    let bytes = functions.len() as f64 * 64.0 * 4096.0;
    // What CPython keeps for the calls themselves is little beside.
    let expected = bytes..bytes * 1.02;
    let check = |tables: &Tables, way: &str, is_native: bool| {
        let run = Runs::open(&tables.0).and_then(|runs| runs.latest()).unwrap();
        let worker = reader::worker(&run.tables[0], None).unwrap();
        let of_line = worker.samples.iter().filter(|sample| {
            let stack = sample.stack.map_or(&[][..], |stack| &worker.stacks[stack.0 as usize]);
            stack.first().is_some_and(|frame| Path::new(&frame.file) == script && frame.function == "call_all")
        });
        let of_line: f64 = of_line.map(|sample| sample.weight).sum();
        assert!(expected.contains(&of_line), "{way}: {of_line} bytes are the line's, and not {expected:?}");
        let has_frames = worker.natives.iter().any(|native| !native.is_empty());
        assert_eq!((worker.walks_native, has_frames), (is_native, is_native), "{way}");
    };

    for (option, is_native) in [(&["--no-native"][..], false), (&[], true)] {
        let tables = Tables::new("lines-only");
        let mut command = tables.leakline(&["run", "--exact"]);
        command.args(option).arg("--").arg(&python).arg(&script).args(&words);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        check(&tables, "run", is_native);
    }

    let tables = Tables::new("lines-only");
    let waits = "import runpy, sys; print('ready'); input(); print('in'); input(); runpy.run_path(sys.argv.pop(1)); print('done'); input()";
    let arguments: Vec<&OsStr> = [script.as_os_str()].into_iter().chain(words.iter().map(OsStr::new)).collect();
    let mut victim = Victim::python(&python, waits, &arguments);
    let attached = tables.output(&["attach", "--exact", "--no-native", &victim.pid().to_string()]);
    assert!(attached.status.success(), "{}", String::from_utf8_lossy(&attached.stderr));
    // The first line lets the agent in, the second one the script.
    for _ in 0..2 {
        victim.say("");
        victim.line();
    }
    check(&tables, "attach", false);
    drop(victim);
    fs::remove_dir_all(&folder).unwrap();
}

/// Both unwinders follow the same tables, so they agree to the last frame, or one of them is wrong: no error is allowed.
#[test]
fn the_unwinder_agrees_with_libgccs() {
    for version in ["3.9", "3.11", "3.13"] {
        let Some(python) = harness::python(version, &fixture("witness.txt")) else { continue };
        let folder = harness::folder("witness");
        let witness = library("witness.c", &folder);
        let arguments = [fixture("witness.py"), witness.clone()].map(|word| word.display().to_string());
        let bytes = table(&python, &[&witness], &arguments, &folder);
        // By address alone: names are of no interest here.
        let snapshot = Snapshot::read(&bytes).unwrap();
        let seen = fs::read_to_string(folder.join("witness")).unwrap();
        let mut by_address: HashMap<u64, Vec<&str>> = HashMap::new();
        for line in seen.lines() {
            let mut words = line.split(' ');
            let address = u64::from_str_radix(words.next().unwrap(), 16).unwrap();
            by_address.insert(address, words.collect());
        }
        let mut compared = BTreeMap::<String, usize>::new();
        for sample in &snapshot.samples {
            let (Some(witnessed), Some(stack)) = (by_address.get(&sample.record.address), sample.stack) else {
                continue;
            };
            if witnessed.is_empty() {
                continue; // By another function than malloc.
            }
            let frames = snapshot.stacks[stack as usize].iter().filter_map(|frame| match *frame {
                RawFrame::Native { module, offset } => {
                    Some(format!("{}+{offset:x}", snapshot.modules[module as usize].path))
                }
                RawFrame::Python { .. } => None,
            });
            let frames: Vec<String> = frames.collect();
            let Some(innermost) = frames.first() else { continue };
            // The witness and the agent's hooks stand between the allocators and whoever asked.
            let is_ours = |frame: &str| frame.contains("libwitness_c.so") || frame.contains("libleakline_agent");
            let asked: Vec<&str> = witnessed.iter().copied().filter(|frame| !is_ours(frame)).collect();
            assert!(asked.len() >= frames.len(), "{version}: {frames:?}\n{asked:?}");
            assert_eq!(frames, asked[..frames.len()], "{version}");
            let library = frames.iter().find(|frame| !frame.contains("libc.so")).unwrap_or(innermost);
            *compared.entry(library.rsplit(['/', '+']).nth(1).unwrap().to_owned()).or_default() += 1;
        }
        let of = |library: &str| -> usize {
            compared.iter().filter(|(name, _)| name.contains(library)).map(|(_, count)| count).sum()
        };
        assert!(of("_multiarray_umath") > 30 && of("etree") > 30 && of("_imaging") > 30, "{version}: {compared:?}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
