//! Fusion: chains and small graphs of element-wise operators become programs, each of which passes
//! through memory once, or parts of the reduction that alone reads what they give.

use std::collections::{BTreeSet, HashMap};

use super::prologue::fixed;
use super::rewrite::rewrite;
use crate::graph::{Graph, Leaf, Node, Value};
use crate::ops::Op;
use crate::ops::elementwise::{Binary, Unary};
use crate::ops::fused::{
    Function, Instruction, MAX_INSTRUCTIONS, MAX_SOURCES, Program, Reduced, Source, function,
};
use crate::shape::{Dim, Shape};

/// An operator is fused into one that comes at most so many nodes later; into a later one where
/// its operands take no more memory than its result, as they have to be kept instead.
const NEAR: usize = 16;

/// How a node takes part in a program.
enum Part {
    Function(Function),
    /// x · factor + offset, by channel.
    Norm,
    /// What it repeats is read instead.
    Expand,
}

/// What a program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum From {
    Value(Value),
    /// The coefficients of a normalisation.
    Coefficients(Value),
}

struct Fusion<'a> {
    graph: &'a Graph,
    parts: Vec<Option<Part>>,
    /// The nodes that read each value, in order, and one past all where it is an output.
    users: Vec<Vec<usize>>,
    fixed: Vec<bool>,
}

