//! What a model is fed: the kind of data and the transforms that the host runs on it.

use crate::error::{Result, error};
use crate::host::data::{Dataset, Loader};
use crate::parameters::{Parameters, Property};

/// The mean and the deviation of ImageNet's training images, red, green and blue, in 0 to 1.
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// The shorter side that photographs are resized to before their middle is taken, for 224 pixels.
const SHORT_SIDE: f64 = 256.0 / 224.0;

/// The sides that photographs may be made, in pixels.
const SIDES: std::ops::RangeInclusive<u32> = 32..=4096;

/// A name, the transform that it stands for, and the transform's options.
type Augmentation = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// The augmentations of photographs by the names that users choose them by, with the transforms
/// that make them.
const AUGMENTATIONS: [Augmentation; 8] = [
    // A random window; the size is added.
    ("crop", "random-resized-crop", &[]),
    ("flip", "flip", &[]),
    ("vertical-flip", "flip", &[("direction", "vertical")]),
    (
        "colour",
        "colour-jitter",
        &[
            ("brightness", "0.4"),
            ("contrast", "0.4"),
            ("saturation", "0.4"),
            ("hue", "0.1"),
        ],
    ),
    (
        "noise",
        "noise",
        &[("deviation", "0,0.05"), ("probability", "0.5")],
    ),
    (
        "blur",
        "blur",
        &[("sigma", "0.1,2"), ("probability", "0.5")],
    ),
    (
        "clahe",
        "clahe",
        &[("clip-limit", "2"), ("probability", "0.5")],
    ),
    (
        "sharpen",
        "sharpen",
        &[("factor", "1,2.5"), ("probability", "0.5")],
    ),
];

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
    photograph: Option<Photograph>,
    skip_damaged: bool,
}

/// How photographs of any size are made the size that a model takes.
#[derive(Debug, Clone, PartialEq)]
struct Photograph {
    /// Height and width, in pixels.
    side: u32,
    /// Of [`AUGMENTATIONS`], in the order applied.
    augment: Vec<&'static str>,
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
    fn of(kind: &'static str) -> Self {
        Self {
            kind,
            prepare: Vec::new(),
            augment: Vec::new(),
            photograph: None,
            skip_damaged: false,
        }
    }

    /// Images of one size, `[channels, height, width]`, values 0 to 1.
    pub fn image() -> Self {
        Self::of("image")
    }

    /// Photographs of any size, made RGB of `side` × `side` pixels and normalised as torchvision's
    /// models expect: resized to a shorter side of `side` · 256 / 224, the middle taken, ImageNet's
    /// mean and deviation. In training a random window is resized and mirrored instead. Users
    /// change the size by the parameter `image_size` and what is done at random by `augment`.
    pub fn photograph(side: u32) -> Self {
        let (mean, deviation) = IMAGENET;
        let photograph = Photograph {
            side,
            augment: vec!["crop", "flip"],
        };
        Self {
            photograph: Some(photograph),
            ..Self::image().normalize(&mean, &deviation)
        }
    }

    /// Recordings, `[samples]`, values −1 to 1.
    pub fn audio() -> Self {
        Self::of("audio")
    }

    fn prepared(mut self, name: &'static str, options: &[(&str, String)]) -> Self {
        self.prepare.push(Transform::new(name, options));
        self
    }

    fn augmented(mut self, name: &'static str, options: &[(&str, String)]) -> Self {
        self.augment.push(Transform::new(name, options));
        self
    }

