//! Learning-rate schedules: the rate as a function of the optimizer steps done.

use crate::error::Error;

/// How the learning rate changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScheduleKind {
    /// Always the base rate.
    Constant,
    /// Multiplied by `gamma` after every `every` steps.
    Step {
        /// Steps between changes.
        every: u64,
        /// The factor.
        gamma: f64,
    },
    /// Half a cosine from the base rate to `last` over `total` steps, `last` afterwards
    /// (Loshchilov and Hutter 2017, without restarts).
    Cosine {
        /// Steps to the end, warm-up included.
        total: u64,
        /// The rate at the end.
        last: f64,
    },
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    base: f64,
    warmup: u64,
    kind: ScheduleKind,
}

impl Schedule {
    /// A schedule around a base rate, after `warmup` steps of linear growth. Errors:
    /// `option.value` for rates that are negative or not finite, and for zero steps.
    pub fn new(base: f64, warmup: u64, kind: ScheduleKind) -> Result<Self, Error> {
        let invalid = |what: &str| Err(Error::new("option.value", what));
        if !(base.is_finite() && base >= 0.0) {
            return invalid("the learning rate must be a number of at least 0");
        }
        match kind {
            ScheduleKind::Step { every: 0, .. } => invalid("`every` must be at least 1 step"),
            ScheduleKind::Step { gamma, .. } if !(gamma.is_finite() && gamma >= 0.0) => {
                invalid("`gamma` must be a number of at least 0")
            }
            ScheduleKind::Cosine { total: 0, .. } => invalid("`total` must be at least 1 step"),
            ScheduleKind::Cosine { last, .. } if !(last.is_finite() && last >= 0.0) => {
                invalid("`final` must be a number of at least 0")
            }
            ScheduleKind::Constant | ScheduleKind::Step { .. } | ScheduleKind::Cosine { .. } => {
                Ok(Self { base, warmup, kind })
            }
        }
    }

    /// The rate of the step after `done` steps.
    pub fn rate(&self, done: u64) -> f64 {
        if done < self.warmup {
            return self.base * (done + 1) as f64 / self.warmup as f64;
        }
        let done = done - self.warmup;
        match self.kind {
            ScheduleKind::Constant => self.base,
            ScheduleKind::Step { every, gamma } => self.base * gamma.powf((done / every) as f64),
            ScheduleKind::Cosine { total, last } => {
                let span = total.saturating_sub(self.warmup).max(1);
                let fraction = (done as f64 / span as f64).min(1.0);
                last + (self.base - last) * 0.5 * (1.0 + (std::f64::consts::PI * fraction).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(warmup: u64, kind: ScheduleKind, steps: &[u64]) -> Vec<f64> {
        let schedule = Schedule::new(1.0, warmup, kind).unwrap();
        steps
            .iter()
            .map(|&s| (schedule.rate(s) * 1e6).round() / 1e6)
            .collect()
    }

    #[test]
    fn each_kind_gives_pytorchs_rates() {
        assert_eq!(rates(0, ScheduleKind::Constant, &[0, 99]), [1.0, 1.0]);
        let step = ScheduleKind::Step {
            every: 10,
            gamma: 0.1,
        };
        assert_eq!(rates(0, step, &[0, 9, 10, 25]), [1.0, 1.0, 0.1, 0.01]);
        let cosine = ScheduleKind::Cosine {
            total: 100,
            last: 0.0,
        };
        assert_eq!(
            rates(0, cosine, &[0, 25, 50, 100, 500]),
            [1.0, 0.853553, 0.5, 0.0, 0.0]
        );
        assert_eq!(
            rates(4, cosine, &[0, 1, 3, 4, 52]),
            [0.25, 0.5, 1.0, 1.0, 0.5]
        );
    }

    #[test]
    fn impossible_settings_are_refused() {
        for (base, kind) in [
            (f64::NAN, ScheduleKind::Constant),
            (-1.0, ScheduleKind::Constant),
            (
                1.0,
                ScheduleKind::Step {
                    every: 0,
                    gamma: 0.5,
                },
            ),
            (
                1.0,
                ScheduleKind::Cosine {
                    total: 0,
                    last: 0.0,
                },
            ),
            (
                1.0,
                ScheduleKind::Cosine {
                    total: 1,
                    last: f64::INFINITY,
                },
            ),
        ] {
            assert_eq!(
                Schedule::new(base, 0, kind).unwrap_err().code(),
                "option.value"
            );
        }
    }
}
