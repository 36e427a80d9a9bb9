//! Data sets that users grant to tasks: file formats (untrusted bytes), transforms, loaders that
//! read ahead of compute, and files of weights.
//!
//! [`Dataset::open`] reads what a folder or file holds → [`Loader`] draws batches of it, through
//! [`Transform`]s, on threads of its own → [`Batch`]. No file, however damaged, makes the crate
//! panic or allocate without bound.

mod dataset;
mod error;
mod fingerprint;
mod folder;
mod idx;
mod image;
mod loader;
mod random;
mod transform;
mod wav;
pub mod weights;

pub use dataset::{Dataset, Kind};
pub use error::Error;
pub use loader::{Batch, Loader};
pub use transform::Transform;
