//! What a classifier's probabilities are worth on samples whose classes are known.

use crate::metrics::ConfusionMatrix;

/// Probabilities kept for the average precision, at most: 64 MiB of a plugin's memory.
const KEPT: u64 = 16 << 20;

/// The probabilities of samples whose classes are known, and the metrics of them.
#[derive(Debug)]
pub struct Scores {
    classes: usize,
    matrix: ConfusionMatrix,
    /// How many samples have so many classes before their own, up to 4.
    ranks: [u64; 5],
    kept: Option<Kept>,
}

/// All probabilities, a row for each sample, and the samples' classes.
#[derive(Debug)]
struct Kept {
    probabilities: Vec<f32>,
    labels: Vec<usize>,
}

impl Scores {
    /// None yet, of `samples`.
    pub fn new(classes: usize, samples: u64) -> Self {
        let values = samples.saturating_mul(classes as u64);
        let kept = (values <= KEPT).then(|| Kept {
            probabilities: Vec::with_capacity(values as usize),
            labels: Vec::with_capacity(samples as usize),
        });
        Self {
            classes,
            matrix: ConfusionMatrix::new(classes),
            ranks: [0; 5],
            kept,
        }
    }

    /// Whether the probabilities are so many that they are not kept: there is no average precision
    /// then.
    pub fn too_many(&self) -> bool {
        self.kept.is_none()
    }

    /// Adds a sample: the probabilities of all classes, and its class. Of equal probabilities the
    /// lower class comes first.
    pub fn add(&mut self, probabilities: &[f32], label: usize) {
        let Some(&own) = probabilities.get(label) else {
            return;
        };
        let before = |(class, other): (usize, &f32)| {
            let order = other.total_cmp(&own);
            order.is_gt() || order.is_eq() && class < label
        };
        let rank = probabilities.iter().enumerate().map(before);
        let rank = rank.filter(|&before| before).count();
        if let Some(count) = self.ranks.get_mut(rank) {
            *count += 1;
        }
        let mut predicted = (0, f32::NEG_INFINITY);
        for (class, &value) in probabilities.iter().enumerate() {
            if value > predicted.1 {
                predicted = (class, value);
            }
        }
        self.matrix.add(label, predicted.0);
        if let Some(kept) = &mut self.kept {
            kept.probabilities.extend(probabilities);
            kept.labels.push(label);
        }
    }

    /// Counts of (true class, predicted class).
    pub fn matrix(&self) -> &ConfusionMatrix {
        &self.matrix
    }

    /// The fraction of samples whose class is among the `count` (up to 5) of highest probability, none
    /// without samples. As scikit-learn's `top_k_accuracy_score`.
    pub fn top_accuracy(&self, count: usize) -> Option<f64> {
        let right: u64 = self.ranks.iter().take(count).sum();
        let total = self.matrix.total();
        (total > 0).then(|| right as f64 / total as f64)
    }

    /// The mean over the classes that samples have of the average precision of that class against all
    /// others: Σ (Rₙ − Rₙ₋₁) Pₙ over the thresholds, equal probabilities as one. As scikit-learn's
    /// `average_precision_score` with `average="macro"`. `pause` is called between classes, which
    /// together take samples · classes · log(samples) steps. None without samples, or where there are
    /// too many.
    pub fn mean_average_precision(&self, mut pause: impl FnMut()) -> Option<f64> {
        let kept = self.kept.as_ref()?;
        let (mut sum, mut count) = (0.0, 0u32);
        for class in 0..self.classes {
            let column = kept.probabilities.iter().skip(class).step_by(self.classes);
            let mut column: Vec<(f32, bool)> = column
                .zip(&kept.labels)
                .map(|(&value, &label)| (value, label == class))
                .collect();
            if let Some(precision) = average_precision(&mut column) {
                sum += precision;
                count += 1;
            }
            pause();
        }
        (count > 0).then(|| sum / f64::from(count))
    }

