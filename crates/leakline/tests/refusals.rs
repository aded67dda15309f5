//! Whatever somebody may name that `leakline attach` can't come into: one line says why and what to do, and the process is
//! left as it was.
mod harness;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;

use harness::victim::{Victim, attach, leakline, maps, python, said};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// What must be refused, with this exit code and a word of the reason; the process is left as it was.
fn refused(tables: &Path, victim: &Victim, code: i32, why: &str) {
    let output = attach(tables, victim.pid());
    is_refusal(&output, code, why);
    victim.is_untouched();
    assert_eq!(leakline(tables, &["report", &victim.pid().to_string()]).status.code(), Some(4), "no run is left");
}

fn is_refusal(output: &Output, code: i32, why: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
    assert!(said(output).contains(why), "{}", said(output));
    assert_eq!(said(output).lines().count(), 1, "{}", said(output));
}

/// Waits until the process is in this state, a letter of proc(5).
fn await_state(victim: &Victim, state: char) {
    let is_in = |stat: &str| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(state));
    while !fs::read_to_string(format!("/proc/{}/stat", victim.pid())).is_ok_and(|stat| is_in(&stat)) {
        sleep(Duration::from_millis(5));
    }
}

/// Compiles a program, which says that it has started by an empty line; nothing, but a word of it, where this machine's
/// compiler can't.
fn compiled(compiler: &str, flags: &[&str], folder: &Path, name: &str, source: &str) -> Option<PathBuf> {
    let text = folder.join(format!("{name}.c"));
    fs::write(&text, source).unwrap();
    let program = folder.join(name);
    match Command::new(compiler).arg("-w").args(flags).arg("-o").arg(&program).arg(&text).output() {
        Ok(output) if output.status.success() => Some(program),
        Ok(output) => {
            eprintln!("skipped: {compiler} {flags:?} fails: {}", said(&output));
            None
        }
        Err(error) => {
            eprintln!("skipped: {compiler}: {error}");
            None
        }
    }
}

/// A program that says an empty line and waits.
const WAITS: &str = "#include <unistd.h>\nint main(void) { write(1, \"\\n\", 1); for (;;) pause(); }";

/// The same, which passes for a Python of some version.
fn pretends(version: &str) -> String {
    format!(
        "#include <unistd.h>\nint Py_IsInitialized(void) {{ return 1; }}\n\
         const char *Py_GetVersion(void) {{ return \"{version}\"; }}\n\
         int main(void) {{ write(1, \"\\n\", 1); for (;;) pause(); }}"
    )
}

fn started(program: &Path) -> Victim {
    let mut victim = Victim::start(&mut Command::new(program));
    victim.line();
    victim
}

#[test]
fn a_process_without_python() {
    let tables = harness::folder("no-python");
    let program = compiled("cc", &[], &tables, "waits", WAITS).expect("cc, which Rust links with, works");
    let victim = started(&program);
    refused(&tables, &victim, 8, "no CPython");
    let detached = leakline(&tables, &["detach", &victim.pid().to_string()]);
    assert_eq!(detached.status.code(), Some(8), "{}", said(&detached));
    fs::remove_dir_all(tables).unwrap();
}

#[test]
fn a_stopped_process_stays_stopped() {
    let tables = harness::folder("stopped");
    let victim = Victim::python(&python(), "print('ready'); input()", &[]);
    victim.signal(Signal::SIGSTOP);
    await_state(&victim, 'T');
    refused(&tables, &victim, 1, "is stopped; let it go on first with `kill -CONT");
    await_state(&victim, 'T');
    fs::remove_dir_all(tables).unwrap();
}

#[test]
fn a_process_that_has_ended() {
    let tables = harness::folder("ended");
    // Nobody has waited for it.
    let mut ended = Victim::start(&mut Command::new("true"));
    await_state(&ended, 'Z');
    refused(&tables, &ended, 7, "has ended");
    ended.0.wait().unwrap();
    is_refusal(&attach(&tables, ended.pid()), 7, "there is no process");
    fs::remove_dir_all(tables).unwrap();
}

#[test]
fn a_process_that_somebody_traces_stays_his() {
    let tables = harness::folder("traced");
    let victim = Victim::python(&python(), "print('ready'); input()", &[]);
    ptrace::seize(Pid::from_raw(victim.pid() as i32), ptrace::Options::empty()).unwrap();
    is_refusal(&attach(&tables, victim.pid()), 1, "is being traced");
    assert!(!maps(victim.pid()).contains("/agent-"));
    let status = fs::read_to_string(format!("/proc/{}/status", victim.pid())).unwrap();
    assert!(!status.contains("TracerPid:\t0\n"), "{status}");
    drop(victim);
    fs::remove_dir_all(tables).unwrap();
}

