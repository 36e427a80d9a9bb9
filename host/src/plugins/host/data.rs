//! `data`: the data sets that the user granted, and their loaders.

use std::path::Path;

use wasmtime::component::Resource;

use super::State;
use super::error::{HostError, Result};
use super::task::line;
use crate::plugins::bindings::hangar::pipeline::data;
use crate::worker::protocol::FromWorker;

/// Loaders alive at once: each reads ahead on threads of its own.
const LOADERS: usize = 16;

/// Damaged files named in the log, of one data set.
const SKIPPED_NAMED: usize = 1_000;

/// A data set, or a part of one.
pub struct Dataset(::data::Dataset);

/// Batches of a data set.
pub struct Loader(pub(super) ::data::Loader);

impl State {
    /// Where a granted data set lies, and which part of it is granted.
    fn granted_data(&self, name: &str) -> Result<(&Path, Option<&str>)> {
        let data = &self.grants.data;
        let Some(grant) = data.iter().find(|grant| grant.name == name) else {
            let granted: Vec<_> = data.iter().map(|grant| &*grant.name).collect();
            let message = format!(
                "the data set `{name}` is not granted; granted are: {}",
                if granted.is_empty() {
                    "none".to_owned()
                } else {
                    granted.join(", ")
                }
            );
            return Err(HostError::new("data.unknown", message));
        };
        Ok((&grant.path, grant.part.as_deref()))
    }

    /// Says in the task's log which samples are left out of a data set.
    fn tell_skipped(&self, name: &str, left: usize, damaged: &[::data::Error]) {
        if damaged.is_empty() {
            return;
        }
        let warn = |message: String| {
            self.tell(FromWorker::Log {
                level: "warning".to_owned(),
                message: line(&message),
            });
        };
        for error in damaged.iter().take(SKIPPED_NAMED) {
            warn(format!("skipped {error}"));
        }
        let count = damaged.len();
        warn(match count.checked_sub(SKIPPED_NAMED) {
            None | Some(0) => format!("{name}: {count} damaged files are skipped, {left} are left"),
            Some(more) => format!(
                "{name}: {count} damaged files are skipped, {left} are left; {more} are not named"
            ),
        });
    }
}

impl data::Host for State {
    fn granted(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self
            .grants
            .data
            .iter()
            .map(|grant| grant.name.clone())
            .collect())
    }
}

impl data::HostDataset for State {
    fn open(&mut self, name: String) -> Result<Resource<Dataset>> {
        self.check_cancelled()?;
        let (path, part) = self.granted_data(&name)?;
        let opened = ::data::Dataset::open(path, part)?;
        Ok(self.table.push(Dataset(opened))?)
    }

    fn open_with(
        &mut self,
        name: String,
        options: Vec<(String, String)>,
    ) -> Result<Resource<Dataset>> {
        let mut skip = false;
        for (option, value) in &options {
            skip = match (&**option, &**value) {
                ("damaged", "refuse") => false,
                ("damaged", "skip") => true,
                ("damaged", _) => {
                    let message = format!("`damaged` is `{value}`, not one of refuse, skip");
                    return Err(HostError::new("option.value", message));
                }
                _ => {
                    let message = format!("`{option}` is not an option of a data set: damaged is");
                    return Err(HostError::new("option.unknown", message));
                }
            };
        }
        if !skip {
            return data::HostDataset::open(self, name);
        }
        self.check_cancelled()?;
        let (path, part) = self.granted_data(&name)?;
        let threads = self.grants.threads;
        let (opened, damaged) =
            ::data::Dataset::open_readable(path, part, threads, &self.grants.cancelled)?;
        self.tell_skipped(&name, opened.len(), &damaged);
        Ok(self.table.push(Dataset(opened))?)
    }

    fn with_classes(
        &mut self,
        dataset: Resource<Dataset>,
        classes: Vec<String>,
    ) -> Result<Resource<Dataset>> {
        let relabelled = self.table.get(&dataset)?.0.with_classes(classes)?;
        Ok(self.table.push(Dataset(relabelled))?)
    }

