//! What a classifier plugin is: one declaration, described to the host and run by it.

use serde_json::json;

use crate::error::{Result, error};
use crate::graph::Tensor;
use crate::host::task;
use crate::input::Input;
use crate::parameters::{Parameters, Property, schema};
use crate::schedule::Schedule;
use crate::{infer, train};

/// Classes listed with each prediction, by default.
const TOP: u64 = 3;

/// A model of the plugin.
#[derive(Clone, Copy)]
pub struct Model {
    /// The name that users choose it by.
    pub name: &'static str,
    /// One line.
    pub description: &'static str,
    /// Builds the graph: the input batch and the number of classes → logits `[batch, classes]`.
    pub build: fn(&Tensor, u32) -> Result<Tensor>,
}

/// How parameters are updated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent.
    Sgd {
        /// The share of the last step that is kept.
        momentum: f64,
        /// Whether the step looks ahead (Nesterov).
        nesterov: bool,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// Adam (Kingma and Ba 2015), PyTorch's defaults.
    Adam {
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// AdamW (Loshchilov and Hutter 2019), PyTorch's defaults.
    AdamW {
        /// Taken from the parameter at each step, times the rate.
        weight_decay: f64,
    },
}

impl Optimizer {
    /// The names that [`Optimizer::named`] knows.
    pub const NAMES: [&'static str; 3] = ["adamw", "adam", "sgd"];

    /// The name that users choose it by.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "sgd",
            Self::Adam { .. } => "adam",
            Self::AdamW { .. } => "adamw",
        }
    }

    /// The weight decay.
    pub fn weight_decay(&self) -> f64 {
        match *self {
            Self::Sgd { weight_decay, .. }
            | Self::Adam { weight_decay }
            | Self::AdamW { weight_decay } => weight_decay,
        }
    }

    /// The optimizer of that name with this weight decay; other settings of `self` are kept where
    /// it is the one named.
    pub fn named(self, name: &str, weight_decay: f64) -> Option<Self> {
        match (name, self) {
            (
                "sgd",
                Self::Sgd {
                    momentum, nesterov, ..
                },
            ) => Some(Self::Sgd {
                momentum,
                nesterov,
                weight_decay,
            }),
            ("sgd", _) => Some(Self::Sgd {
                momentum: 0.9,
                nesterov: false,
                weight_decay,
            }),
            ("adam", _) => Some(Self::Adam { weight_decay }),
            ("adamw", _) => Some(Self::AdamW { weight_decay }),
            _ => None,
        }
    }
}

/// How the plugin trains unless the user says otherwise.
#[derive(Debug, Clone)]
pub struct Training {
    /// Passes over the training data.
    pub epochs: u64,
    /// Samples in a step.
    pub batch_size: u64,
    /// The base learning rate.
    pub learning_rate: f64,
    /// How parameters are updated.
    pub optimizer: Optimizer,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// The share of the target spread evenly over the classes, 0 to 1.
    pub label_smoothing: f64,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            epochs: 5,
            batch_size: 64,
            learning_rate: 1e-3,
            optimizer: Optimizer::AdamW { weight_decay: 0.01 },
            schedule: Schedule::Constant,
            label_smoothing: 0.0,
        }
    }
}

/// A classifier plugin.
#[derive(Clone)]
pub struct Pipeline {
    /// Letters, digits, `-`.
    pub name: &'static str,
    /// Semantic version, usually `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// One line.
    pub description: &'static str,
    /// The models, the first the default.
    pub models: Vec<Model>,
    /// What they are fed.
    pub input: Input,
    /// How they are trained.
    pub training: Training,
}

impl Pipeline {
    /// The JSON object of the contract's `describe`.
    pub fn describe(&self) -> String {
        self.describe_with(Vec::new(), Vec::new())
    }

    /// As [`Pipeline::describe`], with more parameters of trainings and of inferences, or others in
    /// the place of those of the same names. A training's parameter `classes` is the number of
    /// classes that the data must have, 0 for any.
    pub fn describe_with(&self, training: Vec<Property>, inference: Vec<Property>) -> String {
        let models: Vec<_> = self
            .models
            .iter()
            .map(|model| json!({ "name": model.name, "description": model.description }))
            .collect();
        json!({
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "kinds": ["training", "inference"],
            "models": models,
            "parameters": {
                "training": schema([self.training_properties(), training].concat()),
                "inference": schema([self.inference_properties(), inference].concat()),
            },
        })
        .to_string()
    }