impl<'a> Fusion<'a> {
    fn new(graph: &'a Graph) -> Self {
        let mut users = vec![Vec::new(); graph.nodes.len()];
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|x| users[x.index()].push(i));
        }
        for (_, value) in &graph.outputs {
            users[value.index()].push(graph.nodes.len());
        }
        let part = |node: &Node| match &node.op {
            Op::BatchNorm => Some(Part::Norm),
            Op::Expand => Some(Part::Expand),
            // A transform computes these as it writes its result.
            Op::Unary(Unary::Affine { .. } | Unary::Log) if of_transform(graph, node) => None,
            _ => function(graph, node).map(Part::Function),
        };
        Self {
            graph,
            parts: graph.nodes.iter().map(part).collect(),
            users,
            fixed: fixed(graph),
        }
    }

    /// The nodes that one program computes, whose last one is `root`, or its operand where that is a
    /// reduction.
    fn group(&self, root: usize) -> BTreeSet<usize> {
        let mut group = BTreeSet::from_iter((!self.reduces(root)).then_some(root));
        let mut candidates: BTreeSet<usize> = self.operands(root).collect();
        // The latest first, so that what uses a candidate is decided before it.
        while let Some(candidate) = candidates.pop_last() {
            if !self.joins(candidate, root, &group) {
                continue;
            }
            group.insert(candidate);
            if self.sources(&group).len() > MAX_SOURCES || self.length(&group) > MAX_INSTRUCTIONS {
                group.remove(&candidate);
                continue;
            }
            if !matches!(self.parts[candidate], Some(Part::Expand)) {
                candidates.extend(self.operands(candidate));
            }
        }
        group
    }

    fn reduces(&self, node: usize) -> bool {
        matches!(self.graph.nodes[node].op, Op::Reduce { .. })
    }

    fn operands(&self, node: usize) -> impl Iterator<Item = usize> {
        self.graph.nodes[node].inputs.iter().map(|x| x.index())
    }

    fn joins(&self, candidate: usize, root: usize, group: &BTreeSet<usize>) -> bool {
        let (node, mut last) = (&self.graph.nodes[candidate], &self.graph.nodes[root]);
        if self.reduces(root) {
            last = self.graph.node(last.inputs[0]);
        }
        let all_inside = self.users[candidate]
            .iter()
            .all(|user| *user == root || group.contains(user));
        self.parts[candidate].is_some()
            && node.shape == last.shape
            && all_inside
            && self.fixed[candidate] == self.fixed[root]
            && (root - candidate <= NEAR || self.costs_nothing(candidate, root))
    }

    /// Whether what has to be kept for a later program is no more than what need not be.
    fn costs_nothing(&self, candidate: usize, root: usize) -> bool {
        let bytes = |i: usize| {
            let node = &self.graph.nodes[i];
            let elements = node.shape.elements(1).unwrap_or(u64::MAX);
            elements.saturating_mul(node.dtype.size_bytes() as u64)
        };
        let dies = |i: &usize| {
            let later = self.users[*i].last().is_some_and(|last| *last >= root);
            let always = matches!(
                self.graph.nodes[*i].op,
                Op::Leaf(Leaf::Variable(_) | Leaf::Constant(_))
            );
            !later && !always
        };
        let operands: BTreeSet<usize> = self.operands(candidate).collect();
        let longer = operands.iter().filter(|i| dies(i)).map(|i| bytes(*i));
        longer.fold(0, u64::saturating_add) <= bytes(candidate)
    }

    /// What a group reads, and how.
    fn sources(&self, group: &BTreeSet<usize>) -> Vec<(From, Source)> {
        let mut sources = Vec::new();
        for &i in group {
            for source in self.reads(i) {
                let inside = matches!(source.0, From::Value(v) if group.contains(&v.index()));
                if !inside && !sources.contains(&source) {
                    sources.push(source);
                }
            }
        }
        sources
    }

    /// What a node reads, and how.
    fn reads(&self, i: usize) -> Vec<(From, Source)> {
        let node = &self.graph.nodes[i];
        let whole = |&value: &Value| {
            let shape = self.graph.node(value).shape.clone();
            (From::Value(value), Source { shape, offset: 0 })
        };
        if !matches!(self.parts[i], Some(Part::Norm)) {
            return node.inputs.iter().map(whole).collect();
        }
        let channels = self.graph.node(node.inputs[1]).shape.0[0];
        let mut shape = vec![Dim::Fixed(1); node.shape.rank() - 1];
        shape[0] = channels;
        let row = |offset| {
            let shape = Shape(shape.clone());
            let from = From::Coefficients(Value(i as u32));
            (from, Source { shape, offset })
        };
        vec![whole(&node.inputs[0]), row(0), row(channels.at(1))]
    }

    /// The program of a group, and what it reads.
    fn program(&self, group: &BTreeSet<usize>) -> (Program, Vec<From>) {
        let sources = self.sources(group);
        let mut program = Program::default();
        let mut registers: HashMap<usize, usize> = HashMap::new();
        for &i in group {
            let operand = |read: &(From, Source)| match read.0 {
                From::Value(v) if group.contains(&v.index()) => registers[&v.index()],
                _ => sources.iter().position(|own| own == read).unwrap_or(0),
            };
            let operands: Vec<usize> = self.reads(i).iter().map(operand).collect();
            let mut push = |function, used: &[usize]| {
                program.instructions.push(Instruction {
                    function,
                    operands: std::array::from_fn(|n| used.get(n).copied().unwrap_or(0)),
                });
                sources.len() + program.instructions.len() - 1
            };
            let register = match &self.parts[i] {
                Some(Part::Function(function)) => push(*function, &operands),
                Some(Part::Norm) => {
                    let scaled = push(Function::Binary(Binary::Mul), &operands[..2]);
                    push(Function::Binary(Binary::Add), &[scaled, operands[2]])
                }
                Some(Part::Expand) | None => operands[0],
            };
            registers.insert(i, register);
        }
        let (from, sources) = sources.into_iter().unzip();
        program.sources = sources;
        (program, from)
    }

    /// The number of instructions of a group.
    fn length(&self, group: &BTreeSet<usize>) -> usize {
        let of = |i: &usize| match self.parts[*i] {
            Some(Part::Function(_)) => 1,
            Some(Part::Norm) => 2,
            Some(Part::Expand) | None => 0,
        };
        group.iter().map(of).sum()
    }
}

