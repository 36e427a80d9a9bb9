//! What a folder of samples holds: parts, files and their classes, by their names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::image;

/// The parts a data set can have: the name, and the names of files and folders that hold it.
const PARTS: [(&str, &[&str]); 3] = [
    ("train", &["train"]),
    ("validation", &["validation", "valid", "val"]),
    ("test", &["test", "t10k"]),
];

/// Files and folders in one folder.
const MAXIMUM_ENTRIES: usize = 1_000_000;

/// Folders within one another.
const MAXIMUM_DEPTH: usize = 16;

/// A file of a data set.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) path: PathBuf,
    /// The name of its class, where it has one.
    pub(crate) class: Option<String>,
}

/// The files and folders in a folder, by name, without those whose names begin with a dot.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder)?.take(MAXIMUM_ENTRIES + 1) {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                paths.push(entry.path());
            }
        }
        paths.sort();
        Ok(paths)
    };
    let paths = read().map_err(|error| Error::format(folder, error))?;
    if paths.len() > MAXIMUM_ENTRIES {
        let reason = format!("it holds more than {MAXIMUM_ENTRIES} files");
        return Err(Error::format(folder, reason));
    }
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The parts of the data set in a folder, of `train`, `validation` and `test`. A folder of images
/// with the name of a part is a class where folders of other names hold images too.
pub(crate) fn parts(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = entries(folder)?;
    let pairs = pairs(&entries);
    let is_part = |path: &Path| {
        let name = name(path);
        PARTS.iter().any(|(_, names)| names.contains(&&*name))
    };
    let mut divided = true;
    for other in entries
        .iter()
        .filter(|path| path.is_dir() && !is_part(path))
    {
        divided &= !self::entries(other)?
            .iter()
            .any(|file| image::is_named(file));
    }
    let found = PARTS.iter().filter(|(part, names)| {
        let has_folder = || names.iter().any(|name| folder.join(name).is_dir());
        pairs.contains_key(part) || (divided && has_folder())
    });
    Ok(found.map(|(part, _)| (*part).to_owned()).collect())
}

/// The folder of a part.
pub(crate) fn of_part(folder: &Path, part: &str) -> Option<PathBuf> {
    let (_, names) = PARTS.iter().find(|(name, _)| *name == part)?;
    names
        .iter()
        .map(|name| folder.join(name))
        .find(|folder| folder.is_dir())
}

/// The pairs of IDX files of images and labels, by part.
pub(crate) fn pairs(entries: &[PathBuf]) -> BTreeMap<&'static str, (PathBuf, PathBuf)> {
    let find = |prefix: String| {
        let mut paths = entries.iter();
        let found = paths.find(|path| {
            name(path)
                .strip_prefix(&*prefix)
                .is_some_and(|rest| rest.starts_with(['-', '.']))
        });
        found.cloned()
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

/// The WAV files of a folder and of its sub-folders. A class is a sub-folder's name, or what is
/// before the first `_` of a file's.
pub(crate) fn recordings(folder: &Path) -> Result<Vec<Member>, Error> {
    let is_wav = |path: &Path| {
        let extension = path.extension().unwrap_or_default();
        extension.eq_ignore_ascii_case("wav") && path.is_file()
    };
    let mut found = Vec::new();
    for path in entries(folder)? {
        if path.is_dir() {
            let class = Some(name(&path));
            let files = entries(&path)?.into_iter().filter(|file| is_wav(file));
            found.extend(files.map(|path| Member {
                path,
                class: class.clone(),
            }));
        } else if is_wav(&path) {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let class = stem.split_once('_').map(|(class, _)| class.to_owned());
            let class = class.filter(|class| !class.is_empty());
            found.push(Member { path, class });
        }
    }
    Ok(found)
}

/// The images of a folder, in torchvision's order: those of its sub-folders at any depth, which
/// are the classes; or, where those hold none, its own, which have no class.
pub(crate) fn images(folder: &Path) -> Result<Vec<Member>, Error> {
    let (mut own, mut found) = (Vec::new(), Vec::new());
    for path in entries(folder)? {
        if path.is_dir() {
            let class = Some(name(&path));
            let mut folders = Vec::new();
            collect(path, 0, &mut folders)?;
            folders.sort_by(|(one, _), (other, _)| one.as_os_str().cmp(other.as_os_str()));
            found.extend(
                folders
                    .into_iter()
                    .flat_map(|(_, files)| files)
                    .map(|path| Member {
                        path,
                        class: class.clone(),
                    }),
            );
        } else if image::is_named(&path) {
            own.push(Member { path, class: None });
        }
    }
    Ok(if found.is_empty() { own } else { found })
}

/// Adds a folder and those within it, each with its images.
fn collect(
    folder: PathBuf,
    depth: usize,
    found: &mut Vec<(PathBuf, Vec<PathBuf>)>,
) -> Result<(), Error> {
    if depth == MAXIMUM_DEPTH {
        let reason = format!("folders within one another more than {MAXIMUM_DEPTH} deep");
        return Err(Error::format(&folder, reason));
    }
    let mut images = Vec::new();
    for path in entries(&folder)? {
        if path.is_dir() {
            collect(path, depth + 1, found)?;
        } else if image::is_named(&path) {
            images.push(path);
        }
    }
    found.push((folder, images));
    Ok(())
}
