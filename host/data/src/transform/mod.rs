//! Transforms of one sample, applied by the loader in the order given.

mod audio;
mod augment;
mod clahe;
mod colour;
mod crop;
mod filter;
mod image;
mod options;
mod resize;

use self::audio::AudioTransform;
use self::image::ImageTransform;
pub(crate) use self::image::Normalize;
use self::options::Options;
use crate::dataset::Kind;
use crate::error::Error;
use crate::image::Pixels;
use crate::random::Random;

/// A sample on its way through the transforms.
#[derive(Debug, Clone)]
pub(crate) enum Sample {
    /// A recording.
    Audio(Vec<f32>),
    /// An image.
    Image(Pixels),
}

/// A change to each sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Transform(Family);

#[derive(Debug, Clone, PartialEq)]
enum Family {
    Audio(AudioTransform),
    Image(ImageTransform),
}

impl Transform {
    /// Reads a transform of the plugin contract. Errors: `data.transform` where `kind` has none of
    /// that name, `option.unknown`, `option.value`.
    pub fn parse(kind: Kind, name: &str, options: &[(String, String)]) -> Result<Self, Error> {
        let options = Options::new(name, options);
        Ok(Self(match kind {
            Kind::Audio => Family::Audio(AudioTransform::parse(&options)?),
            Kind::Image => Family::Image(ImageTransform::parse(&options)?),
        }))
    }

    /// The shape of a sample after the transform. Errors: `data.transform` where it does not fit.
    pub(crate) fn shape(&self, shape: Vec<usize>) -> Result<Vec<usize>, Error> {
        match &self.0 {
            Family::Audio(transform) => Ok(transform.shape(shape)),
            Family::Image(transform) => transform.shape(shape),
        }
    }

    /// Whether samples have the same size after it, whatever they had before.
    pub(crate) fn equalises(&self) -> bool {
        match &self.0 {
            Family::Audio(transform) => matches!(transform, AudioTransform::Fit(_)),
            Family::Image(transform) => transform.equalises(),
        }
    }

    /// The normalisation of channels, where it is that. It is applied as the sample becomes
    /// numbers, and comes last.
    pub(crate) fn normalize(&self) -> Option<&Normalize> {
        match &self.0 {
            Family::Image(ImageTransform::Normalize(normalize)) => Some(normalize),
            _ => None,
        }
    }

    /// Applies the transform to a sample. Errors: why it cannot.
    pub(crate) fn apply(&self, sample: &mut Sample, random: &mut Random) -> Result<(), String> {
        match (&self.0, sample) {
            (Family::Audio(transform), Sample::Audio(values)) => transform.apply(values, random),
            (Family::Image(transform), Sample::Image(pixels)) => transform.apply(pixels, random)?,
            // A transform is read for the kind of its data set.
            (Family::Audio(_), Sample::Image(_)) | (Family::Image(_), Sample::Audio(_)) => {}
        }
        Ok(())
    }
}
