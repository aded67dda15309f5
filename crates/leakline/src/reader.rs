//! From the file that an agent wrote, which is believed in nothing, to what the analysis is given.
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use leakline_table::layout::{HEADER_BYTES, Header};
use leakline_table::reader;

use crate::failure::{Exit, Failure};

/// Reads a table's first page: enough to list it.
pub fn header(path: &Path) -> Result<Header, Failure> {
    let bytes = read(path, HEADER_BYTES as u64)?;
    reader::header(&bytes).map_err(|refusal| refused(path, &refusal))
}

fn refused(path: &Path, refusal: &reader::Refusal) -> Failure {
    let next = match refusal {
        reader::Refusal::Newer { .. } => "read it with the leakline that wrote it",
        _ => "leave it out, or record a new one with `leakline run`",
    };
    Failure::new(Exit::Damaged, format!("{}: {refusal}", path.display()), next)
}

/// The first `most` bytes of the file, or fewer where it is shorter.
fn read(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    open(path)
        .and_then(|file| file.take(most).read_to_end(&mut bytes))
        .map_err(|error| Failure::io("read", path, &error))?;
    Ok(bytes)
}

/// Links are not followed, and opening does not wait: whatever stands in a table's place must be a file.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}
