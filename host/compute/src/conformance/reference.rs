//! Every operator as its definition, in float64, one element at a time: slow and plain.
//!
//! Integers and truths are numbers too. Operators that only gradients are made of have no
//! definition here: gradients are checked by finite differences.

use std::collections::HashMap;
use std::f64::consts::{PI, TAU};

use crate::dtype::DType;
use crate::graph::{Graph, Leaf, Node, Value};
use crate::ops::Op;
use crate::ops::conv::Conv2d;
use crate::ops::elementwise::{Binary, Logic, Unary};
use crate::ops::optimizer::Optimizer;
use crate::ops::random::{Dropout, bits, uniform};
use crate::ops::reduce::Reduction;
use crate::ops::signal::Window;
use crate::tensor::HostTensor;

/// A row-major tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f64>,
}

impl Array {
    /// The element of every index is `f` of it.
    fn from(shape: &[usize], mut f: impl FnMut(&[usize]) -> f64) -> Self {
        let count = shape.iter().product();
        let mut index = vec![0; shape.len()];
        let mut data = Vec::with_capacity(count);
        for _ in 0..count {
            data.push(f(&index));
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Self {
            shape: shape.to_vec(),
            data,
        }
    }

    fn scalar(value: f64) -> Self {
        Self {
            shape: Vec::new(),
            data: vec![value],
        }
    }

    /// The element of an index, which is longer where leading axes are broadcast; sizes of 1 are.
    fn at(&self, index: &[usize]) -> f64 {
        let lead = index.len() - self.shape.len();
        let offset = self
            .shape
            .iter()
            .zip(&index[lead..])
            .fold(0, |at, (&n, &i)| at * n + if n == 1 { 0 } else { i });
        self.data[offset]
    }

    /// The element of an index with signs; none outside.
    fn within(&self, index: &[i64]) -> Option<f64> {
        let inside = |(&i, &n): (&i64, &usize)| usize::try_from(i).ok().filter(|&i| i < n);
        let index: Option<Vec<usize>> = index.iter().zip(&self.shape).map(inside).collect();
        Some(self.at(&index?))
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self {
            shape: self.shape.clone(),
            data: self.data.iter().map(|&x| f(x)).collect(),
        }
    }

    /// From what enters or leaves a session.
    pub(crate) fn of(tensor: &HostTensor) -> Self {
        let bytes = tensor.bytes();
        let data = match tensor.dtype() {
            DType::F32 => tensor
                .to_f32()
                .unwrap()
                .into_iter()
                .map(f64::from)
                .collect(),
            DType::I64 => tensor
                .to_i64()
                .unwrap()
                .into_iter()
                .map(|x| x as f64)
                .collect(),
            _ => bytes.iter().map(|&x| f64::from(x)).collect(),
        };
        Self {
            shape: tensor.shape().to_vec(),
            data,
        }
    }
}

/// Values that last from run to run, and the number of the optimizer step, from 1.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) variables: HashMap<String, Array>,
    pub(crate) step: u64,
    pub(crate) rate: f64,
}

