//! Data sets and files that users name.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::tasks::task::DataSource;

/// A path that exists, without links and relative parts.
pub fn existing(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("cannot use {}", path.display()))
}

/// A data set by the name under which it is granted: the first of `parts` that it has, all of it
/// where it is not divided.
pub fn source(name: &str, path: &Path, parts: &[&str]) -> anyhow::Result<DataSource> {
    let path = existing(path)?;
    let has = data::Dataset::parts(&path)?;
    let part = parts
        .iter()
        .find(|part| has.iter().any(|known| known == *part));
    if part.is_none() && !has.is_empty() {
        bail!(
            "{}: it has the parts {}, none of {}",
            path.display(),
            has.join(", "),
            parts.join(", ")
        );
    }
    Ok(DataSource {
        name: name.to_owned(),
        path,
        part: part.map(|&part| part.to_owned()),
    })
}