    /// Every metric by the name that clients know: accuracies in percent, the rest 0 to 1.
    /// `precision` and `recall` are the means weighed by the classes' samples.
    pub fn values(&self, pause: impl FnMut()) -> Vec<(&'static str, f64)> {
        let accuracy = self.matrix.accuracy();
        let percent = |fraction: Option<f64>| fraction.map(|fraction| 100.0 * fraction);
        let matrix = &self.matrix;
        let values = [
            ("val_acc", percent(accuracy)),
            ("macro_f1", matrix.macro_f1()),
            ("micro_f1", accuracy),
            ("mAP", self.mean_average_precision(pause)),
            ("top1_acc", percent(self.top_accuracy(1))),
            ("top3_acc", percent(self.top_accuracy(3))),
            ("top5_acc", percent(self.top_accuracy(5))),
            ("macro_precision", matrix.macro_precision()),
            ("macro_recall", matrix.macro_recall()),
            // Each sample has one class and one prediction, so that these are the accuracy.
            ("micro_precision", accuracy),
            ("micro_recall", accuracy),
            ("precision", matrix.weighted_precision()),
            ("recall", matrix.weighted_recall()),
        ];
        let known = values.into_iter();
        known
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// The average precision of (score, whether it is of the class); none where nothing is.
fn average_precision(scores: &mut [(f32, bool)]) -> Option<f64> {
    let positives = scores.iter().filter(|(_, of_class)| *of_class).count();
    if positives == 0 {
        return None;
    }
    scores.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let (mut seen, mut right, mut sum) = (0, 0, 0.0);
    for equal in scores.chunk_by(|a, b| a.0 == b.0) {
        let found = equal.iter().filter(|(_, of_class)| *of_class).count();
        seen += equal.len();
        right += found;
        sum += found as f64 / positives as f64 * (right as f64 / seen as f64);
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::Scores;

    /// The samples of `tests/measure/metrics.py`: probabilities with ties, of four classes, of which
    /// one is never true.
    fn scores(limit: Option<u64>) -> Scores {
        let mut scores = Scores::new(4, limit.unwrap_or(12));
        for (i, label) in (0u32..).zip([0u32, 1, 3, 0, 0, 3, 1, 1, 0, 3, 0, 1]) {
            let raw = |class: u32| {
                let own = u32::from(class == label);
                ((i * 7 + class * 5 + i * i * (class + 1)) % 9 + 1 + 2 * own) as f32
            };
            let raw: Vec<f32> = (0..4).map(raw).collect();
            let sum: f32 = raw.iter().sum();
            let row: Vec<f32> = raw.iter().map(|value| value / sum).collect();
            scores.add(&row, label as usize);
        }
        scores
    }

    #[test]
    fn the_metrics_are_scikit_learns() {
        let mut pauses = 0;
        let values = scores(None).values(|| pauses += 1);
        assert_eq!(pauses, 4);
        assert_eq!(values.len(), EXPECTED.len());
        for ((name, value), (known, expected)) in values.into_iter().zip(EXPECTED) {
            assert_eq!(name, known);
            assert!(
                (value - expected).abs() < 1e-9,
                "{name}: {value} {expected}"
            );
        }
    }

    /// As `tests/measure/metrics.py` prints them.
    const EXPECTED: [(&str, f64); 13] = [
        ("val_acc", 58.333333333333),
        ("macro_f1", 0.482142857143),
        ("micro_f1", 0.583333333333),
        ("mAP", 0.791017316017),
        ("top1_acc", 58.333333333333),
        ("top3_acc", 100.000000000000),
        ("top5_acc", 100.000000000000),
        ("macro_precision", 0.520833333333),
        ("macro_recall", 0.475000000000),
        ("micro_precision", 0.583333333333),
        ("micro_recall", 0.583333333333),
        ("precision", 0.687500000000),
        ("recall", 0.583333333333),
    ];

    #[test]
    fn more_probabilities_than_are_kept_leave_out_the_average_precision_alone() {
        let few = scores(Some(1 << 40));
        assert!(few.too_many());
        let values = few.values(|| ());
        assert_eq!(values.len(), 12);
        assert!(values.iter().all(|(name, _)| *name != "mAP"));
    }

    #[test]
    fn without_samples_there_are_no_metrics() {
        assert!(Scores::new(3, 0).values(|| ()).is_empty());
        let mut scores = Scores::new(2, 1);
        scores.add(&[0.5, 0.5], 7);
        assert!(scores.values(|| ()).is_empty());
    }

    #[test]
    fn numbers_that_are_none_are_ranked_without_a_panic() {
        let mut scores = Scores::new(2, 1);
        scores.add(&[f32::NAN, f32::NAN], 1);
        assert_eq!(scores.matrix().total(), 1);
        assert!(
            scores
                .values(|| ())
                .iter()
                .all(|(_, value)| value.is_finite())
        );
    }
}
