//! Tensor graphs: building, differentiating and planning them, and the backends that run them.
//!
//! A [`Builder`] collects operators into a [`Graph`], checking dtypes and shapes at every call. A
//! [`Plan`] gives every tensor a place, so that its need of memory is known before anything is
//! allocated. A [`Backend`] opens a [`Session`] of plans, which holds the parameters and runs.
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//! use compute::{Backend, Builder, DType, Dim, HostTensor, Plan, cpu::CpuBackend};
//!
//! let mut b = Builder::new();
//! let x = b.input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(2)])?;
//! let y = b.affine(x, 2.0, 1.0)?;
//! b.output("y", y)?;
//! let plan = Plan::new(&b.graph(), 8)?;
//! let mut session = CpuBackend::new(1)?.open(vec![plan], u64::MAX)?;
//! let input = HostTensor::from_f32(&[1, 2], &[1.0, 2.0])?;
//! session.run(0, 1, &[("x", &input)], &AtomicBool::new(false))?;
//! assert_eq!(session.output(0, "y")?.to_f32(), Some(vec![3.0, 5.0]));
//! # Ok::<(), compute::Error>(())
//! ```
//!
//! Modules in the order in which a graph passes through them:
//! [`builder`] and `ops` → `passes` → [`plan`] → [`backend`] → [`cpu`] or [`cuda`], on several devices
//! through [`replicas`].

pub mod backend;
pub mod builder;
#[cfg(test)]
mod conformance;
pub mod cpu;
pub mod cuda;
pub mod dtype;
pub mod error;
pub mod graph;
pub mod initializer;
mod opening;
mod ops;
mod passes;
pub mod plan;
pub mod random;
pub mod replicas;
pub mod schedule;
pub mod shape;
pub mod tensor;
mod walk;

pub use backend::{Backend, ParameterInfo, Session};
pub use builder::Builder;
pub use dtype::DType;
pub use error::Error;
pub use graph::{Graph, Value};
pub use ops::NAMES as OPS;
pub use plan::{Plan, peak_bytes_of};
pub use schedule::Schedule;
pub use shape::{Dim, Shape};
pub use tensor::HostTensor;
