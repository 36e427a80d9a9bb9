//! Element-wise programs: every instruction within one gives what its operator gives by itself, and so
//! does a reduction of what one gives.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use super::{ONE_GPU, emulator, gpu};
use crate::backend::Backend;
use crate::builder::Builder;
use crate::cpu::CpuBackend;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Value};
use crate::ops::Op;
use crate::plan::{Options, Plan};
use crate::random::unit;
use crate::shape::Dim;
use crate::tensor::HostTensor;

const BATCH: usize = 3;
/// Of the inputs, the batch apart; more elements than one block in all.
const SHAPE: [usize; 2] = [7, 41];

type Unary = fn(&mut Builder, Value) -> Result<Value, Error>;
type Binary = fn(&mut Builder, Value, Value) -> Result<Value, Error>;

const UNARY: &[Unary] = &[
    Builder::abs,
    Builder::exp,
    Builder::log,
    Builder::sqrt,
    Builder::rsqrt,
    Builder::sin,
    Builder::cos,
    Builder::erf,
    |b, x| b.pow(x, 1.7),
    |b, x| b.clamp(x, 0.3, 0.6),
    |b, x| {
        let x = b.affine(x, 1.0, -0.5)?;
        b.relu(x)
    },
    |b, x| {
        let x = b.affine(x, 1.0, -0.5)?;
        b.leaky_relu(x, 0.1)
    },
    |b, x| b.gelu(x, false),
    |b, x| b.gelu(x, true),
    Builder::silu,
    Builder::sigmoid,
    Builder::tanh,
    |b, x| {
        let x = b.affine(x, 1.0, -0.5)?;
        b.elu(x, 0.7)
    },
    Builder::softplus,
    Builder::hard_sigmoid,
    Builder::hard_swish,
    Builder::sign,
    Builder::floor,
    Builder::ceil,
    Builder::round,
    Builder::tan,
    Builder::asin,
    Builder::acos,
    Builder::atan,
    Builder::sinh,
    Builder::cosh,
    Builder::asinh,
    |b, x| {
        let x = b.affine(x, 1.0, 1.1)?;
        b.acosh(x)
    },
    Builder::atanh,
];

const BINARY: &[Binary] = &[
    Builder::add,
    Builder::sub,
    Builder::mul,
    Builder::div,
    Builder::maximum,
    Builder::minimum,
];

const COMPARE: &[Binary] = &[
    Builder::equal,
    Builder::not_equal,
    Builder::less,
    Builder::less_or_equal,
    Builder::greater,
    Builder::greater_or_equal,
];

/// The inputs: one of the whole shape, ones that are broadcast, bytes.
struct Inputs {
    x: Value,
    row: Value,
    column: Value,
    sample: Value,
    bytes: Value,
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&n| Dim::Fixed(n as u64)).collect()
}

/// A graph of a value that is multiplied with a row, and of the gradient of its sum.
fn graph(
    build: impl FnOnce(&mut Builder, &Inputs) -> Result<Value, Error>,
) -> Result<Graph, Error> {
    let mut b = Builder::new();
    let all = [vec![Dim::Batch(1)], dims(&SHAPE)].concat();
    let x = b.input("x", DType::F32, &all)?;
    let inputs = Inputs {
        x,
        row: b.input("row", DType::F32, &dims(&SHAPE[1..]))?,
        column: b.input("column", DType::F32, &dims(&[SHAPE[0], 1]))?,
        sample: b.input(
            "sample",
            DType::F32,
            &[Dim::Batch(1), Dim::Fixed(1), Dim::Fixed(1)],
        )?,
        bytes: b.input("bytes", DType::U8, &all)?,
    };
    let y = build(&mut b, &inputs)?;
    if b.typed(y)?.0 != DType::F32 {
        b.output("y", y)?;
        return Ok(b.graph());
    }
    let y = b.mul(y, inputs.row)?;
    b.output("y", y)?;
    let loss = b.mean(y, &[], false)?;
    let gradient = b.gradients(loss, &[x])?[0];
    b.output("gradient", gradient)?;
    Ok(b.graph())
}