/// The graph with programs.
pub(crate) fn fuse(graph: Graph) -> Graph {
    let fusion = Fusion::new(&graph);
    let mut claimed = vec![false; graph.nodes.len()];
    let mut programs: HashMap<usize, (Program, Vec<From>)> = HashMap::new();
    for root in (0..graph.nodes.len()).rev() {
        let (reduces, part) = (fusion.reduces(root), &fusion.parts[root]);
        let may_end = reduces || matches!(part, Some(Part::Function(_) | Part::Norm));
        if claimed[root] || !may_end {
            continue;
        }
        let group = fusion.group(root);
        // Within a reduction, an operator is enough, unless it only repeats elements.
        if group.len() > 1 || reduces && fusion.length(&group) > 0 {
            group.iter().for_each(|&i| claimed[i] = true);
            programs.insert(root, fusion.program(&group));
        }
    }
    let norms: HashMap<usize, Vec<Value>> = graph
        .nodes
        .iter()
        .enumerate()
        .filter(|(i, node)| claimed[*i] && node.op == Op::BatchNorm)
        .map(|(i, node)| (i, node.inputs[1..].to_vec()))
        .collect();
    let mut moved: Vec<Value> = Vec::with_capacity(graph.nodes.len());
    let mut made: HashMap<Value, Value> = HashMap::new();
    rewrite(graph, |new, mut node| {
        let operand = node.inputs.first().map(|x| new.node(*x).shape.clone());
        if let Some((program, from)) = programs.remove(&moved.len()) {
            let read = from.iter().map(|from| match from {
                From::Value(value) => moved[value.index()],
                From::Coefficients(norm) => *made.entry(*norm).or_insert_with(|| {
                    let operands = norms[&norm.index()].iter().map(|x| moved[x.index()]);
                    coefficients(new, &node, operands.collect())
                }),
            });
            node.inputs = read.collect();
            node.op = match (node.op, operand) {
                (Op::Reduce { kind, axes, keep }, Some(shape)) => Op::FusedReduce(Reduced {
                    program,
                    shape,
                    kind,
                    axes,
                    keep,
                }),
                _ => Op::Fused(program),
            };
        }
        let value = new.push(node);
        moved.push(value);
        value
    })
}

/// The coefficients of a normalisation with (scale, bias, statistics), for a program in place of
/// `node`.
fn coefficients(new: &mut Graph, node: &Node, inputs: Vec<Value>) -> Value {
    let channels = new.node(inputs[0]).shape.0[0];
    new.push(Node {
        op: Op::BatchNormCoefficients,
        inputs,
        shape: Shape(vec![Dim::Fixed(2), channels]),
        ..node.clone()
    })
}

