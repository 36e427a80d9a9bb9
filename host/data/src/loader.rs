//! Loaders: the batches of an epoch, read ahead of compute on threads of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use compute::{DType, HostTensor};

use crate::dataset::{Dataset, Kind};
use crate::error::Error;
use crate::random::Random;
use crate::transform::Transform;

/// Bytes of one batch's samples.
const MAXIMUM_BATCH_BYTES: usize = 2 << 30;

/// Threads that read for one loader.
const MAXIMUM_THREADS: usize = 8;

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
    epoch: Option<Epoch>,
}

/// An epoch under way: a thread hands batches `i`, `i + threads`, … to receiver `i`.
#[derive(Debug)]
struct Epoch {
    receivers: Vec<Receiver<Result<Batch, Error>>>,
    next: usize,
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

    /// Appends a transform.
    pub fn push(&mut self, transform: Transform) {
        self.transforms.push(transform);
    }

    /// Batches in an epoch.
    pub fn steps(&self) -> usize {
        self.dataset.len().div_ceil(self.batch_size)
    }

    /// The shape of one sample after the transforms. Errors: `data.shape` where samples differ,
    /// `data.transform`.
    pub fn sample_shape(&self) -> Result<Vec<usize>, Error> {
        let transformed = |index: usize| {
            let shape = self.dataset.shape(index);
            self.transforms
                .iter()
                .try_fold(shape, |shape, transform| transform.shape(shape))
        };
        let shape = transformed(0)?;
        for index in 1..self.dataset.len() {
            let other = transformed(index)?;
            if other != shape {
                let name = |index| self.dataset.name(index).unwrap_or_default();
                let message = format!(
                    "samples differ in shape: {shape:?} in {}, {other:?} in {}; a transform such \
                     as `fit` makes them equal",
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
            .try_fold(4 * self.batch_size, |n, &size| n.checked_mul(size));
        if bytes.is_none_or(|bytes| bytes > MAXIMUM_BATCH_BYTES) {
            let message = format!(
                "a batch of {} samples of shape {shape:?} takes over {MAXIMUM_BATCH_BYTES} bytes",
                self.batch_size
            );
            return Err(Error::new("data.batch-size", message));
        }
        let mut order: Vec<usize> = (0..self.dataset.len()).collect();
        if let Some(seed) = self.seed {
            Random::new(&[seed, epoch]).shuffle(&mut order);
        }
        let threads = self.threads.min(self.steps()).max(1);
        let work = Arc::new(Work {
            dataset: self.dataset.clone(),
            transforms: self.transforms.clone(),
            shape,
            order,
            batch_size: self.batch_size,
            random: [self.seed.unwrap_or_default(), epoch],
        });
        let mut receivers = Vec::with_capacity(threads);
        for first in 0..threads {
            let (sender, receiver) = sync_channel(2);
            let work = Arc::clone(&work);
            std::thread::Builder::new()
                .name(format!("loader-{first}"))
                .spawn(move || work.read(first, threads, &sender))
                .map_err(|error| {
                    Error::new("data.threads", format!("no thread to read with: {error}"))
                })?;
            receivers.push(receiver);
        }
        self.epoch = Some(Epoch { receivers, next: 0 });
        Ok(())
    }

    /// The next batch of the epoch; none after the last one, or before [`Self::start`]. Errors:
    /// `data.sample`, `task.cancelled` once `cancelled` is set; either ends the epoch.
    pub fn next(&mut self, cancelled: &AtomicBool) -> Option<Result<Batch, Error>> {
        let epoch = self.epoch.as_mut()?;
        let receiver = epoch.receivers.get(epoch.next % epoch.receivers.len())?;
        let received = loop {
            if cancelled.load(Ordering::Relaxed) {
                break Some(Err(Error::new("task.cancelled", "the task is cancelled")));
            }
            match receiver.recv_timeout(CANCEL_CHECK) {
                Ok(received) => break Some(received),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break None,
            }
        };
        epoch.next += 1;
        if !matches!(received, Some(Ok(_))) {
            self.epoch = None;
        }
        received
    }
}

/// What the threads of an epoch share.
struct Work {
    dataset: Dataset,
    transforms: Vec<Transform>,
    shape: Vec<usize>,
    order: Vec<usize>,
    batch_size: usize,
    random: [u64; 2],
}

impl Work {
    /// Reads every `stride`-th batch until the epoch, an error or the receiver ends it.
    fn read(&self, first: usize, stride: usize, sender: &SyncSender<Result<Batch, Error>>) {
        for members in self
            .order
            .chunks(self.batch_size)
            .skip(first)
            .step_by(stride)
        {
            let batch = self.batch(members);
            let failed = batch.is_err();
            if sender.send(batch).is_err() || failed {
                return;
            }
        }
    }

    fn batch(&self, members: &[usize]) -> Result<Batch, Error> {
        let sample: usize = self.shape.iter().product();
        let mut bytes = Vec::with_capacity(members.len() * sample * 4);
        for &index in members {
            let mut values = self.dataset.read(index)?;
            let [seed, epoch] = self.random;
            let mut random = Random::new(&[seed, epoch, index as u64]);
            for transform in &self.transforms {
                transform.apply(&mut values, &mut random);
            }
            if values.len() != sample {
                let message = format!(
                    "{}: {} values, where its shape says {:?}: it changed while it was read",
                    self.dataset.name(index).unwrap_or_default(),
                    values.len(),
                    self.shape
                );
                return Err(Error::new("data.sample", message));
            }
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
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

    fn loader(folder: &Path, threads: usize) -> Loader {
        let mut loader = Loader::new(dataset(folder), 3, threads).unwrap();
        loader.push(Transform::Fit(4));
        loader.push(Transform::Gain(6.0));
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
        loader.push(Transform::Fit(1 << 28));
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
}
