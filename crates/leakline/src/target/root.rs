//! From a process to the files that it sees, and to the folder where its tables lie. In a container or a chroot its root is
//! another than ours: what it calls `/tmp/leakline-0` is there, and what we call so is not.
use std::fs;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat};

use crate::failure::{Exit, Failure};

/// The root folder of a process.
pub struct Root {
    pid: u32,
    folder: OwnedFd,
}

/// A folder by two names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// By which we reach it, as long as this command runs.
    pub ours: PathBuf,
    /// By which the process reaches it.
    pub theirs: PathBuf,
    /// By which others reach it, as long as the process runs.
    pub shown: PathBuf,
}

impl Place {
    /// A folder that everybody calls the same.
    pub fn shared(folder: PathBuf) -> Self {
        Self { ours: folder.clone(), theirs: folder.clone(), shown: folder }
    }

    /// What lies in it under this name.
    pub fn join(&self, name: &str) -> Self {
        let [ours, theirs, shown] = [&self.ours, &self.theirs, &self.shown].map(|folder| folder.join(name));
        Self { ours, theirs, shown }
    }
}

impl Root {
    /// That of a process that we may trace.
    pub fn of(pid: u32) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = open(Path::new("/proc").join(pid.to_string()).join("root").as_path(), flags, Mode::empty())?;
        Ok(Self { pid, folder })
    }

    /// Do the two processes see the same files? (One may still have mounted something that the other has not.)
    pub fn is_that_of(&self, other: &Root) -> bool {
        let place = |root: &Root| fstat(&root.folder).ok().map(|folder| (folder.st_dev, folder.st_ino));
        let namespace = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/mnt")).ok().map(|file| file.ino());
        place(self) == place(other) && namespace(self.pid) == namespace(other.pid)
    }

    /// Is this folder, or where it is missing the one that it would be made in, the same for the process as for us?
    pub fn sees(&self, folder: &Path) -> bool {
        let Some((there, ours)) = folder.ancestors().find_map(|folder| Some((folder, fs::metadata(folder).ok()?)))
        else {
            return false;
        };
        let theirs = self.open(there).and_then(|folder| fstat(&folder));
        theirs.is_ok_and(|theirs| (theirs.st_dev, theirs.st_ino) == (ours.dev(), ours.ino()))
    }

    /// What the process calls `folder`, in a folder that is there.
    pub fn place(&self, folder: &Path) -> Result<Place, Failure> {
        let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
            return Err(Failure::new(Exit::Usage, "/ is no folder for tables", "name another one with --dir"));
        };
        let parent = self.open(parent).map_err(|error| {
            let what = format!("process {} has its own files, and no folder {} ({error})", self.pid, parent.display());
            Failure::new(Exit::Error, what, "name with --dir a folder that it has")
        })?;
        // The descriptor stays open until the command ends, as long as which the path is in use.
        let ours = Path::new("/proc/self/fd").join(parent.into_raw_fd().to_string()).join(name);
        let inside = folder.strip_prefix("/").unwrap_or(folder);
        let shown = Path::new("/proc").join(self.pid.to_string()).join("root").join(inside);
        Ok(Place { ours, theirs: folder.to_owned(), shown })
    }

    /// Opens a folder by the name by which the process knows it: its links lead where they lead for the process, and
    /// never out of its root, whoever has put them there.
    fn open(&self, folder: &Path) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let how =
            OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.folder, folder, how)
    }
}
