//! Learning-rate schedules, in epochs; the host counts steps.

/// How the learning rate changes during a training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// Always the base rate.
    Constant,
    /// Multiplied by `gamma` after every `every` epochs.
    Step {
        /// Epochs between changes.
        every: u64,
        /// The factor of each change.
        gamma: f64,
    },
    /// Half a cosine from the base rate to 0 (Loshchilov and Hutter 2017), after `warmup` epochs of
    /// linear growth.
    Cosine {
        /// Epochs of growth.
        warmup: u64,
    },
}

impl Schedule {
    /// The names that [`Schedule::named`] knows.
    pub const NAMES: [&'static str; 3] = ["constant", "step", "cosine"];

    /// The name that users choose it by.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Step { .. } => "step",
            Self::Cosine { .. } => "cosine",
        }
    }

    /// This schedule if that is its name, else the one of that name with usual settings for a
    /// training of `epochs`: a step to a tenth at each third, a cosine without warm-up.
    pub fn named(self, name: &str, epochs: u64) -> Option<Self> {
        match name {
            name if name == self.name() => Some(self),
            "constant" => Some(Self::Constant),
            "step" => Some(Self::Step {
                every: epochs.div_ceil(3).max(1),
                gamma: 0.1,
            }),
            "cosine" => Some(Self::Cosine { warmup: 0 }),
            _ => None,
        }
    }

    /// The options of the host's `learning-rate` for a training of `epochs` of `steps` each. A
    /// warm-up never takes more than a quarter of the training.
    pub fn options(&self, epochs: u64, steps: u64) -> Vec<(String, String)> {
        let pair = |name: &str, value: String| (name.to_owned(), value);
        match *self {
            Self::Constant => Vec::new(),
            Self::Step { every, gamma } => vec![
                pair("every", every.saturating_mul(steps).max(1).to_string()),
                pair("gamma", gamma.to_string()),
            ],
            Self::Cosine { warmup } => {
                let total = epochs.saturating_mul(steps).max(1);
                let warmup = warmup.saturating_mul(steps).min(total / 4);
                vec![
                    pair("total", total.to_string()),
                    pair("warmup", warmup.to_string()),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    fn options(schedule: Schedule, epochs: u64, steps: u64) -> String {
        let options = schedule.options(epochs, steps);
        options
            .iter()
            .map(|(name, value)| format!("{name}={value} "))
            .collect()
    }

    #[test]
    fn a_cosine_spans_all_steps_and_counts_its_warm_up_in_steps() {
        assert_eq!(
            options(Schedule::Cosine { warmup: 5 }, 60, 10),
            "total=600 warmup=50 "
        );
    }

    #[test]
    fn a_warm_up_takes_at_most_a_quarter_of_a_short_training() {
        assert_eq!(
            options(Schedule::Cosine { warmup: 5 }, 4, 10),
            "total=40 warmup=10 "
        );
    }

    #[test]
    fn a_step_counts_its_period_in_steps() {
        assert_eq!(
            options(
                Schedule::Step {
                    every: 2,
                    gamma: 0.1
                },
                6,
                7
            ),
            "every=14 gamma=0.1 "
        );
    }

    #[test]
    fn a_training_of_no_steps_still_gives_valid_options() {
        assert_eq!(
            options(Schedule::Cosine { warmup: 1 }, 0, 0),
            "total=1 warmup=0 "
        );
        assert_eq!(
            options(
                Schedule::Step {
                    every: 0,
                    gamma: 0.5
                },
                0,
                0
            ),
            "every=1 gamma=0.5 "
        );
    }

    #[test]
    fn choosing_the_plugin_s_own_schedule_keeps_its_settings() {
        let own = Schedule::Cosine { warmup: 5 };
        assert_eq!(own.named("cosine", 60), Some(own));
        assert_eq!(
            own.named("step", 60),
            Some(Schedule::Step {
                every: 20,
                gamma: 0.1
            })
        );
        assert_eq!(own.named("linear", 60), None);
    }
}
