//! How well a GPU is: what NVML, the driver's Xids, tasks and self-tests tell of it, and what follows.
//! No clock and no I/O: times are since any beginning, and what is to be done is given as [`Order`]s.
//!
//! ```text
//!            test passed                      fault, unknown Xid, silence, 3 failed samples
//! new ───────────────────▶ healthy ─────────────────────────────────────────▶ suspect
//!  │ test failed             ▲ ▲ ▲                                               │
//!  ▼                         │ │ └──────────── it answers, test passed ──────────┤ again and again
//! unfit ── test passed ──────┘ │                                                 ▼
//!                              ├──── enabled by the operator, test passed ── quarantined ◀─ Xid 48, 74
//!                              ├──── it answers afresh, test passed ──────── reset_required ◀─ Xid 95 …
//!                              └──── it answers afresh, test passed ──────── lost ◀─ Xid 79
//! ```
//!
//! Nothing leads to healthy but a self-test that was begun after the last bad news and passed.

mod xid;

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

pub use self::xid::{Action, InvalidXid, XidTable};
use crate::gpu::{Failure, Recovery};
use crate::ledger::{Cause, State};

/// Samples in a row that a GPU may fail before it is suspect.
const FAILURES: u32 = 3;
/// A GPU whose call hangs for so long fails its tasks.
const SILENCE: Duration = Duration::from_secs(3);
/// So many faults of tasks …
const FAULTS: usize = 3;
/// … within this time are the GPU's.
const WINDOW: Duration = Duration::from_secs(3600);
/// An Xid and a task's error no longer apart tell of one fault.
const SAME: Duration = Duration::from_secs(10);
/// How long after bad news, or a self-test that failed, the next one runs at first and at last; each
/// pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// How well a GPU is, as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing is known against it.
    Healthy,
    /// Too hot for new tasks.
    Throttled,
    /// Not to be relied on until a self-test has passed.
    Suspect,
    /// The operator keeps new tasks away.
    Draining,
    /// Out of use until the operator enables it and a self-test has passed.
    Quarantined,
    /// Fell off the bus, or is not listed any more.
    Lost,
    /// Out of use until it has been reset.
    ResetRequired,
}

