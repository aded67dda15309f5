//! Runs the shim's own tests, which need nothing but a standard library, on every CPython that this machine has.

mod pythons;

use std::path::Path;
use std::process::Command;

#[test]
fn the_shim_keeps_to_wsgi_on_every_python() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/tests/test_shim.py");
    let mut failures = String::new();
    for python in pythons::pythons() {
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
