//! The task's folder: artifacts and checkpoints under plain names, within bounds.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use super::error::{HostError, Result};
use super::is_plain;

/// Artifacts open at once.
const ARTIFACTS: usize = 64;
/// Files of a task that hold what a session holds.
const CHECKPOINTS: usize = 16;

/// The folder, and what was written there.
pub(super) struct Folder {
    path: Option<PathBuf>,
    limit_bytes: u64,
    artifacts: HashMap<String, File>,
    /// Bytes of the artifacts that are appended to.
    written: HashMap<String, u64>,
    /// Bytes of the artifacts that are replaced.
    replaced: HashMap<String, u64>,
    checkpoints: HashSet<String>,
}

/// A file of what a session holds.
pub(super) struct Checkpoint {
    name: String,
    extension: &'static str,
}

impl Checkpoint {
    /// Parameters and buffers.
    pub(super) fn weights(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            extension: "safetensors",
        }
    }

    /// All that a training goes on from.
    pub(super) fn state(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            extension: "state.safetensors",
        }
    }

    /// The file's name.
    pub(super) fn file(&self) -> String {
        format!("{}.{}", self.name, self.extension)
    }
}

impl Folder {
    /// A folder; none refuses every file.
    pub(super) fn new(path: Option<PathBuf>, limit_bytes: u64) -> Self {
        Self {
            path,
            limit_bytes,
            artifacts: HashMap::new(),
            written: HashMap::new(),
            replaced: HashMap::new(),
            checkpoints: HashSet::new(),
        }
    }

    /// Appends to an artifact; the first time, creates it. Gives whether it was created.
    pub(super) fn append(&mut self, name: &str, data: &[u8]) -> Result<bool> {
        check_name(name)?;
        if self.replaced.contains_key(name) {
            let message = format!("{name} is replaced, so that it cannot be appended to");
            return Err(HostError::new("task.artifact", message));
        }
        let size = self.written.get(name).copied().unwrap_or(0) + data.len() as u64;
        self.check_size(name, size)?;
        let created = !self.artifacts.contains_key(name);
        if created {
            if self.artifacts.len() >= ARTIFACTS {
                let message = format!("a task has at most {ARTIFACTS} artifacts");
                return Err(HostError::new("task.artifact", message));
            }
            let path = self.path()?.join(name);
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                .open(path)
                .map_err(|error| failed(name, &error))?;
            self.artifacts.insert(name.to_owned(), file);
        }
        if let Some(file) = self.artifacts.get_mut(name) {
            file.write_all(data).map_err(|error| failed(name, &error))?;
        }
        self.written.insert(name.to_owned(), size);
        Ok(created)
    }

    /// Replaces an artifact in one step. Gives whether it is new.
    pub(super) fn replace(&mut self, name: &str, data: &[u8]) -> Result<bool> {
        check_name(name)?;
        if self.artifacts.contains_key(name) {
            let message = format!("{name} is appended to, so that it cannot be replaced");
            return Err(HostError::new("task.artifact", message));
        }
        self.check_size(name, data.len() as u64)?;
        let folder = self.path()?;
        let write = || -> std::io::Result<()> {
            let mut aside = tempfile::Builder::new()
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(folder)?;
            aside.write_all(data)?;
            aside.as_file().sync_all()?;
            aside.persist(folder.join(name))?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|error| failed(name, &error))?;
        Ok(self
            .replaced
            .insert(name.to_owned(), data.len() as u64)
            .is_none())
    }

