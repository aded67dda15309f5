//! Processes that are attached to and are no servers, and what leakline says of them.
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// A process that ends with the test.
pub struct Victim(pub Child);

impl Victim {
    /// Starts it, whose input and output are pipes.
    pub fn start(command: &mut Command) -> Victim {
        super::build_agent();
        Victim(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Runs Python, and waits until it says a line.
    pub fn python(python: &Path, script: &str, arguments: &[&OsStr]) -> Victim {
        let mut victim = Victim::start(Command::new(python).args(["-u", "-c", script]).args(arguments));
        victim.line();
        victim
    }

    /// The next line that it says.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let output = self.0.stdout.as_mut().unwrap();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).unwrap(), 1, "it ended");
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    /// Says a line to it.
    pub fn say(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// It runs as it did: no agent is in it, and nobody traces it.
    pub fn is_untouched(&self) {
        assert!(!maps(self.pid()).contains("/agent-"), "{}", maps(self.pid()));
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0"), "{status}");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a process has mapped.
pub fn maps(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default()
}

/// What a command has said.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// leakline with tables in a folder of this test.
pub fn leakline(tables: &Path, arguments: &[&str]) -> Output {
    Command::new(super::LEAKLINE).arg("--dir").arg(tables.join("runs")).args(arguments).output().unwrap()
}

/// Attaches to a process.
pub fn attach(tables: &Path, pid: u32) -> Output {
    leakline(tables, &["attach", "--budget", "100", &pid.to_string()])
}

/// Any Python that is here.
pub fn python() -> PathBuf {
    super::python("3.11", &super::root().join("cases/user-list/requirements.txt"))
        .or_else(|| super::python("system", &super::root().join("cases/user-list/requirements.txt")))
        .expect("some Python is here")
}