    fn training_properties(&self) -> Vec<Property> {
        let t = &self.training;
        let (optimizer, schedule) = (t.optimizer.name(), t.schedule.name());
        let mut properties = vec![
            Property::integer("epochs", t.epochs, "Passes over the training data")
                .minimum(1)
                .maximum(100_000),
            Property::integer("batch_size", t.batch_size, "Samples in a step")
                .minimum(1)
                .maximum(65_536),
            Property::number("learning_rate", t.learning_rate, "Base learning rate").above(0.0),
            Property::choice(
                "optimizer",
                optimizer,
                &Optimizer::NAMES,
                "How parameters are updated",
            ),
            Property::number("weight_decay", t.optimizer.weight_decay(), "Weight decay")
                .minimum(0.0),
            Property::choice(
                "schedule",
                schedule,
                &Schedule::NAMES,
                "How the learning rate changes",
            ),
            Property::number(
                "label_smoothing",
                t.label_smoothing,
                "Share of the target spread over all classes",
            )
            .minimum(0.0)
            .maximum(1.0),
            Property::number(
                "validation_fraction",
                0.1,
                "Part of each class held out where no validation data is given",
            )
            .above(0.0)
            .maximum(0.9),
            Property::integer(
                "seed",
                0,
                "Seed of initial parameters, order, augmentation and split",
            )
            .minimum(0),
            Property::text(
                "head",
                "",
                "Start of the names of parameters that start anew where the weights to start from \
                 have others, such as `fc.`",
            ),
            Property::boolean(
                "recompute",
                false,
                "Whether the blocks of the model are computed again for their gradients instead of \
                 being kept: less memory, more time",
            ),
            precision(),
            Property::boolean(
                "shuffle",
                true,
                "Whether every epoch has an order of its own",
            ),
            Property::integer(
                "patience",
                0,
                "Epochs without a better validation accuracy after which training stops; 0 never",
            )
            .minimum(0),
            Property::number(
                "min_delta",
                0.0,
                "Points of validation accuracy by which an epoch must be above the best to count as \
                 better for `patience`",
            )
            .minimum(0.0)
            .maximum(100.0),
        ];
        properties.extend(self.input.training_properties());
        properties
    }

    fn inference_properties(&self) -> Vec<Property> {
        let batch_size = self.training.batch_size;
        let mut properties = vec![
            Property::integer("batch_size", batch_size, "Samples in a step")
                .minimum(1)
                .maximum(65_536),
            Property::integer("top", TOP, "Classes listed with each prediction")
                .minimum(1)
                .maximum(1000),
            precision(),
        ];
        properties.extend(self.input.inference_properties());
        properties
    }

    /// The model of that name. Errors: `model.unknown` (the message lists those that exist).
    pub(crate) fn model(&self, name: &str) -> Result<Model> {
        self.models
            .iter()
            .find(|model| model.name == name)
            .copied()
            .ok_or_else(|| {
                let names: Vec<_> = self.models.iter().map(|model| model.name).collect();
                let message = format!(
                    "{} has no model {name}: choose one of {}",
                    self.name,
                    names.join(", ")
                );
                error("model.unknown", message)
            })
    }

    /// The name of the model chosen for the task, the first where none was.
    pub(crate) fn chosen(&self, parameters: &Parameters) -> Result<Model> {
        let first = self.models.first().map_or("", |model| model.name);
        self.model(parameters.text("model").unwrap_or(first))
    }

    /// Runs the task. Errors: `task.kind` for a kind that was not described, and whatever fails it.
    pub fn run(&self, kind: &str) -> Result<()> {
        self.run_with(kind, &Parameters::parse(&task::parameters())?)
    }

    /// As [`Pipeline::run`], with parameters that the plugin has changed.
    pub fn run_with(&self, kind: &str, parameters: &Parameters) -> Result<()> {
        match kind {
            "training" => train::run(self, parameters),
            "inference" => infer::run(self, parameters),
            _ => {
                let message = format!(
                    "{} does not do {kind}: it does training and inference",
                    self.name
                );
                Err(error("task.kind", message))
            }
        }
    }
}

