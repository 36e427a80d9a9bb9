//! Tasks: records, the store of them and their events, the queue, and the supervisor that runs each
//! in a worker.

pub mod deadline;
pub mod error;
pub mod lock;
pub mod resume;
pub mod store;
mod supervisor;
pub mod task;
mod workers;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use devices::{Kind, Place, Selector};
use tokio::sync::{Notify, watch};

use self::deadline::Deadline;
use self::error::TaskError;
use self::lock::{Hold, Role};
use self::store::{Event, Store, TaskFilter};
use self::task::{Submission, TaskKind, TaskRecord, TaskState};
use self::workers::Workers;
use crate::machine::Machine;
use crate::worker::protocol::Limits;

/// Tasks of one device string and kind that plan or wait with a plan, so that a small one may pass a
/// large one. Whoever goes before all of these may plan besides.
const AHEAD: usize = 4;

/// What tasks need of the host.
pub struct Settings {
    /// Whether the host runs every task, or its own alone.
    pub role: Role,
    /// The folder of the database and of tasks' own results; it exists.
    pub state: PathBuf,
    /// The devices.
    pub machine: Arc<Machine>,
    /// The folder of compiled plugins.
    pub compile_cache: PathBuf,
    /// Workers that plan at once; those that wait for a device with a plan do not count.
    pub planners: usize,
    /// Threads of a worker for compute on the CPU.
    pub threads_per_worker: usize,
    /// Tasks that may wait.
    pub queue_size: usize,
    /// What a plugin may use.
    pub limits: Limits,
}

/// All tasks of a host.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    store: Store,
    /// The state folder is this host's as long as it runs.
    hold: Hold,
    live: Mutex<Live>,
    workers: Workers,
    /// The beginning of the times that places in the queue are counted from.
    begun: Instant,
    /// Looks at the queue again.
    wake: Notify,
    /// Counts changes of any task, for those who wait for one.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Live {
    closing: bool,
    /// Tasks that have no worker yet, in order.
    queue: BTreeMap<Place, Waiting>,
    /// The number of the last place in the queue.
    places: u64,
    /// What each task that waits or runs is told to do.
    tasks: HashMap<String, watch::Sender<bool>>,
    /// Tasks that plan, or wait for their lease.
    planning: HashMap<String, Planning>,
}

/// The device asked for and the kind.
type Key = (String, Kind);

struct Waiting {
    id: String,
    key: Key,
    turn: Turn,
}

/// What a task's request says of its turn.
#[derive(Debug, Clone, Copy)]
struct Turn {
    place: Place,
    deadline: Option<Deadline>,
}

struct Planning {
    key: Key,
    place: Place,
    /// Whether it has planned, and waits.
    planned: bool,
}

