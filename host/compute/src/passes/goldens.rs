//! Graphs as text, before and after each pass that changes them, and their plans, compared with
//! `tests/plans`; `HANGAR_BLESS=1` writes them.

use std::fmt::Write;
use std::path::Path;

use super::in_place::root;
use super::memory::{Lifetime, place};
use super::{PASSES, dead};
use crate::builder::{Builder, Conv2d};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Leaf, Node, Value};
use crate::ops::Op;
use crate::plan::Plan;
use crate::shape::{Dim, Shape};

/// The largest batch of the plans.
const BATCH: u32 = 4;

fn text(graph: &Graph) -> String {
    let mut text = format!("as built\n{}", graph.describe());
    let mut now = dead::remove(graph.clone());
    if now.nodes != graph.nodes {
        let _ = write!(text, "\nwithout dead code\n{}", now.describe());
    }
    for (name, pass) in PASSES {
        let after = pass(now.clone());
        if after != now {
            let _ = write!(text, "\nafter {name}\n{}", after.describe());
        }
        now = after;
    }
    let plan = Plan::new(graph, BATCH).unwrap();
    let _ = write!(text, "\nplan\n{}", plan.describe());
    text
}

fn image(b: &mut Builder, channels: u64) -> Result<Value, Error> {
    let dims = [channels, 8, 8].map(Dim::Fixed);
    b.input("x", DType::F32, &[&[Dim::Batch(1)], &dims[..]].concat())
}

/// A convolution and its normalisation.
fn normalised(b: &mut Builder, x: Value, name: &str, train: bool) -> Result<Value, Error> {
    let of = |what: &str| format!("{name}.{what}");
    let weight = b.parameter(&of("weight"), &[8, 8, 3, 3], "torch-uniform", 0)?;
    let scale = b.parameter(&of("scale"), &[8], "ones", 0)?;
    let bias = b.parameter(&of("bias"), &[8], "zeros", 0)?;
    let mean = b.buffer(&of("mean"), &[8], "zeros")?;
    let variance = b.buffer(&of("variance"), &[8], "ones")?;
    let attributes = Conv2d {
        padding: (1, 1),
        ..Conv2d::default()
    };
    let y = b.conv2d(x, weight, None, attributes)?;
    if train {
        return b.batch_norm_train(y, scale, bias, mean, variance, 0.1, 1e-5);
    }
    b.batch_norm_eval(y, scale, bias, mean, variance, 1e-5)
}

/// A basic block of a ResNet (He et al. 2015).
fn block(b: &mut Builder, train: bool) -> Result<(), Error> {
    let x = image(b, 8)?;
    let first = normalised(b, x, "first", train)?;
    let first = b.relu(first)?;
    let second = normalised(b, first, "second", train)?;
    let sum = b.add(second, x)?;
    let y = b.relu(sum)?;
    if !train {
        return b.output("y", y);
    }
    let square = b.mul(y, y)?;
    let loss = b.mean(square, &[], false)?;
    b.output("loss", loss)?;
    let nodes = (0..b.nodes() as u32).map(Value);
    let parameters: Vec<Value> = nodes
        .filter(|&v| b.node(v).op.describe().starts_with("parameter"))
        .collect();
    let gradients = b.gradients(loss, &parameters)?;
    b.sgd(&parameters, &gradients, 0.9, false, 1e-4)
}

type Build = fn(&mut Builder) -> Result<(), Error>;

const GRAPHS: [(&str, Build); 9] = [
    ("dead-code", |b| {
        let x = image(b, 1)?;
        b.exp(x)?;
        let y = b.sin(x)?;
        b.output("y", y)
    }),
    ("constants", |b| {
        let x = image(b, 1)?;
        let (two, three) = (b.scalar(2.0)?, b.scalar(3.0)?);
        let six = b.mul(two, three)?;
        let y = b.mul(x, six)?;
        b.output("y", y)
    }),
    ("algebra", |b| {
        let x = image(b, 2)?;
        let one = b.scalar(1.0)?;
        let y = b.mul(x, one)?;
        let y = b.permute(y, &[0, 2, 3, 1])?;
        let y = b.permute(y, &[0, 3, 1, 2])?;
        let y = b.cast(y, DType::F32)?;
        let flat = b.reshape_to(y, &Shape(vec![Dim::Batch(2), Dim::Fixed(64)]))?;
        let flat = b.reshape_to(flat, &Shape(vec![Dim::Batch(1), Dim::Fixed(128)]))?;
        b.output("y", flat)
    }),
    ("common-subexpressions", |b| {
        let x = image(b, 1)?;
        let (first, second) = (b.exp(x)?, b.exp(x)?);
        let y = b.matmul(first, second)?;
        b.output("y", y)
    }),
    ("batch-norm", |b| {
        let x = image(b, 8)?;
        let y = normalised(b, x, "conv", false)?;
        b.output("y", y)
    }),
    ("fusion", |b| {
        let x = image(b, 1)?;
        let gate = b.hard_sigmoid(x)?;
        let y = b.mul(x, gate)?;
        let rows = b.sum(y, &[3], true)?;
        let y = b.div(y, rows)?;
        let zero = b.scalar(0.0)?;
        let positive = b.greater(x, zero)?;
        let y = b.select(positive, y, zero)?;
        b.output("y", y)
    }),
    ("reduction", |b| {
        let x = image(b, 4)?;
        let y = b.affine(x, 0.5, 1.0)?;
        let square = b.mul(y, y)?;
        let mean = b.mean(square, &[2, 3], false)?;
        let y = b.sqrt(mean)?;
        b.output("y", y)
    }),
    ("resnet-block-trained", |b| block(b, true)),
    ("resnet-block-inferred", |b| block(b, false)),
];

