//! Tells photographs apart: torchvision's models on folders of images, one folder a class.

use hangar_sdk::bindings::Guest;
use hangar_sdk::host::model::{resume_metadata, weights_metadata};
use hangar_sdk::host::task;
use hangar_sdk::{
    Input, Model, Optimizer, Parameters, Pipeline, Property, Result, Schedule, Tensor, Training,
    error, models,
};

/// Height and width of images unless the user says otherwise, pixels.
const SIDE: u32 = 224;

/// What builds a model's graph.
type Build = fn(&Tensor, u32) -> Result<Tensor>;

/// A model, with the start of its head's parameters and what its images' sides are multiples of.
struct Kind {
    name: &'static str,
    description: &'static str,
    build: Build,
    head: &'static str,
    multiple: u32,
}

const fn kind(
    name: &'static str,
    description: &'static str,
    build: Build,
    head: &'static str,
    multiple: u32,
) -> Kind {
    Kind {
        name,
        description,
        build,
        head,
        multiple,
    }
}

const RESNET: &str = "fc.";
const VIT: &str = "heads.head.";
const SWIN: &str = "head.";
const MOBILENET: &str = "classifier.3.";

/// torchvision's models, with their parameters at 1000 classes.
const KINDS: [Kind; 14] = [
    kind(
        "resnet18",
        "11.7 million parameters",
        models::resnet18,
        RESNET,
        1,
    ),
    kind(
        "resnet34",
        "21.8 million parameters",
        models::resnet34,
        RESNET,
        1,
    ),
    kind(
        "resnet50",
        "25.6 million parameters",
        models::resnet50,
        RESNET,
        1,
    ),
    kind(
        "resnet101",
        "44.5 million parameters",
        models::resnet101,
        RESNET,
        1,
    ),
    kind(
        "resnet152",
        "60.2 million parameters",
        models::resnet152,
        RESNET,
        1,
    ),
    kind(
        "vit_b_16",
        "86.6 million parameters",
        models::vit_b_16,
        VIT,
        16,
    ),
    kind(
        "vit_b_32",
        "88.2 million parameters",
        models::vit_b_32,
        VIT,
        32,
    ),
    kind(
        "vit_l_16",
        "304.3 million parameters",
        models::vit_l_16,
        VIT,
        16,
    ),
    kind(
        "vit_l_32",
        "306.5 million parameters",
        models::vit_l_32,
        VIT,
        32,
    ),
    kind(
        "swin_v2_t",
        "28.4 million parameters",
        models::swin_v2_t,
        SWIN,
        1,
    ),
    kind(
        "swin_v2_s",
        "49.7 million parameters",
        models::swin_v2_s,
        SWIN,
        1,
    ),
    kind(
        "swin_v2_b",
        "87.9 million parameters",
        models::swin_v2_b,
        SWIN,
        1,
    ),
    kind(
        "mobilenet_v3_large",
        "5.5 million parameters",
        models::mobilenet_v3_large,
        MOBILENET,
        1,
    ),
    kind(
        "mobilenet_v3_small",
        "2.5 million parameters",
        models::mobilenet_v3_small,
        MOBILENET,
        1,
    ),
];

/// The defaults of a training are those of `POST /api/v2/training/start`.
fn pipeline() -> Pipeline {
    let models = KINDS.iter().map(|kind| Model {
        name: kind.name,
        description: kind.description,
        build: kind.build,
    });
    Pipeline {
        name: "image-classifier",
        version: env!("CARGO_PKG_VERSION"),
        description: "Tells photographs apart with torchvision's models",
        models: models.collect(),
        input: Input::photograph(SIDE),
        training: Training {
            epochs: 100,
            batch_size: 8,
            learning_rate: 1e-4,
            optimizer: Optimizer::AdamW { weight_decay: 0.01 },
            schedule: Schedule::Constant,
            label_smoothing: 0.0,
        },
    }
}

/// The parameters of a training that only this plugin has.
fn properties() -> Vec<Property> {
    vec![
        Property::integer(
            "classes",
            0,
            "Classes that the training data must have; 0 for any number",
        )
        .minimum(0),
        Property::boolean(
            "pretrained",
            true,
            "Whether the training is meant to start from weights, which the user gives; without \
             them it starts from random ones and says so",
        ),
    ]
}

/// Refuses a size that a model cannot take.
fn check_size(kind: &Kind, side: u64) -> Result<()> {
    if side.is_multiple_of(u64::from(kind.multiple)) {
        return Ok(());
    }
    let message = format!(
        "{} takes images whose side is a multiple of {}: image_size is {side}",
        kind.name, kind.multiple
    );
    Err(error("parameters.value", message))
}

/// Whether the host has something to load; other errors come again where it is loaded.
fn is_given<T>(metadata: Result<T>, none: &str) -> bool {
    !metadata.is_err_and(|error| error.code == none)
}

/// Checks and completes what the SDK's training loop is to do.
fn prepare(parameters: &mut Parameters) -> Result<()> {
    let name = parameters.text("model")?;
    let Some(kind) = KINDS.iter().find(|kind| kind.name == name) else {
        return Err(error("model.unknown", format!("there is no model {name}")));
    };
    check_size(kind, parameters.integer("image_size")?)?;
    let weights = is_given(weights_metadata(), "weights.none");
    if parameters.boolean("pretrained")? && !weights && !is_given(resume_metadata(), "resume.none")
    {
        let message = "pretrained is set and no weights were given: the training starts from random \
                       weights";
        task::log("warning", message);
    }
    parameters.set_default("head", kind.head);
    Ok(())
}

struct ImageClassifier;

impl Guest for ImageClassifier {
    fn describe() -> String {
        pipeline().describe_with(properties(), Vec::new())
    }

    fn run(kind: String) -> Result<()> {
        let mut parameters = Parameters::parse(&task::parameters())?;
        if kind == "training" {
            prepare(&mut parameters)?;
        }
        pipeline().run_with(&kind, &parameters)
    }
}

hangar_sdk::bindings::export_plugin!(ImageClassifier with_types_in hangar_sdk::bindings);

#[cfg(test)]
mod tests {
    use super::{KINDS, check_size};

    #[test]
    fn a_size_that_a_model_cannot_take_is_refused_with_what_it_takes() {
        let kind = |name| KINDS.iter().find(|kind| kind.name == name).unwrap();
        check_size(kind("vit_b_16"), 48).unwrap();
        check_size(kind("resnet18"), 33).unwrap();
        for (name, side) in [("vit_b_16", 40), ("vit_l_32", 48)] {
            let refusal = check_size(kind(name), side).unwrap_err();
            assert_eq!(refusal.code, "parameters.value");
            assert!(
                refusal.message.contains("multiple of"),
                "{}",
                refusal.message
            );
        }
    }
}
