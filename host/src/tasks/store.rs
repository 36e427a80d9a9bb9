//! The store: tasks and their events in SQLite, which a person can open. Writes are durable before
//! they are acknowledged.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::TaskError;
use super::task::{TaskKind, TaskRecord, TaskState};

/// The tables, as `PRAGMA user_version` 1 has them.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS tasks (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        state TEXT NOT NULL,
        created_at TEXT NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS tasks_by_age ON tasks (created_at);
    CREATE TABLE IF NOT EXISTS events (
        task TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
        sequence INTEGER NOT NULL,
        event TEXT NOT NULL,
        PRIMARY KEY (task, sequence)
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 1;
";

/// Events that one reading returns at most.
const PAGE: usize = 500;

/// Something that happened in a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// From 1, without gaps.
    #[serde(skip)]
    pub sequence: u64,
    /// RFC 3339, UTC.
    pub timestamp: String,
    /// `debug`, `info`, `warning` or `error`.
    pub level: String,
    /// For people.
    pub message: String,
    /// Of an epoch, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Map<String, Value>>,
    /// The epoch, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// `epoch_start`, `training`, `validation`, `epoch_end` or `completed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The final state, in the last event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<TaskState>,
}

/// Which tasks to list.
#[derive(Debug, Clone, Copy)]
pub struct TaskFilter {
    /// In this state.
    pub state: Option<TaskState>,
    /// Of this kind.
    pub kind: Option<TaskKind>,
    /// At most so many, the newest.
    pub limit: usize,
}

/// The database of tasks.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
}

/// A state or kind as the database and JSON have it.
fn word(value: impl Serialize) -> Result<String, TaskError> {
    let value = serde_json::to_value(value).map_err(TaskError::stored)?;
    Ok(value.as_str().unwrap_or_default().to_owned())
}

impl Store {
    /// Opens or makes the database of a state folder. Errors: a database of a newer version.
    pub fn open(state: &Path) -> anyhow::Result<Self> {
        let path = &state.join("tasks.sqlite");
        let open = || -> rusqlite::Result<(Connection, i64)> {
            let connection = Connection::open(path)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            Ok((connection, version))
        };
        let (connection, version) =
            open().with_context(|| format!("cannot open the task store {}", path.display()))?;
        anyhow::ensure!(
            version <= 1,
            "the task store {} is of a newer version of Hangar",
            path.display()
        );
        connection.execute_batch(SCHEMA)?;
        Ok(Self {
            connection: Mutex::new(connection),
        })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a new task. Errors: [`TaskError::Exists`].
    pub fn insert(&self, record: &TaskRecord) -> Result<(), TaskError> {
        let json = serde_json::to_string(record).map_err(TaskError::stored)?;
        let added = self.connection().execute(
            "INSERT OR IGNORE INTO tasks VALUES (?, ?, ?, ?, ?)",
            params![
                record.id,
                word(record.kind)?,
                word(record.state)?,
                record.created_at,
                json
            ],
        )?;
        if added == 0 {
            return Err(TaskError::Exists {
                id: record.id.clone(),
            });
        }
        Ok(())
    }

    /// Replaces a task's record, and appends an event where there is one, in one step.
    pub fn update(&self, record: &TaskRecord, event: Option<&Event>) -> Result<(), TaskError> {
        let json = serde_json::to_string(record).map_err(TaskError::stored)?;
        let state = word(record.state)?;
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        transaction.execute(
            "UPDATE tasks SET state = ?, record = ? WHERE id = ?",
            params![state, json, record.id],
        )?;
        if let Some(event) = event {
            let json = serde_json::to_string(event).map_err(TaskError::stored)?;
            transaction.execute(
                "INSERT INTO events SELECT ?1, coalesce(max(sequence), 0) + 1, ?2
                 FROM events WHERE task = ?1",
                params![record.id, json],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// A task. Errors: [`TaskError::Unknown`].
    pub fn get(&self, id: &str) -> Result<TaskRecord, TaskError> {
        let found: Option<String> = self
            .connection()
            .query_row("SELECT record FROM tasks WHERE id = ?", [id], |row| {
                row.get(0)
            })
            .optional()?;
        let json = found.ok_or_else(|| TaskError::Unknown { id: id.to_owned() })?;
        serde_json::from_str(&json).map_err(TaskError::stored)
    }

    /// Tasks, the newest first.
    pub fn list(&self, filter: &TaskFilter) -> Result<Vec<TaskRecord>, TaskError> {
        let state = filter.state.map(word).transpose()?;
        let kind = filter.kind.map(word).transpose()?;
        let connection = self.connection();
        let mut statement = connection.prepare_cached(
            "SELECT record FROM tasks
             WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR kind = ?2)
             ORDER BY created_at DESC, rowid DESC LIMIT ?3",
        )?;
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![state, kind, limit], |row| row.get(0))?;
        rows.map(|json: rusqlite::Result<String>| {
            serde_json::from_str(&json?).map_err(TaskError::stored)
        })
        .collect()
    }

    /// The newest training whose results are in a folder, by its canonical path.
    pub fn training_in(&self, folder: &Path) -> Result<Option<TaskRecord>, TaskError> {
        let every = TaskFilter {
            state: None,
            kind: Some(TaskKind::Training),
            limit: usize::MAX,
        };
        let there = |record: &TaskRecord| {
            let output = &record.output;
            output == folder || output.canonicalize().is_ok_and(|output| output == folder)
        };
        Ok(self.list(&every)?.into_iter().find(there))
    }

    /// A page of a task's events after one of a number.
    pub fn events(&self, id: &str, after: u64) -> Result<Vec<Event>, TaskError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(
            "SELECT sequence, event FROM events WHERE task = ? AND sequence > ?
             ORDER BY sequence LIMIT ?",
        )?;
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![id, after, PAGE as i64], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        rows.map(|row| {
            let (sequence, json) = row?;
            let event: Event = serde_json::from_str(&json).map_err(TaskError::stored)?;
            Ok(Event {
                sequence: sequence.unsigned_abs(),
                ..event
            })
        })
        .collect()
    }

    /// Forgets a task and its events. Errors: [`TaskError::Unknown`].
    pub fn delete(&self, id: &str) -> Result<(), TaskError> {
        match self
            .connection()
            .execute("DELETE FROM tasks WHERE id = ?", [id])?
        {
            0 => Err(TaskError::Unknown { id: id.to_owned() }),
            _ => Ok(()),
        }
    }
}
