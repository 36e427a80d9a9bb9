//! Which of several free devices a task gets: a rule is a pure function from a device to a score, of
//! which the lowest wins. Among equals the first in order (the lowest ordinal) does.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A rule to choose by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The lowest sum of three shares: of task slots, of memory once the task is there, and of time in
    /// which kernels run.
    #[default]
    LeastLoaded,
    /// The fewest tasks.
    FewestTasks,
    /// The most memory for leases.
    MostFreeMemory,
    /// The lowest utilization; a GPU that tells none comes last.
    LeastUtilized,
    /// The one that was granted the longest time ago.
    RoundRobin,
    /// The one on which the least memory is left over, so that others stay empty.
    Pack,
    /// The fewest tasks, then the most memory.
    Spread,
    /// The farthest from its slowdown temperature; a GPU that tells none comes last, the coldest first.
    Coolest,
}

/// A text that is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no policy; the policies are {names}", names = Policy::names())]
pub struct InvalidPolicy(String);

/// A device on which a task fits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    /// Tasks there.
    pub(crate) tasks: u32,
    /// Tasks that its limits allow.
    pub(crate) slots: u32,
    /// Memory that its leases can take together, in bytes.
    pub(crate) usable_bytes: u64,
    /// Memory for leases now, in bytes.
    pub(crate) allocatable_bytes: u64,
    /// Memory that the task takes, in bytes.
    pub(crate) needed_bytes: u64,
    /// Percent of the time in which kernels ran lately.
    pub(crate) utilization_percent: Option<f64>,
    /// °C to its slowdown temperature.
    pub(crate) thermal_margin_c: Option<i32>,
    /// °C.
    pub(crate) temperature_c: Option<u32>,
    /// The number of its last grant; 0 before the first.
    pub(crate) last_grant: u64,
}

/// Lower wins, the first figure first.
type Score = (u64, u64);

/// Above every figure that is known.
const UNKNOWN: u64 = u64::MAX;

impl Policy {
    /// All of them by name.
    pub const ALL: [(&'static str, Self); 8] = [
        ("least-loaded", Self::LeastLoaded),
        ("fewest-tasks", Self::FewestTasks),
        ("most-free-memory", Self::MostFreeMemory),
        ("least-utilized", Self::LeastUtilized),
        ("round-robin", Self::RoundRobin),
        ("pack", Self::Pack),
        ("spread", Self::Spread),
        ("coolest", Self::Coolest),
    ];

    fn names() -> String {
        Self::ALL.map(|(name, _)| name).join(", ")
    }

    /// The device's score by this rule.
    pub(crate) fn score(self, candidate: &Candidate) -> Score {
        let rule = match self {
            Self::LeastLoaded => least_loaded,
            Self::FewestTasks => fewest_tasks,
            Self::MostFreeMemory => most_free_memory,
            Self::LeastUtilized => least_utilized,
            Self::RoundRobin => round_robin,
            Self::Pack => pack,
            Self::Spread => spread,
            Self::Coolest => coolest,
        };
        rule(candidate)
    }
}

impl FromStr for Policy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == text);
        let invalid = || InvalidPolicy(text.chars().take(64).collect());
        found.map(|(_, policy)| policy).ok_or_else(invalid)
    }
}

/// Thousandths.
fn share(part: u64, whole: u64) -> u64 {
    let whole = whole.max(1);
    let share = match part.checked_mul(1000) {
        Some(thousandfold) => thousandfold / whole,
        None => part / whole.div_ceil(1000),
    };
    share.min(1000)
}

fn least_loaded(c: &Candidate) -> Score {
    let left = c.allocatable_bytes.saturating_sub(c.needed_bytes);
    let slots = share(c.tasks.into(), c.slots.into());
    let memory = 1000 - share(left, c.usable_bytes);
    let busy = c
        .utilization_percent
        .map_or(0, |percent| (percent * 10.0) as u64);
    (slots + memory + busy, 0)
}

fn fewest_tasks(c: &Candidate) -> Score {
    (c.tasks.into(), 0)
}

