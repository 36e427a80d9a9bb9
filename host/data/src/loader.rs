//! Loaders: the batches of an epoch, made ahead of compute on threads of their own.
//!
//! Threads take runs of samples in the epoch's order, whichever is next; the one that completes a
//! batch joins its runs. So all threads work on the batch that is needed first, and what a batch
//! holds does not depend on how many there are.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use compute::{DType, HostTensor};

use crate::dataset::{Dataset, Kind};
use crate::error::Error;
use crate::random::Random;
use crate::transform::{Normalize, Sample, Transform};

/// Bytes of one batch's samples, and of the batches made ahead where that is more than one.
const MAXIMUM_BATCH_BYTES: usize = 2 << 30;

/// Threads that read for one loader.
const MAXIMUM_THREADS: usize = 8;

/// Bytes of samples that a thread makes before it looks for the next: many small ones, one large.
const RUN_BYTES: usize = 64 << 10;

/// Batches that are complete before they are needed, beside those that the threads work on.
const COMPLETE_AHEAD: usize = 2;

/// How often a wait for a batch looks whether it is cancelled.
const CANCEL_CHECK: Duration = Duration::from_millis(50);

/// Samples that go through a model together.
#[derive(Debug)]
pub struct Batch {
    /// The number of samples.
    pub size: usize,
    /// float32 `[size, …sample shape]`.
    pub samples: HostTensor,
    /// int64 `[size]`; none where samples have no labels.
    pub labels: Option<HostTensor>,
}

/// Reads a data set in batches.
///
/// The order and the random transforms depend on the seed, the epoch and the sample alone, not on
/// the number of threads.
#[derive(Debug)]
pub struct Loader {
    dataset: Dataset,
    batch_size: usize,
    threads: usize,
    seed: Option<u64>,
    transforms: Vec<Transform>,
    /// The shape of a sample, once it was asked for.
    shape: OnceLock<Vec<usize>>,
    epoch: Option<Epoch>,
}

impl Loader {
    /// Batches of `batch_size` samples, the last one smaller. Errors: `data.batch-size`.
    pub fn new(dataset: Dataset, batch_size: usize, threads: usize) -> Result<Self, Error> {
        if batch_size == 0 {
            return Err(Error::new(
                "data.batch-size",
                "a batch has at least one sample",
            ));
        }
        Ok(Self {
            batch_size: batch_size.min(dataset.len().max(1)),
            dataset,
            threads: threads.clamp(1, MAXIMUM_THREADS),
            seed: None,
            transforms: Vec::new(),
            shape: OnceLock::new(),
            epoch: None,
        })
    }

    /// What the samples are.
    pub fn kind(&self) -> Kind {
        self.dataset.kind()
    }

    /// Draws a new order every epoch, from `seed` and the epoch's number alone.
    pub fn shuffle(&mut self, seed: u64) {
        self.seed = Some(seed);
    }

    /// Appends a transform. Errors: `data.transform` after the normalisation of images.
    pub fn push(&mut self, transform: Transform) -> Result<(), Error> {
        if self.normalize().is_some() {
            let message = "`normalize` makes numbers of an image: no transform comes after it";
            return Err(Error::new("data.transform", message));
        }
        self.transforms.push(transform);
        self.shape = OnceLock::new();
        Ok(())
    }

    fn normalize(&self) -> Option<&Normalize> {
        self.transforms.last().and_then(Transform::normalize)
    }

    /// Batches in an epoch.
    pub fn steps(&self) -> usize {
        self.dataset.len().div_ceil(self.batch_size)
    }

    /// The shape of one sample after the transforms. Where none of them makes samples equal in
    /// size, every file's header is read. Errors: `data.shape` where samples differ,
    /// `data.transform`, `data.sample`.
    pub fn sample_shape(&self) -> Result<Vec<usize>, Error> {
        if let Some(shape) = self.shape.get() {
            return Ok(shape.clone());
        }
        let shape = self.find_shape()?;
        Ok(self.shape.get_or_init(|| shape).clone())
    }

