//! ONNX models, read for inference.
//!
//! [`Model::parse`] reads a file; [`import`] turns it into [`Call`]s of the plugin contract's
//! `builder` and the weights that they name. Numbers are computed as float32 and integers as int64
//! whatever their ONNX type.
//!
//! `proto` → `tensor` → `graph` (calls, and what is known of values) → `operators` → `import`.

mod calls;
mod error;
mod graph;
mod import;
mod operators;
mod proto;
mod tensor;

pub use calls::{Call, apply};
pub use error::Error;
pub use import::{Imported, Model, Port, import};
pub use operators::names as operators;
pub use tensor::parse as parse_tensor;