#[test]
fn programs_that_the_agent_is_not_made_for() {
    let tables = harness::folder("foreign-programs");
    if let Some(program) = compiled("cc", &["-static"], &tables, "static", WAITS) {
        refused(&tables, &started(&program), 8, "is linked statically");
    }
    // Debian's packages for this.
    let packages = harness::root().join("crates/leakline/tests/refusals/requirements.txt");
    let are_there = harness::python("3.11", &packages).or_else(|| harness::python("system", &packages)).is_some();
    let musl = are_there.then(|| compiled("musl-gcc", &[], &tables, "musl", WAITS)).flatten();
    if let Some(program) = musl {
        refused(&tables, &started(&program), 8, "uses musl");
    }
    // No C library of 32 bits is needed for it: write(1, "\n", 1), and pause for ever.
    let source = "static int call(int number, int a, const char *b, int c) { int result; \
        __asm__ volatile(\"int $0x80\" : \"=a\"(result) : \"a\"(number), \"b\"(a), \"c\"(b), \"d\"(c) : \"memory\"); \
        return result; }\nvoid _start(void) { call(4, 1, \"\\n\", 1); for (;;) call(29, 0, 0, 0); }";
    let flags = ["-m32", "-nostdlib", "-static", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector"];
    if let Some(program) = compiled("cc", &flags, &tables, "small", source) {
        match Command::new(&program).stdout(std::process::Stdio::null()).spawn() {
            Ok(mut runs) => {
                runs.kill().unwrap();
                runs.wait().unwrap();
                refused(&tables, &started(&program), 8, "is a 32-bit program");
            }
            Err(error) => eprintln!("skipped: this kernel runs no 32-bit program: {error}"),
        }
    }
    fs::remove_dir_all(tables).unwrap();
}

/// By its name, before anything is touched.
#[test]
fn a_python_that_is_not_known() {
    let tables = harness::folder("newer");
    let program = compiled("cc", &["-rdynamic"], &tables, "python3.99", &pretends("3.99.0 (main)"));
    refused(&tables, &started(&program.unwrap()), 8, "runs Python 3.99");
    fs::remove_dir_all(tables).unwrap();
}

/// The agent itself says no, when it is loaded already: it has to go again.
#[test]
fn a_python_that_the_agent_does_not_know_gets_rid_of_it_again() {
    let tables = harness::folder("unknown");
    for (version, why) in
        [("2.7.18 (main)", "2.7.18"), ("3.13.0 experimental free-threading build (main)", "free-threaded")]
    {
        let program = compiled("cc", &["-rdynamic"], &tables, "unknown", &pretends(version));
        let unknown = started(&program.unwrap());
        let before = maps(unknown.pid());
        refused(&tables, &unknown, 8, why);
        // The loader may have made its heap meanwhile, and nothing else.
        let after = maps(unknown.pid());
        let new: Vec<_> = after.lines().filter(|line| !before.contains(*line)).collect();
        assert!(new.iter().all(|line| line.contains("[heap]") || line.contains("[stack]")), "{new:#?}");
    }
    fs::remove_dir_all(tables).unwrap();
}

#[test]
fn an_allocator_of_its_own() {
    let tables = harness::folder("allocators");
    let refuse = |python: &Path, library: &Path| {
        let mut command = Command::new(python);
        command.args(["-u", "-c", "print('ready'); input()"]).env("LD_PRELOAD", library);
        let mut victim = Victim::start(&mut command);
        victim.line();
        // Debian's names are links to those with the whole version.
        let file = library.canonicalize().unwrap();
        let name = file.file_name().unwrap().to_string_lossy();
        refused(&tables, &victim, 8, &format!("{name} stands in for glibc's malloc"));
    };
    // One that nobody knows, by where the interpreter's calls lead. glibc's own is still below it.
    let source =
        "#include <stddef.h>\nvoid *__libc_malloc(size_t);\nvoid *malloc(size_t n) { return __libc_malloc(n); }";
    let own = compiled("cc", &["-shared", "-fPIC"], &tables, "libours.so", source).unwrap();
    for version in ["3.8", "3.13", "system"] {
        let Some(python) = harness::python(version, &harness::root().join("cases/user-list/requirements.txt")) else {
            continue;
        };
        refuse(&python, &own);
    }
    // Those that are known, by their names.
    let packages = harness::root().join("crates/leakline/tests/native/allocators/requirements.txt");
    if let Some(python) = harness::python("3.11", &packages).or_else(|| harness::python("system", &packages)) {
        for library in ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"] {
            refuse(&python, &Path::new("/usr/lib/x86_64-linux-gnu").join(library));
        }
    }
    fs::remove_dir_all(tables).unwrap();
}

