//! From a process to the user whose folder of tables it writes to.
//!
//! Root may attach to anybody's server, which makes its tables with its own user's rights, in a folder of that user's. What
//! root does in there it does with that user's rights, too: whoever owns a folder could lead root astray with links.
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setegid, seteuid, setgroups};
use procfs::process::Process;

/// A user and a group.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    user: Uid,
    group: Gid,
}

impl Owner {
    /// By their numbers.
    pub fn of(user: u32, group: u32) -> Self {
        Self { user: Uid::from_raw(user), group: Gid::from_raw(group) }
    }

    /// Those of a process that we may serve; ourselves where there is none.
    pub fn of_process(pid: u32) -> Self {
        let status = Process::new(pid as i32).and_then(|process| process.status());
        match status {
            Ok(status) if geteuid().is_root() => Self::of(status.euid, status.egid),
            _ => Self { user: geteuid(), group: getegid() },
        }
    }

    /// Where this user's tables live, where nobody has said otherwise.
    pub fn usual_dir(&self) -> PathBuf {
        PathBuf::from(format!("/tmp/leakline-{}", self.user))
    }

    /// The same, if that is not for us to choose as our own.
    pub fn foreign_dir(&self) -> Option<PathBuf> {
        (self.user != geteuid()).then(|| self.usual_dir())
    }

    /// Does something with this user's rights.
    pub fn act<R>(&self, act: impl FnOnce() -> R) -> R {
        let (user, group) = (geteuid(), getegid());
        if user == self.user {
            return act();
        }
        let groups = getgroups();
        // Where we may not, the folder's own rights decide. The groups first: a mere user may not change them. The list of
        // others is changed by itself, since a namespace of users may forbid just that.
        let _ = setgroups(&[self.group]);
        let _ = setegid(self.group).and_then(|()| seteuid(self.user));
        let result = act();
        let _ = seteuid(user).and_then(|()| setegid(group));
        let _ = groups.and_then(|groups| setgroups(&groups));
        result
    }
}
