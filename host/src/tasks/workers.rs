//! Which process is the worker of which task.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The tasks that have workers, by the workers' process ids.
#[derive(Clone, Default)]
pub(super) struct Workers(Arc<Mutex<HashMap<u32, String>>>);

/// Says whose worker a process is, until it is dropped.
pub(super) struct Named {
    workers: Workers,
    process: Option<u32>,
}

impl Workers {
    fn tasks(&self) -> MutexGuard<'_, HashMap<u32, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a process, none where it has ended, is the worker of a task.
    pub(super) fn name(&self, process: Option<u32>, task: &str) -> Named {
        if let Some(process) = process {
            self.tasks().insert(process, task.to_owned());
        }
        let workers = self.clone();
        Named { workers, process }
    }

    /// All of them at this moment.
    pub(super) fn all(&self) -> HashMap<u32, String> {
        self.tasks().clone()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(process) = self.process {
            self.workers.tasks().remove(&process);
        }
    }
}
