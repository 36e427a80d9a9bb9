//! Data sets: what a folder or a file holds, recognised by its files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Error;
use crate::folder::{self, Member};
use crate::idx::{self, Images};
use crate::image;
use crate::random::Random;
use crate::transform::Sample;
use crate::wav::{self, Recording};

/// What the samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Samples of shape `[channels, height, width]`, values in 0 to 1.
    Image,
    /// Samples of shape `[samples]`, values in −1 to 1.
    Audio,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Audio => "audio",
        })
    }
}

/// A data set, or a part of one. Clones share what is read.
///
/// Three forms are recognised:
///
/// - IDX files of images and labels (`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-…`
///   for the part `test`; gzipped or not), whose classes are the numbers 0 to the largest label.
/// - Images in JPEG, PNG, BMP or TIFF files: a file alone (one sample without a label), a folder of
///   them (samples without labels), or a folder with a sub-folder for each class, whose classes are
///   sorted by name, as torchvision's `ImageFolder` does. Each is turned upright by its EXIF
///   orientation and has three channels.
/// - WAV files: a file alone or a folder; a recording's class is the sub-folder it is in, or else its
///   file's name up to the first `_`; where neither names a class for every file, the samples have
///   no labels.
///
/// Sub-folders `train`, `validation` (or `valid`, `val`) and `test` of a folder are its parts.
#[derive(Debug, Clone)]
pub struct Dataset {
    source: Arc<Source>,
    classes: Arc<[String]>,
    /// The label of each class of the source, where they are not in its order.
    relabelled: Option<Arc<[usize]>>,
    indices: Arc<[usize]>,
}

#[derive(Debug)]
enum Source {
    Images(Images),
    ImageFiles {
        /// What the names of samples are relative to.
        root: PathBuf,
        files: Vec<ImageFile>,
    },
    Recordings {
        recordings: Vec<Recording>,
        sample_rate: u32,
    },
}

/// An image on disk.
#[derive(Debug)]
struct ImageFile {
    path: PathBuf,
    /// The position of its class among the class names.
    label: Option<usize>,
}

impl Dataset {
    /// The parts of the data set at `path`, of `train`, `validation` and `test`; none where it is
    /// not divided. Errors: `data.format`.
    pub fn parts(path: &Path) -> Result<Vec<String>, Error> {
        if path.is_file() {
            return Ok(Vec::new());
        }
        folder::parts(path)
    }

    /// Opens a part of the data set at `path`, or all of one that is not divided. Errors:
    /// `data.format`, `data.sample`.
    pub fn open(path: &Path, part: Option<&str>) -> Result<Self, Error> {
        Self::find(path, part, &mut Err)
    }

    /// As [`Self::open`], without the samples whose files are damaged: every one is read once, on
    /// `threads`. Gives why each was left out too. Errors: `data.format`, `data.sample` where none
    /// is left, `task.cancelled` once `cancelled` is set.
    pub fn open_readable(
        path: &Path,
        part: Option<&str>,
        threads: usize,
        cancelled: &AtomicBool,
    ) -> Result<(Self, Vec<Error>), Error> {
        let mut damaged = Vec::new();
        let found = Self::find(path, part, &mut |error| {
            damaged.push(error);
            Ok(())
        })?;
        let unreadable = found.unreadable(threads, cancelled);
        if cancelled.load(Ordering::Relaxed) {
            return Err(Error::new("task.cancelled", "the task is cancelled"));
        }
        let readable: Vec<usize> = (0..found.len())
            .filter(|index| !unreadable.contains_key(index))
            .collect();
        damaged.extend(unreadable.into_values());
        match damaged.first() {
            Some(first) if readable.is_empty() => {
                let reason = format!("none of its {} samples can be read: {first}", damaged.len());
                Err(Error::sample(path, reason))
            }
            _ => Ok((found.part(&readable), damaged)),
        }
    }

