//! Whether a GPU is too hot for new tasks: at once where it is close to its slowdown temperature, after
//! some samples where it slows its clocks down, and until it has stayed cool for a while, so that it does
//! not go back and forth. No clock: times are since any beginning.

use std::time::Duration;

/// A GPU this close to its slowdown temperature takes no new task, in °C.
const HOT_MARGIN_C: i32 = 5;
/// It is cool when it is farther from it than this.
const COOL_MARGIN_C: i32 = 10;
/// A GPU that slows its clocks down for heat in so many samples in a row takes no new task.
const SLOWED_SAMPLES: u32 = 3;

/// How long a GPU that was too hot stays cool before it takes tasks again, unless set otherwise.
pub const COOL: Duration = Duration::from_secs(30);

/// How hot a GPU is, by its samples.
#[derive(Debug, Default)]
pub(crate) struct Heat {
    /// °C to its slowdown temperature; none where it tells none.
    margin_c: Option<i32>,
    hot: bool,
    /// Samples in a row in which it slowed its clocks down for heat.
    slowed: u32,
    /// Since when every sample was cool.
    cool_since: Option<Duration>,
    /// The last sample.
    now: Duration,
}

impl Heat {
    /// Takes a sample, of a GPU that is to stay cool for `hold` before it takes tasks again; true where
    /// it does from now on.
    pub(crate) fn sample(
        &mut self,
        now: Duration,
        margin_c: Option<i32>,
        slows_down: bool,
        hold: Duration,
    ) -> bool {
        (self.margin_c, self.now) = (margin_c, now);
        self.slowed = match slows_down {
            true => self.slowed.saturating_add(1),
            false => 0,
        };
        let cool = !slows_down && margin_c.is_none_or(|margin| margin > COOL_MARGIN_C);
        self.cool_since = cool.then(|| self.cool_since.unwrap_or(now));
        let was_hot = self.hot;
        if self.slowed >= SLOWED_SAMPLES || margin_c.is_some_and(|margin| margin < HOT_MARGIN_C) {
            self.hot = true;
        } else if self.cool_for().is_some_and(|cool| cool >= hold) {
            self.hot = false;
        }
        was_hot && !self.hot
    }

    /// For how long it has been cool.
    fn cool_for(&self) -> Option<Duration> {
        Some(self.now.saturating_sub(self.cool_since?))
    }

    /// Whether it takes no new task.
    pub(crate) fn is_hot(&self) -> bool {
        self.hot
    }

    /// °C to its slowdown temperature.
    pub(crate) fn margin_c(&self) -> Option<i32> {
        self.margin_c
    }

    /// Why it takes no new task, after its name.
    pub(crate) fn reason(&self, hold: Duration) -> String {
        let hold = hold.as_secs();
        match (self.cool_since, self.margin_c) {
            (Some(_), _) => {
                format!("has cooled, and takes tasks again when it has been cool for {hold} s")
            }
            (None, _) if self.slowed > 0 => format!(
                "slows its clocks down for heat, and takes tasks again when it has not for {hold} s"
            ),
            (None, margin) => format!(
                "is {} °C from its slowdown temperature, and takes tasks again when it is more than \
                 {COOL_MARGIN_C} from it for {hold} s",
                margin.unwrap_or(0)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOLD: Duration = COOL;

    fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_hot_gpu_takes_tasks_again_when_it_was_cool_without_a_break() {
        let mut heat = Heat::default();
        let mut at = |seconds, margin| {
            heat.sample(second(seconds), Some(margin), false, HOLD);
            heat.is_hot()
        };
        assert_eq!([at(0, 60), at(1, 5), at(2, 4)], [false, false, true]);
        assert_eq!([at(3, 10), at(90, 10)], [true, true], "10 is not cool yet");
        assert_eq!([at(91, 11), at(120, 11), at(121, 11)], [true, true, false]);
        // A sample between the two temperatures begins the wait anew, but does not make hot.
        assert_eq!([at(122, 7), at(123, 4), at(124, 40)], [false, true, true]);
        assert_eq!([at(150, 8), at(151, 40), at(180, 40)], [true; 3]);
        assert!(!at(181, 40));
    }

    #[test]
    fn clocks_slowed_in_three_samples_make_hot_and_so_without_a_temperature() {
        let mut heat = Heat::default();
        let mut at = |seconds, slowed| {
            heat.sample(second(seconds), None, slowed, HOLD);
            heat.is_hot()
        };
        assert_eq!([at(0, true), at(1, true), at(2, false)], [false; 3]);
        assert_eq!(
            [at(3, true), at(4, true), at(5, true)],
            [false, false, true]
        );
        assert_eq!([at(6, false), at(20, true), at(21, false)], [true; 3]);
        assert_eq!([at(50, false), at(51, false)], [true, false]);
    }

    #[test]
    fn the_reason_says_what_is_waited_for() {
        let mut heat = Heat::default();
        heat.sample(second(0), Some(-2), false, HOLD);
        assert!(heat.reason(HOLD).starts_with("is -2 °C from its slowdown"));
        heat.sample(second(1), Some(9), true, HOLD);
        assert!(heat.reason(HOLD).starts_with("slows its clocks down"));
        heat.sample(second(2), Some(20), false, HOLD);
        let waits = "has cooled, and takes tasks again when it has been cool for 30 s";
        assert_eq!(heat.reason(HOLD), waits);
    }

    proptest! {
        /// Hot by the last sample's margin, or by three slowed ones: always. Otherwise it changes only
        /// from hot to not hot, and then every sample of the last 30 s was cool.
        #[test]
        fn only_a_hold_of_cool_samples_ends_heat(
            samples in prop::collection::vec((1u64..20, prop::option::of(-5i32..20), any::<bool>()), 1..60),
        ) {
            let (mut heat, mut now) = (Heat::default(), Duration::ZERO);
            let mut seen: Vec<(Duration, bool)> = Vec::new();
            let (mut slowed, mut was) = (0, false);
            for (pause, margin, slows) in samples {
                now += second(pause);
                let ended = heat.sample(now, margin, slows, HOLD);
                slowed = if slows { slowed + 1 } else { 0 };
                seen.push((now, !slows && margin.is_none_or(|margin| margin > 10)));
                let hot = heat.is_hot();
                let makes_hot = slowed >= 3 || margin.is_some_and(|margin| margin < 5);
                prop_assert!(hot || !makes_hot);
                prop_assert!(!hot || was || makes_hot);
                prop_assert_eq!(ended, was && !hot);
                let last = seen.iter().rev().take_while(|(_, cool)| *cool).last();
                let held = last.is_some_and(|&(since, _)| now - since >= HOLD);
                prop_assert!(!ended || held);
                prop_assert!(!(hot && held) , "it is cool long enough, and still hot");
                was = hot;
            }
        }
    }
}