/// RFC 3339, UTC, in microseconds: of one length, so that texts sort as times do.
fn now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// Waits until a time; for ever where there is none.
async fn reached(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl From<TaskKind> for Kind {
    fn from(kind: TaskKind) -> Self {
        match kind {
            TaskKind::Training => Self::Training,
            TaskKind::Inference => Self::Inference,
        }
    }
}

impl Tasks {
    /// Opens the store and begins to run what is submitted. What ran when the last host ended
    /// becomes interrupted; what waited is queued again by a server. Errors: where the store cannot
    /// be opened or the state folder is in use.
    pub fn start(settings: Settings) -> anyhow::Result<Self> {
        let (hold, alone) = lock::take(&settings.state, settings.role)?;
        let store = Store::open(&settings.state)?;
        let inner = Arc::new(Inner {
            settings,
            store,
            hold,
            begun: Instant::now(),
            live: Mutex::default(),
            workers: Workers::default(),
            wake: Notify::new(),
            changes: watch::channel(0).0,
        });
        let woken = Arc::downgrade(&inner);
        inner.settings.machine.allocator.on_change(move || {
            if let Some(inner) = woken.upgrade() {
                inner.changed();
            }
        });
        if alone {
            inner.recover()?;
        }
        if inner.settings.role == Role::Single {
            inner.hold.share(&inner.settings.state)?;
        }
        let scheduled = Arc::clone(&inner);
        tokio::spawn(async move { scheduled.schedule().await });
        Ok(Self { inner })
    }

    /// Records a task and puts it into the queue.
    pub fn submit(&self, submission: Submission) -> Result<TaskRecord, TaskError> {
        let inner = &self.inner;
        let id = submission
            .id
            .clone()
            .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let valid = (1..=128).contains(&id.len())
            && !id.starts_with('.')
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !valid {
            return Err(TaskError::Id { id });
        }
        let gpus = submission.gpus.unwrap_or(1);
        let selector = match &submission.device {
            Some(text) => text.parse().ok(),
            None => (gpus > 1).then_some(Selector::AnyGpu),
        };
        if let Some(selector) = selector {
            let allocator = &inner.settings.machine.allocator;
            allocator.check(&selector, &submission.plugin, submission.kind.into(), gpus)?;
        }
        let mut live = inner.live();
        if live.closing {
            return Err(TaskError::ShuttingDown);
        }
        let size = inner.settings.queue_size;
        if live.queue.len() + live.planning.len() >= size {
            return Err(TaskError::QueueFull { size });
        }
        let own = || inner.results().join(&id);
        let output = submission.output.clone().unwrap_or_else(own);
        if submission.resume.is_some() {
            // Two tasks that go on from one state would write over each other's results.
            for id in live.tasks.keys() {
                if inner.store.get(id)?.output == output {
                    return Err(TaskError::Active { id: id.clone() });
                }
            }
        }
        let mut record = TaskRecord {
            id,
            kind: submission.kind,
            state: TaskState::Pending,
            plugin: submission.plugin,
            plugin_hash: submission.plugin_hash,
            plugin_file: submission.plugin_file,
            model: submission.model,
            parameters: submission.parameters,
            device_requested: submission.device,
            gpus: submission.gpus,
            device: None,
            fallback_reason: None,
            waiting_reason: None,
            device_uuid: None,
            device_memory: None,
            devices: Vec::new(),
            tf32: submission.tf32,
            policy: submission.policy,
            lease_bytes: None,
            lease_observed_bytes: None,
            scratch_bytes: None,
            priority: submission.priority,
            wait_seconds: submission.wait_seconds,
            description: submission.description,
            message: "recorded".to_owned(),
            error_code: None,
            progress: 0.0,
            current_epoch: None,
            total_epochs: None,
            latest_metrics: serde_json::Map::new(),
            data: submission.data,
            weights: submission.weights,
            resume: submission.resume,
            output,
            created_at: now(),
            updated_at: now(),
            started_at: None,
            ended_at: None,
        };
        inner.store.insert(&record)?;
        if let Err(error) = std::fs::create_dir_all(&record.output) {
            inner.store.delete(&record.id)?;
            return Err(TaskError::Output {
                path: record.output.display().to_string(),
                error,
            });
        }
        inner.enqueue(&mut live, &mut record)?;
        drop(live);
        inner.changed();
        Ok(record)
    }

    /// A task.
    pub fn get(&self, id: &str) -> Result<TaskRecord, TaskError> {
        self.inner.store.get(id)
    }

    /// The newest training whose results are in a folder, by its canonical path.
    pub fn training_in(&self, folder: &Path) -> Result<Option<TaskRecord>, TaskError> {
        self.inner.store.training_in(folder)
    }

    /// The places of the tasks that wait, by id: from 1, in the order in which they go first.
    pub fn positions(&self) -> HashMap<String, u64> {
        let live = self.inner.live();
        let queued = live
            .queue
            .iter()
            .map(|(&place, waiting)| (place, &waiting.id));
        let planning = live
            .planning
            .iter()
            .map(|(id, planning)| (planning.place, id));
        let mut waiting: Vec<(Place, &String)> = queued.chain(planning).collect();
        waiting.sort_unstable();
        let ids = waiting.into_iter().map(|(_, id)| id.clone());
        ids.zip(1..).collect()
    }

    /// Tasks, the newest first.
    pub fn list(&self, filter: &TaskFilter) -> Result<Vec<TaskRecord>, TaskError> {
        self.inner.store.list(filter)
    }

    /// Ends a task in any state but a final one. A task that runs ends within a step, or is killed.
    pub fn cancel(&self, id: &str) -> Result<TaskRecord, TaskError> {
        let record = self.inner.store.get(id)?;
        let mut live = self.inner.live();
        let Some(told) = live.tasks.get(id).filter(|_| !record.state.is_final()) else {
            drop(live);
            let state = format!("{:?}", self.inner.store.get(id)?.state).to_lowercase();
            return Err(TaskError::Ended {
                id: id.to_owned(),
                state,
            });
        };
        told.send_replace(true);
        let mut queue = live.queue.iter();
        let waiting = queue
            .find(|(_, waiting)| waiting.id == id)
            .map(|(&place, _)| place);
        if let Some(place) = waiting {
            live.queue.remove(&place);
            live.tasks.remove(id);
        }
        drop(live);
        if waiting.is_some() {
            let mut record = record;
            self.inner.end(
                &mut record,
                TaskState::Cancelled,
                "cancelled before it ran",
                None,
            );
        }
        self.inner.store.get(id)
    }

    /// Forgets a task that has ended, its events, and the results in a folder of the state folder
    /// that no other task went on in.
    pub fn delete(&self, id: &str) -> Result<(), TaskError> {
        let record = self.inner.store.get(id)?;
        if !record.state.is_final() {
            return Err(TaskError::Active { id: id.to_owned() });
        }
        self.inner.store.delete(id)?;
        let own = record.output.parent() == Some(&self.inner.results());
        if own && !self.inner.is_in_use(&record.output)? {
            match std::fs::remove_dir_all(&record.output) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(TaskError::Output {
                        path: record.output.display().to_string(),
                        error,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The events of a task after one of a number, waiting for the next where there are none yet;
    /// none after the last.
    pub async fn events(&self, id: &str, after: u64) -> Result<Vec<Event>, TaskError> {
        let mut changes = self.inner.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let ended = self.inner.store.get(id)?.state.is_final();
            let events = self.inner.store.events(id, after)?;
            if !events.is_empty() || ended {
                return Ok(events);
            }
            if changes.changed().await.is_err() {
                return Ok(Vec::new());
            }
        }
    }

    /// The tasks that have workers, by the workers' process ids.
    pub fn workers(&self) -> HashMap<u32, String> {
        self.inner.workers.all()
    }

    /// Tasks that wait: for a worker, or with one for a device.
    pub fn waiting(&self) -> usize {
        let live = self.inner.live();
        live.queue.len() + live.planning.len()
    }

    /// Tasks that may wait.
    pub fn queue_size(&self) -> usize {
        self.inner.settings.queue_size
    }

    /// Refuses new tasks, ends those that run as interrupted, and waits for them.
    pub async fn shutdown(&self) {
        let mut changes = self.inner.changes.subscribe();
        {
            let mut live = self.inner.live();
            live.closing = true;
            let queued = std::mem::take(&mut live.queue);
            queued
                .values()
                .for_each(|waiting| drop(live.tasks.remove(&waiting.id)));
            for told in live.tasks.values() {
                told.send_replace(true);
            }
        }
        while !self.inner.live().tasks.is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
        self.wake.notify_one();
    }

    /// The folder of the results that users name no folder for.
    fn results(&self) -> PathBuf {
        self.settings.state.join("results")
    }

    /// Whether a task's results are in a folder.
    fn is_in_use(&self, folder: &Path) -> Result<bool, TaskError> {
        let every = TaskFilter {
            state: None,
            kind: None,
            limit: usize::MAX,
        };
        let records = self.store.list(&every)?;
        Ok(records.iter().any(|record| record.output == folder))
    }

    fn recover(self: &Arc<Self>) -> Result<(), TaskError> {
        let every = TaskFilter {
            state: None,
            kind: None,
            limit: usize::MAX,
        };
        let mut unfinished = self.store.list(&every)?;
        unfinished.retain(|record| !record.state.is_final());
        for mut record in unfinished.into_iter().rev() {
            if record.state == TaskState::Running {
                let message = "the host ended while the task ran";
                self.end(&mut record, TaskState::Interrupted, message, None);
            } else if self.settings.role == Role::Server {
                let mut live = self.live();
                self.enqueue(&mut live, &mut record)?;
            }
        }
        Ok(())
    }

    fn enqueue(&self, live: &mut Live, record: &mut TaskRecord) -> Result<(), TaskError> {
        record.state = TaskState::Queued;
        record.message = "waits for a worker".to_owned();
        record.waiting_reason = Some("it waits for a worker that plans it".to_owned());
        self.store.update(record, None)?;
        let device = record.device_requested.clone().unwrap_or_default();
        live.tasks
            .insert(record.id.clone(), watch::channel(false).0);
        live.places += 1;
        let place = Place::new(self.begun.elapsed(), record.priority, live.places);
        live.queue.insert(
            place,
            Waiting {
                id: record.id.clone(),
                key: (device, record.kind.into()),
                turn: Turn {
                    place,
                    deadline: Deadline::of(record),
                },
            },
        );
        Ok(())
    }

    /// Records a change, with an event where there is one. A store that fails is told to the
    /// operator; the task goes on.
    fn record(&self, record: &mut TaskRecord, event: Option<Event>) {
        record.updated_at = now();
        if let Err(error) = self.store.update(record, event.as_ref()) {
            crate::output::message(format_args!("task {}: {error}", record.id));
        }
        self.changed();
    }

    fn end(&self, record: &mut TaskRecord, state: TaskState, message: &str, code: Option<String>) {
        record.state = state;
        record.message = message.to_owned();
        record.error_code = code;
        record.waiting_reason = None;
        record.ended_at = Some(now());
        if state == TaskState::Completed {
            record.progress = 100.0;
        }
        let event = Event {
            sequence: 0,
            timestamp: now(),
            level: if state == TaskState::Failed {
                "error"
            } else {
                "info"
            }
            .to_owned(),
            message: message.to_owned(),
            metrics: None,
            step: None,
            stage: (state == TaskState::Completed).then(|| "completed".to_owned()),
            status: Some(state),
        };
        self.record(record, Some(event));
    }

    /// Starts workers for what waits, the first in rank first. What has waited too long for one ends.
    async fn schedule(self: Arc<Self>) {
        loop {
            while let Some((id, turn, told)) = self.next() {
                let inner = Arc::clone(&self);
                tokio::spawn(async move {
                    supervisor::run(&inner, &id, turn, told).await;
                    let mut live = inner.live();
                    live.tasks.remove(&id);
                    live.planning.remove(&id);
                    drop(live);
                    inner.changed();
                });
            }
            let next = self.expire();
            tokio::select! {
                () = self.wake.notified() => {}
                () = reached(next) => {}
            }
        }
    }

    /// Ends what has waited too long for a worker. Gives when the next will have.
    fn expire(&self) -> Option<tokio::time::Instant> {
        let now = tokio::time::Instant::now();
        let (mut overdue, mut next) = (Vec::new(), None);
        let mut live = self.live();
        live.queue.retain(|_, waiting| match waiting.turn.deadline {
            Some(deadline) if deadline.at() <= now => {
                overdue.push((waiting.id.clone(), deadline));
                false
            }
            Some(deadline) => {
                next = Some(next.map_or(deadline.at(), |at| deadline.at().min(at)));
                true
            }
            None => true,
        });
        for (id, _) in &overdue {
            live.tasks.remove(id);
        }
        drop(live);
        for (id, deadline) in overdue {
            let Ok(mut record) = self.store.get(&id) else {
                continue;
            };
            let error = deadline.overdue(now, record.waiting_reason.take());
            let code = Some(error.code().to_owned());
            self.end(&mut record, TaskState::Failed, &error.to_string(), code);
        }
        next
    }

    fn next(&self) -> Option<(String, Turn, watch::Receiver<bool>)> {
        let mut live = self.live();
        let plan = live
            .planning
            .values()
            .filter(|planning| !planning.planned)
            .count();
        if plan >= self.settings.planners.max(1) {
            return None;
        }
        let may = |(place, waiting): &(&Place, &Waiting)| {
            let same = live
                .planning
                .values()
                .filter(|planning| planning.key == waiting.key);
            let same: Vec<Place> = same.map(|planning| planning.place).collect();
            same.len() < AHEAD || same.iter().all(|other| *place < other)
        };
        let place = *live.queue.iter().find(may)?.0;
        let Waiting { id, key, turn } = live.queue.remove(&place)?;
        let told = live.tasks.get(&id)?.subscribe();
        let planning = Planning {
            key,
            place,
            planned: false,
        };
        live.planning.insert(id.clone(), planning);
        Some((id, turn, told))
    }

    /// The task has planned and asks for its lease: another may plan.
    fn planned(&self, id: &str) {
        if let Some(planning) = self.live().planning.get_mut(id) {
            planning.planned = true;
        }
        self.changed();
    }

    /// The task plans once more.
    fn plans_again(&self, record: &TaskRecord, place: Place) {
        let device = record.device_requested.clone().unwrap_or_default();
        let planning = Planning {
            key: (device, record.kind.into()),
            place,
            planned: false,
        };
        self.live().planning.insert(record.id.clone(), planning);
    }

    /// The task holds its lease.
    fn leased(&self, id: &str) {
        self.live().planning.remove(id);
        self.changed();
    }
}
