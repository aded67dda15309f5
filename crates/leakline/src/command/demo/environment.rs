//! From a Python and a requirements file to a virtual environment, made once and found again.
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{make_dir, say};
use crate::failure::{Exit, Failure};

/// The Python of a virtual environment below `folder` that has `requirements` installed.
pub fn python(base: &Path, requirements: &str, folder: &Path) -> Result<PathBuf, Failure> {
    let mut version = Command::new(base);
    version.args(["-c", "import platform, sys; print(sys.executable, platform.python_version(), sep='\\n', end='')"]);
    let identity = run(&mut version, "name a Python 3 with --python")?;
    let identity = String::from_utf8_lossy(&identity.stdout).into_owned();
    let mut hasher = DefaultHasher::new();
    (&identity, requirements).hash(&mut hasher);
    let number = identity.lines().last().unwrap_or_default();
    let venv = folder.join(format!("{number}-{:016x}", hasher.finish()));
    let python = venv.join("bin/python");

    // The requirements are written last: an environment without them was left unfinished.
    let finished = venv.join("requirements.txt");
    if finished.exists() {
        say("environment", &format!("{} (from an earlier demo)", venv.display()));
        return Ok(python);
    }
    say("environment", &format!("making {} and installing packages from PyPI", venv.display()));
    make_dir(folder)?;
    let next = "install Python's venv module (Debian: apt install python3-venv), or name another Python with --python";
    run(Command::new(base).args(["-m", "venv", "--clear"]).arg(&venv), next)?;
    let list = venv.join("wanted.txt");
    fs::write(&list, requirements).map_err(|error| Failure::io("write", &list, &error))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(&list);
    run(&mut pip, "check the connection to PyPI")?;
    fs::rename(&list, &finished).map_err(|error| Failure::io("write", &finished, &error))?;
    Ok(python)
}

/// Runs a command to its end, which has to be a good one.
fn run(command: &mut Command, next: &str) -> Result<Output, Failure> {
    let shown = format!("{command:?}").replace('"', "");
    let failed = |why: String| Failure::new(Exit::Error, format!("`{shown}` failed: {why}"), next);
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let said = String::from_utf8_lossy(&said);
    Err(failed(said.trim().lines().last().unwrap_or("it said nothing").to_owned()))
}
