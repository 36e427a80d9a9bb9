//! Write plugins for Hangar.
//!
//! A plugin describes computation and drives it; the host executes it on the device that the task
//! was granted. For a classifier, a model function and one [`pipeline!`] declaration are enough:
//!
//! ```no_run
//! use hangar_sdk::{Input, Linear, Model, Pipeline, Result, Tensor, Training};
//!
//! fn linear(x: &Tensor, classes: u32) -> Result<Tensor> {
//!     Linear::new(classes).apply(&x.flatten()?, "fc")
//! }
//!
//! hangar_sdk::pipeline!(Pipeline {
//!     name: "softmax-regression",
//!     version: env!("CARGO_PKG_VERSION"),
//!     description: "One linear layer on images",
//!     models: vec![Model { name: "linear", description: "A linear layer", build: linear }],
//!     input: Input::image().normalize(&[0.5], &[0.5]),
//!     training: Training::default(),
//! });
//! # fn main() {}
//! ```
//!
//! In the order of a task's life: [`Pipeline`] (what the plugin is), [`Parameters`] (what the user
//! set), [`Input`] (data sets and transforms), [`Graph`] and [`Tensor`] (the computation), [`layers`]
//! and [`models`], [`train`] and [`infer`] (the loops), [`metrics`], [`scores`] and [`schedule`]. Everything of
//! the contract that has no wrapper here is in [`bindings`].

pub mod bindings;
mod checkpoint;
mod error;
mod graph;
pub mod infer;
mod input;
pub mod layers;
pub mod metrics;
pub mod models;
mod parameters;
mod pipeline;
pub mod schedule;
pub mod scores;
pub mod train;

pub use bindings::hangar::pipeline as host;
pub use error::{Error, Result, error};
pub use graph::{Graph, Mode, Tensor};
pub use input::Input;
pub use layers::{BatchNorm2d, Conv2d, LayerNorm, Linear};
pub use parameters::{Parameters, Property, schema};
pub use pipeline::{Model, Optimizer, Pipeline, Training};
pub use schedule::Schedule;

/// The code of the guide is compiled as that of these pages is.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/plugin-guide.md")]
struct Guide;