/// Runs a graph: every value that outputs and updates need, by its number.
pub(crate) fn run(
    graph: &Graph,
    needed: &[bool],
    batch: usize,
    feeds: &HashMap<String, Array>,
    state: &mut State,
) -> Vec<Array> {
    let mut values: Vec<Array> = Vec::with_capacity(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate() {
        let value = if !needed[i] || node.op.is_update() {
            Array::scalar(f64::NAN)
        } else {
            evaluate(graph, node, batch, &values, (feeds, &*state))
        };
        values.push(value);
    }
    for i in (0..graph.nodes.len()).filter(|&i| needed[i]) {
        update(graph, Value(i as u32), batch, &values, state);
    }
    values
}

fn variable(graph: &Graph, value: Value) -> Option<&str> {
    match &graph.node(value).op {
        Op::Leaf(Leaf::Variable(variable)) => Some(&variable.name),
        _ => None,
    }
}

fn update(graph: &Graph, at: Value, batch: usize, values: &[Array], state: &mut State) {
    let node = graph.node(at);
    let operand = |state: &State, i: usize| match variable(graph, node.inputs[i]) {
        Some(name) => state.variables[name].clone(),
        None => values[node.inputs[i].index()].clone(),
    };
    let set = |state: &mut State, i: usize, array: Array| {
        let name = variable(graph, node.inputs[i]).unwrap().to_owned();
        state.variables.insert(name, array);
    };
    let combine = |a: &Array, b: &Array, f: &dyn Fn(f64, f64) -> f64| {
        Array::from(&a.shape, |i| f(a.at(i), b.at(i)))
    };
    match &node.op {
        Op::UpdateRunning { momentum, count } => {
            let statistics = operand(state, 2);
            let count = count.at(batch as u64) as f64;
            for (i, row, factor) in [(0, 0, 1.0), (1, 2, count / (count - 1.0).max(1.0))] {
                let old = operand(state, i);
                let new = Array::from(&old.shape, |c| {
                    (1.0 - momentum) * old.at(c) + momentum * factor * statistics.at(&[row, c[0]])
                });
                set(state, i, new);
            }
        }
        Op::Optimize(rule) => {
            let (p, g, rate, step) = (
                operand(state, 0),
                operand(state, 1),
                state.rate,
                state.step as i32,
            );
            match *rule {
                Optimizer::Sgd {
                    momentum,
                    nesterov,
                    decay,
                } => {
                    let g = combine(&p, &g, &|p, g| g + decay * p);
                    let step = if momentum == 0.0 {
                        g
                    } else {
                        let v = combine(&operand(state, 2), &g, &|v, g| momentum * v + g);
                        set(state, 2, v.clone());
                        combine(&g, &v, &|g, v| if nesterov { g + momentum * v } else { v })
                    };
                    set(state, 0, combine(&p, &step, &|p, s| p - rate * s));
                }
                Optimizer::Adam {
                    beta1,
                    beta2,
                    epsilon,
                    decay,
                    decoupled,
                } => {
                    let (added, shrink) = match decoupled {
                        true => (0.0, 1.0 - rate * decay),
                        false => (decay, 1.0),
                    };
                    let g = combine(&p, &g, &|p, g| g + added * p);
                    let m = combine(&operand(state, 2), &g, &|m, g| {
                        beta1 * m + (1.0 - beta1) * g
                    });
                    let v = combine(&operand(state, 3), &g, &|v, g| {
                        beta2 * v + (1.0 - beta2) * g * g
                    });
                    let by = combine(&m, &v, &|m, v| {
                        m / (1.0 - beta1.powi(step))
                            / ((v / (1.0 - beta2.powi(step))).sqrt() + epsilon)
                    });
                    set(state, 2, m);
                    set(state, 3, v);
                    set(state, 0, combine(&p, &by, &|p, s| p * shrink - rate * s));
                }
                Optimizer::Average { decay } => {
                    let decay = if step == 1 { 0.0 } else { decay };
                    let p = combine(&p, &g, &|p, g| decay * p + (1.0 - decay) * g);
                    set(state, 0, p);
                }
            }
        }
        _ => assert!(!node.op.is_update(), "{} at {at:?}", node.op.describe()),
    }
}

/// erf x = 2/√π · Σ (−1)ⁿ x²ⁿ⁺¹ / (n!·(2n + 1)).
fn erf(x: f64) -> f64 {
    let x = x.clamp(-6.0, 6.0);
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    2.0 / PI.sqrt() * sum
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn hard_sigmoid(x: f64) -> f64 {
    (x / 6.0 + 0.5).clamp(0.0, 1.0)
}

fn unary(kind: Unary, x: f64) -> f64 {
    match kind {
        Unary::Affine { factor, offset } => factor * x + offset,
        Unary::Abs => x.abs(),
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => x.powf(-0.5),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Erf => erf(x),
        Unary::Pow { exponent } => x.powf(exponent),
        Unary::Clamp { low, high } => x.clamp(low, high),
        Unary::Relu => x.max(0.0),
        Unary::LeakyRelu { slope } => x.max(0.0) + slope * x.min(0.0),
        Unary::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Unary::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Unary::Silu => x * sigmoid(x),
        Unary::Sigmoid => sigmoid(x),
        Unary::Tanh => x.tanh(),
        Unary::Elu { alpha } => x.max(0.0) + alpha * (x.min(0.0).exp() - 1.0),
        Unary::Softplus => (1.0 + x.exp()).ln(),
        Unary::HardSigmoid => hard_sigmoid(x),
        Unary::HardSwish => x * hard_sigmoid(x),
        Unary::Sign if x == 0.0 => 0.0,
        Unary::Sign => x.signum(),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Tan => x.tan(),
        Unary::Asin => x.asin(),
        Unary::Acos => x.acos(),
        Unary::Atan => x.atan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        Unary::Asinh => x.asinh(),
        Unary::Acosh => x.acosh(),
        Unary::Atanh => x.atanh(),
    }
}

fn binary(kind: Binary, integers: bool, a: f64, b: f64) -> f64 {
    match kind {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div if integers && b == 0.0 => 0.0,
        Binary::Div if integers => (a / b).trunc(),
        Binary::Div => a / b,
        Binary::Maximum => a.max(b),
        Binary::Minimum => a.min(b),
    }
}

/// The index with another number along an axis.
fn with(index: &[usize], axis: usize, at: usize) -> Vec<usize> {
    let mut index = index.to_vec();
    index[axis] = at;
    index
}

/// Mean and variance of numbers.
fn moments(x: &[f64]) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let square = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>();
    (mean, square / x.len() as f64)
}

/// Where a convolution's window element lies in x, with signs.
fn pixel(c: &Conv2d, row: usize, column: usize, i: usize, j: usize) -> (i64, i64) {
    let at = |to: usize, in_window: usize, stride: u32, padding: u32, dilation: u32| {
        to as i64 * i64::from(stride) + in_window as i64 * i64::from(dilation) - i64::from(padding)
    };
    (
        at(row, i, c.stride.0, c.padding.0, c.dilation.0),
        at(column, j, c.stride.1, c.padding.1, c.dilation.1),
    )
}

/// Logarithms of the softmax of numbers.
fn log_softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - largest).exp()).sum();
    x.iter().map(|x| x - largest - sum.ln()).collect()
}