    /// The path of a checkpoint. Checkpoints are as large as the session, which the lease bounds, so
    /// that their number alone is bounded.
    pub(super) fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        let Checkpoint { name, .. } = checkpoint;
        if !is_plain(name, false) {
            let message = format!(
                "`{}` is not a plain name: letters, digits, `-` and `_`, up to 128",
                name.escape_debug()
            );
            return Err(HostError::new("model.name", message));
        }
        let file = checkpoint.file();
        let path = self.path()?.join(&file);
        if !self.checkpoints.contains(&file) {
            if self.checkpoints.len() >= CHECKPOINTS {
                let message = format!("a task has at most {CHECKPOINTS} checkpoints");
                return Err(HostError::new("task.artifact", message));
            }
            self.checkpoints.insert(file);
        }
        Ok(path)
    }

    fn path(&self) -> Result<&PathBuf> {
        self.path
            .as_ref()
            .ok_or_else(|| HostError::new("task.artifact", "nothing can be written here"))
    }

    /// Refuses an artifact that would exceed the task's bytes at this size.
    fn check_size(&self, name: &str, size: u64) -> Result<()> {
        let others = self.written.iter().chain(&self.replaced);
        let others = others.filter(|(other, _)| *other != name);
        let total = others
            .map(|(_, size)| size)
            .sum::<u64>()
            .saturating_add(size);
        if total > self.limit_bytes {
            let message = format!(
                "{name} would bring the task's artifacts to {total} bytes; {} are allowed",
                self.limit_bytes
            );
            return Err(HostError::new("task.artifact", message));
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<()> {
    if is_plain(name, true) {
        return Ok(());
    }
    let message = format!(
        "`{}` is not a plain name: letters, digits, `-`, `_` and `.` inside, up to 128",
        name.escape_debug()
    );
    Err(HostError::new("task.artifact", message))
}

/// What a failed write is to a plugin.
fn failed(name: &str, error: &std::io::Error) -> HostError {
    let code = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "storage.full",
        _ => "storage.failed",
    };
    HostError::new(code, format!("cannot write {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code<T>(result: Result<T>) -> String {
        match result {
            Err(HostError::Told(error)) => error.code,
            Err(HostError::Trap(error)) => panic!("{error}"),
            Ok(_) => "ok".to_owned(),
        }
    }

    #[test]
    fn an_artifact_is_created_once_and_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.txt"), "of an earlier task").unwrap();
        let mut files = Folder::new(Some(folder.path().to_owned()), 100);
        assert!(files.append("a.txt", b"one").unwrap());
        assert!(!files.append("a.txt", b"two").unwrap());
        assert_eq!(
            std::fs::read(folder.path().join("a.txt")).unwrap(),
            b"onetwo"
        );
    }

    #[test]
    fn artifacts_are_bounded_together_and_a_replaced_one_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Folder::new(Some(folder.path().to_owned()), 10);
        files.append("a.txt", b"12345").unwrap();
        assert_eq!(code(files.append("b.txt", b"123456")), "task.artifact");
        assert!(files.replace("c.json", b"12345").unwrap());
        assert!(!files.replace("c.json", b"1").unwrap());
        assert_eq!(code(files.replace("d.json", b"12345")), "task.artifact");
    }

    #[test]
    fn an_artifact_is_either_appended_to_or_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Folder::new(Some(folder.path().to_owned()), 100);
        files.append("a.txt", b"1").unwrap();
        assert_eq!(code(files.replace("a.txt", b"2")), "task.artifact");
        files.replace("b.txt", b"one").unwrap();
        files.replace("b.txt", b"2").unwrap();
        assert_eq!(code(files.append("b.txt", b"3")), "task.artifact");
        assert_eq!(std::fs::read(folder.path().join("b.txt")).unwrap(), b"2");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn checkpoints_are_bounded_by_their_number() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Folder::new(Some(folder.path().to_owned()), 0);
        for number in 0..CHECKPOINTS {
            let checkpoint = Checkpoint::weights(&format!("epoch-{number}"));
            files.checkpoint(&checkpoint).unwrap();
            files.checkpoint(&checkpoint).unwrap();
        }
        let more = Checkpoint::state("last");
        assert_eq!(more.file(), "last.state.safetensors");
        assert_eq!(code(files.checkpoint(&more)), "task.artifact");
    }

    #[test]
    fn a_link_in_the_folder_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        std::fs::write(&outside, "kept").unwrap();
        let inside = folder.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("a.txt")).unwrap();
        let mut files = Folder::new(Some(inside), 100);
        assert_eq!(code(files.append("a.txt", b"x")), "storage.failed");
        assert_eq!(std::fs::read(outside).unwrap(), b"kept");
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Folder::new(Some(folder.path().to_owned()), 100);
        for name in [
            "", ".", "..", "../x", "/x", "a/b", "a\\b", "x\0", ".hidden", "é",
        ] {
            assert_eq!(code(files.append(name, b"x")), "task.artifact", "{name}");
            assert_eq!(code(files.replace(name, b"x")), "task.artifact", "{name}");
            let checkpoint = Checkpoint::weights(name);
            assert_eq!(code(files.checkpoint(&checkpoint)), "model.name", "{name}");
        }
        let checkpoint = Checkpoint::weights("a.b");
        assert_eq!(code(files.checkpoint(&checkpoint)), "model.name");
    }
}
