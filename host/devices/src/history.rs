//! One hour of what the monitor saw of each GPU, in memory that is bounded by the hour and its period.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::gpu::{Gpu, Snapshot};

/// How far back it goes.
pub const HISTORY: Duration = Duration::from_secs(3600);

/// What a GPU told at one moment; none of all where it did not answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// When.
    pub taken: Instant,
    /// Percent of the last sample period in which a kernel ran.
    pub utilization_gpu_percent: Option<u32>,
    /// Memory taken by processes, in bytes.
    pub memory_used_bytes: Option<u64>,
    /// °C.
    pub temperature_gpu_c: Option<u32>,
    /// W.
    pub power_draw_watts: Option<f32>,
}

impl Point {
    fn of(gpu: &Gpu, taken: Instant) -> Self {
        Self {
            taken,
            utilization_gpu_percent: gpu.utilization_gpu_percent,
            memory_used_bytes: gpu.memory_used_bytes,
            temperature_gpu_c: gpu.temperature_gpu_c,
            power_draw_watts: gpu.power_draw_watts.map(|watts| watts as f32),
        }
    }
}

/// The points of all GPUs.
#[derive(Debug)]
pub struct History {
    period: Duration,
    /// By N of `cuda:N`, the oldest first.
    gpus: BTreeMap<u32, VecDeque<Point>>,
}

impl History {
    /// Of samples that come every `period`.
    pub fn new(period: Duration) -> Self {
        let gpus = BTreeMap::new();
        Self { period, gpus }
    }

    /// Adds a sample, and forgets what is older than [`HISTORY`] by then. A sample that comes long
    /// before its time, because somebody wanted one, is left out.
    pub fn record(&mut self, snapshot: &Snapshot) {
        let Some(taken) = snapshot.taken else { return };
        for gpu in &snapshot.gpus {
            let points = self.gpus.entry(gpu.index).or_default();
            let early = |last: &Point| taken < last.taken + self.period.mul_f64(0.9);
            if points.back().is_some_and(early) {
                continue;
            }
            let old = |first: &Point| taken.saturating_duration_since(first.taken) > HISTORY;
            while points.front().is_some_and(old) {
                points.pop_front();
            }
            points.push_back(Point::of(gpu, taken));
        }
    }

    /// The points of a GPU that are not older than `span` at `now`, the oldest first.
    pub fn since(&self, gpu: u32, span: Duration, now: Instant) -> Vec<Point> {
        let points = self.gpus.get(&gpu).into_iter().flatten();
        let recent = |point: &&Point| now.saturating_duration_since(point.taken) <= span;
        points.filter(recent).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(1);

    fn sample(taken: Instant, gpus: &[(u32, Option<u32>)]) -> Snapshot {
        let gpu = |&(index, temperature_gpu_c): &(u32, Option<u32>)| Gpu {
            index,
            temperature_gpu_c,
            power_draw_watts: temperature_gpu_c.map(|celsius| f64::from(celsius) * 2.0),
            ..Gpu::default()
        };
        Snapshot {
            gpus: gpus.iter().map(gpu).collect(),
            taken: Some(taken),
            ..Snapshot::unavailable(String::new())
        }
    }

    fn temperatures(points: &[Point]) -> Vec<Option<u32>> {
        points.iter().map(|point| point.temperature_gpu_c).collect()
    }

    #[test]
    fn the_points_of_a_span_come_in_order_each_gpu_by_itself() {
        let (mut history, start) = (History::new(PERIOD), Instant::now());
        for second in 0..10u32 {
            // The second GPU did not answer for a while.
            let other = (!(3..6).contains(&second)).then_some(second + 50);
            let gpus = [(0, Some(second)), (2, other)];
            history.record(&sample(start + PERIOD * second, &gpus));
        }
        let now = start + PERIOD * 9;
        assert_eq!(
            temperatures(&history.since(0, PERIOD * 3, now)),
            [Some(6), Some(7), Some(8), Some(9)]
        );
        assert_eq!(
            temperatures(&history.since(2, PERIOD * 5, now)),
            [None, None, Some(56), Some(57), Some(58), Some(59)]
        );
        assert_eq!(
            history.since(0, HISTORY, now)[4].power_draw_watts,
            Some(8.0)
        );
        assert_eq!(history.since(1, HISTORY, now), []);
        assert_eq!(history.since(0, PERIOD, now + PERIOD * 5), []);
    }

    #[test]
    fn an_hour_is_kept_and_no_more_however_often_somebody_asks() {
        let (mut history, start) = (History::new(PERIOD), Instant::now());
        for tick in 0..4 * 5000u32 {
            history.record(&sample(start + PERIOD * tick / 4, &[(0, Some(tick))]));
        }
        let now = start + PERIOD * 5000;
        let kept = history.since(0, PERIOD * 9999, now);
        assert_eq!(kept.len(), 3601);
        assert!(now.duration_since(kept[0].taken) <= HISTORY + PERIOD);
        let apart = |two: &[Point]| two[1].taken - two[0].taken == PERIOD;
        assert!(kept.windows(2).all(apart));
    }

    #[test]
    fn a_snapshot_without_a_time_is_none() {
        let mut history = History::new(PERIOD);
        history.record(&Snapshot::unavailable("no driver".to_owned()));
        assert_eq!(history.since(0, HISTORY, Instant::now()), []);
    }
}
