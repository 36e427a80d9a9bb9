//! What a model is fed: the kind of data and the transforms that the host runs on it.

use crate::error::{Result, error};
use crate::host::data::{Dataset, Loader};

#[derive(Debug, Clone, PartialEq)]
struct Transform {
    name: &'static str,
    options: Vec<(String, String)>,
}

/// The kind of data a model takes and how samples are prepared, in order. Transforms that draw at
/// random augment the training data only.
#[derive(Debug, Clone)]
pub struct Input {
    kind: &'static str,
    prepare: Vec<Transform>,
    augment: Vec<Transform>,
}

/// Numbers as the host reads them in an option.
fn list(values: &[f64]) -> String {
    values
        .iter()
        .map(f64::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

impl Input {
    /// Images, `[channels, height, width]`, values 0 to 1.
    pub fn image() -> Self {
        Self {
            kind: "image",
            prepare: Vec::new(),
            augment: Vec::new(),
        }
    }

    /// Recordings, `[samples]`, values −1 to 1.
    pub fn audio() -> Self {
        Self {
            kind: "audio",
            prepare: Vec::new(),
            augment: Vec::new(),
        }
    }

    fn prepared(mut self, name: &'static str, options: &[(&str, String)]) -> Self {
        self.prepare.push(Transform::new(name, options));
        self
    }

    fn augmented(mut self, name: &'static str, options: &[(&str, String)]) -> Self {
        self.augment.push(Transform::new(name, options));
        self
    }

    /// Images: (value − mean) / deviation, one figure for each channel.
    pub fn normalize(self, mean: &[f64], deviation: &[f64]) -> Self {
        self.prepared(
            "normalize",
            &[("mean", list(mean)), ("deviation", list(deviation))],
        )
    }

    /// Recordings: each scaled so that its largest magnitude is `peak`.
    pub fn peak(self, peak: f64) -> Self {
        self.prepared("normalize", &[("peak", peak.to_string())])
    }

    /// Recordings: cut or padded with zeros at the end to `samples`.
    pub fn fit(self, samples: u32) -> Self {
        self.prepared("fit", &[("samples", samples.to_string())])
    }

    /// Recordings, in training: moved by up to `samples` either way.
    pub fn shift(self, samples: u32) -> Self {
        self.augmented("shift", &[("samples", samples.to_string())])
    }

    /// Recordings, in training: scaled by up to `decibels` either way.
    pub fn gain(self, decibels: f64) -> Self {
        self.augmented("gain", &[("decibels", decibels.to_string())])
    }

    /// Opens the data set granted under `name`. Errors: `data.kind` for data of another kind.
    pub fn open(&self, name: &str) -> Result<Dataset> {
        let dataset = Dataset::open(name)?;
        if dataset.kind() == self.kind {
            return Ok(dataset);
        }
        let message = format!(
            "the data set {name} holds {}: this plugin takes {}",
            dataset.kind(),
            self.kind
        );
        Err(error("data.kind", message))
    }

    /// A loader with the transforms, the random ones where `augment`.
    pub fn loader(&self, of: &Dataset, batch_size: u32, augment: bool) -> Result<Loader> {
        let loader = Loader::open(of, batch_size)?;
        let random = self.augment.iter().filter(|_| augment);
        for transform in self.prepare.iter().chain(random) {
            loader.transform(transform.name, &transform.options)?;
        }
        Ok(loader)
    }
}

impl Transform {
    fn new(name: &'static str, options: &[(&str, String)]) -> Self {
        let options = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        Self {
            name,
            options: options.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Input;

    #[test]
    fn random_transforms_are_kept_apart_from_those_that_every_sample_gets() {
        let input = Input::audio().peak(1.0).shift(800).fit(6144).gain(6.0);
        let names = |list: &[super::Transform]| list.iter().map(|t| t.name).collect::<Vec<_>>();
        assert_eq!(names(&input.prepare), ["normalize", "fit"]);
        assert_eq!(names(&input.augment), ["shift", "gain"]);
    }

    #[test]
    fn figures_for_several_channels_are_one_option_separated_by_commas() {
        let input = Input::image().normalize(&[0.5, 0.25], &[1.0, 2.0]);
        assert_eq!(
            input.prepare[0].options[0],
            ("mean".to_owned(), "0.5,0.25".to_owned())
        );
        assert_eq!(
            input.prepare[0].options[1],
            ("deviation".to_owned(), "1,2".to_owned())
        );
    }
}