/// The parameter `precision`.
fn precision() -> Property {
    Property::choice(
        "precision",
        "float32",
        &["float32", "bfloat16"],
        "How activations are stored; bfloat16 takes half the memory",
    )
}

/// The options of a plan that the task's parameters ask for.
pub(crate) fn plan_options(parameters: &Parameters) -> Result<Vec<(String, String)>> {
    let precision = parameters.text("precision")?;
    Ok(vec![("precision".to_owned(), precision.to_owned())])
}

/// Exports a [`Pipeline`] as the plugin of this component.
#[macro_export]
macro_rules! pipeline {
    ($pipeline:expr) => {
        struct ExportedPipeline;

        impl $crate::bindings::Guest for ExportedPipeline {
            fn describe() -> String {
                $crate::Pipeline::describe(&$pipeline)
            }

            fn run(kind: String) -> $crate::Result<()> {
                $crate::Pipeline::run(&$pipeline, &kind)
            }
        }

        $crate::bindings::export_plugin!(ExportedPipeline with_types_in $crate::bindings);
    };
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{Input, Model, Optimizer, Parameters, Pipeline, Training};

    fn pipeline() -> Pipeline {
        Pipeline {
            name: "sample",
            version: "1.2.3",
            description: "For tests",
            models: vec![
                Model {
                    name: "small",
                    description: "Small",
                    build: |x, _| x.relu(),
                },
                Model {
                    name: "large",
                    description: "Large",
                    build: |x, _| x.relu(),
                },
            ],
            input: Input::image(),
            training: Training {
                epochs: 7,
                ..Training::default()
            },
        }
    }

    #[test]
    fn the_description_names_models_kinds_and_defaults() {
        let description: Value = serde_json::from_str(&pipeline().describe()).unwrap();
        assert_eq!(description["name"], "sample");
        assert_eq!(
            description["kinds"],
            serde_json::json!(["training", "inference"])
        );
        assert_eq!(description["models"][1]["name"], "large");
        let training = &description["parameters"]["training"]["properties"];
        assert_eq!(training["epochs"]["default"], 7);
        assert_eq!(training["optimizer"]["default"], "adamw");
        assert_eq!(
            description["parameters"]["inference"]["properties"]["top"]["default"],
            3
        );
    }

    #[test]
    fn every_parameter_has_a_type_a_default_and_a_description() {
        let description: Value = serde_json::from_str(&pipeline().describe()).unwrap();
        for kind in ["training", "inference"] {
            for (name, property) in description["parameters"][kind]["properties"]
                .as_object()
                .unwrap()
            {
                for key in ["type", "default", "description"] {
                    assert!(property.get(key).is_some(), "{kind} {name} has no {key}");
                }
            }
        }
    }

    #[test]
    fn the_first_model_is_chosen_where_the_task_names_none() {
        let none = Parameters::parse("{}").unwrap();
        assert_eq!(pipeline().chosen(&none).unwrap().name, "small");
        let large = Parameters::parse(r#"{"model": "large"}"#).unwrap();
        assert_eq!(pipeline().chosen(&large).unwrap().name, "large");
    }

    #[test]
    fn an_unknown_model_is_refused_with_those_that_exist() {
        let refusal = pipeline().model("huge").err().unwrap();
        assert_eq!(refusal.code, "model.unknown");
        assert!(refusal.message.contains("small, large"));
    }

    #[test]
    fn an_optimizer_chosen_by_its_own_name_keeps_its_settings() {
        let own = Optimizer::Sgd {
            momentum: 0.5,
            nesterov: true,
            weight_decay: 0.0,
        };
        let expected = Optimizer::Sgd {
            momentum: 0.5,
            nesterov: true,
            weight_decay: 0.1,
        };
        assert_eq!(own.named("sgd", 0.1), Some(expected));
        assert_eq!(
            own.named("adam", 0.1),
            Some(Optimizer::Adam { weight_decay: 0.1 })
        );
        assert_eq!(own.named("lion", 0.1), None);
    }
}