    /// Opens a part; `damaged` is told of samples that are left out, and may refuse them.
    fn find(
        path: &Path,
        part: Option<&str>,
        damaged: &mut dyn FnMut(Error) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::format(path, error))?;
        let parts = Self::parts(path)?;
        if let Some(part) = part
            && !parts.iter().any(|known| known == part)
        {
            let reason = if parts.is_empty() {
                format!("it has no part `{part}`: it is not divided into parts")
            } else {
                format!("it has no part `{part}`; it has {}", parts.join(", "))
            };
            return Err(Error::format(path, reason));
        }
        if part.is_none() && !parts.is_empty() {
            let reason = format!("it has the parts {}: choose one", parts.join(", "));
            return Err(Error::format(path, reason));
        }
        if metadata.is_file() {
            let member = Member {
                path: path.to_owned(),
                class: None,
            };
            if image::is_named(path) {
                return Ok(Self::images(path, vec![member], Vec::new()));
            }
            return Self::recordings(path, vec![member], Vec::new(), damaged);
        }
        let pairs = folder::pairs(&folder::entries(path)?);
        if let Some((images, labels)) = part.and_then(|part| pairs.get(part)) {
            let images = Images::open(images, labels)?;
            let mut largest = images.labels.iter().copied().max().unwrap_or_default();
            for (_, other) in pairs.values() {
                largest = largest.max(idx::read_labels(other)?.into_iter().max().unwrap_or(0));
            }
            let count = images.len();
            let classes = (0..=largest).map(|label| label.to_string()).collect();
            return Ok(Self::new(Source::Images(images), classes, count));
        }
        let folder = part.and_then(|part| folder::of_part(path, part));
        let folder = folder.as_deref().unwrap_or(path);
        let others: Vec<PathBuf> = parts
            .iter()
            .filter_map(|part| folder::of_part(path, part))
            .filter(|other| other != folder)
            .collect();
        // The classes are those of all parts, so that a class has one label in every part.
        let classes = |list: fn(&Path) -> Result<Vec<Member>, Error>| {
            let mut classes = Vec::new();
            for other in &others {
                let members = list(other)?;
                classes.extend(members.into_iter().filter_map(|member| member.class));
            }
            Ok::<_, Error>(classes)
        };
        let recordings = folder::recordings(folder)?;
        if !recordings.is_empty() {
            let classes = classes(folder::recordings)?;
            return Self::recordings(folder, recordings, classes, damaged);
        }
        let images = folder::images(folder)?;
        if images.is_empty() {
            let reason = "no data set is recognised there: neither IDX files of images and labels \
                          nor images nor WAV files";
            return Err(Error::format(folder, reason));
        }
        Ok(Self::images(folder, images, classes(folder::images)?))
    }

    fn new(source: Source, classes: Vec<String>, samples: usize) -> Self {
        Self {
            source: Arc::new(source),
            classes: classes.into(),
            relabelled: None,
            indices: (0..samples).collect(),
        }
    }

    fn images(root: &Path, members: Vec<Member>, mut classes: Vec<String>) -> Self {
        let labelled = members.iter().all(|member| member.class.is_some());
        if labelled {
            classes.extend(members.iter().filter_map(|member| member.class.clone()));
            classes.sort();
            classes.dedup();
        } else {
            classes.clear();
        }
        let label = |class: Option<String>| classes.binary_search(&class?).ok();
        let files: Vec<ImageFile> = members
            .into_iter()
            .map(|member| ImageFile {
                path: member.path,
                label: label(member.class),
            })
            .collect();
        let count = files.len();
        let root = root.to_owned();
        Self::new(Source::ImageFiles { root, files }, classes, count)
    }

    fn recordings(
        path: &Path,
        members: Vec<Member>,
        mut classes: Vec<String>,
        damaged: &mut dyn FnMut(Error) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        if members.iter().all(|member| member.class.is_some()) {
            classes.extend(members.iter().filter_map(|member| member.class.clone()));
            classes = sorted(classes);
        } else {
            classes.clear();
        }
        let mut rate = None;
        let mut recordings = Vec::with_capacity(members.len());
        let mut first_damaged = None;
        for Member { path, class } in members {
            let (samples, sample_rate) = match wav::inspect(&path) {
                Ok(facts) => facts,
                Err(error) => {
                    first_damaged.get_or_insert(error.clone());
                    damaged(error)?;
                    continue;
                }
            };
            if *rate.get_or_insert(sample_rate) != sample_rate {
                let reason = format!(
                    "{sample_rate} Hz, where the recordings before it have {} Hz",
                    rate.unwrap_or_default()
                );
                return Err(Error::sample(&path, reason));
            }
            let label = class.and_then(|class| classes.iter().position(|known| *known == class));
            recordings.push(Recording {
                path,
                samples,
                label,
            });
        }
        if let (Some(error), true) = (first_damaged, recordings.is_empty()) {
            let reason = format!("none of its samples can be read: {error}");
            return Err(Error::sample(path, reason));
        }
        let count = recordings.len();
        let source = Source::Recordings {
            recordings,
            sample_rate: rate.unwrap_or_default(),
        };
        Ok(Self::new(source, classes, count))
    }

    /// The samples that cannot be read, and why.
    fn unreadable(&self, threads: usize, cancelled: &AtomicBool) -> BTreeMap<usize, Error> {
        if matches!(*self.source, Source::Images(_)) {
            return BTreeMap::new();
        }
        let next = AtomicUsize::new(0);
        let found = Mutex::new(BTreeMap::new());
        let check = || {
            while !cancelled.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= self.len() {
                    return;
                }
                if let Err(error) = self.read(index) {
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.insert(index, error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(check);
            }
            check();
        });
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the samples are.
    pub fn kind(&self) -> Kind {
        match &*self.source {
            Source::Images(_) | Source::ImageFiles { .. } => Kind::Image,
            Source::Recordings { .. } => Kind::Audio,
        }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The class names, in the order of their labels; empty where samples have no labels.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The same samples with labels by the positions of their classes in `classes`, which may have
    /// more. Errors: `data.classes` where one of them is missing there or is there twice, or
    /// samples have no labels.
    pub fn with_classes(&self, classes: Vec<String>) -> Result<Self, Error> {
        if self.classes.is_empty() {
            return Err(Error::new("data.classes", "the samples have no labels"));
        }
        let mut labels = Vec::with_capacity(self.classes.len());
        for class in &*self.classes {
            let mut found = classes
                .iter()
                .enumerate()
                .filter(|(_, known)| *known == class);
            let (Some((label, _)), None) = (found.next(), found.next()) else {
                let message = format!(
                    "the class {class} of the data is not once among {}",
                    classes.join(", ")
                );
                return Err(Error::new("data.classes", message));
            };
            labels.push(label);
        }
        let before = self.relabelled.as_deref();
        let relabelled = match before {
            Some(before) => before
                .iter()
                .filter_map(|&at| labels.get(at).copied())
                .collect(),
            None => labels.into(),
        };
        Ok(Self {
            classes: classes.into(),
            relabelled: Some(relabelled),
            ..self.clone()
        })
    }

    /// A fact by key: `sample-rate`, in Hz.
    pub fn property(&self, key: &str) -> Option<String> {
        match (&*self.source, key) {
            (Source::Recordings { sample_rate, .. }, "sample-rate") => {
                Some(sample_rate.to_string())
            }
            _ => None,
        }
    }

    /// The name of a sample for people: its file's name, for images with the folders it is in, or
    /// its number within its file.
    pub fn name(&self, index: usize) -> Option<String> {
        let index = *self.indices.get(index)?;
        Some(match &*self.source {
            Source::Images(images) => {
                let file = images.path.file_name().unwrap_or_default();
                format!("{}#{index}", file.to_string_lossy())
            }
            Source::ImageFiles { root, files } => {
                let path = &files.get(index)?.path;
                match path.strip_prefix(root) {
                    Ok(inner) if inner.file_name().is_some() => inner.to_string_lossy(),
                    _ => path.file_name().unwrap_or_default().to_string_lossy(),
                }
                .into_owned()
            }
            Source::Recordings { recordings, .. } => {
                let file = recordings.get(index)?.path.file_name().unwrap_or_default();
                file.to_string_lossy().into_owned()
            }
        })
    }

    /// The label of a sample.
    pub(crate) fn label(&self, index: usize) -> Option<usize> {
        let index = *self.indices.get(index)?;
        let label = match &*self.source {
            Source::Images(images) => images.labels.get(index).map(|&label| usize::from(label)),
            Source::ImageFiles { files, .. } => files.get(index)?.label,
            Source::Recordings { recordings, .. } => recordings.get(index)?.label,
        }?;
        match &self.relabelled {
            Some(labels) => labels.get(label).copied(),
            None => Some(label),
        }
    }

    /// The shape of a sample, without transforms. Errors: `data.sample`.
    pub(crate) fn shape(&self, index: usize) -> Result<Vec<usize>, Error> {
        let index = self.indices.get(index).copied().unwrap_or_default();
        Ok(match &*self.source {
            Source::Images(images) => vec![1, images.size[0], images.size[1]],
            Source::ImageFiles { files, .. } => match files.get(index) {
                Some(file) => {
                    let [height, width] = image::size(&file.path)?;
                    vec![3, height, width]
                }
                None => self.any_shape(),
            },
            Source::Recordings { recordings, .. } => {
                vec![
                    recordings
                        .get(index)
                        .map_or(0, |recording| recording.samples),
                ]
            }
        })
    }

    /// A shape that a sample might have, without a look at any.
    pub(crate) fn any_shape(&self) -> Vec<usize> {
        match &*self.source {
            Source::Images(images) => vec![1, images.size[0], images.size[1]],
            Source::ImageFiles { .. } => vec![3, 1, 1],
            Source::Recordings { .. } => vec![1],
        }
    }

    /// Whether all samples have one shape, without transforms.
    pub(crate) fn is_uniform(&self) -> bool {
        matches!(*self.source, Source::Images(_))
    }

    /// Reads a sample. Errors: `data.sample`.
    pub(crate) fn read(&self, index: usize) -> Result<Sample, Error> {
        let index = self.indices.get(index).copied().unwrap_or_default();
        let nothing = || Sample::Audio(Vec::new());
        Ok(match &*self.source {
            Source::Images(images) => Sample::Image(images.read(index)),
            Source::ImageFiles { files, .. } => match files.get(index) {
                Some(file) => Sample::Image(image::read(&file.path)?),
                None => nothing(),
            },
            Source::Recordings { recordings, .. } => match recordings.get(index) {
                Some(recording) => Sample::Audio(wav::read(&recording.path)?),
                None => nothing(),
            },
        })
    }

    /// The samples at these positions, in this order.
    fn part(&self, positions: &[usize]) -> Self {
        Self {
            indices: positions
                .iter()
                .filter_map(|&at| self.indices.get(at).copied())
                .collect(),
            ..self.clone()
        }
    }

    /// Two disjoint parts, the first with `fraction` (0 to 1) of each class's samples, drawn by
    /// `seed`, in the order they have here. Errors: `data.split` where a part would be empty.
    pub fn split(&self, fraction: f64, seed: u64) -> Result<(Self, Self), Error> {
        if !(fraction > 0.0 && fraction < 1.0) {
            let message = format!("a fraction of {fraction} is not between 0 and 1");
            return Err(Error::new("data.split", message));
        }
        let mut by_class: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        for index in 0..self.len() {
            by_class.entry(self.label(index)).or_default().push(index);
        }
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (class, mut members) in by_class {
            let class = class.map_or(u64::MAX, |class| class as u64);
            Random::new(&[seed, class]).shuffle(&mut members);
            let count = (members.len() as f64 * fraction).round() as usize;
            let rest = members.split_off(count.min(members.len()));
            first.extend(members);
            second.extend(rest);
        }
        if first.is_empty() || second.is_empty() {
            let message = format!(
                "a fraction of {fraction} of {} samples leaves a part empty",
                self.len()
            );
            return Err(Error::new("data.split", message));
        }
        first.sort_unstable();
        second.sort_unstable();
        Ok((self.part(&first), self.part(&second)))
    }
}

/// Class names in their order: by value where all are numbers, else by name.
fn sorted(mut classes: Vec<String>) -> Vec<String> {
    if classes.iter().all(|class| class.parse::<u64>().is_ok()) {
        classes.sort_by_key(|class| (class.parse::<u64>().unwrap_or_default(), class.clone()));
    } else {
        classes.sort();
    }
    classes.dedup();
    classes
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn write_wav(path: &Path, samples: usize, sample_rate: u32) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut writer = hound::WavWriter::create(path, spec).unwrap();
        (0..samples).for_each(|_| writer.write_sample(5i16).unwrap());
        writer.finalize().unwrap();
    }

    fn write_idx(folder: &Path, part: &str, labels: &[u8]) {
        let mut images = vec![0, 0, 8, 3];
        for size in [labels.len() as u32, 2, 1] {
            images.extend(size.to_be_bytes());
        }
        images.extend(labels.iter().flat_map(|&label| [label * 51, 255]));
        std::fs::write(folder.join(format!("{part}-images-idx3-ubyte")), images).unwrap();
        let mut bytes = vec![0, 0, 8, 1];
        bytes.extend((labels.len() as u32).to_be_bytes());
        bytes.extend(labels);
        let file = std::fs::File::create(folder.join(format!("{part}-labels-idx1-ubyte.gz")));
        let mut encoder = flate2::write::GzEncoder::new(file.unwrap(), Default::default());
        encoder.write_all(&bytes).unwrap();
        encoder.finish().unwrap();
    }

    #[test]
    fn idx_files_are_parts_with_one_set_of_classes() {
        let folder = tempfile::tempdir().unwrap();
        write_idx(folder.path(), "train", &[0, 1, 1]);
        write_idx(folder.path(), "t10k", &[3, 0]);
        assert_eq!(Dataset::parts(folder.path()).unwrap(), ["train", "test"]);
        let train = Dataset::open(folder.path(), Some("train")).unwrap();
        assert_eq!(train.classes(), ["0", "1", "2", "3"]);
        assert_eq!(
            (train.len(), train.label(2), train.kind()),
            (3, Some(1), Kind::Image)
        );
        assert_eq!(train.shape(0).unwrap(), [1, 2, 1]);
        let Sample::Image(pixels) = train.read(1).unwrap() else {
            panic!("an image is read");
        };
        assert_eq!((pixels.channels, &*pixels.data), (1, &[51, 255][..]));
        assert_eq!(train.name(2).unwrap(), "train-images-idx3-ubyte#2");
        let error = Dataset::open(folder.path(), Some("validation")).unwrap_err();
        assert!(error.to_string().contains("it has train, test"), "{error}");
        let error = Dataset::open(folder.path(), None).unwrap_err();
        assert!(error.to_string().contains("choose one"), "{error}");
    }

    #[test]
    fn recordings_have_the_classes_of_their_names_over_all_parts() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["train/10_a.wav", "train/9_a.wav", "test/2_b.wav"] {
            write_wav(&folder.path().join(name), 4, 8000);
        }
        let test = Dataset::open(folder.path(), Some("test")).unwrap();
        assert_eq!(test.classes(), ["2", "9", "10"]);
        let train = Dataset::open(folder.path(), Some("train")).unwrap();
        assert_eq!((train.label(0), train.label(1)), (Some(2), Some(1)));
        assert_eq!(train.property("sample-rate").unwrap(), "8000");
        assert_eq!(train.name(0).unwrap(), "10_a.wav");
    }

    #[test]
    fn recordings_in_sub_folders_have_their_classes() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["yes/1.wav", "no/1.wav", "no/2.wav"] {
            write_wav(&folder.path().join(name), 4, 8000);
        }
        let all = Dataset::open(folder.path(), None).unwrap();
        assert_eq!(all.classes(), ["no", "yes"]);
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn a_file_alone_is_one_sample_without_a_label() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("5_x.wav");
        write_wav(&path, 4, 8000);
        let one = Dataset::open(&path, None).unwrap();
        assert_eq!((one.len(), one.label(0), one.classes().len()), (1, None, 0));
    }

    #[test]
    fn what_is_not_a_data_set_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Dataset::open(&folder.path().join("nowhere"), None).unwrap_err();
        assert_eq!(missing.code(), "data.format");
        assert!(missing.to_string().contains("nowhere"));
        let empty = Dataset::open(folder.path(), None).unwrap_err();
        assert!(empty.to_string().contains("no data set is recognised"));
        write_wav(&folder.path().join("a_1.wav"), 4, 8000);
        write_wav(&folder.path().join("b_1.wav"), 4, 16000);
        let mixed = Dataset::open(folder.path(), None).unwrap_err();
        assert!(mixed.to_string().contains("16000 Hz"), "{mixed}");
    }

    #[test]
    fn a_split_is_disjoint_stratified_and_repeats() {
        let folder = tempfile::tempdir().unwrap();
        let labels: Vec<u8> = (0..40).map(|index| index % 4).collect();
        write_idx(folder.path(), "train", &labels);
        let all = Dataset::open(folder.path(), Some("train")).unwrap();
        let (first, second) = all.split(0.8, 7).unwrap();
        assert_eq!((first.len(), second.len()), (32, 8));
        for class in 0..4 {
            let count = (0..8)
                .filter(|&index| second.label(index) == Some(class))
                .count();
            assert_eq!(count, 2);
        }
        let mut union: Vec<_> = first.indices.iter().chain(&*second.indices).collect();
        union.sort();
        union.dedup();
        assert_eq!(union.len(), 40);
        assert_eq!(all.split(0.8, 7).unwrap().0.indices, first.indices);
        assert_ne!(all.split(0.8, 8).unwrap().0.indices, first.indices);
        for fraction in [0.0, 1.0, 0.001, f64::NAN] {
            assert_eq!(all.split(fraction, 0).unwrap_err().code(), "data.split");
        }
    }
}
