//! The messages of onnx.proto3 (ONNX IR version 13) as far as they are read.

use prost::Message;

/// A model file.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ModelProto {
    /// The computation.
    #[prost(message, optional, tag = "7")]
    pub(crate) graph: Option<GraphProto>,
    /// The versions of operator sets.
    #[prost(message, repeated, tag = "8")]
    pub(crate) opset_import: Vec<OperatorSetIdProto>,
}

/// The version of an operator set.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OperatorSetIdProto {
    /// Empty for ONNX's own.
    #[prost(string, tag = "1")]
    pub(crate) domain: String,
    /// The version.
    #[prost(int64, tag = "2")]
    pub(crate) version: i64,
}

/// A computation.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GraphProto {
    /// Operators, each after those whose results it takes.
    #[prost(message, repeated, tag = "1")]
    pub(crate) node: Vec<NodeProto>,
    /// Known tensors.
    #[prost(message, repeated, tag = "5")]
    pub(crate) initializer: Vec<TensorProto>,
    /// What is fed, and in older files the initializers too.
    #[prost(message, repeated, tag = "11")]
    pub(crate) input: Vec<ValueInfoProto>,
    /// What is computed.
    #[prost(message, repeated, tag = "12")]
    pub(crate) output: Vec<ValueInfoProto>,
}

/// An operator.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NodeProto {
    /// Names of operands; empty where one is left out.
    #[prost(string, repeated, tag = "1")]
    pub(crate) input: Vec<String>,
    /// Names of results.
    #[prost(string, repeated, tag = "2")]
    pub(crate) output: Vec<String>,
    /// A name for people.
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    /// The operator.
    #[prost(string, tag = "4")]
    pub(crate) op_type: String,
    /// Its attributes.
    #[prost(message, repeated, tag = "5")]
    pub(crate) attribute: Vec<AttributeProto>,
    /// Its set; empty for ONNX's own.
    #[prost(string, tag = "7")]
    pub(crate) domain: String,
}

/// An attribute.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AttributeProto {
    /// Its name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// A number.
    #[prost(float, tag = "2")]
    pub(crate) f: f32,
    /// An integer.
    #[prost(int64, tag = "3")]
    pub(crate) i: i64,
    /// A text.
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) s: Vec<u8>,
    /// A tensor.
    #[prost(message, optional, tag = "5")]
    pub(crate) t: Option<TensorProto>,
    /// A computation, of control flow.
    #[prost(message, optional, tag = "6")]
    pub(crate) g: Option<GraphProto>,
    /// Numbers.
    #[prost(float, repeated, tag = "7")]
    pub(crate) floats: Vec<f32>,
    /// Integers.
    #[prost(int64, repeated, tag = "8")]
    pub(crate) ints: Vec<i64>,
}

/// A tensor with its elements.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TensorProto {
    /// Sizes.
    #[prost(int64, repeated, tag = "1")]
    pub(crate) dims: Vec<i64>,
    /// `TensorProto.DataType`.
    #[prost(int32, tag = "2")]
    pub(crate) data_type: i32,
    /// float32 elements.
    #[prost(float, repeated, tag = "4")]
    pub(crate) float_data: Vec<f32>,
    /// int32 and smaller elements, booleans among them.
    #[prost(int32, repeated, tag = "5")]
    pub(crate) int32_data: Vec<i32>,
    /// int64 elements.
    #[prost(int64, repeated, tag = "7")]
    pub(crate) int64_data: Vec<i64>,
    /// Its name.
    #[prost(string, tag = "8")]
    pub(crate) name: String,
    /// Elements, little-endian.
    #[prost(bytes = "vec", tag = "9")]
    pub(crate) raw_data: Vec<u8>,
    /// float64 elements.
    #[prost(double, repeated, tag = "10")]
    pub(crate) double_data: Vec<f64>,
    /// 1 where the elements are in another file.
    #[prost(int32, tag = "14")]
    pub(crate) data_location: i32,
}

/// A name with a type.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ValueInfoProto {
    /// The name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// The type.
    #[prost(message, optional, tag = "2")]
    pub(crate) r#type: Option<TypeProto>,
}

/// A type; only tensors are read.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TypeProto {
    /// Of a tensor.
    #[prost(message, optional, tag = "1")]
    pub(crate) tensor_type: Option<TensorTypeProto>,
}

/// The type of a tensor.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TensorTypeProto {
    /// `TensorProto.DataType`.
    #[prost(int32, tag = "1")]
    pub(crate) elem_type: i32,
    /// Sizes.
    #[prost(message, optional, tag = "2")]
    pub(crate) shape: Option<TensorShapeProto>,
}

/// Sizes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TensorShapeProto {
    /// One an axis.
    #[prost(message, repeated, tag = "1")]
    pub(crate) dim: Vec<DimensionProto>,
}

/// A size.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DimensionProto {
    /// Known.
    #[prost(int64, optional, tag = "1")]
    pub(crate) dim_value: Option<i64>,
    /// Named.
    #[prost(string, optional, tag = "2")]
    pub(crate) dim_param: Option<String>,
}
