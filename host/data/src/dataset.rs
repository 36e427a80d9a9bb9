//! Data sets: what a folder or a file holds, recognised by its files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Error;
use crate::idx::{self, Images};
use crate::random::Random;
use crate::wav::{self, Recording};

/// The parts a data set can have: the name, and the names of files and folders that hold it.
const PARTS: [(&str, &[&str]); 3] = [
    ("train", &["train"]),
    ("validation", &["validation", "valid", "val"]),
    ("test", &["test", "t10k"]),
];

/// Samples of one data set.
const MAXIMUM_FILES: usize = 1_000_000;

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
/// Two forms are recognised. IDX files of images and labels (`train-images-idx3-ubyte`,
/// `train-labels-idx1-ubyte`, `t10k-…` for the part `test`; gzipped or not), whose classes are the
/// numbers 0 to the largest label. And WAV files: a file alone (one sample without a label) or a
/// folder, whose sub-folders `train`, `validation` (or `valid`, `val`) and `test` are its parts;
/// a recording's class is the sub-folder it is in, or else its file's name up to the first `_`;
/// where neither names a class for every file, the samples have no labels.
#[derive(Debug, Clone)]
pub struct Dataset {
    source: Arc<Source>,
    classes: Arc<[String]>,
    indices: Arc<[usize]>,
}

#[derive(Debug)]
enum Source {
    Images(Images),
    Recordings {
        recordings: Vec<Recording>,
        sample_rate: u32,
    },
}

impl Dataset {
    /// The parts of the data set at `path`, of `train`, `validation` and `test`; none where it is
    /// not divided. Errors: `data.format`.
    pub fn parts(path: &Path) -> Result<Vec<String>, Error> {
        if path.is_file() {
            return Ok(Vec::new());
        }
        let pairs = pairs(&entries(path)?);
        let found = PARTS.iter().filter(|(name, folders)| {
            pairs.contains_key(name) || folders.iter().any(|folder| path.join(folder).is_dir())
        });
        Ok(found.map(|(name, _)| (*name).to_owned()).collect())
    }