/// What happened to a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal<'a> {
    /// It answered, and told what would recover it.
    Answered(Option<Recovery>),
    /// It did not answer, for a reason.
    Failed(Failure, &'a str),
    /// The driver reported an error of it, while so many leases were on it.
    Xid {
        /// NVIDIA's number.
        code: u64,
        /// What is to be done.
        action: Action,
        /// Leases on it.
        leases: usize,
        /// Leases on other instances of the same GPU, of which the driver may be telling as well.
        beside: usize,
    },
    /// It was split into instances or put together since it last answered, in words.
    Changed(&'a str),
    /// A task there ended by a fault of the device.
    Fault(&'a str),
    /// The self-test has ended.
    Tested(Result<(), &'a str>),
    /// The operator wants it back.
    Enabled,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// End all leases on it.
    Fail(Cause),
    /// End the lease on it where there is still one alone.
    FailOnly(Cause),
    /// Run a self-test, and tell of its end.
    Test,
}

/// The last Xid of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastXid {
    /// NVIDIA's number.
    pub code: u64,
    /// When it was reported.
    pub at: Duration,
    /// What is to be done by the operator's word, else by NVIDIA's catalogue.
    pub action: Action,
}

/// A fault of a program, of which the driver tells by one Xid or several, and the task by its error.
#[derive(Debug, Clone, Copy)]
struct Incident {
    at: Duration,
    /// Whether a task has told of it.
    told: bool,
    /// Whether no self-test has passed since.
    open: bool,
}

impl Incident {
    /// Whether an Xid of a program's fault tells of this one.
    fn has_xid(&self, now: Duration) -> bool {
        self.open || (self.told && now <= self.at + SAME)
    }

    /// Whether a task's error tells of this one.
    fn has_error(&self, now: Duration) -> bool {
        !self.told && now <= self.at + SAME
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not tested yet.
    New,
    /// The first self-test failed, and nothing else is known against it.
    Unfit,
    Healthy,
    Suspect,
    Quarantined,
    ResetRequired,
    Lost,
}

/// A GPU's condition.
#[derive(Debug, Clone)]
pub struct Condition {
    stage: Stage,
    reason: Option<String>,
    since: Duration,
    last_xid: Option<LastXid>,
    /// Whether a self-test has ever passed.
    admitted: bool,
    /// Why it is to be quarantined once it is neither lost nor in need of a reset.
    confined: Option<String>,
    /// Samples in a row that failed.
    failures: u32,
    /// When tasks had faults.
    faults: VecDeque<Duration>,
    /// The last of them.
    incident: Option<Incident>,
    /// Counts bad news, so that a self-test that was begun before some does not count.
    news: u64,
    /// The news at which the self-test that runs was begun.
    testing: Option<u64>,
    /// No self-test before this.
    test_at: Duration,
    pause: Duration,
    answers: bool,
    /// Whether it has failed to answer since it came to be lost or in need of a reset, or the operator
    /// says that it was reset.
    renewed: bool,
}

impl Condition {
    /// A GPU of which nothing is known yet, at a time.
    pub fn new(now: Duration) -> Self {
        Self {
            stage: Stage::New,
            reason: None,
            since: now,
            last_xid: None,
            admitted: false,
            confined: None,
            failures: 0,
            faults: VecDeque::new(),
            incident: None,
            news: 0,
            testing: None,
            test_at: now,
            pause: FIRST_PAUSE,
            answers: false,
            renewed: false,
        }
    }

    /// How well it is, heat and the operator's will aside.
    pub fn health(&self) -> Health {
        match self.stage {
            Stage::New | Stage::Unfit | Stage::Healthy => Health::Healthy,
            Stage::Suspect => Health::Suspect,
            Stage::Quarantined => Health::Quarantined,
            Stage::ResetRequired => Health::ResetRequired,
            Stage::Lost => Health::Lost,
        }
    }

    /// Why it is not healthy, or fit for no task.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Since when it is as it is.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// The last Xid.
    pub fn last_xid(&self) -> Option<LastXid> {
        self.last_xid
    }

    /// Whether tasks can run on it. One that has never passed a self-test is as good as none; one that
    /// has, is waited for.
    pub fn state(&self) -> State {
        let reason = || self.reason.clone().unwrap_or_default();
        match self.stage {
            Stage::New => State::Probing,
            Stage::Healthy => State::Ready,
            _ if self.admitted => State::Unwell(reason()),
            _ => State::Unable(reason()),
        }
    }

    /// Takes what happened at a time. Gives what is to be done.
    pub fn signal(&mut self, now: Duration, signal: &Signal<'_>) -> Vec<Order> {
        let mut orders = match signal {
            Signal::Answered(recovery) => self.answered(now, *recovery),
            Signal::Failed(failure, reason) => self.failed(now, *failure, reason),
            Signal::Xid {
                code,
                action,
                leases,
                beside,
            } => self.xid(now, *code, *action, (*leases, *beside)),
            Signal::Changed(what) => {
                self.suspect(now, (*what).to_owned(), Duration::ZERO);
                Vec::new()
            }
            Signal::Fault(reason) => {
                self.told(now, reason);
                Vec::new()
            }
            Signal::Tested(outcome) => {
                self.tested(now, *outcome);
                Vec::new()
            }
            Signal::Enabled => {
                self.enabled(now);
                Vec::new()
            }
        };
        if self.testable() && self.test_at <= now {
            self.testing = Some(self.news);
            orders.push(Order::Test);
        }
        orders
    }

    /// Whether a self-test makes sense now.
    fn testable(&self) -> bool {
        let wanted = match self.stage {
            Stage::New | Stage::Unfit | Stage::Suspect => true,
            Stage::ResetRequired | Stage::Lost => self.renewed,
            Stage::Quarantined => self.confined.is_none(),
            Stage::Healthy => false,
        };
        wanted && self.answers && self.testing.is_none()
    }

    /// Goes to a stage by bad news, with a self-test `pause` later at the earliest.
    fn enter(&mut self, now: Duration, stage: Stage, reason: String, pause: Duration) {
        if self.stage != stage {
            self.since = now;
            self.pause = FIRST_PAUSE;
        }
        self.renewed = false;
        self.stage = stage;
        self.reason = Some(reason);
        self.news += 1;
        self.test_at = now + pause;
    }

    /// Becomes suspect, unless it is worse.
    fn suspect(&mut self, now: Duration, reason: String, pause: Duration) {
        match self.stage {
            Stage::New | Stage::Unfit | Stage::Healthy | Stage::Suspect => {
                self.enter(now, Stage::Suspect, reason, pause);
            }
            Stage::Quarantined | Stage::ResetRequired | Stage::Lost => self.news += 1,
        }
    }

    fn quarantine(&mut self, now: Duration, reason: String) {
        self.confined = Some(reason.clone());
        match self.stage {
            Stage::ResetRequired | Stage::Lost => self.news += 1,
            _ => self.enter(now, Stage::Quarantined, reason, Duration::ZERO),
        }
    }

    fn reset_required(&mut self, now: Duration, reason: String) -> Vec<Order> {
        let cause = Cause {
            code: "device.reset-required",
            reason: reason.clone(),
        };
        self.enter(now, Stage::ResetRequired, reason, FIRST_PAUSE);
        vec![Order::Fail(cause)]
    }

    fn lose(&mut self, now: Duration, reason: String) -> Vec<Order> {
        let cause = Cause {
            code: "device.lost",
            reason: reason.clone(),
        };
        self.enter(now, Stage::Lost, reason, FIRST_PAUSE);
        vec![Order::Fail(cause)]
    }

    fn answered(&mut self, now: Duration, recovery: Option<Recovery>) -> Vec<Order> {
        self.failures = 0;
        self.answers = true;
        match recovery {
            None => Vec::new(),
            // It stays as it is, and is not told of again, until NVML says otherwise.
            Some(_) if matches!(self.stage, Stage::ResetRequired | Stage::Lost) => {
                self.answers = false;
                self.renewed = true;
                Vec::new()
            }
            Some(Recovery::DrainP2p) if self.stage == Stage::Quarantined => Vec::new(),
            Some(Recovery::DrainP2p) => {
                self.quarantine(now, Recovery::DrainP2p.advice().to_owned());
                Vec::new()
            }
            Some(recovery) => self.reset_required(now, recovery.advice().to_owned()),
        }
    }

    fn failed(&mut self, now: Duration, failure: Failure, reason: &str) -> Vec<Order> {
        self.answers = false;
        self.failures = self.failures.saturating_add(1);
        let orders = match failure {
            Failure::Lost if self.stage != Stage::Lost => self.lose(now, reason.to_owned()),
            Failure::ResetRequired if self.stage != Stage::ResetRequired => {
                self.reset_required(now, reason.to_owned())
            }
            Failure::Lost | Failure::ResetRequired => Vec::new(),
            Failure::Silent(silence) => {
                self.suspect(now, reason.to_owned(), Duration::ZERO);
                let cause = Cause {
                    code: "device.silent",
                    reason: reason.to_owned(),
                };
                if silence >= SILENCE {
                    vec![Order::Fail(cause)]
                } else {
                    Vec::new()
                }
            }
            Failure::NoPermission | Failure::Unknown => {
                // Of a GPU that has never answered there is nothing to go by.
                if self.failures >= FAILURES || self.stage == Stage::New {
                    self.suspect(now, reason.to_owned(), Duration::ZERO);
                }
                Vec::new()
            }
        };
        self.renewed = true;
        orders
    }

    fn xid(
        &mut self,
        now: Duration,
        code: u64,
        action: Action,
        (leases, beside): (usize, usize),
    ) -> Vec<Order> {
        self.last_xid = Some(LastXid {
            code,
            at: now,
            action,
        });
        let reason = format!("Xid {code} ({})", action.advice());
        match action {
            Action::Ignore | Action::FollowOthers | Action::RecoveryChanged => Vec::new(),
            Action::RestartApp if leases == 0 => Vec::new(),
            Action::RestartApp if self.incident.is_some_and(|incident| incident.has_xid(now)) => {
                // Whoever did it has failed already, or will by an error of its own.
                self.suspect(now, reason, Duration::ZERO);
                Vec::new()
            }
            Action::RestartApp => {
                self.fault(now, false, &reason);
                let code = "device.fault";
                match (leases, beside) {
                    (1, 0) => vec![Order::FailOnly(Cause { code, reason })],
                    // The one that did it has an error of its own; where none has, the self-test decides.
                    _ => Vec::new(),
                }
            }
            Action::ResetGpu | Action::RestartVm if self.stage == Stage::Lost => {
                self.news += 1;
                Vec::new()
            }
            Action::ResetGpu | Action::RestartVm => self.reset_required(now, reason),
            Action::RestartMachine => self.lose(now, reason),
            Action::MemoryError => {
                self.quarantine(now, reason.clone());
                let code = "device.quarantined";
                vec![Order::Fail(Cause { code, reason })]
            }
            Action::LinkError => {
                self.quarantine(now, reason);
                Vec::new()
            }
            Action::Unknown => {
                self.suspect(now, reason, Duration::ZERO);
                Vec::new()
            }
        }
    }

    /// A task tells of a fault.
    fn told(&mut self, now: Duration, reason: &str) {
        match &mut self.incident {
            Some(incident) if incident.has_error(now) => {
                // What the driver still tells of it comes after this.
                *incident = Incident {
                    at: now,
                    told: true,
                    open: true,
                };
                self.suspect(now, reason.to_owned(), Duration::ZERO);
            }
            _ => self.fault(now, true, reason),
        }
    }

    /// There was a fault, of which a task has told or not. Tests the GPU; after too many it is
    /// quarantined.
    fn fault(&mut self, now: Duration, told: bool, reason: &str) {
        self.incident = Some(Incident {
            at: now,
            told,
            open: true,
        });
        self.faults.push_back(now);
        while self.faults.front().is_some_and(|&at| at + WINDOW < now) {
            self.faults.pop_front();
        }
        if self.faults.len() >= FAULTS {
            let hour = WINDOW.as_secs() / 60;
            let count = self.faults.len();
            self.quarantine(
                now,
                format!("{count} tasks failed on it within {hour} minutes, the last by {reason}"),
            );
        } else {
            self.suspect(now, reason.to_owned(), Duration::ZERO);
        }
    }

    fn tested(&mut self, now: Duration, outcome: Result<(), &str>) {
        let Some(begun) = self.testing.take() else {
            return;
        };
        match outcome {
            // There has been bad news since.
            _ if begun != self.news => {}
            Ok(()) if self.answers => {
                self.admitted = true;
                if let Some(incident) = &mut self.incident {
                    incident.open = false;
                }
                self.pause = FIRST_PAUSE;
                self.since = now;
                self.news += 1;
                match self.confined.clone() {
                    Some(reason) => self.enter(now, Stage::Quarantined, reason, Duration::ZERO),
                    None => {
                        self.stage = Stage::Healthy;
                        self.reason = None;
                    }
                }
            }
            Ok(()) => {}
            Err(reason) => {
                self.test_at = now + self.pause;
                self.pause = (self.pause * 2).min(LAST_PAUSE);
                match self.stage {
                    Stage::New | Stage::Unfit => {
                        self.stage = Stage::Unfit;
                        self.reason = Some(reason.to_owned());
                    }
                    _ => self.reason = Some(format!("its self-test failed: {reason}")),
                }
            }
        }
    }

    fn enabled(&mut self, now: Duration) {
        if self.stage == Stage::Healthy {
            return;
        }
        self.confined = None;
        self.faults.clear();
        self.renewed = true;
        self.test_at = now;
        self.pause = FIRST_PAUSE;
    }
}

#[cfg(test)]
mod tests;
