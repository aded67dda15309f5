//! What a hostile target, or whoever may put files in its folder of tables, can do to the command: `docs/security.md` lists
//! it, and names these tests.
mod harness;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use harness::victim::{Victim, said};
use harness::{Tables, folder};
use leakline::runs::TableFile;
use leakline::symbols::native;
use leakline::target::process::Identity;
use leakline::target::snapshot;
use leakline_table::layout::{HEADER_BYTES, Header};
use leakline_table::reader::Module;
use serde_json::Value;

/// A server that is hostile in every name that it can choose: of its files, functions, routes, attributes and command line,
/// and of itself. It answers 300 requests, each of which leaves 50 kB behind, in a file that says to be a terabyte long.
const HOSTILE: &str = r#"
import ctypes, io, mmap, sys
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import make_server

ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\u2028\n"
# Its process is called so that whoever looks for the first bracket reads another state.
ctypes.CDLL(None).prctl(15, b"x) Z 1 1 (", 0, 0, 0)
# A library with a name to be printed.
with open("libjemalloc" + ESCAPE.replace("\n", "") + ".so", "wb+") as file:
    file.truncate(4096)
    library = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE)
# Memory that says to be a block of malloc's which goes on to the end of all addresses.
block = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 1 << 20, 4096):
    block[page:page + 16] = (0).to_bytes(8, "little") + (2**64 - 4096 | 2).to_bytes(8, "little")

source = "import sys\nthis = sys.modules['app' + ESCAPE]\ndef FUNCTION():\n    this.__dict__['kept' + ESCAPE].append(bytearray(50000))\n"
code = compile(source, "huge.py", "exec")
module = type(sys)("app" + ESCAPE)
module.__dict__["kept" + ESCAPE] = []
module.ESCAPE = ESCAPE
sys.modules["app" + ESCAPE] = module
renamed = [part.replace(co_name="keep" + ESCAPE, **({"co_qualname": "keep" + ESCAPE} if sys.version_info >= (3, 11) else {}))
           if hasattr(part, "co_code") else part for part in code.co_consts]
exec(code.replace(co_consts=tuple(renamed)), module.__dict__)
keep = module.__dict__.get("FUNCTION")

def app(environ, start_response):
    keep()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]

server = make_server("127.0.0.1", 0, app)
for _ in range(300):
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/leak" + ESCAPE, "SERVER_PROTOCOL": "HTTP/1.0"}
    SimpleHandler(io.BytesIO(), io.BytesIO(), io.StringIO(), environ).run(server.get_app())
print("ready", flush=True)
sys.stdin.read()
"#;

/// A child that ends with the test, whatever becomes of that.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // Its standard input ends, too: that ends the server.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Nothing in a text that a person sees does more than stand there.
fn is_harmless(text: &str) -> bool {
    text.chars().all(|letter| letter == '\n' || !letter.is_control() && !"\u{202e}\u{2028}".contains(letter))
}