    fn find_shape(&self) -> Result<Vec<usize>, Error> {
        let transformed = |shape: Vec<usize>| {
            let mut transforms = self.transforms.iter();
            transforms.try_fold(shape, |shape, transform| transform.shape(shape))
        };
        if self.dataset.is_uniform() || self.transforms.iter().any(Transform::equalises) {
            return transformed(self.dataset.any_shape());
        }
        let shape = transformed(self.dataset.shape(0)?)?;
        for index in 1..self.dataset.len() {
            let other = transformed(self.dataset.shape(index)?)?;
            if other != shape {
                let name = |index| self.dataset.name(index).unwrap_or_default();
                let equalises = match self.kind() {
                    Kind::Image => "resize` to a height and a width, or `centre-crop",
                    Kind::Audio => "fit",
                };
                let message = format!(
                    "samples differ in shape: {shape:?} in {}, {other:?} in {}; a transform such \
                     as `{equalises}` makes them equal",
                    name(0),
                    name(index)
                );
                return Err(Error::new("data.shape", message));
            }
        }
        Ok(shape)
    }

    /// Starts an epoch, numbered from 0: resets the order and the position, and begins to read.
    /// Errors: as [`Self::sample_shape`], and `data.batch-size` where a batch would take over
    /// 2 GiB.
    pub fn start(&mut self, epoch: u64) -> Result<(), Error> {
        let shape = self.sample_shape()?;
        let bytes = shape
            .iter()
            .try_fold(4, |n: usize, &size| n.checked_mul(size));
        let batch = bytes.and_then(|bytes| bytes.checked_mul(self.batch_size));
        let (Some(bytes), Some(batch @ ..=MAXIMUM_BATCH_BYTES)) = (bytes, batch) else {
            let message = format!(
                "a batch of {} samples of shape {shape:?} takes over {MAXIMUM_BATCH_BYTES} bytes",
                self.batch_size
            );
            return Err(Error::new("data.batch-size", message));
        };
        let mut order: Vec<usize> = (0..self.dataset.len()).collect();
        if let Some(seed) = self.seed {
            Random::new(&[seed, epoch]).shuffle(&mut order);
        }
        let tables = match (self.kind(), self.normalize()) {
            (Kind::Audio, _) => Vec::new(),
            (Kind::Image, Some(normalize)) => normalize.tables(),
            (Kind::Image, None) => {
                let channels = shape.first().copied().unwrap_or_default();
                vec![std::array::from_fn(|value| value as f32 / 255.0); channels]
            }
        };
        let run = (RUN_BYTES / bytes.max(1)).clamp(1, self.batch_size);
        let at_work = self.threads.div_ceil(self.batch_size.div_ceil(run));
        let ahead = (COMPLETE_AHEAD + at_work).min(MAXIMUM_BATCH_BYTES / batch.max(1));
        let shared = Arc::new(Shared {
            work: Work {
                dataset: self.dataset.clone(),
                transforms: self.transforms.clone(),
                tables,
                shape,
                order,
                batch_size: self.batch_size,
                run,
                random: [self.seed.unwrap_or_default(), epoch],
            },
            ahead: ahead.max(1),
            progress: Mutex::default(),
            room: Condvar::new(),
            complete: Condvar::new(),
        });
        // Dropped where a thread does not start, it ends those that did.
        let epoch = Epoch { shared };
        for number in 0..self.threads {
            let shared = Arc::clone(&epoch.shared);
            std::thread::Builder::new()
                .name(format!("loader-{number}"))
                .spawn(move || shared.make())
                .map_err(|error| {
                    Error::new("data.threads", format!("no thread to read with: {error}"))
                })?;
        }
        self.epoch = Some(epoch);
        Ok(())
    }

    /// The next batch of the epoch; none after the last one, or before [`Self::start`]. Errors:
    /// `data.sample`, `task.cancelled` once `cancelled` is set; either ends the epoch.
    pub fn next(&mut self, cancelled: &AtomicBool) -> Option<Result<Batch, Error>> {
        let taken = self.epoch.as_ref()?.shared.take(cancelled);
        if !matches!(taken, Some(Ok(_))) {
            self.epoch = None;
        }
        taken
    }
}

/// An epoch under way. Its threads end with it.
#[derive(Debug)]
struct Epoch {
    shared: Arc<Shared>,
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.shared.progress().ended = true;
        self.shared.room.notify_all();
    }
}