fn most_free_memory(c: &Candidate) -> Score {
    (u64::MAX - c.allocatable_bytes, 0)
}

fn least_utilized(c: &Candidate) -> Score {
    let busy = c
        .utilization_percent
        .map_or(UNKNOWN, |percent| (percent * 10.0) as u64);
    (busy, c.tasks.into())
}

fn round_robin(c: &Candidate) -> Score {
    (c.last_grant, 0)
}

fn pack(c: &Candidate) -> Score {
    (c.allocatable_bytes.saturating_sub(c.needed_bytes), 0)
}

fn spread(c: &Candidate) -> Score {
    (c.tasks.into(), u64::MAX - c.allocatable_bytes)
}

fn coolest(c: &Candidate) -> Score {
    let hot = |celsius: i32| (1 << 32) + i64::from(celsius);
    let margin = c
        .thermal_margin_c
        .map_or(UNKNOWN, |margin| hot(-margin).unsigned_abs());
    (margin, c.temperature_c.map_or(UNKNOWN, u64::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Candidate = Candidate {
        tasks: 0,
        slots: 4,
        usable_bytes: 100,
        allocatable_bytes: 100,
        needed_bytes: 10,
        utilization_percent: Some(0.0),
        thermal_margin_c: Some(60),
        temperature_c: Some(30),
        last_grant: 0,
    };

    /// The place of the device that a policy chooses.
    fn chosen(policy: &str, candidates: &[Candidate]) -> usize {
        let policy: Policy = policy.parse().unwrap();
        let scored = candidates.iter().map(|candidate| policy.score(candidate));
        scored.zip(0..).min().unwrap().1
    }

    #[test]
    fn every_policy_chooses_by_its_own_figure() {
        let full = Candidate {
            tasks: 3,
            allocatable_bytes: 20,
            last_grant: 1,
            ..IDLE
        };
        let busy = Candidate {
            tasks: 1,
            allocatable_bytes: 95,
            utilization_percent: Some(90.0),
            thermal_margin_c: Some(5),
            last_grant: 2,
            ..IDLE
        };
        let small = Candidate {
            tasks: 1,
            usable_bytes: 40,
            allocatable_bytes: 30,
            utilization_percent: Some(10.0),
            thermal_margin_c: Some(70),
            last_grant: 3,
            ..IDLE
        };
        let machine = [full, busy, small];
        let expected = [
            ("least-loaded", 2),
            ("fewest-tasks", 1),
            ("most-free-memory", 1),
            ("least-utilized", 0),
            ("round-robin", 0),
            ("pack", 0),
            ("spread", 1),
            ("coolest", 2),
        ];
        for (policy, place) in expected {
            assert_eq!(chosen(policy, &machine), place, "{policy}");
        }
        assert_eq!(expected.len(), Policy::ALL.len());
    }

    #[test]
    fn the_first_of_equals_wins_and_what_is_unknown_comes_last() {
        let silent = Candidate {
            utilization_percent: None,
            thermal_margin_c: None,
            temperature_c: None,
            ..IDLE
        };
        for (policy, _) in Policy::ALL {
            assert_eq!(chosen(policy, &[IDLE, IDLE]), 0, "{policy}");
        }
        assert_eq!(chosen("least-utilized", &[silent, IDLE]), 1);
        assert_eq!(chosen("coolest", &[silent, IDLE]), 1);
        let warm = Candidate {
            temperature_c: Some(50),
            ..silent
        };
        let cold = Candidate {
            temperature_c: Some(40),
            ..silent
        };
        assert_eq!(chosen("coolest", &[silent, warm, cold]), 2);
    }

    #[test]
    fn names_are_those_of_the_documents_and_json() {
        for (name, policy) in Policy::ALL {
            assert_eq!(name.parse(), Ok(policy));
            assert_eq!(
                serde_json::to_string(&policy).unwrap(),
                format!("\"{name}\"")
            );
        }
        let error = "random".parse::<Policy>().unwrap_err().to_string();
        assert!(error.contains("least-loaded, fewest-tasks"), "{error}");
    }
}
