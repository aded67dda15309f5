//! From a process's memory map to the Python in it: which version, how it is linked, and what else is there that
//! matters to the agent. Nothing in the process is run or read.
use std::path::{Path, PathBuf};

use procfs::process::{MMapPath, Process};

use super::attach::examine::gone;
use crate::failure::{Exit, Failure};

/// The minor versions of CPython 3 whose frames the agent knows how to read.
pub const KNOWN: std::ops::RangeInclusive<u8> = 7..=14;

/// What the files that a process has mapped say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Minor version of its CPython 3, by the name of its library or its executable.
    pub minor: Option<u8>,
    /// Its interpreter is a library, not part of the executable.
    pub shared: bool,
    /// Its C library is musl, not glibc.
    pub musl: bool,
    /// An allocator that stands in for glibc's, by the name of its library.
    pub allocator: Option<String>,
    /// A leakline agent is in it.
    pub agent: bool,
}

impl Mapped {
    /// Looks at the process's memory map, which only its owner may read.
    pub fn of(pid: u32) -> Result<Self, Failure> {
        let process = Process::new(pid as i32).map_err(|_| gone(pid))?;
        let maps = super::process::mappings(&process, "maps").map_err(|error| {
            let what = format!("cannot read the memory map of process {pid}: {error}");
            Failure::new(Exit::Permission, what, "run as its owner or as root")
        })?;
        let files = maps.into_iter().filter_map(|map| match map.pathname {
            MMapPath::Path(path) => Some(path),
            _ => None,
        });
        Ok(Self::by_files(files, process.exe().ok().as_deref()))
    }

    /// The name of an agent's file, if this is one. Long after it was mapped, who tidies up may have deleted it.
    pub fn agent_name(file: &Path) -> Option<&str> {
        let name = file.file_name()?.to_str()?;
        let name = name.strip_suffix(" (deleted)").unwrap_or(name);
        (name.starts_with("agent-") && name.ends_with(".so")).then_some(name)
    }

    fn by_files(files: impl Iterator<Item = PathBuf>, executable: Option<&Path>) -> Self {
        let mut mapped = Self { minor: None, shared: false, musl: false, allocator: None, agent: false };
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if let Some(minor) = name.strip_prefix("libpython3.").and_then(leading_number) {
                mapped.minor = Some(minor);
                mapped.shared = true;
            }
            let allocators = ["libjemalloc", "libtcmalloc", "libmimalloc"];
            if allocators.iter().any(|allocator| name.starts_with(allocator)) {
                mapped.allocator = Some(name.clone().into_owned());
            }
            // Debian's loader is a link to the library itself.
            mapped.musl |= name.starts_with("ld-musl") || file.to_string_lossy().contains("-linux-musl/");
            mapped.agent |= Self::agent_name(&file).is_some();
        }
        let name = executable.and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        mapped.minor = mapped.minor.or_else(|| name.strip_prefix("python3.").and_then(leading_number));
        mapped
    }
}

fn leading_number(text: &str) -> Option<u8> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(files: &[&str], executable: &str) -> Mapped {
        Mapped::by_files(files.iter().map(PathBuf::from), Some(Path::new(executable)))
    }

    #[test]
    fn a_library_or_an_executable_names_the_version() {
        let shared = mapped(&["/usr/lib/libc.so.6", "/opt/py/lib/libpython3.13t.so.1.0"], "/opt/py/bin/python3.13");
        assert_eq!((shared.minor, shared.shared), (Some(13), true));
        let whole = mapped(&["/usr/lib/libc.so.6"], "/usr/bin/python3.11");
        assert_eq!((whole.minor, whole.shared), (Some(11), false));
        assert_eq!(mapped(&["/usr/lib/libc.so.6"], "/usr/bin/dash").minor, None);
    }

    #[test]
    fn what_else_is_mapped_is_noticed() {
        let files = ["/run/leakline/agent-00ff.so", "/usr/lib/libjemalloc.so.2", "/lib/ld-musl-x86_64.so.1"];
        let mapped = mapped(&files, "/usr/bin/python3.12");
        assert_eq!(mapped.allocator.as_deref(), Some("libjemalloc.so.2"));
        assert!(mapped.agent && mapped.musl);
    }
}
