//! Runs the shim's own tests, which need nothing but a standard library, on every CPython that this machine has.

use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn the_shim_keeps_to_wsgi_on_every_python() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/tests/test_shim.py");
    let pythons = pythons();
    assert!(!pythons.is_empty(), "no CPython 3.7 or later was found by pyenv or as python3");
    let mut failures = String::new();
    for python in pythons {
        // -bb and the warnings make errors of mistakes that Python would otherwise let pass.
        let output = Command::new(&python)
            .args(["-I", "-B", "-bb", "-W", "error::ResourceWarning"])
            .arg(&tests)
            .output()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", python.display()));
        if !output.status.success() {
            failures += &format!("{}:\n{}\n", python.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// The interpreters that pyenv installed, and `python3`, as far as they are 3.7 or later.
fn pythons() -> Vec<PathBuf> {
    let pyenv = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".pyenv")))
        .unwrap_or_default();
    let installed = std::fs::read_dir(pyenv.join("versions")).into_iter().flatten().flatten();
    let mut pythons: Vec<PathBuf> = installed.map(|version| version.path().join("bin/python")).collect();
    pythons.sort();
    pythons.push(PathBuf::from("python3"));
    pythons.retain(|python| {
        let question = "import sys; sys.exit(sys.version_info < (3, 7) or sys.implementation.name != 'cpython')";
        Command::new(python).args(["-c", question]).output().is_ok_and(|answer| answer.status.success())
    });
    pythons
}
