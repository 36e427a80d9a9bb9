//! Who may use a state folder: one server alone, or any number of single tasks.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use anyhow::{Context, bail};

/// What a host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs every task of its state folder.
    Server,
    /// Runs one task, its own.
    Single,
}

/// The hold on a state folder. It ends when it is dropped, or with the process.
#[derive(Debug)]
pub(super) struct Hold {
    file: File,
}

/// Takes a state folder. Gives whether nobody else holds it, too. Errors: where a server holds it,
/// or where a server wants what others hold.
pub(super) fn take(state: &Path, role: Role) -> anyhow::Result<(Hold, bool)> {
    let path = state.join("host.lock");
    let open = || {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
    };
    let file = open().with_context(|| format!("cannot open {}", path.display()))?;
    let failed = || format!("cannot lock {}", path.display());
    match (file.try_lock(), role) {
        (Ok(()), _) => return Ok((Hold { file }, true)),
        (Err(TryLockError::Error(error)), _) => return Err(error).with_context(failed),
        (Err(TryLockError::WouldBlock), Role::Server) => bail!(
            "the state folder {} is in use by another host; choose one with --state",
            state.display()
        ),
        (Err(TryLockError::WouldBlock), Role::Single) => {}
    }
    let hold = Hold { file };
    hold.share(state)?;
    Ok((hold, false))
}

impl Hold {
    /// Lets other single tasks in. Errors: where a server has taken the folder.
    pub(super) fn share(&self, state: &Path) -> anyhow::Result<()> {
        self.file.unlock()?;
        match self.file.try_lock_shared() {
            Ok(()) => Ok(()),
            Err(TryLockError::Error(error)) => Err(error.into()),
            Err(TryLockError::WouldBlock) => bail!(
                "the state folder {} is in use by a server; give the task to it over HTTP, or choose \
                 another folder with --state",
                state.display()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_alone_and_single_tasks_share() {
        let folder = tempfile::tempdir().unwrap();
        let (server, alone) = take(folder.path(), Role::Server).unwrap();
        assert!(alone);
        let refused = |role| take(folder.path(), role).unwrap_err().to_string();
        assert!(refused(Role::Server).contains("another host"));
        assert!(refused(Role::Single).contains("over HTTP"));
        drop(server);
        let (first, alone) = take(folder.path(), Role::Single).unwrap();
        assert!(alone);
        first.share(folder.path()).unwrap();
        let (_second, alone) = take(folder.path(), Role::Single).unwrap();
        assert!(!alone);
        assert!(refused(Role::Server).contains("another host"));
    }
}