fn graphs() -> Vec<Graph> {
    let mut graphs = Vec::new();
    let mut add = |graph: Result<Graph, Error>| graphs.push(graph.unwrap());
    for of in UNARY {
        add(graph(|b, inputs| {
            let x = b.affine(inputs.x, 0.9, 0.05)?;
            of(b, x)
        }));
    }
    for of in BINARY {
        for side in [false, true] {
            add(graph(|b, inputs| {
                let x = b.exp(inputs.x)?;
                let other = if side { inputs.column } else { inputs.sample };
                if side {
                    of(b, x, other)
                } else {
                    of(b, other, x)
                }
            }));
        }
    }
    for of in COMPARE {
        add(graph(|b, inputs| {
            let x = b.round(inputs.x)?;
            let bytes = b.cast(inputs.bytes, DType::F32)?;
            let holds = of(b, x, bytes)?;
            let square = b.mul(inputs.x, inputs.x)?;
            b.select(holds, square, inputs.column)
        }));
    }
    for of in [Builder::logical_and as Binary, Builder::logical_or] {
        add(graph(|b, inputs| {
            let half = b.scalar(0.5)?;
            let (first, second) = (b.less(inputs.x, half)?, b.greater(inputs.row, half)?);
            of(b, first, second)
        }));
    }
    add(graph(|b, inputs| {
        let truth = b.cast(inputs.bytes, DType::Bool)?;
        let number = b.cast(truth, DType::F32)?;
        b.add(number, inputs.x)
    }));
    add(graph(|b, inputs| {
        let mean = b.mean(inputs.x, &[0], true)?;
        let mean = b.exp(mean)?;
        b.sub(inputs.x, mean)
    }));
    // Neither folded, as no product comes before it, nor left alone.
    add(graph(|b, inputs| {
        let parameters = ["scale", "bias", "mean", "variance"];
        let mut parameter = |name| b.parameter(name, &[SHAPE[0] as u64], "normal:1:0.1", 5);
        let [scale, bias, mean, variance] = parameters.map(|name| parameter(name).unwrap());
        let y = b.batch_norm_eval(inputs.x, scale, bias, mean, variance, 1e-5)?;
        let y = b.add(y, inputs.x)?;
        b.relu(y)
    }));
    graphs
}

/// Reductions of what an element-wise chain gives, over axes of every kind, some with a chain of what
/// they give.
fn reductions() -> Vec<Graph> {
    let all_axes: [&[u32]; 7] = [&[0], &[1], &[2], &[0, 1], &[0, 2], &[1, 2], &[]];
    let mut graphs = Vec::new();
    for reduce in [Builder::sum, Builder::mean, Builder::amax, Builder::amin] {
        for axes in all_axes {
            for keep in [false, true] {
                graphs.push(graph(|b, inputs| {
                    let bytes = b.cast(inputs.bytes, DType::F32)?;
                    let y = b.sub(inputs.x, inputs.column)?;
                    let y = b.mul(y, bytes)?;
                    let y = reduce(b, y, axes, keep)?;
                    let shown = b.abs(y)?;
                    b.output("reduced", shown)?;
                    let loss = b.sum(shown, &[], false)?;
                    b.mul(loss, inputs.x)
                }));
            }
        }
    }
    // Variance, and a norm by channel within a reduction.
    for unbiased in [false, true] {
        let variance = |b: &mut Builder, inputs: &Inputs| {
            let variance = b.variance(inputs.x, &[2], true, unbiased)?;
            b.mul(variance, inputs.x)
        };
        graphs.push(graph(variance));
    }
    graphs.push(graph(|b, inputs| {
        let parameters = ["scale", "bias", "mean", "variance"];
        let mut parameter = |name| b.parameter(name, &[SHAPE[0] as u64], "normal:1:0.1", 5);
        let [scale, bias, mean, variance] = parameters.map(|name| parameter(name).unwrap());
        let y = b.batch_norm_eval(inputs.x, scale, bias, mean, variance, 1e-5)?;
        let y = b.sum(y, &[2], true)?;
        b.mul(y, inputs.x)
    }));
    graphs.into_iter().map(Result::unwrap).collect()
}

/// The plans of these graphs.
pub(super) fn plans() -> impl Iterator<Item = Plan> {
    let graphs = graphs().into_iter().chain(reductions());
    graphs.map(|graph| plan(&graph))
}

fn plan(graph: &Graph) -> Plan {
    Plan::new(graph, BATCH as u32).unwrap()
}