    fn kind(&mut self, dataset: Resource<Dataset>) -> wasmtime::Result<String> {
        Ok(self.table.get(&dataset)?.0.kind().to_string())
    }

    fn length(&mut self, dataset: Resource<Dataset>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&dataset)?.0.len() as u64)
    }

    fn classes(&mut self, dataset: Resource<Dataset>) -> wasmtime::Result<Vec<String>> {
        Ok(self.table.get(&dataset)?.0.classes().to_vec())
    }

    fn property(
        &mut self,
        dataset: Resource<Dataset>,
        key: String,
    ) -> wasmtime::Result<Option<String>> {
        let dataset = &self.table.get(&dataset)?.0;
        Ok(match &*key {
            "fingerprint" => Some(format!("{:016x}", dataset.fingerprint())),
            key => dataset.property(key),
        })
    }

    fn name(&mut self, dataset: Resource<Dataset>, index: u64) -> Result<String> {
        let dataset = &self.table.get(&dataset)?.0;
        let name = usize::try_from(index)
            .ok()
            .and_then(|index| dataset.name(index));
        name.ok_or_else(|| {
            let message = format!("sample {index} of a data set of {}", dataset.len());
            HostError::new("data.index", message)
        })
    }

    fn split(
        &mut self,
        dataset: Resource<Dataset>,
        fraction: f64,
        seed: u64,
    ) -> Result<(Resource<Dataset>, Resource<Dataset>)> {
        let (first, second) = self.table.get(&dataset)?.0.split(fraction, seed)?;
        Ok((
            self.table.push(Dataset(first))?,
            self.table.push(Dataset(second))?,
        ))
    }

    fn drop(&mut self, dataset: Resource<Dataset>) -> wasmtime::Result<()> {
        self.table.delete(dataset)?;
        Ok(())
    }
}

impl data::HostLoader for State {
    fn open(&mut self, of: Resource<Dataset>, batch_size: u32) -> Result<Resource<Loader>> {
        if self.loaders >= LOADERS {
            let message = format!("a task has at most {LOADERS} loaders at once: drop one");
            return Err(HostError::new("data.loaders", message));
        }
        let dataset = self.table.get(&of)?.0.clone();
        let batch_size = usize::try_from(batch_size).unwrap_or(usize::MAX);
        let loader = ::data::Loader::new(dataset, batch_size, self.grants.threads)?;
        let loader = self.table.push(Loader(loader))?;
        self.loaders += 1;
        Ok(loader)
    }

    fn shuffle(&mut self, loader: Resource<Loader>, seed: u64) -> wasmtime::Result<()> {
        self.table.get_mut(&loader)?.0.shuffle(seed);
        Ok(())
    }

    fn transform(
        &mut self,
        loader: Resource<Loader>,
        name: String,
        options: Vec<(String, String)>,
    ) -> Result<()> {
        let loader = &mut self.table.get_mut(&loader)?.0;
        let transform = ::data::Transform::parse(loader.kind(), &name, &options)?;
        Ok(loader.push(transform)?)
    }

    fn sample_shape(&mut self, loader: Resource<Loader>) -> Result<Vec<u32>> {
        let shape = self.table.get(&loader)?.0.sample_shape()?;
        let sizes: std::result::Result<Vec<u32>, _> =
            shape.iter().map(|&size| u32::try_from(size)).collect();
        sizes.map_err(|_| {
            let message = format!("samples of shape {shape:?} are too large");
            HostError::new("data.shape", message)
        })
    }

    fn steps(&mut self, loader: Resource<Loader>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&loader)?.0.steps() as u64)
    }

    fn start(&mut self, loader: Resource<Loader>, epoch: u64) -> Result<()> {
        self.check_cancelled()?;
        self.table.get_mut(&loader)?.0.start(epoch)?;
        Ok(())
    }

    fn drop(&mut self, loader: Resource<Loader>) -> wasmtime::Result<()> {
        self.table.delete(loader)?;
        self.loaders -= 1;
        Ok(())
    }
}