/// It is in a library all the while, and nobody knows what that holds; or its stack has no room for us. It goes on.
#[test]
fn a_process_that_comes_to_no_safe_place() {
    let tables = harness::folder("never-safe");
    // Waits in its own code, by 10 ms at a time (nanosleep is 35), and holds the GIL.
    let source = "void stay(volatile long *turns) { long time[2] = {0, 10000000}; for (;;) { long result; \
        __asm__ volatile(\"syscall\" : \"=a\"(result) : \"a\"(35L), \"D\"(time), \"S\"(0L) : \"rcx\", \"r11\", \"memory\"); \
        ++*turns; } }";
    let library = compiled("cc", &["-shared", "-fPIC", "-O1"], &tables, "stay.so", source).unwrap();
    let script = "import ctypes, mmap, sys\nshared = open(sys.argv[2], 'r+b')\n\
        turns = ctypes.c_long.from_buffer(mmap.mmap(shared.fileno(), 8))\nstay = ctypes.PyDLL(sys.argv[1]).stay\n\
        print('ready')\nstay(ctypes.byref(turns))";
    let counter = tables.join("turns");
    fs::write(&counter, [0; 8]).unwrap();
    let arguments: [&OsStr; 2] = [library.as_os_str(), counter.as_os_str()];
    let victim = Victim::python(&python(), script, &arguments);
    let turns = || u64::from_le_bytes(fs::read(&counter).unwrap().try_into().unwrap());
    while turns() == 0 {
        sleep(Duration::from_millis(5));
    }
    // Waits where it could be stopped, but in a signal's handler with a stack of its own that is too small for us.
    let script = "import ctypes, mmap, os, signal, struct\nc = ctypes.CDLL(None)\nstack = mmap.mmap(-1, 16384)\n\
        start = ctypes.addressof(ctypes.c_char.from_buffer(stack))\nassert c.sigaltstack(struct.pack('PixxxxN', start, 0, 16384), None) == 0\n\
        waits = ctypes.cast(c.pause, ctypes.c_void_p).value\nSA_ONSTACK = 0x08000000\n\
        assert c.sigaction(signal.SIGUSR1, struct.pack('P128xixxxxP', waits, SA_ONSTACK, 0), None) == 0\n\
        print('ready')\nos.kill(os.getpid(), signal.SIGUSR1)";
    let on_small_stack = Victim::python(&python(), script, &[]);
    std::thread::scope(|scope| {
        for victim in [&victim, &on_small_stack] {
            let tables = tables.join(victim.pid().to_string());
            scope.spawn(move || refused(&tables, victim, 1, "safe to stop it; it goes on as it was"));
        }
    });
    let then = turns();
    while turns() == then {
        sleep(Duration::from_millis(5));
    }
    fs::remove_dir_all(tables).unwrap();
}

/// Who may not trace a process is told so, and what would let him.
#[test]
fn who_may_not_trace_is_told_what_would_let_him() {
    let tables = harness::folder("forbidden");
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can play two users");
        return;
    }
    let victim = Victim::python(&python(), "print('ready'); input()", &[]);
    let pid = victim.pid().to_string();
    // Where nobody may look into the folder that the command lies in, it is copied to one where he may.
    let folder = std::env::temp_dir().join(format!("leakline-refusals-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let command = folder.join("leakline");
    fs::copy(harness::LEAKLINE, &command).unwrap();
    let somebody = Command::new(&command).args(["attach", &pid]).uid(65534).gid(65534).output();
    fs::remove_dir_all(&folder).unwrap();
    is_refusal(&somebody.unwrap(), 6, "belongs to user 0; run leakline as that user or as root");
    victim.is_untouched();

    // Root without the capability, as in a container.
    let mut bare = Command::new("setpriv");
    bare.args(["--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", harness::LEAKLINE, "--dir"]);
    let output = bare.arg(tables.join("runs")).args(["attach", &pid]).output().unwrap();
    is_refusal(&output, 6, "CAP_SYS_PTRACE");
    assert!(said(&output).contains("docs/permissions.md"), "{}", said(&output));
    victim.is_untouched();
    fs::remove_dir_all(tables).unwrap();
}
