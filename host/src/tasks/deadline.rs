//! How long a task may wait: for a worker, and with one for a device.
//!
//! The time counts from when the request was accepted, planning among it, and goes on while the host is
//! down. What can start at once when it asks does, however late that is; what would have to wait then is
//! refused.

use std::time::Duration;

use tokio::time::Instant;

use super::task::TaskRecord;

/// The longest that a request may let a task wait, in seconds: a week.
pub const MOST_SECONDS: u64 = 7 * 24 * 3600;

/// When a task has waited long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline {
    limit: Duration,
    at: Instant,
}

/// `queue.deadline`: a task has waited longer than it may.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it waited {waited:.1} s and may wait {limit} s (`wait_seconds`): {reason}",
    waited = waited.as_secs_f64(),
    limit = limit.as_secs()
)]
pub(super) struct Overdue {
    waited: Duration,
    limit: Duration,
    /// Why it waited at last.
    reason: String,
}

impl Overdue {
    /// The stable dotted code.
    pub(super) fn code(&self) -> &'static str {
        "queue.deadline"
    }
}

impl Deadline {
    /// Of a task that may wait for `limit`, and was accepted `waited` before `now`.
    pub(super) fn new(limit: Duration, waited: Duration, now: Instant) -> Self {
        let at = (now + limit).checked_sub(waited).unwrap_or(now);
        Self { limit, at }
    }

    /// Of a task; none where it may wait for ever.
    pub(super) fn of(record: &TaskRecord) -> Option<Self> {
        let limit = Duration::from_secs(record.wait_seconds?);
        let accepted: Option<jiff::Timestamp> = record.created_at.parse().ok();
        let waited = accepted.map(|accepted| jiff::Timestamp::now().duration_since(accepted));
        // A clock that was set back meanwhile gives it all of its time.
        let waited = waited.and_then(|waited| Duration::try_from(waited).ok());
        Some(Self::new(limit, waited.unwrap_or_default(), Instant::now()))
    }

    /// When it is.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// What is told at a time no earlier than it, with why the task waits then.
    pub(super) fn overdue(&self, now: Instant, reason: Option<String>) -> Overdue {
        Overdue {
            waited: self.limit + now.saturating_duration_since(self.at),
            limit: self.limit,
            reason: reason.unwrap_or_else(|| "for a device".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_time_before_and_after_a_restart_counts_and_is_told() {
        let now = Instant::now();
        let deadline = Deadline::new(10 * SECOND, 4 * SECOND, now);
        assert_eq!(deadline.at(), now + 6 * SECOND);
        let late = Deadline::new(10 * SECOND, 14 * SECOND, now);
        assert_eq!(late.at(), now.checked_sub(4 * SECOND).unwrap());
        let overdue = late.overdue(now, Some("cuda:0 runs 1 of 1 trainings".to_owned()));
        assert_eq!(
            (overdue.to_string().as_str(), overdue.code()),
            (
                "it waited 14.0 s and may wait 10 s (`wait_seconds`): cuda:0 runs 1 of 1 trainings",
                "queue.deadline"
            )
        );
    }
}
