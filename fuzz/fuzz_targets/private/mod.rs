//! A folder of this process's alone, in memory where the machine has such a place: each round writes a file.
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let folder = place.join(format!("leakline-fuzz-{}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&folder).expect("a folder for the files");
    folder
});

pub fn folder() -> &'static Path {
    &FOLDER
}