#[test]
fn graphs_and_plans_are_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    let mut different = Vec::new();
    for (name, build) in GRAPHS {
        let mut b = Builder::new();
        build(&mut b).unwrap();
        let (path, text) = (folder.join(name).with_extension("txt"), text(&b.graph()));
        if std::env::var_os("HANGAR_BLESS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            different.push(text);
        }
    }
    assert!(
        different.is_empty(),
        "not as in tests/plans (HANGAR_BLESS=1 writes what is):\n{}",
        different.join("\n")
    );
}

/// A training step of ResNet-50 (He et al. 2015) on images of 224 × 224.
fn resnet50() -> Result<Graph, Error> {
    let mut b = Builder::new();
    let mut parameters = Vec::new();
    let mut count = 0;
    let mut conv = |b: &mut Builder, x: Value, (from, to): (u64, u64), kernel: u64, stride: u32| {
        count += 1;
        let of = |what: &str| format!("{count}.{what}");
        let weight = b.parameter(&of("weight"), &[to, from, kernel, kernel], "zeros", 0)?;
        let scale = b.parameter(&of("scale"), &[to], "ones", 0)?;
        let bias = b.parameter(&of("bias"), &[to], "zeros", 0)?;
        let mean = b.buffer(&of("mean"), &[to], "zeros")?;
        let variance = b.buffer(&of("variance"), &[to], "ones")?;
        parameters.extend([weight, scale, bias]);
        let padding = kernel as u32 / 2;
        let attributes = Conv2d {
            stride: (stride, stride),
            padding: (padding, padding),
            ..Conv2d::default()
        };
        let y = b.conv2d(x, weight, None, attributes)?;
        b.batch_norm_train(y, scale, bias, mean, variance, 0.1, 1e-5)
    };
    let dims = [
        Dim::Batch(1),
        Dim::Fixed(3),
        Dim::Fixed(224),
        Dim::Fixed(224),
    ];
    let x = b.input("x", DType::F32, &dims)?;
    let y = conv(&mut b, x, (3, 64), 7, 2)?;
    let y = b.relu(y)?;
    let mut y = b.max_pool2d(y, (3, 3), (2, 2), (1, 1))?;
    let mut from = 64;
    for (stage, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
        let width = 64 << stage;
        for block in 0..blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let h = conv(&mut b, y, (from, width), 1, 1)?;
            let h = b.relu(h)?;
            let h = conv(&mut b, h, (width, width), 3, stride)?;
            let h = b.relu(h)?;
            let h = conv(&mut b, h, (width, 4 * width), 1, 1)?;
            if block == 0 {
                y = conv(&mut b, y, (from, 4 * width), 1, stride)?;
            }
            let sum = b.add(h, y)?;
            y = b.relu(sum)?;
            from = 4 * width;
        }
    }
    let y = b.mean(y, &[2, 3], false)?;
    let weight = b.parameter("weight", &[1000, 2048], "zeros", 0)?;
    let bias = b.parameter("bias", &[1000], "zeros", 0)?;
    parameters.extend([weight, bias]);
    let y = b.linear(y, weight, Some(bias))?;
    let labels = b.input("labels", DType::I64, &[Dim::Batch(1)])?;
    let loss = b.cross_entropy(y, labels, 0.0)?;
    b.output("loss", loss)?;
    let gradients = b.gradients(loss, &parameters)?;
    b.sgd(&parameters, &gradients, 0.9, false, 1e-4)?;
    Ok(b.graph())
}

/// The arena of a graph that is run as it was built, every result in memory of its own.
fn unoptimized_arena(graph: &Graph, batch: u64) -> u64 {
    let graph = dead::remove(graph.clone());
    let is_update = |node: &Node| node.op.is_update();
    let runs = |node: &Node| !matches!(node.op, Op::Leaf(_) | Op::Reshape);
    let mut last = vec![0; graph.nodes.len()];
    for (time, node) in graph
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| runs(node))
    {
        let time = if is_update(node) { usize::MAX } else { time };
        for &x in &node.inputs {
            let own = &mut last[root(&graph, x).index()];
            *own = time.max(*own);
        }
    }
    let lifetimes = graph.nodes.iter().enumerate().filter_map(|(time, node)| {
        let input = matches!(node.op, Op::Leaf(Leaf::Input(_)));
        (input || runs(node) && !is_update(node)).then(|| Lifetime {
            bytes: node.shape.elements(batch).unwrap() * node.dtype.size_bytes() as u64,
            first: if input { 0 } else { time },
            last: last[time].max(time),
        })
    });
    let mut lifetimes: Vec<Lifetime> = lifetimes.collect();
    lifetimes.sort_by_key(|life| life.first);
    place(&lifetimes).1
}

#[test]
fn a_training_step_of_resnet50_takes_three_quarters_of_the_memory() {
    let graph = resnet50().unwrap();
    let (before, plan) = (
        unoptimized_arena(&graph, 16),
        Plan::new(&graph, 16).unwrap(),
    );
    let after = plan.arena_bytes;
    println!("arena {before} bytes as built, {after} bytes after the passes");
    assert!(after * 4 < before * 3, "{before} {after}");
}
