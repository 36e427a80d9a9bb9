//! What a classifier's predictions are worth.

/// Counts of (true class, predicted class).
#[derive(Debug, Clone)]
pub struct ConfusionMatrix {
    classes: usize,
    counts: Vec<u64>,
}

impl ConfusionMatrix {
    /// No predictions yet.
    pub fn new(classes: usize) -> Self {
        Self {
            classes,
            counts: vec![0; classes.saturating_mul(classes)],
        }
    }

    /// Counts a prediction; classes out of range are not counted.
    pub fn add(&mut self, truth: usize, predicted: usize) {
        if truth < self.classes
            && predicted < self.classes
            && let Some(count) = self.counts.get_mut(truth * self.classes + predicted)
        {
            *count += 1;
        }
    }

    fn count(&self, truth: usize, predicted: usize) -> u64 {
        self.counts
            .get(truth * self.classes + predicted)
            .copied()
            .unwrap_or(0)
    }

    /// The number of predictions counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The fraction of predictions that are right, none without predictions.
    pub fn accuracy(&self) -> Option<f64> {
        let right: u64 = (0..self.classes)
            .map(|class| self.count(class, class))
            .sum();
        (self.total() > 0).then(|| right as f64 / self.total() as f64)
    }

    /// The counts, a row for each true class.
    pub fn rows(&self) -> impl Iterator<Item = &[u64]> {
        self.counts.chunks_exact(self.classes.max(1))
    }

    /// Every class that occurs, as true or as predicted.
    fn occurring(&self) -> Vec<Occurrence> {
        let mut predicted = vec![0; self.classes];
        for row in self.rows() {
            for (sum, count) in predicted.iter_mut().zip(row) {
                *sum += count;
            }
        }
        let classes = self.rows().zip(predicted).enumerate();
        classes
            .map(|(class, (row, predicted))| Occurrence {
                right: row.get(class).copied().unwrap_or(0),
                truth: row.iter().sum(),
                predicted,
            })
            .filter(|class| class.truth + class.predicted > 0)
            .collect()
    }

    /// The mean of a score over the classes that occur, none without predictions.
    fn macro_mean(&self, score: fn(&Occurrence) -> f64) -> Option<f64> {
        let classes = self.occurring();
        let sum: f64 = classes.iter().map(score).sum();
        (!classes.is_empty()).then(|| sum / classes.len() as f64)
    }

    /// The mean of a score over the predictions by their true class, none without predictions.
    fn weighted_mean(&self, score: fn(&Occurrence) -> f64) -> Option<f64> {
        let classes = self.occurring();
        let sum: f64 = classes
            .iter()
            .map(|class| class.truth as f64 * score(class))
            .sum();
        (self.total() > 0).then(|| sum / self.total() as f64)
    }

    /// The mean over the classes that occur of F1 = 2·right / (true + predicted), none without
    /// predictions. As scikit-learn's `f1_score` with `average="macro"`.
    pub fn macro_f1(&self) -> Option<f64> {
        self.macro_mean(Occurrence::f1)
    }

    /// The mean over the classes that occur of right / predicted, 0 where nothing was predicted to be
    /// of the class. As `precision_score` with `average="macro", zero_division=0`.
    pub fn macro_precision(&self) -> Option<f64> {
        self.macro_mean(Occurrence::precision)
    }

    /// The mean over the classes that occur of right / true, 0 where nothing is of the class. As
    /// `recall_score` with `average="macro", zero_division=0`.
    pub fn macro_recall(&self) -> Option<f64> {
        self.macro_mean(Occurrence::recall)
    }

    /// The mean of the classes' precisions, each weighed by its samples. As `precision_score` with
    /// `average="weighted", zero_division=0`.
    pub fn weighted_precision(&self) -> Option<f64> {
        self.weighted_mean(Occurrence::precision)
    }

    /// The mean of the classes' recalls, each weighed by its samples. As `recall_score` with
    /// `average="weighted", zero_division=0`.
    pub fn weighted_recall(&self) -> Option<f64> {
        self.weighted_mean(Occurrence::recall)
    }
}

/// How often a class occurs.
struct Occurrence {
    right: u64,
    truth: u64,
    predicted: u64,
}

impl Occurrence {
    fn f1(&self) -> f64 {
        2.0 * self.right as f64 / (self.truth + self.predicted) as f64
    }

    fn precision(&self) -> f64 {
        self.right as f64 / self.predicted.max(1) as f64
    }

    fn recall(&self) -> f64 {
        self.right as f64 / self.truth.max(1) as f64
    }
}

/// The `count` classes of highest probability, `(class, probability)`, the highest first; of equal
/// ones the lower class first.
pub fn top(probabilities: &[f32], count: usize) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = probabilities.iter().copied().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(count);
    ranked
}

#[cfg(test)]
mod tests {
    use super::{ConfusionMatrix, top};

    fn matrix(pairs: &[(usize, usize)]) -> ConfusionMatrix {
        let mut matrix = ConfusionMatrix::new(3);
        pairs
            .iter()
            .for_each(|&(truth, predicted)| matrix.add(truth, predicted));
        matrix
    }

    #[test]
    fn accuracy_is_the_fraction_of_right_predictions() {
        assert_eq!(
            matrix(&[(0, 0), (1, 1), (2, 1), (2, 0)]).accuracy(),
            Some(0.5)
        );
    }

    #[test]
    fn without_predictions_there_is_no_accuracy_and_no_f1() {
        assert_eq!(
            (matrix(&[]).accuracy(), matrix(&[]).macro_f1()),
            (None, None)
        );
    }

    #[test]
    fn macro_f1_weighs_classes_alike_and_leaves_out_those_that_never_occur() {
        let score = matrix(&[(0, 0), (0, 0), (0, 1), (1, 1)])
            .macro_f1()
            .unwrap();
        assert!((score - (0.8 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_class_out_of_range_is_not_counted() {
        assert_eq!(matrix(&[(3, 0), (0, 3), (usize::MAX, 1)]).total(), 0);
    }

    #[test]
    fn top_ranks_by_probability_and_breaks_ties_by_class() {
        assert_eq!(top(&[0.25, 0.5, 0.25], 2), [(1, 0.5), (0, 0.25)]);
    }

    #[test]
    fn top_of_more_than_there_are_gives_all() {
        assert_eq!(top(&[1.0], 5).len(), 1);
    }
}
