//! Tensors of a file as tensors that are computed with.

use compute::{DType, HostTensor};

use crate::error::Error;
use crate::proto::TensorProto;

/// The most elements of a tensor in a file.
const MOST_ELEMENTS: usize = 1 << 31;

/// `TensorProto.DataType`, of types that have numbers.
pub(crate) fn dtype(data_type: i32) -> Option<DType> {
    Some(match data_type {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        16 => DType::BF16,
        _ => return None,
    })
}

/// The dtype with which elements of a type are computed: float32, int64 or boolean.
pub(crate) fn computed(dtype: DType) -> DType {
    match dtype {
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 => DType::F32,
        DType::Bool => DType::Bool,
        _ => DType::I64,
    }
}

pub(crate) fn integers(values: &[i64]) -> Result<HostTensor, compute::Error> {
    HostTensor::from_i64(&[values.len()], values)
}

/// Numbers of little-endian bytes.
fn numbers<const N: usize, T>(bytes: &[u8], number: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|b| number(*b))
        .collect()
}

/// The number of IEEE 754 binary16 bits.
fn of_half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, bits >> 10 & 31, f32::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction > 0.0 => f32::NAN,
        31 => f32::INFINITY,
        exponent => (1.0 + fraction / 1024.0) * 2f32.powi(i32::from(exponent) - 15),
    };
    if sign == 1 { -size } else { size }
}

/// The number of bfloat16 bits.
fn of_bfloat(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The tensor of a serialised `TensorProto`. Errors: as of a model.
pub fn parse(bytes: &[u8]) -> Result<HostTensor, Error> {
    let proto = prost::Message::decode(bytes);
    let proto: TensorProto = proto.map_err(|e: prost::DecodeError| Error::Format(e.to_string()))?;
    read(&proto)
}

/// A tensor's elements as they are computed with.
pub(crate) fn read(proto: &TensorProto) -> Result<HostTensor, Error> {
    let fail = |why: &str| {
        Err(Error::Port {
            name: proto.name.clone(),
            why: why.to_owned(),
        })
    };
    if proto.data_location != 0 {
        return fail("its elements are in another file, which is not supported");
    }
    let Some(dtype) = dtype(proto.data_type) else {
        return fail(&format!(
            "its elements are of ONNX type {}, which is not supported",
            proto.data_type
        ));
    };
    let sizes = proto.dims.iter().map(|&d| usize::try_from(d).ok());
    let Some(shape) = sizes.collect::<Option<Vec<usize>>>() else {
        return fail("it has a negative size");
    };
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let Some(count) = count.filter(|&n| n <= MOST_ELEMENTS) else {
        return fail("it has too many elements");
    };
    let raw = &proto.raw_data[..];
    let small: Vec<i64> = proto.int32_data.iter().map(|&x| i64::from(x)).collect();
    let bytes: Vec<u8> = match dtype {
        DType::F32 if raw.is_empty() => bytemuck::cast_slice(&proto.float_data).to_vec(),
        DType::F32 => raw.to_vec(),
        DType::F64 => {
            let wide = match raw {
                [] => proto.double_data.clone(),
                raw => numbers(raw, f64::from_le_bytes),
            };
            let narrow: Vec<f32> = wide.into_iter().map(|x| x as f32).collect();
            bytemuck::cast_slice(&narrow).to_vec()
        }
        DType::F16 | DType::BF16 => {
            let halves: Vec<u16> = match raw {
                [] => proto.int32_data.iter().map(|&x| x as u16).collect(),
                raw => numbers(raw, u16::from_le_bytes),
            };
            let widen = if dtype == DType::F16 {
                of_half
            } else {
                of_bfloat
            };
            let wide: Vec<f32> = halves.into_iter().map(widen).collect();
            bytemuck::cast_slice(&wide).to_vec()
        }
        DType::Bool if raw.is_empty() => small.iter().map(|&x| u8::from(x != 0)).collect(),
        DType::Bool => raw.iter().map(|&x| u8::from(x != 0)).collect(),
        _ => {
            let integers: Vec<i64> = match (dtype, raw) {
                (DType::I64 | DType::U32, []) if dtype == DType::I64 => proto.int64_data.clone(),
                (DType::I64, raw) => numbers(raw, i64::from_le_bytes),
                (_, []) => small,
                (DType::I32, raw) => numbers(raw, |b| i64::from(i32::from_le_bytes(b))),
                (DType::U32, raw) => numbers(raw, |b| i64::from(u32::from_le_bytes(b))),
                (DType::I16, raw) => numbers(raw, |b| i64::from(i16::from_le_bytes(b))),
                (DType::U16, raw) => numbers(raw, |b| i64::from(u16::from_le_bytes(b))),
                (DType::I8, raw) => numbers(raw, |b| i64::from(i8::from_le_bytes(b))),
                (_, raw) => raw.iter().map(|&x| i64::from(x)).collect(),
            };
            bytemuck::cast_slice(&integers).to_vec()
        }
    };
    let expected = count * computed(dtype).size_bytes();
    if bytes.len() != expected {
        return fail("its elements do not fill its shape");
    }
    HostTensor::new(computed(dtype), shape, bytes).or_else(|e| fail(&e.to_string()))
}