/// What the threads of an epoch and its reader share.
#[derive(Debug)]
struct Shared {
    work: Work,
    /// Batches that are in the making or complete, at most.
    ahead: usize,
    progress: Mutex<Progress>,
    /// Told when a batch is taken, or the epoch ends.
    room: Condvar,
    /// Told when a batch is complete.
    complete: Condvar,
}

/// How far an epoch is.
#[derive(Debug, Default)]
struct Progress {
    /// Batches handed out.
    taken: usize,
    /// The batch, and the run in it, that the next thread begins.
    next: (usize, usize),
    /// The batches from `taken` on.
    batches: VecDeque<Making>,
    ended: bool,
}

/// The runs of a batch: the values of each as bytes, once it is made.
type Runs = Vec<Option<Result<Vec<u8>, Error>>>;

/// A batch from its first run on.
#[derive(Debug)]
enum Making {
    /// Its runs, and how many of them are still to come.
    Runs(Runs, usize),
    /// Complete.
    Complete(Result<Batch, Error>),
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes runs until the epoch ends: what each thread does.
    fn make(&self) {
        while let Some((batch, run)) = self.begin() {
            let made = self.work.run(batch, run);
            let Some(runs) = self.add(batch, run, made) else {
                continue;
            };
            let joined = self.work.join(batch, runs);
            let mut progress = self.progress();
            let at = batch - progress.taken;
            if let Some(making) = progress.batches.get_mut(at) {
                *making = Making::Complete(joined);
            }
            drop(progress);
            self.complete.notify_one();
        }
    }

