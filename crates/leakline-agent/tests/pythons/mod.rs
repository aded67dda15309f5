//! The interpreters that this machine has.

use std::path::PathBuf;
use std::process::Command;

/// Those that pyenv installed, the system's own, and `python3`, as far as they are CPython 3.7 to 3.13.
pub fn pythons() -> Vec<PathBuf> {
    let pyenv = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".pyenv")))
        .unwrap_or_default();
    let installed = std::fs::read_dir(pyenv.join("versions")).into_iter().flatten().flatten();
    let named = ["/usr/bin/python3", "python3"].map(PathBuf::from);
    let candidates = installed.map(|version| version.path().join("bin/python")).chain(named);
    // The same interpreter may answer to several names.
    let mut pythons: Vec<PathBuf> = candidates.filter_map(|python| executable(&python)).collect();
    pythons.sort();
    pythons.dedup();
    assert!(!pythons.is_empty(), "no CPython 3.7 to 3.13 was found by pyenv or as python3");
    pythons
}

/// The executable of a supported interpreter.
fn executable(python: &PathBuf) -> Option<PathBuf> {
    let question = "import os, sys
sys.implementation.name == 'cpython' and (3, 7) <= sys.version_info < (3, 14) or sys.exit(1)
print(os.path.realpath(sys.executable))";
    let answer = Command::new(python).args(["-c", question]).output().ok()?;
    answer.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim()))
}