#[test]
fn names_that_a_target_chooses_steer_no_terminal_and_lead_to_no_huge_file() {
    let tables = Tables::new("hostile");
    let at = folder("hostile-server");
    File::create(at.join("huge.py")).unwrap().set_len(1 << 40).unwrap();
    let mut run = tables.leakline(&["run", "--budget", "100", "--", "python3", "-c", HOSTILE, "\u{1b}[2J\u{202e}"]);
    let run = run.current_dir(&at).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut run = Ending(run.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(run.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");

    let launcher = run.0.id().to_string();
    let report = tables.output(&["report", "--json", &launcher]);
    let said = String::from_utf8_lossy(&report.stderr).into_owned();
    assert!(report.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let finding = &report["findings"][0];
    assert_eq!(finding["kind"], "leak", "{report:#}");
    // The hostile names got as far as here.
    for (name, part) in [
        ("route", &finding["route"]),
        ("function", &finding["application"]["function"]),
        ("command", &report["target"]["command"]),
    ] {
        let text = part.as_str().unwrap_or_else(|| panic!("{name} is missing: {finding:#}\n{said}"));
        assert!(text.contains("\\u{1b}") && is_harmless(text), "{name}: {text:?}");
    }
    let server = report["target"]["workers"][0]["pid"].to_string();
    for words in [&["report", &launcher][..], &["list"], &["heap", &launcher, "--despite-limits"], &["doctor", &server]]
    {
        let output = tables.output(words);
        for stream in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(stream);
            assert!(is_harmless(&text), "leakline {words:?} says {text:?}");
        }
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("\\u{1b}"), "leakline {words:?} shows none of the hostile names: {said}");
    }
    drop(run);
    fs::remove_dir_all(&at).unwrap();
}

#[test]
fn what_lies_in_a_folder_of_tables_and_is_no_file_is_not_waited_for() {
    let tables = Tables::new("no-files");
    let run = tables.with_table(b"");
    let table = run.join("1-1.leakline");
    let pipe = |path: &Path| {
        let _ = fs::remove_file(path);
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    };
    let linked = |path: &Path| {
        let _ = fs::remove_file(path);
        symlink("/dev/zero", path).unwrap();
    };
    for put in [&pipe as &dyn Fn(&Path), &linked] {
        for file in ["1-1.leakline", "1-1.look", "1-1.heap", "run.json"] {
            put(&run.join(file));
        }
        assert_eq!(tables.code(&["list"]), 0);
        assert_ne!(tables.code(&["report", run.to_str().unwrap()]), 0);
        assert_ne!(tables.code(&["heap", table.with_extension("heap").to_str().unwrap()]), 0);
    }
    // A link to a real table is no table either: its file may be anybody's.
    fs::remove_file(&table).unwrap();
    fs::write(tables.0.join("elsewhere"), [0; 100]).unwrap();
    symlink(tables.0.join("elsewhere"), &table).unwrap();
    let refused = tables.output(&["report", run.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("symbolic link"), "{said}");
}

/// The highest resident set of this process, bytes.
fn peak() -> u64 {
    Identity::of(std::process::id()).unwrap().resident().unwrap().peak
}

#[test]
fn a_file_that_says_to_be_a_terabyte_is_not_read() {
    let tables = Tables::new("sparse");
    let run = tables.with_table(b"LEAKLINE");
    let table = run.join("1-1.leakline");
    OpenOptions::new().write(true).open(&table).unwrap().set_len(1 << 40).unwrap();
    fs::write(run.join("run.json"), b"[").unwrap();
    for file in ["1-1.look", "run.json"] {
        let file = OpenOptions::new().create(true).append(true).open(run.join(file)).unwrap();
        file.set_len(1 << 40).unwrap();
    }
    let limited = |words: &[&str]| {
        // Half a GB of address space is more than enough for files that are refused.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 524288; exec \"$0\" \"$@\"", harness::LEAKLINE, "--dir"]);
        command.arg(&tables.0).args(words).output().unwrap()
    };
    let refused = limited(&["report", run.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(5), "{}", String::from_utf8_lossy(&refused.stderr));
    let listed = limited(&["list"]);
    assert_eq!(listed.status.code(), Some(0), "{}", String::from_utf8_lossy(&listed.stderr));
}

/// A file of ELF with one section of symbols of so many bytes, and one of debug information that says to be a terabyte
/// when it is unpacked.
fn elf(symbol_bytes: u64) -> Vec<u8> {
    let names = b"\0.symtab\0.debug_info\0.shstrtab\0";
    let sections = 64u64;
    let names_at = sections + 4 * 64;
    let debug_at = names_at + names.len() as u64;
    let symbols_at = (debug_at + 32).next_multiple_of(16);
    let mut file = Vec::new();
    let word = |file: &mut Vec<u8>, value: u64, bytes: usize| file.extend(&value.to_le_bytes()[..bytes]);
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for (value, bytes) in [(3, 2), (62, 2), (1, 4), (0, 8), (0, 8), (sections, 8), (0, 4), (64, 2), (56, 2), (0, 2)] {
        word(&mut file, value, bytes);
    }
    for (value, bytes) in [(64, 2), (4, 2), (3, 2)] {
        word(&mut file, value, bytes);
    }
    // name, type, flags (0x800: compressed), offset, bytes, link, bytes of an entry
    for (name, kind, flags, offset, bytes, link, entry) in [
        (0, 0, 0, 0, 0, 0, 0),
        (1, 2, 0, symbols_at, symbol_bytes, 3, 24),
        (9, 1, 0x800, debug_at, 32, 0, 0),
        (21, 3, 0, names_at, names.len() as u64, 0, 0),
    ] {
        for (value, width) in
            [(name, 4), (kind, 4), (flags, 8), (0, 8), (offset, 8), (bytes, 8), (link, 4), (0, 4), (1, 8), (entry, 8)]
        {
            word(&mut file, value, width);
        }
    }
    file.extend(names);
    // ELFCOMPRESS_ZLIB, and what it says to hold.
    for (value, bytes) in [(1, 4), (0, 4), (1 << 40, 8), (1, 8), (0x9c78, 8)] {
        word(&mut file, value, bytes);
    }
    file.resize(symbols_at as usize, 0);
    file
}

#[test]
fn libraries_that_lie_about_their_size_cost_names_and_no_memory() {
    let at = folder("libraries");
    let path = at.join("liblies.so");
    let addresses = BTreeSet::from([0x1000, 0x2000]);
    let module = Module { path: path.to_string_lossy().into_owned(), build_id: vec![], flags: 0 };
    for symbol_bytes in [0, 48, 3 << 30, 1 << 40, u64::MAX - 24] {
        fs::write(&path, elf(symbol_bytes)).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 41).unwrap();
        let before = peak();
        let found = native::functions(&module, Path::new("/"), &addresses);
        assert!(found.is_empty(), "{found:?}");
        assert!(peak() - before < 64 << 20, "{symbol_bytes} bytes of symbols took {} bytes", peak() - before);
    }
    // A pipe in the place of a library is not waited for.
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(native::functions(&module, Path::new("/"), &addresses).is_empty());
    fs::remove_dir_all(&at).unwrap();
}

#[test]
fn a_table_that_is_cut_while_a_snapshot_is_waited_for_ends_nobody() {
    let at = folder("cut");
    let process = Identity::of(std::process::id()).unwrap();
    let table = TableFile { path: at.join(format!("{}-{}.leakline", process.pid, process.start_ticks)), process };
    let mut page = vec![0; HEADER_BYTES];
    page[std::mem::offset_of!(Header, snapshot.listening)] = 1;
    fs::write(&table.path, &page).unwrap();
    let waits = std::thread::spawn({
        let table = table.clone();
        move || snapshot::take(&table, snapshot::PATIENTLY).map(|_| ()).map_err(|failure| failure.to_string())
    });
    let file = OpenOptions::new().read(true).write(true).open(&table.path).unwrap();
    let wanted = || {
        let mut word = [0; 4];
        file.read_exact_at(&mut word, std::mem::offset_of!(Header, snapshot.wanted) as u64).unwrap();
        u32::from_ne_bytes(word)
    };
    while wanted() == 0 && !waits.is_finished() {
        std::thread::sleep(Duration::from_millis(5));
    }
    file.set_len(0).unwrap();
    let refused = waits.join().unwrap().unwrap_err();
    assert!(refused.starts_with("cannot read "), "{refused}");
    fs::remove_dir_all(&at).unwrap();
}

/// Answers some requests, says so, and waits until its input ends.
const SERVER: &str = r#"
import io, sys
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import make_server

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]

server = make_server("127.0.0.1", 0, app)
for _ in range(10):
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SERVER_PROTOCOL": "HTTP/1.0"}
    SimpleHandler(io.BytesIO(), io.BytesIO(), io.StringIO(), environ).run(server.get_app())
print("ready", flush=True)
sys.stdin.read()
"#;

/// A server whose table loses its end is ended by the kernel when the agent writes there.
#[test]
fn a_table_in_use_is_not_shortened_by_mistake() {
    let tables = Tables::new("read-only");
    // Root may write to whatever it likes, unless it is without that right.
    let as_owner = |program: &str| match nix::unistd::geteuid().is_root() {
        true => {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", "-dac_override", "--inh-caps", "-dac_override", program]);
            command
        }
        false => Command::new(program),
    };
    let leakline = |arguments: &[&str]| {
        let mut command = as_owner(harness::LEAKLINE);
        command.arg("--dir").arg(&tables.0).args(arguments);
        command
    };
    let mut run = leakline(&["run", "--", "python3", "-c", SERVER]);
    let run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut run = Ending(run.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(run.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");

    let files = tables.runs().into_iter().flat_map(|run| fs::read_dir(run).unwrap());
    let mut found = files.filter_map(|file| TableFile::from_path(file.unwrap().path()));
    let table = found.next().expect("the server has a table");
    let state = || fs::metadata(&table.path).map(|file| (file.len(), file.permissions().mode() & 0o777)).unwrap();
    let before = state();
    assert_eq!(before.1, 0o400);
    for shortens in [": > \"$0\"", "truncate -s 0 \"$0\"", "echo > \"$0\"", "cp /dev/null \"$0\""] {
        let refused = as_owner("sh").args(["-c", shortens]).arg(&table.path).stderr(Stdio::null()).status().unwrap();
        assert!(!refused.success(), "{shortens}");
    }
    let pid = table.process.pid.to_string();
    let saved = leakline(&["heap", &pid, "--despite-limits", "--save"]).arg(&table.path).output().unwrap();
    assert_eq!(saved.status.code(), Some(2), "{}", String::from_utf8_lossy(&saved.stderr));
    // leakline itself, which calls the agent by way of the table, is let in.
    let taken = leakline(&["heap", &pid, "--despite-limits"]).output().unwrap();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    assert_eq!(state(), before);
    drop(run.0.stdin.take());
    assert!(run.0.wait().unwrap().success());
}

/// Root sees of somebody's server what its user sees, makes files that are the user's, and goes nowhere that the user could not go.
#[test]
fn root_has_no_more_rights_in_a_users_folder_than_that_user() {
    let user = 20_000 + std::process::id() % 40_000;
    let script = "import time\nprint('ready')\nwhile True: time.sleep(0.01)";
    let python = |script| {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-u", "-c", script]).current_dir("/").uid(user).gid(user);
        command
    };
    if !nix::unistd::geteuid().is_root() || !python("").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: only root can play two users, and both want Python");
        return;
    }
    let mut victim = Victim::start(&mut python(script));
    victim.line();
    let pid = victim.pid().to_string();
    // The user may not look into the folders that command and agent lie in.
    let open = std::env::temp_dir().join(format!("leakline-security-{}", std::process::id()));
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let (command, agent) = (open.join("leakline"), open.join("agent.so"));
    fs::copy(harness::LEAKLINE, &command).unwrap();
    fs::copy(Path::new(harness::LEAKLINE).with_file_name("../agent/libleakline_agent.so"), &agent).unwrap();
    let leakline = |by: u32, arguments: &[&str]| {
        let mut command = Command::new(&command);
        command.args(arguments).arg(&pid).env("LEAKLINE_AGENT", &agent);
        command.env_remove("LEAKLINE_DIR").env_remove("XDG_RUNTIME_DIR").uid(by).gid(by).output().unwrap()
    };
    let folder = PathBuf::from(format!("/tmp/leakline-{user}"));
    let _ = fs::remove_dir_all(&folder);
    let attached = leakline(0, &["attach"]);
    assert!(attached.status.success(), "{}", said(&attached));

    // The table is made when the main thread has woken up.
    let is_recorded = (0..600).any(|_| {
        sleep(Duration::from_millis(50));
        leakline(0, &["report"]).status.success()
    });
    assert!(is_recorded, "{}", said(&leakline(0, &["report"])));
    let run = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let ledger = |by| {
        let report = leakline(by, &["--json", "report"]);
        assert!(report.status.success(), "{}", said(&report));
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        report["rss"]["ledger"].is_object()
    };
    assert_eq!(ledger(0), ledger(user), "who sees where the server's memory is");
    for place in [&folder, &run] {
        for entry in fs::read_dir(place).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().uid(), user, "{}", entry.path().display());
        }
    }

    // What only root may read, under the name of the user's run.
    let closed = open.join("closed");
    fs::create_dir(&closed).unwrap();
    for file in fs::read_dir(&run).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), closed.join(file.file_name())).unwrap();
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(&run, run.with_extension("away")).unwrap();
    symlink(&closed, &run).unwrap();
    let refused = leakline(0, &["report"]);
    assert_eq!(refused.status.code(), Some(4), "{}", said(&refused));
    for folder in [folder, open] {
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn files_are_made_for_their_owner_alone_whatever_the_umask() {
    let tables = Tables::new("umask");
    let mut run = Command::new("sh");
    run.args(["-c", "umask 0; exec \"$0\" \"$@\"", harness::LEAKLINE, "--dir"])
        .arg(tables.0.join("made"))
        .args(["run", "--", "python3", "-c", "pass"]);
    assert!(run.status().unwrap().success());
    let mut seen = 0;
    let mut folders = vec![tables.0.join("made")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let mode = metadata.permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", entry.path().display());
            seen += 1;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    assert!(seen >= 3, "the agent, the run and its record");
}
