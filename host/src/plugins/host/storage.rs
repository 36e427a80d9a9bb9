//! The task's folder: artifacts and checkpoints under plain names, within a bound.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::error::{HostError, Result};
use super::is_plain;

/// Artifacts open at once.
const ARTIFACTS: usize = 64;

/// The folder, and what was written there.
pub(super) struct Folder {
    path: Option<PathBuf>,
    limit_bytes: u64,
    artifacts: HashMap<String, File>,
    written: HashMap<String, u64>,
}

impl Folder {
    /// A folder; none refuses every file.
    pub(super) fn new(path: Option<PathBuf>, limit_bytes: u64) -> Self {
        Self {
            path,
            limit_bytes,
            artifacts: HashMap::new(),
            written: HashMap::new(),
        }
    }

    /// Appends to an artifact; the first time, creates it. Gives whether it was created.
    pub(super) fn append(&mut self, name: &str, data: &[u8]) -> Result<bool> {
        if !is_plain(name, true) {
            let message = format!(
                "`{}` is not a plain name: letters, digits, `-`, `_` and `.` inside, up to 128",
                name.escape_debug()
            );
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

    /// The path of a checkpoint of `size` bytes, counted as written.
    pub(super) fn checkpoint(&mut self, name: &str, size: u64) -> Result<PathBuf> {
        if !is_plain(name, false) {
            let message = format!(
                "`{}` is not a plain name: letters, digits, `-` and `_`, up to 128",
                name.escape_debug()
            );
            return Err(HostError::new("model.name", message));
        }
        let file = format!("{name}.safetensors");
        self.check_size(&file, size)?;
        let path = self.path()?.join(&file);
        self.written.insert(file, size);
        Ok(path)
    }

    fn path(&self) -> Result<&PathBuf> {
        self.path
            .as_ref()
            .ok_or_else(|| HostError::new("task.artifact", "nothing can be written here"))
    }

    /// Refuses a file that would exceed the task's bytes at this size.
    fn check_size(&self, name: &str, size: u64) -> Result<()> {
        let others = self.written.iter().filter(|(other, _)| *other != name);
        let total = others
            .map(|(_, size)| size)
            .sum::<u64>()
            .saturating_add(size);
        if total > self.limit_bytes {
            let message = format!(
                "{name} would bring the task's files to {total} bytes; {} are allowed",
                self.limit_bytes
            );
            return Err(HostError::new("task.artifact", message));
        }
        Ok(())
    }
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
    fn files_are_bounded_together_and_a_replaced_one_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Folder::new(Some(folder.path().to_owned()), 10);
        files.append("a.txt", b"12345").unwrap();
        assert_eq!(code(files.append("b.txt", b"123456")), "task.artifact");
        files.checkpoint("last", 5).unwrap();
        files.checkpoint("last", 5).unwrap();
        assert_eq!(code(files.checkpoint("best", 1)), "task.artifact");
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
            assert_eq!(code(files.checkpoint(name, 1)), "model.name", "{name}");
        }
        assert_eq!(code(files.checkpoint("a.b", 1)), "model.name");
    }
}