    /// Images: (value − mean) / deviation, one figure for each channel; in place of an earlier one.
    pub fn normalize(mut self, mean: &[f64], deviation: &[f64]) -> Self {
        self.prepare
            .retain(|transform| transform.name != "normalize");
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

    /// The parameters by which users change it in a training.
    pub fn training_properties(&self) -> Vec<Property> {
        let mut properties = Vec::new();
        if let Some(photograph) = &self.photograph {
            let names: Vec<_> = AUGMENTATIONS.iter().map(|(name, ..)| *name).collect();
            let side = u64::from(photograph.side);
            properties.extend([
                Property::integer("image_size", side, "Height and width of images, in pixels")
                    .minimum(*SIDES.start())
                    .maximum(*SIDES.end()),
                Property::text(
                    "augment",
                    &photograph.augment.join(","),
                    &format!(
                        "Changes at random in training, separated by commas: {}; or none",
                        names.join(", ")
                    ),
                ),
            ]);
        }
        properties.extend(self.inference_properties());
        properties
    }

    /// The parameters by which users change it in an inference.
    pub fn inference_properties(&self) -> Vec<Property> {
        vec![Property::choice(
            "damaged",
            "refuse",
            &["refuse", "skip"],
            "What is done about files that cannot be read",
        )]
    }

    /// The input as the user set it for a training. Errors: `parameters.value`, which lists the
    /// augmentations that exist.
    pub fn for_training(&self, parameters: &Parameters) -> Result<Self> {
        let mut input = self.clone();
        input.skip_damaged = parameters.text("damaged")? == "skip";
        if let Some(photograph) = &mut input.photograph {
            let side = parameters.integer("image_size")?;
            photograph.side = checked_side(side)?;
            photograph.augment = augmentations(parameters.text("augment")?)?;
        }
        Ok(input)
    }

    /// The input as the user set it for an inference, with the size of images that the weights'
    /// metadata names. Errors: `weights.image-size`.
    pub fn for_inference(
        &self,
        parameters: &Parameters,
        metadata: &[(String, String)],
    ) -> Result<Self> {
        let mut input = self.clone();
        input.skip_damaged = parameters.text("damaged")? == "skip";
        let named = metadata.iter().find(|(key, _)| key == IMAGE_SIZE);
        if let (Some(photograph), Some((_, side))) = (&mut input.photograph, named) {
            let parsed = side.parse().ok().and_then(|side| checked_side(side).ok());
            photograph.side = parsed.ok_or_else(|| {
                error(
                    "weights.image-size",
                    format!("the weights' metadata has the {IMAGE_SIZE} {side}"),
                )
            })?;
        }
        Ok(input)
    }

    /// What weights must remember so that [`Self::for_inference`] prepares samples as in training.
    pub fn metadata(&self) -> Vec<(String, String)> {
        let side = self.photograph.iter().map(|photograph| photograph.side);
        side.map(|side| (IMAGE_SIZE.to_owned(), side.to_string()))
            .collect()
    }

    /// Opens the data set granted under `name`. Errors: `data.kind` for data of another kind.
    pub fn open(&self, name: &str) -> Result<Dataset> {
        let damaged = if self.skip_damaged { "skip" } else { "refuse" };
        let options = [("damaged".to_owned(), damaged.to_owned())];
        let dataset = Dataset::open_with(name, &options)?;
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
        for transform in self.transforms(augment) {
            loader.transform(transform.name, &transform.options)?;
        }
        Ok(loader)
    }

    fn transforms(&self, augment: bool) -> Vec<Transform> {
        let mut transforms = match &self.photograph {
            Some(photograph) => photograph.transforms(augment),
            None => Vec::new(),
        };
        transforms.extend(self.prepare.iter().cloned());
        transforms.extend(self.augment.iter().filter(|_| augment).cloned());
        transforms
    }
}

/// The key of the size of images in the weights' metadata.
const IMAGE_SIZE: &str = "image_size";

/// A side in pixels as the host takes it.
fn checked_side(side: u64) -> Result<u32> {
    let converted = u32::try_from(side).ok().filter(|side| SIDES.contains(side));
    converted.ok_or_else(|| {
        let message = format!(
            "the image size {side} is not between {} and {}",
            SIDES.start(),
            SIDES.end()
        );
        error("parameters.value", message)
    })
}

/// The augmentations that a text names, in the order of [`AUGMENTATIONS`].
fn augmentations(text: &str) -> Result<Vec<&'static str>> {
    let wanted: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != "none")
        .collect();
    let known = AUGMENTATIONS.map(|(name, ..)| name);
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        let message = format!(
            "the augmentation {unknown} does not exist: choose of {}, or none",
            known.join(", ")
        );
        return Err(error("parameters.value", message));
    }
    Ok(known
        .into_iter()
        .filter(|name| wanted.contains(name))
        .collect())
}