fn run(backend: &dyn Backend, plan: Plan) -> Vec<HostTensor> {
    let mut seed = 0;
    let mut floats = |shape: &[usize]| {
        seed += 1 << 32;
        let count = shape.iter().product::<usize>() as u64;
        let numbers: Vec<f32> = (0..count)
            .map(|i| 0.1 + 0.8 * unit(seed + i) as f32)
            .collect();
        HostTensor::from_f32(shape, &numbers).unwrap()
    };
    let all = [BATCH, SHAPE[0], SHAPE[1]];
    let bytes = (0..all.iter().product::<usize>()).map(|i| (i % 3) as u8);
    let feeds = [
        ("x", floats(&all)),
        ("row", floats(&SHAPE[1..])),
        ("column", floats(&[SHAPE[0], 1])),
        ("sample", floats(&[BATCH, 1, 1])),
        (
            "bytes",
            HostTensor::new(DType::U8, all.to_vec(), bytes.collect()).unwrap(),
        ),
    ];
    let known: Vec<String> = plan.inputs().iter().map(|port| port.name.clone()).collect();
    let feeds: Vec<(&str, &HostTensor)> = feeds
        .iter()
        .filter(|(name, _)| known.iter().any(|own| own == name))
        .map(|(name, tensor)| (*name, tensor))
        .collect();
    let names: Vec<String> = plan
        .outputs()
        .iter()
        .map(|port| port.name.clone())
        .collect();
    let mut session = backend.open(vec![plan], u64::MAX).unwrap();
    session
        .run(0, BATCH, &feeds, &AtomicBool::new(false))
        .unwrap();
    let output = |name: &String| session.output(0, name).unwrap();
    names.iter().map(output).collect()
}

#[test]
fn every_instruction_is_within_some_program() {
    let mut found = BTreeSet::new();
    for plan in plans() {
        for node in &plan.graph.nodes {
            if let Op::Fused(program) = &node.op {
                // `Unary(Clamp { … })` to `Unary Clamp`.
                let text = |step: &crate::ops::fused::Instruction| {
                    let text = format!("{:?}", step.function);
                    let words = text.split(|c: char| !c.is_alphanumeric());
                    words.take(2).collect::<Vec<_>>().join(" ")
                };
                found.extend(program.instructions.iter().map(text));
            }
        }
    }
    let count = |start: &str| found.iter().filter(|text| text.starts_with(start)).count();
    let counts = ["Unary ", "UnaryGradient ", "Binary ", "Compare ", "Logic "].map(count);
    assert_eq!(counts, [35, 34, 6, 6, 2], "{found:#?}");
    for other in ["ExtremumGradient", "Select", "Truth", "DivideBy"] {
        assert!(count(other) > 0, "{other}: {found:#?}");
    }
}

#[test]
fn every_such_reduction_takes_the_chain_before_it() {
    for graph in reductions() {
        let (alone, together) = (graph.describe(), plan(&graph).describe());
        assert!(alone.contains("Reduce {"), "{alone}");
        let stays = |line: &&str| line.contains("Reduce {");
        let of_chain = together.lines().filter(|line| line.contains(" over ["));
        assert!(of_chain.count() > 0, "{together}");
        // The mean of a variance is of an input.
        assert!(together.lines().filter(stays).count() <= 2, "{together}");
    }
}

#[test]
fn programs_give_the_bits_of_their_operators() {
    for graph in graphs().into_iter().chain(reductions()) {
        let alone = Plan::scheduled(graph.clone(), BATCH as u32, Options::default()).unwrap();
        let backend = CpuBackend::new(2).unwrap();
        let (together, alone) = (run(&backend, plan(&graph)), run(&backend, alone));
        assert!(together == alone, "{}", plan(&graph).describe());
    }
}

#[test]
fn programs_give_what_their_operators_give_on_cuda() {
    let test = "conformance::programs::programs_give_what_their_operators_give_on_cuda";
    emulator::emulated(test, &["forward", "7"], ONE_GPU, || {
        let (gpu, cpu) = (gpu(), CpuBackend::new(1).unwrap());
        for graph in graphs().into_iter().chain(reductions()) {
            let alone = Plan::scheduled(graph.clone(), BATCH as u32, Options::default()).unwrap();
            let (got, expected) = (run(&gpu, plan(&graph)), run(&cpu, alone));
            for (got, expected) in got.iter().zip(&expected) {
                let (Some(got), Some(expected)) = (got.to_f32(), expected.to_f32()) else {
                    assert_eq!(got, expected);
                    continue;
                };
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
                let all_near = got.iter().zip(&expected).all(near);
                assert!(all_near, "{}", plan(&graph).describe());
            }
        }
    });
}