    /// Waits for room and takes the next run; none at the end of the epoch.
    fn begin(&self) -> Option<(usize, usize)> {
        let mut progress = self.progress();
        loop {
            let (batch, run) = progress.next;
            let runs = self.work.runs(batch);
            if progress.ended || runs == 0 {
                return None;
            }
            if batch < progress.taken + self.ahead {
                if run == 0 {
                    let empty = (0..runs).map(|_| None).collect();
                    progress.batches.push_back(Making::Runs(empty, runs));
                }
                progress.next = if run + 1 < runs {
                    (batch, run + 1)
                } else {
                    (batch + 1, 0)
                };
                return Some((batch, run));
            }
            progress = self
                .room
                .wait(progress)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Adds a run to its batch; all runs of the batch where it was the last to come.
    fn add(&self, batch: usize, run: usize, made: Result<Vec<u8>, Error>) -> Option<Runs> {
        let mut progress = self.progress();
        let at = batch - progress.taken;
        let Some(Making::Runs(runs, missing)) = progress.batches.get_mut(at) else {
            return None;
        };
        if let Some(place) = runs.get_mut(run) {
            *place = Some(made);
            *missing -= 1;
        }
        (*missing == 0).then(|| std::mem::take(runs))
    }

    /// Waits for the next batch and takes it; none after the last.
    fn take(&self, cancelled: &AtomicBool) -> Option<Result<Batch, Error>> {
        let mut progress = self.progress();
        loop {
            if cancelled.load(Ordering::Relaxed) {
                return Some(Err(Error::new("task.cancelled", "the task is cancelled")));
            }
            if self.work.runs(progress.taken) == 0 {
                return None;
            }
            if let Some(Making::Complete(_)) = progress.batches.front()
                && let Some(Making::Complete(batch)) = progress.batches.pop_front()
            {
                progress.taken += 1;
                drop(progress);
                self.room.notify_all();
                return Some(batch);
            }
            progress = self
                .complete
                .wait_timeout(progress, CANCEL_CHECK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// What is done in an epoch.
#[derive(Debug)]
struct Work {
    dataset: Dataset,
    transforms: Vec<Transform>,
    /// For each channel of an image what its 256 values become.
    tables: Vec<[f32; 256]>,
    shape: Vec<usize>,
    order: Vec<usize>,
    batch_size: usize,
    /// Samples of a run.
    run: usize,
    random: [u64; 2],
}

impl Work {
    /// The samples of a batch.
    fn members(&self, batch: usize) -> &[usize] {
        let start = (batch * self.batch_size).min(self.order.len());
        let end = (start + self.batch_size).min(self.order.len());
        &self.order[start..end]
    }

    /// The number of runs of a batch; 0 after the last one.
    fn runs(&self, batch: usize) -> usize {
        self.members(batch).len().div_ceil(self.run)
    }

    /// The values of a run's samples, as bytes.
    fn run(&self, batch: usize, run: usize) -> Result<Vec<u8>, Error> {
        let members = self.members(batch).chunks(self.run).nth(run);
        let members = members.unwrap_or_default();
        let sample: usize = self.shape.iter().product();
        let mut bytes = Vec::with_capacity(members.len() * sample * 4);
        for &index in members {
            // A panic would leave the reader waiting for ever.
            catch_unwind(AssertUnwindSafe(|| self.sample(index, &mut bytes))).unwrap_or_else(
                |_| {
                    let name = self.dataset.name(index).unwrap_or_default();
                    let message = format!("{name}: the loader failed on it");
                    Err(Error::new("data.sample", message))
                },
            )?;
        }
        Ok(bytes)
    }

    /// Appends the values of a sample.
    fn sample(&self, index: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let refusal = |reason: String| {
            let name = self.dataset.name(index).unwrap_or_default();
            Error::new("data.sample", format!("{name}: {reason}"))
        };
        let mut sample = self.dataset.read(index)?;
        let [seed, epoch] = self.random;
        let mut random = Random::new(&[seed, epoch, index as u64]);
        for transform in &self.transforms {
            transform.apply(&mut sample, &mut random).map_err(refusal)?;
        }
        let shape = match &sample {
            Sample::Audio(values) => vec![values.len()],
            Sample::Image(pixels) => vec![pixels.channels, pixels.height, pixels.width],
        };
        if shape != self.shape {
            return Err(refusal(format!(
                "its shape is {shape:?}, where it was {:?}: it changed while it was read",
                self.shape
            )));
        }
        match &sample {
            Sample::Audio(values) => {
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Sample::Image(pixels) => {
                for (channel, table) in self.tables.iter().enumerate() {
                    let start = bytes.len();
                    bytes.resize(start + 4 * pixels.width * pixels.height, 0);
                    let values = pixels.data.chunks_exact(pixels.channels);
                    for (to, pixel) in bytes[start..].chunks_exact_mut(4).zip(values) {
                        to.copy_from_slice(&table[usize::from(pixel[channel])].to_le_bytes());
                    }
                }
            }
        }
        Ok(())
    }

    /// A batch of all its runs. Errors: that of the first sample that could not be read.
    fn join(&self, batch: usize, runs: Runs) -> Result<Batch, Error> {
        let members = self.members(batch);
        let mut runs = runs.into_iter().flatten();
        let mut bytes = runs.next().transpose()?.unwrap_or_default();
        for run in runs {
            let run = run?;
            bytes.reserve_exact(self.batch_bytes(members.len()).saturating_sub(bytes.len()));
            bytes.extend_from_slice(&run);
        }
        let shape = std::iter::once(members.len())
            .chain(self.shape.iter().copied())
            .collect();
        let labels: Option<Vec<i64>> = members
            .iter()
            .map(|&index| {
                self.dataset
                    .label(index)
                    .and_then(|label| i64::try_from(label).ok())
            })
            .collect();
        let labels = labels.map(|labels| HostTensor::from_i64(&[members.len()], &labels));
        let internal = |error: compute::Error| Error::new("data.shape", error.to_string());
        Ok(Batch {
            size: members.len(),
            samples: HostTensor::new(DType::F32, shape, bytes).map_err(internal)?,
            labels: labels.transpose().map_err(internal)?,
        })
    }

    fn batch_bytes(&self, samples: usize) -> usize {
        4 * samples * self.shape.iter().product::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn dataset(folder: &Path) -> Dataset {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 8000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        for index in 0..10usize {
            let path = folder.join(format!("{}_{index}.wav", index % 2));
            let mut writer = hound::WavWriter::create(path, spec).unwrap();
            (0..4 + index % 2).for_each(|_| writer.write_sample(index as i16 * 1000).unwrap());
            writer.finalize().unwrap();
        }
        Dataset::open(folder, None).unwrap()
    }

    fn transform(name: &str, option: &str, value: &str) -> Transform {
        let options = [(option.to_owned(), value.to_owned())];
        Transform::parse(Kind::Audio, name, &options).unwrap()
    }

    fn loader(folder: &Path, threads: usize) -> Loader {
        let mut loader = Loader::new(dataset(folder), 3, threads).unwrap();
        loader.push(transform("fit", "samples", "4")).unwrap();
        loader.push(transform("gain", "decibels", "6")).unwrap();
        loader.shuffle(5);
        loader
    }

    fn epoch(loader: &mut Loader, number: u64) -> Vec<(Vec<f32>, Vec<i64>)> {
        loader.start(number).unwrap();
        let running = AtomicBool::new(false);
        std::iter::from_fn(|| loader.next(&running))
            .map(|batch| {
                let batch = batch.unwrap();
                (
                    batch.samples.to_f32().unwrap(),
                    batch.labels.unwrap().to_i64().unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn an_epoch_has_every_sample_once_whatever_the_threads() {
        let folder = tempfile::tempdir().unwrap();
        let mut one = loader(folder.path(), 1);
        let first = epoch(&mut one, 0);
        assert_eq!(first.len(), one.steps());
        let sizes: Vec<usize> = first.iter().map(|(_, labels)| labels.len()).collect();
        assert_eq!(sizes, [3, 3, 3, 1]);
        assert_eq!(first.iter().flat_map(|(_, labels)| labels).sum::<i64>(), 5);
        assert_eq!(first, epoch(&mut loader(folder.path(), 3), 0));
        assert_ne!(first, epoch(&mut one, 1));
        assert_eq!(first, epoch(&mut one, 0));
    }

    #[test]
    fn samples_that_differ_in_shape_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut loader = Loader::new(dataset(folder.path()), 3, 1).unwrap();
        assert_eq!(loader.sample_shape().unwrap_err().code(), "data.shape");
        assert!(loader.start(0).is_err());
        loader
            .push(transform("fit", "samples", "268435456"))
            .unwrap();
        assert_eq!(loader.start(0).unwrap_err().code(), "data.batch-size");
        assert_eq!(
            Loader::new(dataset(folder.path()), 0, 1)
                .unwrap_err()
                .code(),
            "data.batch-size"
        );
    }

    #[test]
    fn a_sample_that_goes_bad_ends_the_epoch_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut loader = loader(folder.path(), 2);
        std::fs::write(folder.path().join("1_3.wav"), b"RIFF").unwrap();
        loader.start(0).unwrap();
        let running = AtomicBool::new(false);
        let error = std::iter::from_fn(|| loader.next(&running))
            .find_map(Result::err)
            .unwrap();
        assert!(error.to_string().contains("1_3.wav"), "{error}");
        assert!(loader.next(&running).is_none());
    }

    #[test]
    fn a_cancelled_task_gets_no_batch() {
        let folder = tempfile::tempdir().unwrap();
        let mut loader = loader(folder.path(), 1);
        assert!(loader.next(&AtomicBool::new(false)).is_none());
        loader.start(0).unwrap();
        let error = loader.next(&AtomicBool::new(true)).unwrap().unwrap_err();
        assert_eq!(error.code(), "task.cancelled");
    }

    #[test]
    fn batches_are_complete_before_they_are_asked_for_and_no_more_than_a_few() {
        let folder = tempfile::tempdir().unwrap();
        let mut loader = Loader::new(dataset(folder.path()), 1, 3).unwrap();
        loader.push(transform("fit", "samples", "4")).unwrap();
        loader.start(0).unwrap();
        let shared = Arc::clone(&loader.epoch.as_ref().unwrap().shared);
        let complete = || {
            let progress = shared.progress();
            let complete = progress
                .batches
                .iter()
                .filter(|batch| matches!(batch, Making::Complete(_)));
            (complete.count(), progress.batches.len())
        };
        for _ in 0..3 {
            // Nobody asks for a batch meanwhile.
            let began = std::time::Instant::now();
            while complete().0 < 5 && began.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(complete(), (COMPLETE_AHEAD + 3, COMPLETE_AHEAD + 3));
            loader.next(&AtomicBool::new(false)).unwrap().unwrap();
        }
    }
}