    /// Opens a part of the data set at `path`, or all of one that is not divided. Errors:
    /// `data.format`, `data.sample`.
    pub fn open(path: &Path, part: Option<&str>) -> Result<Self, Error> {
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
            return Self::recordings(path, vec![(path.to_owned(), None)], &[]);
        }
        let pairs = pairs(&entries(path)?);
        if let Some((images, labels)) = part.and_then(|part| pairs.get(part)) {
            let images = Images::open(images, labels)?;
            let mut largest = images.labels.iter().copied().max().unwrap_or_default();
            for (_, other) in pairs.values() {
                largest = largest.max(idx::read_labels(other)?.into_iter().max().unwrap_or(0));
            }
            let count = images.len();
            return Ok(Self {
                source: Arc::new(Source::Images(images)),
                classes: (0..=largest).map(|label| label.to_string()).collect(),
                indices: (0..count).collect(),
            });
        }
        let folder_of = |part: &str| {
            let names = PARTS
                .iter()
                .find(|(name, _)| *name == part)
                .map_or(&[][..], |part| part.1);
            names
                .iter()
                .map(|name| path.join(name))
                .find(|folder| folder.is_dir())
        };
        let Some(folder) = part.and_then(folder_of) else {
            return Self::recordings(path, recordings_in(path)?, &[]);
        };
        // The classes are those of all parts, so that a class has one label in every part.
        let mut others = Vec::new();
        for other in parts.iter().filter_map(|part| folder_of(part)) {
            others.extend(
                recordings_in(&other)?
                    .into_iter()
                    .filter_map(|(_, class)| class),
            );
        }
        Self::recordings(&folder, recordings_in(&folder)?, &others)
    }

    fn recordings(
        path: &Path,
        files: Vec<(PathBuf, Option<String>)>,
        more_classes: &[String],
    ) -> Result<Self, Error> {
        if files.is_empty() {
            let reason = "no data set is recognised there: neither IDX files of images and labels \
                          nor WAV files";
            return Err(Error::format(path, reason));
        }
        let labelled = files.iter().all(|(_, class)| class.is_some());
        let classes = if labelled {
            let own = files.iter().filter_map(|(_, class)| class.as_ref());
            sorted(own.chain(more_classes).cloned().collect())
        } else {
            Vec::new()
        };
        let mut rate = None;
        let mut recordings = Vec::with_capacity(files.len());
        for (file, class) in files {
            let (samples, sample_rate) = wav::inspect(&file)?;
            if *rate.get_or_insert(sample_rate) != sample_rate {
                let reason = format!(
                    "{sample_rate} Hz, where the recordings before it have {} Hz",
                    rate.unwrap_or_default()
                );
                return Err(Error::sample(&file, reason));
            }
            let label = class.and_then(|class| classes.iter().position(|known| *known == class));
            recordings.push(Recording {
                path: file,
                samples,
                label,
            });
        }
        let count = recordings.len();
        Ok(Self {
            source: Arc::new(Source::Recordings {
                recordings,
                sample_rate: rate.unwrap_or_default(),
            }),
            classes: classes.into(),
            indices: (0..count).collect(),
        })
    }

    /// What the samples are.
    pub fn kind(&self) -> Kind {
        match &*self.source {
            Source::Images(_) => Kind::Image,
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

    /// A fact by key: `sample-rate`, in Hz.
    pub fn property(&self, key: &str) -> Option<String> {
        match (&*self.source, key) {
            (Source::Recordings { sample_rate, .. }, "sample-rate") => {
                Some(sample_rate.to_string())
            }
            _ => None,
        }
    }

    /// The name of a sample for people: its file's name, or its number within its file.
    pub fn name(&self, index: usize) -> Option<String> {
        let index = *self.indices.get(index)?;
        Some(match &*self.source {
            Source::Images(images) => {
                let file = images.path.file_name().unwrap_or_default();
                format!("{}#{index}", file.to_string_lossy())
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
        match &*self.source {
            Source::Images(images) => images.labels.get(index).map(|&label| usize::from(label)),
            Source::Recordings { recordings, .. } => recordings.get(index)?.label,
        }
    }

    /// The shape of a sample, without transforms.
    pub(crate) fn shape(&self, index: usize) -> Vec<usize> {
        match &*self.source {
            Source::Images(images) => vec![1, images.size[0], images.size[1]],
            Source::Recordings { recordings, .. } => {
                let recording = self
                    .indices
                    .get(index)
                    .and_then(|&index| recordings.get(index));
                vec![recording.map_or(0, |recording| recording.samples)]
            }
        }
    }

    /// Reads a sample. Errors: `data.sample`.
    pub(crate) fn read(&self, index: usize) -> Result<Vec<f32>, Error> {
        let index = self.indices.get(index).copied().unwrap_or_default();
        match &*self.source {
            Source::Images(images) => {
                let mut values = Vec::new();
                images.read(index, &mut values);
                Ok(values)
            }
            Source::Recordings { recordings, .. } => match recordings.get(index) {
                Some(recording) => wav::read(&recording.path),
                None => Ok(Vec::new()),
            },
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
        let part = |mut members: Vec<usize>| {
            members.sort_unstable();
            Self {
                indices: members
                    .iter()
                    .filter_map(|&at| self.indices.get(at).copied())
                    .collect(),
                ..self.clone()
            }
        };
        Ok((part(first), part(second)))
    }
}

/// The files and folders in a folder, by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder)?.take(MAXIMUM_FILES) {
            paths.push(entry?.path());
        }
        paths.sort();
        Ok(paths)
    };
    read().map_err(|error| Error::format(folder, error))
}

/// The pairs of IDX files of images and labels, by part.
fn pairs(entries: &[PathBuf]) -> BTreeMap<&'static str, (PathBuf, PathBuf)> {
    let find = |prefix: String| {
        entries
            .iter()
            .find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.strip_prefix(&*prefix)
                    .is_some_and(|rest| rest.starts_with(['-', '.']))
            })
            .cloned()
    };
    let mut found = BTreeMap::new();
    for (part, names) in PARTS {
        for name in names {
            let files = (
                find(format!("{name}-images")),
                find(format!("{name}-labels")),
            );
            if let (Some(images), Some(labels)) = files {
                found.insert(part, (images, labels));
            }
        }
    }
    found
}

/// The WAV files of a folder and of its sub-folders, with their classes.
fn recordings_in(folder: &Path) -> Result<Vec<(PathBuf, Option<String>)>, Error> {
    let is_wav = |path: &Path| {
        let extension = path.extension().unwrap_or_default();
        extension.eq_ignore_ascii_case("wav") && path.is_file()
    };
    let mut found = Vec::new();
    for path in entries(folder)? {
        if path.is_dir() {
            let class = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let files = entries(&path)?.into_iter().filter(|file| is_wav(file));
            found.extend(files.map(|file| (file, Some(class.clone()))));
        } else if is_wav(&path) {
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let class = name.split_once('_').map(|(class, _)| class.to_owned());
            found.push((path, class.filter(|class| !class.is_empty())));
        }
    }
    Ok(found)
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
        assert_eq!(train.shape(0), [1, 2, 1]);
        assert_eq!(train.read(1).unwrap(), [0.2, 1.0]);
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