impl Photograph {
    /// What makes an image one of this size, with augmentations or without.
    fn transforms(&self, augment: bool) -> Vec<Transform> {
        let side = self.side.to_string();
        let square = [("height", side.clone()), ("width", side)];
        let chosen: Vec<_> = AUGMENTATIONS
            .iter()
            .filter(|(name, ..)| augment && self.augment.contains(name))
            .collect();
        let mut transforms = Vec::new();
        if !chosen.iter().any(|(name, ..)| *name == "crop") {
            let short = (f64::from(self.side) * SHORT_SIDE).round();
            let short = [("short-side", short.to_string())];
            transforms.push(Transform::new("resize", &short));
            transforms.push(Transform::new("centre-crop", &square));
        }
        for (name, transform, options) in chosen {
            let options: Vec<_> = options
                .iter()
                .map(|(option, value)| (*option, (*value).to_owned()))
                .collect();
            let options = if *name == "crop" {
                &square[..]
            } else {
                &options
            };
            transforms.push(Transform::new(transform, options));
        }
        transforms
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
    use super::{AUGMENTATIONS, Input, Parameters, Transform};

    fn names(transforms: &[Transform]) -> Vec<&str> {
        transforms.iter().map(|transform| transform.name).collect()
    }

    #[test]
    fn random_transforms_come_after_those_that_every_sample_gets() {
        let input = Input::audio().peak(1.0).shift(800).fit(6144).gain(6.0);
        assert_eq!(names(&input.transforms(false)), ["normalize", "fit"]);
        let all = ["normalize", "fit", "shift", "gain"];
        assert_eq!(names(&input.transforms(true)), all);
    }

    #[test]
    fn figures_for_several_channels_are_one_option_separated_by_commas() {
        let input = Input::image().normalize(&[0.5, 0.25], &[1.0, 2.0]);
        let options = &input.prepare[0].options;
        assert_eq!(options[0], ("mean".to_owned(), "0.5,0.25".to_owned()));
        assert_eq!(options[1], ("deviation".to_owned(), "1,2".to_owned()));
    }

    fn parameters(text: &str) -> Parameters {
        Parameters::parse(text).unwrap()
    }

    #[test]
    fn photographs_are_normalised_last_and_once() {
        let input = Input::photograph(224).normalize(&[0.5; 3], &[0.5; 3]);
        let evaluated = input.transforms(false);
        assert_eq!(names(&evaluated), ["resize", "centre-crop", "normalize"]);
        assert_eq!(evaluated[0].options[0].1, "256");
        assert_eq!(evaluated[2].options[0].1, "0.5,0.5,0.5");
        let trained = input.transforms(true);
        assert_eq!(
            names(&trained),
            ["random-resized-crop", "flip", "normalize"]
        );
    }

    #[test]
    fn users_set_the_size_and_the_augmentations() {
        let text = r#"{"image_size": 96, "augment": "sharpen, flip,colour", "damaged": "skip"}"#;
        let input = Input::photograph(224)
            .for_training(&parameters(text))
            .unwrap();
        let trained = input.transforms(true);
        let expected = [
            "resize",
            "centre-crop",
            "flip",
            "colour-jitter",
            "sharpen",
            "normalize",
        ];
        assert_eq!(names(&trained), expected);
        assert_eq!(
            trained[1].options[0],
            ("height".to_owned(), "96".to_owned())
        );
        assert!(input.skip_damaged);
        let none = parameters(r#"{"image_size": 96, "augment": "none", "damaged": "refuse"}"#);
        let input = Input::photograph(224).for_training(&none).unwrap();
        assert_eq!(input.transforms(true), input.transforms(false));
    }

    #[test]
    fn what_users_cannot_set_is_refused_with_what_they_can() {
        let refusal = |text: &str| {
            let input = Input::photograph(224).for_training(&parameters(text));
            input.err().unwrap()
        };
        let text = r#"{"image_size": 96, "augment": "flip,magic", "damaged": "skip"}"#;
        let unknown = refusal(text);
        assert_eq!(unknown.code, "parameters.value");
        for (name, ..) in AUGMENTATIONS {
            assert!(unknown.message.contains(name), "{}", unknown.message);
        }
        let text = r#"{"image_size": 9, "augment": "", "damaged": "skip"}"#;
        assert!(refusal(text).message.contains("between 32 and 4096"));
    }

    #[test]
    fn weights_tell_an_inference_the_size_of_its_images() {
        let damaged = parameters(r#"{"damaged": "refuse"}"#);
        let small = Input::photograph(96);
        let input = Input::photograph(224)
            .for_inference(&damaged, &small.metadata())
            .unwrap();
        assert_eq!(input.transforms(false), small.transforms(false));
        let wrong = [("image_size".to_owned(), "0".to_owned())];
        let refusal = small.for_inference(&damaged, &wrong).err().unwrap();
        assert_eq!(refusal.code, "weights.image-size");
        assert!(Input::image().metadata().is_empty());
    }
}