fn evaluate(
    graph: &Graph,
    node: &Node,
    batch: usize,
    values: &[Array],
    (feeds, state): (&HashMap<String, Array>, &State),
) -> Array {
    let x: Vec<&Array> = node.inputs.iter().map(|v| &values[v.index()]).collect();
    let own = node.shape.at(batch);
    let from = |f: &mut dyn FnMut(&[usize]) -> f64| Array::from(&own, f);
    match &node.op {
        Op::Leaf(Leaf::Input(name)) => feeds[name].clone(),
        Op::Leaf(Leaf::Variable(variable)) => state.variables[&variable.name].clone(),
        Op::Leaf(Leaf::Constant(bytes)) => {
            Array::of(&HostTensor::new(node.dtype, own, bytes.clone()).unwrap())
        }
        Op::Unary(kind) => x[0].map(|v| unary(*kind, v)),
        Op::Binary(kind) => {
            let integers = node.dtype == DType::I64;
            from(&mut |i| binary(*kind, integers, x[0].at(i), x[1].at(i)))
        }
        Op::Compare(kind) => from(&mut |i| f64::from(u8::from(kind.holds(x[0].at(i), x[1].at(i))))),
        Op::Logic(Logic::And) => from(&mut |i| x[0].at(i).min(x[1].at(i))),
        Op::Logic(Logic::Or) => from(&mut |i| x[0].at(i).max(x[1].at(i))),
        Op::Select => from(&mut |i| {
            if x[0].at(i) != 0.0 {
                x[1].at(i)
            } else {
                x[2].at(i)
            }
        }),
        Op::Cast => x[0].map(|v| match node.dtype {
            DType::I64 => v.trunc(),
            DType::Bool => f64::from(u8::from(v != 0.0)),
            _ => v,
        }),
        Op::DivideBy(count) => x[0].map(|v| v / count.at(batch as u64) as f64),
        Op::Reshape => Array {
            shape: own,
            data: x[0].data.clone(),
        },
        Op::Permute(order) => from(&mut |i| {
            let mut index = vec![0; order.len()];
            order.iter().zip(i).for_each(|(&axis, &i)| index[axis] = i);
            x[0].at(&index)
        }),
        Op::Expand => from(&mut |i| x[0].at(i)),
        Op::Slice(window) => from(&mut |i| {
            let at = |axis: usize| {
                let at = window.starts[axis] as i64 + window.steps[axis] * i[axis] as i64;
                at.rem_euclid(x[0].shape[axis] as i64) as usize
            };
            x[0].at(&(0..i.len()).map(at).collect::<Vec<_>>())
        }),
        Op::Place { window, fill } => from(&mut |i| {
            let at = |axis: usize| i[axis] as i64 - window.starts[axis] as i64;
            assert!(window.steps.iter().all(|&step| step == 1));
            let index: Vec<i64> = (0..i.len()).map(at).collect();
            x[0].within(&index).unwrap_or(*fill)
        }),
        Op::Concat { axis } => from(&mut |i| {
            let mut at = i[*axis];
            for part in &x {
                match at.checked_sub(part.shape[*axis]) {
                    None => return part.at(&with(i, *axis, at)),
                    Some(rest) => at = rest,
                }
            }
            f64::NAN
        }),
        Op::Gather { axis } => from(&mut |i| x[0].at(&with(i, *axis, x[1].at(i) as usize))),
        Op::ScatterAdd { axis } => from(&mut |i| {
            let updates = (0..x[1].shape[*axis]).map(|k| with(i, *axis, k));
            let hits = updates.filter(|u| x[1].at(u) as usize == i[*axis]);
            hits.map(|u| x[0].at(&u)).sum()
        }),
        Op::Take { axis } => from(&mut |i| {
            let rank = x[1].shape.len();
            let index = x[1].at(&i[*axis..axis + rank]) as usize;
            x[0].at(&[&i[..*axis], &[index], &i[axis + rank..]].concat())
        }),
        Op::Resample { axis } => from(&mut |i| {
            let first = x[1].at(&[i[*axis]]) as usize;
            let taps = 0..x[2].shape[1];
            taps.map(|k| x[2].at(&[i[*axis], k]) * x[0].at(&with(i, *axis, first + k)))
                .sum()
        }),
        Op::Reduce { kind, axes, keep } => {
            let mut kept: Vec<usize> = x[0].shape.clone();
            axes.iter().for_each(|&axis| kept[axis] = 1);
            let start = match kind {
                Reduction::Sum => 0.0,
                Reduction::Max => f64::NEG_INFINITY,
                Reduction::Min => f64::INFINITY,
            };
            let mut out = Array::from(&kept, |_| start);
            Array::from(&x[0].shape, |i| {
                let at = i
                    .iter()
                    .zip(&kept)
                    .fold(0, |at, (&i, &n)| at * n + if n == 1 { 0 } else { i });
                let (total, v) = (out.data[at], x[0].at(i));
                out.data[at] = match kind {
                    Reduction::Sum => total + v,
                    Reduction::Max => total.max(v),
                    Reduction::Min => total.min(v),
                };
                0.0
            });
            if !keep {
                out.shape = own;
            }
            out
        }
        Op::Argmax { axis, smallest } => from(&mut |i| {
            let at = |k: usize| {
                let mut index = i.to_vec();
                index.insert(*axis, k);
                x[0].at(&index) * if *smallest { -1.0 } else { 1.0 }
            };
            let best = (0..x[0].shape[*axis]).fold(0, |b, k| if at(k) > at(b) { k } else { b });
            best as f64
        }),
        Op::TopK { axis, smallest } => from(&mut |i| {
            let sign = if *smallest { 1.0 } else { -1.0 };
            let mut order: Vec<usize> = (0..x[0].shape[*axis]).collect();
            order.sort_by(|&a, &b| {
                let key = |k| sign * x[0].at(&with(i, *axis, k));
                key(a).total_cmp(&key(b))
            });
            order[i[*axis]] as f64
        }),
        Op::Cumsum { axis, reverse } => from(&mut |i| {
            let (at, size) = (i[*axis], x[0].shape[*axis]);
            let range = if *reverse { at..size } else { 0..at + 1 };
            range.map(|k| x[0].at(&with(i, *axis, k))).sum()
        }),
        Op::Matmul {
            transpose_a,
            transpose_b,
        } => {
            let rank = x[0].shape.len();
            let inner = x[0].shape[if *transpose_a { rank - 2 } else { rank - 1 }];
            from(&mut |i| {
                let (lead, &[row, column]) = i.split_last_chunk().unwrap();
                let pick = |array: &Array, pair: [usize; 2], transpose: bool| {
                    let [a, b] = pair;
                    let last = if transpose { [b, a] } else { [a, b] };
                    array.at(&[lead, &last].concat())
                };
                let products = (0..inner).map(|k| {
                    pick(x[0], [row, k], *transpose_a) * pick(x[1], [k, column], *transpose_b)
                });
                products.sum::<f64>() + x.get(2).map_or(0.0, |bias| bias.at(&[column]))
            })
        }
        Op::Conv2d(c) => {
            let [_, per_group, rows, columns] = x[1].shape[..] else {
                unreachable!()
            };
            let outs = x[1].shape[0] / c.groups as usize;
            from(&mut |i| {
                let &[n, out, row, column] = i else {
                    unreachable!()
                };
                let mut sum = x.get(2).map_or(0.0, |bias| bias.at(&[out]));
                for channel in 0..per_group {
                    for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                        let (y, z) = pixel(c, row, column, i, j);
                        let from = out / outs * per_group + channel;
                        let v = x[0].within(&[n as i64, from as i64, y, z]).unwrap_or(0.0);
                        sum += v * x[1].at(&[out, channel, i, j]);
                    }
                }
                sum
            })
        }
        Op::Conv2dInputGradient(c) => {
            let mut out = Array::from(&own, |_| 0.0);
            let [_, per_group, rows, columns] = x[1].shape[..] else {
                unreachable!()
            };
            let outs = x[1].shape[0] / c.groups as usize;
            Array::from(&x[0].shape, |at| {
                let &[n, from, row, column] = at else {
                    unreachable!()
                };
                for channel in 0..per_group {
                    for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                        let (y, z) = pixel(c, row, column, i, j);
                        let to = [n as i64, (from / outs * per_group + channel) as i64, y, z];
                        if out.within(&to).is_some() {
                            let offset = to.iter().zip(&own);
                            let offset = offset.fold(0, |a, (&i, &n)| a * n + i as usize);
                            out.data[offset] += x[0].at(at) * x[1].at(&[from, channel, i, j]);
                        }
                    }
                }
                0.0
            });
            out
        }
        Op::Pool2d(pool) => from(&mut |at| {
            let &[n, channel, row, column] = at else {
                unreachable!()
            };
            let window = (0..pool.window.0).flat_map(|i| (0..pool.window.1).map(move |j| (i, j)));
            let elements = window.map(|(i, j)| {
                let y = row as i64 * i64::from(pool.stride.0) + i64::from(i)
                    - i64::from(pool.padding.0);
                let z = column as i64 * i64::from(pool.stride.1) + i64::from(j)
                    - i64::from(pool.padding.1);
                x[0].within(&[n as i64, channel as i64, y, z])
            });
            let count = f64::from(pool.window.0 * pool.window.1);
            if pool.maximum {
                elements.flatten().fold(f64::NEG_INFINITY, f64::max)
            } else {
                elements.flatten().sum::<f64>() / count
            }
        }),
        Op::BatchStatistics { epsilon } => {
            let channel = |c: usize| -> Vec<f64> {
                let mut list = Vec::new();
                Array::from(&x[0].shape, |i| {
                    if i[1] == c {
                        list.push(x[0].at(i));
                    }
                    0.0
                });
                list
            };
            from(&mut |i| {
                let (mean, variance) = moments(&channel(i[1]));
                [mean, (variance + epsilon).powf(-0.5), variance][i[0]]
            })
        }
        Op::FixedStatistics { epsilon } => from(&mut |i| {
            let (mean, variance) = (x[0].at(&i[1..]), x[1].at(&i[1..]));
            [mean, (variance + epsilon).powf(-0.5), variance][i[0]]
        }),
        Op::BatchNorm => from(&mut |i| {
            let of = |row: usize| x[3].at(&[row, i[1]]);
            (x[0].at(i) - of(0)) * of(1) * x[1].at(&[i[1]]) + x[2].at(&[i[1]])
        }),
        Op::LayerNorm(attributes) => {
            let axis = own.len() - 1;
            from(&mut |i| {
                let row: Vec<f64> = (0..own[axis]).map(|k| x[0].at(&with(i, axis, k))).collect();
                let square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
                let (mean, variance) = match attributes.centre {
                    true => moments(&row),
                    false => (0.0, square),
                };
                let normal = (x[0].at(i) - mean) / (variance + attributes.epsilon).sqrt();
                let column = &i[axis..];
                normal * x.get(1).map_or(1.0, |scale| scale.at(column))
                    + x.get(2).map_or(0.0, |bias| bias.at(column))
            })
        }
        Op::Dropout(dropout) => {
            let each = if dropout.rows {
                own.iter().skip(1).product()
            } else {
                1
            };
            let key = Dropout::key(dropout.seed, state.step);
            let drops = |i: usize| bits(key, (i / each) as u64) < dropout.threshold();
            let scale = 1.0 / (1.0 - dropout.probability);
            let data = x[0].data.iter().enumerate();
            let data = data.map(|(i, &x)| if drops(i) { 0.0 } else { x * scale });
            Array {
                shape: own,
                data: data.collect(),
            }
        }
        Op::Random { seed } => {
            let key = Dropout::key(*seed, state.step);
            let count = own.iter().product::<usize>() as u64;
            Array {
                shape: own,
                data: (0..count).map(|i| f64::from(uniform(key, i))).collect(),
            }
        }
        Op::Attention(a) => from(&mut |i| {
            let (lead, query) = i.split_at(i.len() - 2);
            let [keys, features] = *x[1].shape.last_chunk().unwrap();
            let at = |x: &Array, row, column| x.at(&[lead, &[row, column]].concat());
            let (query, column) = (query[0], query[1]);
            let scores: Vec<f64> = (0..keys)
                .map(|key| {
                    let products = (0..features).map(|k| at(x[0], query, k) * at(x[1], key, k));
                    let bias = x.get(3).map_or(0.0, |bias| at(bias, query, key));
                    let hidden = if a.causal && key > query {
                        f64::NEG_INFINITY
                    } else {
                        0.0
                    };
                    a.scale * products.sum::<f64>() + bias + hidden
                })
                .collect();
            let logs = log_softmax(&scores);
            if column < own[own.len() - 1] - 1 {
                (0..keys)
                    .map(|key| logs[key].exp() * at(x[2], key, column))
                    .sum()
            } else {
                scores[0] - logs[0]
            }
        }),
        Op::Softmax { axis, log } => from(&mut |i| {
            let line: Vec<f64> = (0..own[*axis])
                .map(|k| x[0].at(&with(i, *axis, k)))
                .collect();
            let value = log_softmax(&line)[i[*axis]];
            if *log { value } else { value.exp() }
        }),
        Op::CrossEntropy { smoothing } => {
            let [rows, classes] = x[0].shape[..] else {
                unreachable!()
            };
            let row = |r: usize| {
                let line: Vec<f64> = (0..classes).map(|k| x[0].at(&[r, k])).collect();
                let log = log_softmax(&line);
                let all = log.iter().sum::<f64>() / classes as f64;
                -(1.0 - smoothing) * log[x[1].at(&[r]) as usize] - smoothing * all
            };
            Array::scalar((0..rows).map(row).sum::<f64>() / rows as f64)
        }
        Op::StftPower(stft) => from(&mut |i| {
            let &[n, frequency, frame] = i else {
                unreachable!()
            };
            let size = stft.size as usize;
            let (mut real, mut imaginary) = (0.0, 0.0);
            for k in 0..size {
                let turn = TAU * k as f64 / size as f64;
                let weight = match stft.window {
                    Window::Hann => 0.5 - 0.5 * turn.cos(),
                    Window::Hamming => 0.54 - 0.46 * turn.cos(),
                    Window::Rectangular => 1.0,
                };
                let v = weight * x[0].at(&[n, frame * stft.hop as usize + k]);
                real += v * (turn * frequency as f64).cos();
                imaginary -= v * (turn * frequency as f64).sin();
            }
            real * real + imaginary * imaginary
        }),
        other => unreachable!("{} is of gradients: {graph:?}", other.describe()),
    }
}