/// Whether a chain of affine functions and logarithms starts at a transform.
fn of_transform(graph: &Graph, node: &Node) -> bool {
    let from = graph.node(node.inputs[0]);
    match &from.op {
        Op::StftPower(_) => true,
        Op::Unary(Unary::Affine { .. } | Unary::Log) => of_transform(graph, from),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::dtype::DType;
    use crate::passes::dead;

    /// The operators of a graph after fusion, leaves apart.
    fn fused(build: impl FnOnce(&mut Builder, Value) -> Vec<Value>) -> Vec<String> {
        let mut b = Builder::new();
        let dims = [Dim::Batch(1), Dim::Fixed(3), Dim::Fixed(4)];
        let x = b.input("x", DType::F32, &dims).unwrap();
        for (i, y) in build(&mut b, x).into_iter().enumerate() {
            b.output(&i.to_string(), y).unwrap();
        }
        let graph = dead::remove(fuse(b.graph()));
        let inner = graph
            .nodes
            .iter()
            .filter(|node| !matches!(node.op, Op::Leaf(_)));
        inner.map(|node| node.op.describe()).collect()
    }

    #[test]
    fn what_is_used_once_or_within_joins_and_what_is_shown_stays() {
        let ops = fused(|b, x| {
            let s = b.sigmoid(x).unwrap();
            let y = b.mul(x, s).unwrap();
            let row = b.constant(DType::F32, &[4], &[0; 16]).unwrap();
            let y = b.add(y, row).unwrap();
            vec![b.exp(y).unwrap()]
        });
        assert_eq!(ops.len(), 1, "{ops:?}");
        assert_eq!(
            ops[0],
            "fused [batch, 3, 4] [4]: r2 = Unary(Sigmoid) r0; r3 = Binary(Mul) r0 r2; \
             r4 = Binary(Add) r3 r1; r5 = Unary(Exp) r4"
        );
        let ops = fused(|b, x| {
            let y = b.exp(x).unwrap();
            vec![y, b.sin(y).unwrap()]
        });
        assert_eq!(ops, ["Unary(Exp)", "Unary(Sin)"]);
    }

    #[test]
    fn comparisons_and_what_they_choose_are_one_program() {
        let ops = fused(|b, x| {
            let zero = b.scalar(0.0).unwrap();
            let positive = b.greater(x, zero).unwrap();
            let root = b.sqrt(x).unwrap();
            vec![b.select(positive, root, zero).unwrap()]
        });
        assert_eq!(ops.len(), 1, "{ops:?}");
    }

    #[test]
    fn a_chain_that_only_a_reduction_reads_is_a_part_of_it() {
        let ops = fused(|b, x| {
            let y = b.exp(x).unwrap();
            let y = b.mul(y, x).unwrap();
            vec![b.sum(y, &[2], false).unwrap()]
        });
        assert_eq!(
            ops,
            [
                "Sum over [2] of [batch, 3, 4]: fused [batch, 3, 4]: r1 = Unary(Exp) r0; \
              r2 = Binary(Mul) r1 r0"
            ]
        );
        // One operator is enough; elements that are only repeated are none, and what is read twice or
        // shown is kept.
        let ops = fused(|b, x| {
            let y = b.exp(x).unwrap();
            let row = b.input("row", DType::F32, &[Dim::Fixed(4)]).unwrap();
            let wide = [Dim::Batch(1), Dim::Fixed(3), Dim::Fixed(4)];
            let repeated = b.expand(row, &wide).unwrap();
            let (z, shown) = (b.sin(x).unwrap(), b.cos(x).unwrap());
            vec![
                b.amax(y, &[], false).unwrap(),
                b.sum(repeated, &[1], false).unwrap(),
                b.sum(z, &[1], false).unwrap(),
                b.sum(z, &[2], false).unwrap(),
                b.sum(shown, &[1], false).unwrap(),
                shown,
            ]
        });
        let reductions = ops.iter().filter(|op| op.contains(" over ["));
        assert_eq!(reductions.count(), 1, "{ops:?}");
        assert_eq!(ops.len(), 8, "{ops:?}");
    }

    #[test]
    fn integers_and_other_shapes_are_left_out() {
        let ops = fused(|b, x| {
            let whole = b.cast(x, DType::I64).unwrap();
            let back = b.cast(whole, DType::F32).unwrap();
            let row = b.sum(x, &[2], true).unwrap();
            let mean = b.affine(row, 0.25, 0.0).unwrap();
            let mean = b.exp(mean).unwrap();
            vec![b.sub(back, mean).unwrap()]
        });
        assert_eq!(ops.len(), 5, "{ops:?}");
    }

    #[test]
    fn programs_keep_their_limits() {
        let ops = fused(|b, x| {
            let mut y = x;
            for _ in 0..MAX_INSTRUCTIONS + 1 {
                y = b.exp(y).unwrap();
            }
            vec![y]
        });
        assert_eq!(ops.len(), 2, "{ops:?}");
        let ops = fused(|b, x| {
            let mut y = x;
            for i in 0..MAX_SOURCES as u64 {
                let z = b.random_uniform(&[Dim::Batch(1), Dim::Fixed(3), Dim::Fixed(4)], i);
                y = b.add(y, z.unwrap()).unwrap();
            }
            vec![y]
        });
        let programs = ops.iter().filter(|op| op.starts_with("fused"));
        assert_eq!(programs.count(), 1, "{ops:?}");
    }

    #[test]
    fn a_norm_joins_what_follows_it() {
        let ops = fused(|b, x| {
            let [scale, bias, mean, variance] =
                ["s", "b", "m", "v"].map(|name| b.buffer(name, &[3], "ones").unwrap());
            let y = b
                .batch_norm_eval(x, scale, bias, mean, variance, 1e-5)
                .unwrap();
            let y = b.add(y, x).unwrap();
            vec![b.relu(y).unwrap()]
        });
        assert_eq!(ops.len(), 3, "{ops:?}");
        assert!(
            ops[2].starts_with("fused [batch, 3, 4] [3, 1] [3, 1] from 3:"),
            "{ops:?}"
        );
    }
}
