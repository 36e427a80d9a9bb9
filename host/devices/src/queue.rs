//! The order of those that wait: by priority, then by time, ageing so that nobody starves.

use std::time::Duration;

/// How long a wait is worth one step of priority.
const AGEING: Duration = Duration::from_secs(60);

/// A place in a queue; the lower goes first.
///
/// It is the time at which it was taken, put off by a minute for each step of priority. So the order
/// of two places never changes, at one time the higher priority goes first, and whoever comes more
/// than nine minutes later goes behind, whatever its priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    due: Duration,
    number: u64,
}

impl Place {
    /// The place taken at a time since some beginning, by priority 1 (first) to 10, as the `number`-th
    /// of all.
    pub fn new(taken: Duration, priority: u8, number: u64) -> Self {
        Self {
            due: taken.saturating_add(AGEING * u32::from(priority)),
            number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(second: u64, priority: u8, number: u64) -> Place {
        Place::new(Duration::from_secs(second), priority, number)
    }

    #[test]
    fn priority_goes_first_then_who_came_first() {
        let mut places = [
            place(0, 5, 0),
            place(1, 3, 1),
            place(1, 3, 2),
            place(2, 1, 3),
        ];
        places.sort();
        assert_eq!(places.map(|place| place.number), [3, 1, 2, 0]);
    }

    #[test]
    fn a_minute_of_waiting_is_a_step_of_priority_and_ten_beat_everyone() {
        assert!(place(0, 5, 0) < place(61, 4, 1));
        assert!(place(0, 5, 0) > place(59, 4, 1));
        assert!(place(0, 10, 0) < place(541, 1, 1));
    }
}
