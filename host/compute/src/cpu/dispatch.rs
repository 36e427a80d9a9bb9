//! Which kernel computes which operator.

use bytemuck::Pod;

use super::chunks::Workers;
use super::operands::Operands;
use super::reduce::Operand;
use super::{
    attention, conv, elementwise, index, layer_norm, loss, matmul, movement, narrow, norm, pool,
    random, reduce, resample, signal, softmax,
};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::ops::Op;
use crate::ops::attention::Sizes;
use crate::ops::geometry::Geometry;

/// An element that kernels move without looking at it.
pub(super) trait Element: Pod + Send + Sync {
    /// The element nearest to a number.
    fn of(number: f64) -> Self;
}

impl Element for f32 {
    fn of(number: f64) -> Self {
        number as Self
    }
}

impl Element for u16 {
    fn of(number: f64) -> Self {
        narrow::narrowed(number as f32)
    }
}

impl Element for i64 {
    fn of(number: f64) -> Self {
        number as Self
    }
}

impl Element for u8 {
    fn of(number: f64) -> Self {
        Self::from(number != 0.0)
    }
}

/// An axis's size, and the elements of one of its steps.
fn along(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[axis], shape[axis + 1..].iter().product())
}

/// Computes a result whose elements are those of an operand; whether the operator is of that kind.
pub(super) fn moving_kernel<T: Element>(
    workers: Workers<'_>,
    node: &Node,
    operands: &Operands<'_>,
    out: &mut [T],
) -> Result<bool, Error> {
    let x = &node.inputs;
    let get = |i: usize| operands.get::<T>(x[i]);
    let shape = |i: usize| operands.shape(x[i]);
    let own = node.shape.at(operands.batch);
    match &node.op {
        Op::Permute(order) => movement::permute(workers, get(0), &shape(0), order, (out, &own)),
        Op::Expand => movement::expand(workers, get(0), &shape(0), (out, &own)),
        Op::Row { index } => out.copy_from_slice(&get(0)[index * out.len()..][..out.len()]),
        Op::Slice(window) => movement::slice(workers, get(0), &shape(0), window, (out, &own)),
        Op::Place { window, fill } => {
            let placed = (window, T::of(*fill));
            movement::place(workers, get(0), &shape(0), placed, (out, &own));
        }
        Op::Concat { axis } => {
            let parts: Vec<_> = (0..x.len()).map(|i| (get(i), shape(i)[*axis])).collect();
            movement::concat(workers, &parts, (out, &own), *axis);
        }
        Op::Select => {
            let (a, b) = ((get(1), &*shape(1)), (get(2), &*shape(2)));
            let condition = (operands.get(x[0]), &*shape(0));
            elementwise::select(workers, condition, a, b, (out, &own));
        }
        Op::Gather { axis } => {
            let ((size, inner), by) = (along(&shape(0), *axis), operands.get(x[1]));
            index::gather(workers, get(0), by, (size, own[*axis], inner), out)?;
        }
        Op::Take { axis } => {
            let by = operands.get(x[1]);
            index::take(workers, get(0), by, along(&shape(0), *axis), out)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Computes a float32 result; `step` is the number of the optimizer step. Products, convolutions and
/// reductions call `finish` once with every part of their results: the number of its first element,
/// and it.
pub(super) fn float_kernel(
    (workers, step): (Workers<'_>, u64),
    node: &Node,
    operands: &Operands<'_>,
    out: &mut [f32],
    workspace: &mut [f32],
    transforms: &signal::Transforms,
    finish: &(dyn Fn(usize, &mut [f32]) + Sync),
) -> Result<(), Error> {
    let x = &node.inputs;
    let get = |i: usize| operands.get::<f32>(x[i]);
    let shape = |i: usize| operands.shape(x[i]);
    let own = node.shape.at(operands.batch);
    match &node.op {
        // From int64; others are programs.
        Op::Cast => elementwise::convert(workers, operands.get(x[0]), out, |x: i64| x as f32),
        Op::ScatterAdd { axis } => {
            let ((size, inner), count) = (along(&own, *axis), shape(1)[*axis]);
            let by = operands.get(x[1]);
            index::scatter_add(workers, get(0), by, (size, count, inner), out)?;
        }
        Op::TakeGradient { axis } => {
            let by = operands.get(x[1]);
            index::take_gradient(workers, get(0), by, along(&own, *axis), out)?;
        }
        Op::Resample { axis } => {
            let table = (operands.get(x[1]), get(2));
            resample::resample(workers, get(0), along(&shape(0), *axis), table, out);
        }
        Op::Cumsum { axis, reverse } => {
            reduce::cumsum(workers, get(0), &own, *axis, *reverse, out);
        }
        Op::LayerNorm(attributes) => {
            let optional = |i: usize| x.get(i).map(|_| get(i));
            let (scale, bias) = (optional(1), optional(2));
            layer_norm::layer_norm(workers, attributes, get(0), last(&own), scale, bias, out);
        }
        Op::LayerNormGradient(attributes) => {
            let (pair, scale) = ((get(0), get(1)), x.get(2).map(|_| get(2)));
            layer_norm::input_gradient(workers, attributes, pair, last(&own), scale, out);
        }
        Op::LayerNormParameterGradient(attributes) => {
            let pair = (get(0), get(1));
            layer_norm::parameter_gradient(workers, attributes, pair, last(&own), out, workspace);
        }
        Op::Dropout(dropout) => {
            let row = own.iter().skip(1).product();
            random::dropout(workers, dropout, step, get(0), row, out);
        }
        Op::Random { seed } => random::fill(workers, *seed, step, out),
        Op::Reduce { kind, axes, .. } => {
            let x = Operand::Stored(get(0));
            reduce::reduce(workers, *kind, &x, (&shape(0), axes), out, finish);
        }
        Op::FusedReduce(reduced) => {
            let shape = reduced.shape.at(operands.batch);
            let x = Operand::Computed(operands.machine(node, &reduced.program, &shape));
            reduce::reduce(
                workers,
                reduced.kind,
                &x,
                (&shape, &reduced.axes),
                out,
                finish,
            );
        }
        Op::ExtremeGradient => {
            reduce::extreme_gradient(workers, get(0), &own, get(1), get(2), &shape(1), out);
        }
        Op::Matmul {
            transpose_a,
            transpose_b,
        } => {
            let (a, b) = (shape(0), shape(1));
            let (a, b) = ((get(0), &*a, *transpose_a), (get(1), &*b, *transpose_b));
            let bias = (x.len() > 2).then(|| get(2));
            matmul::matmul(workers, a, b, (out, &own), |first, piece| {
                if let Some(bias) = bias {
                    let bias = &bias[first % bias.len()..];
                    piece.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
                }
                finish(first, piece);
            });
        }
        Op::Conv2d(c) => {
            let g = geometry(c, &shape(0), &shape(1))?;
            let bias = (x.len() > 2).then(|| get(2));
            let operands = (get(0), get(1), bias);
            conv::forward(workers, &g, operands, out, workspace, finish);
        }
        Op::Conv2dInputGradient(c) => {
            let g = geometry(c, &own, &shape(1))?;
            conv::input_gradient(workers, &g, (get(0), get(1)), out, workspace);
        }
        Op::Conv2dWeightGradient(c) => {
            let g = geometry(c, &shape(0), &own)?;
            conv::weight_gradient(workers, &g, (get(0), get(1)), out, workspace);
        }
        Op::Pool2d(pool) => pool::pool2d(workers, pool, get(0), &shape(0), (out, &own)),
        Op::Pool2dGradient(pool) => {
            pool::gradient(workers, pool, get(0), get(1), &shape(1), (out, &own));
        }
        Op::BatchStatistics { epsilon } => {
            norm::batch_statistics(workers, *epsilon, get(0), &shape(0), out);
        }
        Op::FixedStatistics { epsilon } => {
            norm::fixed_statistics(workers, *epsilon, get(0), get(1), out)
        }
        Op::BatchNorm => {
            norm::batch_norm(workers, get(0), &own, get(1), get(2), get(3), out);
        }
        Op::BatchNormParameterGradient => {
            norm::parameter_gradient(workers, get(0), &shape(0), get(1), get(2), out);
        }
        Op::BatchNormTrainGradient => {
            let dy = (!operands.is_result(x[0])).then(|| get(0));
            norm::train_gradient(workers, &own, dy, get(1), get(2), get(3), get(4), out);
        }
        Op::BatchNormEvalGradient => {
            norm::eval_gradient(workers, &own, get(0), get(1), get(2), out);
        }
        Op::Attention(attributes) => {
            let bias = x.get(3).copied();
            with_attention(operands, node, bias, |of| {
                attention::attention(workers, attributes, of, out);
            });
        }
        Op::AttentionGradient(attributes) => {
            with_attention(operands, node, x.get(5).copied(), |of| {
                attention::gradient(workers, attributes, of, (get(3), get(4)), out);
            });
        }
        Op::AttentionBiasGradient(attributes) => {
            with_attention(operands, node, x.get(5).copied(), |of| {
                attention::bias_gradient(workers, attributes, of, (get(3), get(4)), out);
            });
        }
        Op::Softmax { axis, log } => softmax::softmax(workers, *log, get(0), &own, *axis, out),
        Op::SoftmaxGradient { axis, log } => {
            softmax::gradient(workers, *log, get(0), get(1), &own, *axis, out);
        }
        Op::CrossEntropy { smoothing } => {
            out[0] = loss::cross_entropy(workers, get(0), operands.get(x[1]), *smoothing)?;
        }
        Op::CrossEntropyGradient { smoothing } => {
            let labels = operands.get(x[1]);
            loss::gradient(workers, get(0), labels, *smoothing, get(2)[0], out)?;
        }
        Op::StftPower(stft) => {
            if let Some(transform) = transforms.get(stft) {
                transform.power(workers, stft.hop as usize, get(0), shape(0)[1], out);
            }
        }
        Op::StftPowerGradient(stft) => {
            if let Some(transform) = transforms.get(stft) {
                transform.gradient(workers, stft.hop as usize, get(0), get(1), own[1], out);
            }
        }
        Op::BatchNormCoefficients => norm::coefficients(get(0), get(1), get(2), out),
        Op::Leaf(_)
        | Op::Reshape
        | Op::Unary(_)
        | Op::UnaryGradient(_)
        | Op::Binary(_)
        | Op::ExtremumGradient { .. }
        | Op::DivideBy(_)
        | Op::Fused(_)
        | Op::Compare(_)
        | Op::Logic(_)
        | Op::Argmax { .. }
        | Op::TopK { .. }
        | Op::Permute(_)
        | Op::Expand
        | Op::Row { .. }
        | Op::Slice(_)
        | Op::Place { .. }
        | Op::Concat { .. }
        | Op::Select
        | Op::Gather { .. }
        | Op::Take { .. }
        | Op::UpdateRunning { .. }
        | Op::Optimize(_) => {}
    }
    Ok(())
}

/// Calls a kernel with the operands of an attention.
fn with_attention(
    operands: &Operands<'_>,
    node: &Node,
    bias: Option<Value>,
    kernel: impl FnOnce(attention::Operands<'_>),
) {
    let [q, k, v] =
        [0, 1, 2].map(|i| (operands.get(node.inputs[i]), operands.shape(node.inputs[i])));
    let bias = bias.map(|bias| (operands.get(bias), operands.shape(bias)));
    kernel(attention::Operands {
        q: q.0,
        k: k.0,
        v: v.0,
        bias: bias.as_ref().map(|(data, shape)| (*data, &**shape)),
        heads: &q.1[..q.1.len() - 2],
        sizes: Sizes::new(&q.1, &k.1, &v.1),
    });
}

fn geometry(
    c: &crate::ops::conv::Conv2d,
    x: &[usize],
    weight: &[usize],
) -> Result<Geometry, Error> {
    Geometry::new(c, x, weight).ok_or_else(|| Error::new("graph.shape", "conv2d: sizes overflow"))
}

/// The size of the last axis.
fn last(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// Computes an int64 result, or a boolean one of int64 operands.
pub(super) fn other_kernel(
    workers: Workers<'_>,
    node: &Node,
    operands: &Operands<'_>,
    out: &mut [u8],
) {
    let x = &node.inputs;
    let own = node.shape.at(operands.batch);
    let from = x.first().map_or(node.dtype, |&v| operands.dtype(v));
    match (&node.op, node.dtype) {
        (Op::Compare(kind), _) => {
            let (a, b) = (operands.shape(x[0]), operands.shape(x[1]));
            let (a, b) = ((operands.get(x[0]), &*a), (operands.get(x[1]), &*b));
            elementwise::compare(workers, *kind, a, b, (out, &own));
        }
        (Op::Binary(kind), DType::I64) => {
            let (a, b) = (operands.shape(x[0]), operands.shape(x[1]));
            let (a, b) = ((operands.get(x[0]), &*a), (operands.get(x[1]), &*b));
            let out = (bytemuck::cast_slice_mut(out), &*own);
            elementwise::integer_binary(workers, *kind, a, b, out);
        }
        (Op::Argmax { axis, smallest }, _) => {
            let shape = operands.shape(x[0]);
            let out = bytemuck::cast_slice_mut(out);
            reduce::argmax(workers, operands.get(x[0]), &shape, *axis, *smallest, out);
        }
        (Op::TopK { axis, smallest }, _) => {
            let shape = operands.shape(x[0]);
            let out = (bytemuck::cast_slice_mut(out), own[*axis]);
            reduce::top_k(workers, operands.get(x[0]), &shape, *axis, *smallest, out);
        }
        (Op::Cast, DType::I64) => {
            let out: &mut [i64] = bytemuck::cast_slice_mut(out);
            let bytes = || operands.get::<u8>(x[0]);
            match from {
                // Towards zero, as in PyTorch; what does not fit is clamped, NaN is 0.
                DType::F32 => {
                    elementwise::convert(workers, operands.get(x[0]), out, |x: f32| x as i64);
                }
                DType::I64 => out.copy_from_slice(operands.get(x[0])),
                DType::U8 => elementwise::convert(workers, bytes(), out, i64::from),
                _ => elementwise::convert(workers, bytes(), out, |x| i64::from(x != 0)),
            }
        }
        (Op::Cast, _) => {
            let x = operands.get(x[0]);
            elementwise::convert(workers, x, out, |x: i64| u8::from(x != 0));
        }
        _ => {}
    }
}
