//! From a process to the user whose folder of tables it writes to.
//!
//! Root may attach to anybody's server, which makes its tables with its own user's rights, in a folder of that user's. What
//! root does in there it does with that user's rights, too: whoever owns a folder could lead root astray with links.
use std::path::PathBuf;

use nix::unistd::{
    Gid, Uid, getegid, geteuid, getgroups, getresgid, getresuid, seteuid, setgroups, setresgid, setresuid,
};
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
        let (Ok(users), Ok(groups), others) = (getresuid(), getresgid(), getgroups()) else { return act() };
        if users.effective == self.user {
            return act();
        }
        // Where we may not, the folder's own rights decide. The groups first: a mere user may not change them. The list of
        // others is changed by itself, since a namespace of users may forbid just that. The real user is the one whom the
        // kernel asks about when memory is read.
        let _ = setgroups(&[self.group]);
        let _ = setresgid(self.group, self.group, groups.effective)
            .and_then(|()| setresuid(self.user, self.user, users.effective));
        let result = act();
        let _ = seteuid(users.effective);
        let _ = setresgid(groups.real, groups.effective, groups.saved);
        let _ = others.and_then(|others| setgroups(&others));
        let _ = setresuid(users.real, users.effective, users.saved);
        result
    }
}
