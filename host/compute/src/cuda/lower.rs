//! Turns a plan at a batch size into commands: which kernels, on how many blocks, with which
//! addresses. Everything follows from shapes, so that a plan's commands are the same on every GPU.

use std::collections::HashMap;

use super::blas;
use super::narrow::{Converted, computed};
use super::numbers::{binary, by_size, pair, type_of, unary};
use super::program::{Command, Convolution, Launch, Strided};
use super::reduce::{Reduced, split};
use super::signal::{self, Epilogue};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::ops::Op;
use crate::ops::elementwise::Unary;
use crate::ops::reduce::Reduction;
use crate::ops::signal::Stft;
use crate::plan::{Place, Plan, Precision};
use crate::walk::{Walk, broadcast, strides};

/// Tensors of more elements are refused: kernels index with 32 bits.
const MOST_ELEMENTS: u64 = (1 << 31) - 1;
/// Where everything is in the GPU's memory.
#[derive(Debug, Default, Clone)]
pub(super) struct Addresses {
    pub(super) arena: u64,
    pub(super) kept: u64,
    pub(super) workspace: u64,
    /// By the plan's numbers.
    pub(super) variables: Vec<u64>,
    pub(super) constants: Vec<u64>,
    /// Window and roots of each transform.
    pub(super) tables: HashMap<Stft, u64>,
    /// The plan's targets, and its groups' step values.
    pub(super) targets: u64,
    pub(super) steps: u64,
    /// The number of the optimizer step, which random numbers depend on.
    pub(super) step: u64,
    /// The error word, which the plan's scalar outputs follow.
    pub(super) results: u64,
}

impl Addresses {
    /// Where a value of the plan is; 0 for one that is never computed.
    pub(super) fn of(&self, plan: &Plan, value: Value) -> u64 {
        match plan.places[value.index()] {
            Place::Nowhere => 0,
            Place::Arena(offset) => self.arena + offset,
            Place::Variable(i) => self.variables[i],
            Place::Constant(i) => self.constants[i],
            Place::Kept(offset) => self.kept + offset,
        }
    }
}

/// A plan's commands at a batch size, and the bytes of workspace that they use.
#[derive(Debug)]
pub(super) struct Lowered {
    pub(super) commands: Vec<Command>,
    pub(super) workspace_bytes: u64,
}

/// Refuses tensors that kernels cannot index. Errors: `graph.limit`.
pub(super) fn limit(elements: u64) -> Result<(), Error> {
    if elements <= MOST_ELEMENTS {
        return Ok(());
    }
    let message = format!("a tensor of {elements} elements; a GPU's kernels take {MOST_ELEMENTS}");
    Err(Error::limit(message))
}

/// A part of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What runs once after variables changed.
    Prologue,
    /// What runs each time.
    Run,
}

/// Lowers a part of a plan. `capacity` is the workspace that there is, in bytes; none while it is sought.
/// Errors: `graph.limit` for a tensor of 2³¹ elements or more.
pub(super) fn lower(
    plan: &Plan,
    part: Part,
    batch: usize,
    at: &Addresses,
    capacity: Option<u64>,
) -> Result<Lowered, Error> {
    let steps = match part {
        Part::Prologue => &plan.prologue,
        Part::Run => &plan.steps,
    };
    let mut lowering = Lowering {
        plan,
        steps,
        batch,
        at,
        capacity: capacity.unwrap_or(u64::MAX),
        commands: Vec::new(),
        used: 0,
        reserved: 0,
    };
    for (variable, shape) in &plan.variables {
        limit(shape.elements(1)?)
            .map_err(|error| Error::limit(format!("`{}`: {error}", variable.name)))?;
    }
    for value in plan
        .inputs
        .iter()
        .map(|port| port.value)
        .chain(steps.iter().copied())
    {
        let elements = plan.graph.node(value).shape.elements(batch as u64)?;
        limit(elements).map_err(|error| error.at(plan.origin(value)))?;
    }
    let mut optimized = false;
    let mut skip = 0;
    for (number, &value) in steps.iter().enumerate() {
        if skip > 0 {
            skip -= 1;
            continue;
        }
        match &plan.graph.node(value).op {
            Op::StftPower(stft) => skip = lowering.stft_power(number, stft),
            Op::Optimize(_) if optimized => {}
            Op::Optimize(_) => {
                optimized = true;
                lowering.optimize();
            }
            _ => lowering
                .step(value)
                .map_err(|error| error.at(plan.origin(value)))?,
        }
    }
    if part == Part::Run {
        lowering.gather_scalars();
    }
    Ok(Lowered {
        commands: lowering.commands,
        workspace_bytes: lowering.used,
    })
}

pub(super) struct Lowering<'a> {
    pub(super) plan: &'a Plan,
    steps: &'a [Value],
    batch: usize,
    pub(super) at: &'a Addresses,
    capacity: u64,
    pub(super) commands: Vec<Command>,
    used: u64,
    /// Bytes at the workspace's start that hold what a step converts.
    reserved: u64,
}

impl<'a> Lowering<'a> {
    pub(super) fn launch(&mut self, launch: Launch) {
        self.commands.push(Command::Launch(launch));
    }

    pub(super) fn multiply(&mut self, shape: blas::Shape, operands: blas::Operands) {
        self.commands.push(Command::Product(shape, operands));
    }

    pub(super) fn convolve(&mut self, convolution: Convolution) {
        self.commands.push(Command::Convolution(convolution));
    }

    pub(super) fn node(&self, value: Value) -> &'a Node {
        self.plan.graph.node(value)
    }

    pub(super) fn shape(&self, value: Value) -> Vec<usize> {
        self.node(value).shape.at(self.batch)
    }

    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    pub(super) fn address(&self, value: Value) -> u64 {
        self.at.of(self.plan, value)
    }

    /// The workspace, of at least so many bytes.
    pub(super) fn workspace(&mut self, bytes: u64) -> u64 {
        let end = self.reserved.saturating_add(bytes.next_multiple_of(256));
        self.used = self.used.max(end);
        self.at.workspace + self.reserved
    }

    /// Bytes of the workspace that the step keeps to its end.
    pub(super) fn reserve(&mut self, bytes: u64) -> u64 {
        let at = self.workspace(bytes);
        self.reserved = self.reserved.saturating_add(bytes.next_multiple_of(256));
        at
    }

    /// Bytes of the workspace that nothing keeps.
    pub(super) fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.reserved)
    }

    pub(super) fn precision(&self) -> Precision {
        self.plan.precision
    }

    /// Lowers a node, with what its kernels, which compute in float32, need before and after.
    fn step(&mut self, value: Value) -> Result<(), Error> {
        self.reserved = 0;
        let node = self.node(value);
        if self.precision() == Precision::Bfloat16 && matches!(node.op, Op::Matmul { .. }) {
            self.narrow_matmul(value);
            return Ok(());
        }
        let Converted {
            x,
            out,
            before,
            after,
        } = self.converted(value);
        let start = self.commands.len();
        self.commands
            .extend(before.into_iter().map(Command::Launch));
        let first = self.commands.len();
        self.kernels(value, &x, out)?;
        let last = after.map(Command::Launch);
        if self.precision() == Precision::Bfloat16
            && let Some(Command::Convolution(_)) = self.commands.get(first)
        {
            self.commands.extend(last);
            self.narrow_convolution(value, start, first);
        } else {
            self.commands.extend(last);
        }
        Ok(())
    }

    /// Launches a node's kernels; `x` and `out` are the addresses of its operands and its result.
    fn kernels(&mut self, value: Value, x: &[u64], out: u64) -> Result<(), Error> {
        let node = self.node(value);
        let own = self.shape(value);
        let n: usize = own.iter().product();
        let shape = |i: usize| node.inputs[i];
        match &node.op {
            Op::Unary(kind) => {
                let (kind, a, b) = unary(*kind);
                let launch = Launch::threads("unary", n.div_ceil(4))
                    .with(kind)
                    .with(a)
                    .with(b);
                self.launch(launch.with(x[0]).with(out).count(n));
            }
            Op::UnaryGradient(kind) => {
                let (kind, a, b) = unary(*kind);
                let launch = Launch::threads("unary_gradient", n.div_ceil(4));
                let launch = launch.with(kind).with(a).with(b).with(x[0]).with(x[1]);
                self.launch(launch.with(out).count(n));
            }
            Op::DivideBy(count) => {
                let factor = 1.0 / count.at(self.batch as u64) as f32;
                let (kind, ..) = unary(Unary::Affine {
                    factor: 0.0,
                    offset: 0.0,
                });
                let launch = Launch::threads("unary", n.div_ceil(4))
                    .with(kind)
                    .with(factor);
                self.launch(launch.with(0.0f32).with(x[0]).with(out).count(n));
            }
            Op::Fused(program) => self.fused(node, program, x, out, &own),
            Op::Binary(kind) if node.dtype == DType::I64 => {
                let pair = pair(&self.shape(shape(0)), &self.shape(shape(1)), &own);
                let launch = Launch::threads("integer_binary", n).with(binary(*kind));
                self.launch(launch.with(x[0]).with(x[1]).with(out).with(pair).count(n));
            }
            Op::Binary(kind) => {
                let (a, b) = (self.shape(shape(0)), self.shape(shape(1)));
                if a == own && b == own {
                    let launch = Launch::threads("binary", n.div_ceil(4)).with(binary(*kind));
                    self.launch(launch.with(x[0]).with(x[1]).with(out).count(n));
                } else {
                    let launch = Launch::threads("binary_broadcast", n).with(binary(*kind));
                    let launch = launch.with(x[0]).with(x[1]).with(out);
                    self.launch(launch.with(pair(&a, &b, &own)).count(n));
                }
            }
            Op::ExtremumGradient { maximum } => {
                let pair = pair(&self.shape(shape(0)), &self.shape(shape(1)), &own);
                let launch = Launch::threads("extremum_gradient", n).with(i32::from(*maximum));
                let launch = launch.with(x[0]).with(x[1]).with(x[2]).with(out);
                self.launch(launch.with(pair).count(n));
            }
            Op::Compare(kind) => {
                let pair = pair(&self.shape(shape(0)), &self.shape(shape(1)), &own);
                let launch = Launch::threads("compare", n).with(*kind as i32);
                let launch = launch.with(type_of(self.node(shape(0)).dtype));
                self.launch(launch.with(x[0]).with(x[1]).with(out).with(pair).count(n));
            }
            Op::Logic(kind) => {
                let pair = pair(&self.shape(shape(0)), &self.shape(shape(1)), &own);
                let launch = Launch::threads("logic", n).with(*kind as i32);
                self.launch(launch.with(x[0]).with(x[1]).with(out).with(pair).count(n));
            }
            Op::Cast => {
                let launch = Launch::threads("cast", n).with(type_of(self.node(shape(0)).dtype));
                let launch = launch.with(type_of(node.dtype)).with(x[0]).with(out);
                self.launch(launch.count(n));
            }
            Op::Permute(order) => {
                let from = self.shape(shape(0));
                let all = strides(&from);
                let moved: Vec<usize> = order.iter().map(|&axis| all[axis]).collect();
                self.gather(computed(node.dtype), x[0], out, &own, &moved);
            }
            Op::Expand => {
                let shown = broadcast(&self.shape(shape(0)), &own);
                self.gather(computed(node.dtype), x[0], out, &own, &shown);
            }
            Op::Row { index } => {
                let bytes = n as u64 * 4;
                let from = x[0] + *index as u64 * bytes;
                self.commands.push(Command::Copy {
                    to: out,
                    from,
                    bytes,
                });
            }
            Op::Reduce { kind, axes, .. } => {
                self.reduce(*kind, Reduced::At(x[0]), &self.shape(shape(0)), axes, out);
            }
            Op::FusedReduce(reduced) => {
                let shape = reduced.shape.at(self.batch);
                let steps = self.steps(node, &reduced.program, x, &shape);
                let from = Reduced::Computed(Box::new(steps));
                self.reduce(reduced.kind, from, &shape, &reduced.axes, out);
            }
            Op::Select | Op::Slice(_) | Op::Place { .. } | Op::Concat { .. } => {
                self.window(node, x, out, &own)
            }
            Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::Take { .. }
            | Op::TakeGradient { .. }
            | Op::Resample { .. } => self.index(value, x, out, &own),
            Op::LayerNorm(_) | Op::LayerNormGradient(_) | Op::LayerNormParameterGradient(_) => {
                self.layer_norm(node, x, out, &own);
            }
            Op::Dropout(dropout) => {
                let row: usize = own.iter().skip(1).product();
                let launch = Launch::threads("dropout", n).with(x[0]).with(out);
                let launch = launch.with(self.at.step).with(dropout.seed);
                let launch = launch.with(dropout.threshold()).with(dropout.scale());
                self.launch(launch.count(if dropout.rows { row } else { 1 }).count(n));
            }
            Op::Random { seed } => {
                let launch = Launch::threads("random_uniform", n).with(out);
                self.launch(launch.with(self.at.step).with(*seed).count(n));
            }
            Op::TopK { axis, smallest } => {
                let from = self.shape(shape(0));
                let inner: usize = from[axis + 1..].iter().product();
                let lines = n / own[*axis];
                let launch = Launch::threads("top_k", lines).with(x[0]).with(out);
                let launch = launch.with(i32::from(*smallest)).count(lines);
                self.launch(launch.count(from[*axis]).count(inner).count(own[*axis]));
            }
            Op::Cumsum { axis, reverse } => {
                let inner: usize = own[axis + 1..].iter().product();
                let lines = n / own[*axis];
                let launch = Launch::threads("cumsum", lines).with(x[0]).with(out);
                let launch = launch.with(i32::from(*reverse)).count(lines);
                self.launch(launch.count(own[*axis]).count(inner));
            }
            Op::ExtremeGradient => {
                let kept = self.shape(shape(1));
                let axes: Vec<usize> = (0..own.len()).filter(|&i| kept[i] != own[i]).collect();
                let (kept, reduced, results, count) = split(&own, &axes);
                let launch = Launch::each("extreme_gradient", results)
                    .with(x[0])
                    .with(x[1]);
                let launch = launch.with(x[2]).with(out).with(kept).with(reduced);
                self.launch(launch.count(results).count(count));
            }
            Op::Argmax { axis, smallest } => {
                let from = self.shape(shape(0));
                let inner: usize = from[axis + 1..].iter().product();
                let launch = Launch::threads("argmax", n).with(x[0]).with(out);
                let launch = launch.with(i32::from(*smallest));
                self.launch(launch.count(n).count(from[*axis]).count(inner));
            }
            Op::Matmul {
                transpose_a,
                transpose_b,
            } => {
                let (a, b) = (self.shape(shape(0)), self.shape(shape(1)));
                let bias = x.get(2).copied();
                self.matmul(
                    (x[0], &a, *transpose_a),
                    (x[1], &b, *transpose_b),
                    bias,
                    (out, &own),
                    [blas::Element::Float32; 2],
                );
            }
            Op::Attention(_) | Op::AttentionGradient(_) | Op::AttentionBiasGradient(_) => {
                self.attention(node, x, out);
            }
            Op::Softmax { axis, log } => {
                self.softmax(["softmax_rows", "softmax_lines"], *log, x, out, &own, *axis);
            }
            Op::SoftmaxGradient { axis, log } => {
                let kernels = ["softmax_rows_gradient", "softmax_lines_gradient"];
                self.softmax(kernels, *log, x, out, &own, *axis);
            }
            Op::CrossEntropy { smoothing } => {
                let logits = self.shape(shape(0));
                let rows = self.workspace(logits[0] as u64 * 4);
                let launch = Launch::threads("cross_entropy_rows", logits[0] * 32);
                let launch = launch.with(x[0]).with(x[1]).with(rows);
                let launch = launch
                    .count(logits[0])
                    .count(logits[1])
                    .with(*smoothing as f32);
                self.launch(launch.with(value.0).with(self.at.results));
                self.join(Reduction::Sum, rows, out, 1, logits[0]);
            }
            Op::CrossEntropyGradient { smoothing } => {
                let launch = Launch::threads("cross_entropy_gradient", own[0] * 32);
                let launch = launch.with(x[0]).with(x[1]).with(x[2]).with(out);
                let launch = launch.count(own[0]).count(own[1]).with(*smoothing as f32);
                self.launch(launch.with(value.0).with(self.at.results));
            }
            Op::Conv2d(c) => {
                let (image, weight) = (self.shape(shape(0)), self.shape(shape(1)));
                let bias = x.get(2).copied().unwrap_or(0);
                self.conv2d(c, &image, &weight, [x[0], x[1], bias, out])?;
            }
            Op::Conv2dInputGradient(c) => {
                let weight = self.shape(shape(1));
                self.conv2d_input_gradient(c, &own, &weight, [x[0], x[1], out])?;
            }
            Op::Conv2dWeightGradient(c) => {
                let image = self.shape(shape(0));
                self.conv2d_weight_gradient(c, &image, &own, [x[0], x[1], out])?;
            }
            Op::Pool2d(pool) => {
                let image = self.shape(shape(0));
                self.pool2d("pool2d", pool, &image, &own, &[x[0], out], n);
            }
            Op::Pool2dGradient(pool) => {
                let result = self.shape(shape(1));
                self.pool2d(
                    "pool2d_gradient",
                    pool,
                    &own,
                    &result,
                    &[x[0], x[1], out],
                    n,
                );
            }
            Op::BatchStatistics { .. }
            | Op::FixedStatistics { .. }
            | Op::BatchNorm
            | Op::BatchNormCoefficients
            | Op::BatchNormParameterGradient
            | Op::BatchNormTrainGradient
            | Op::BatchNormEvalGradient
            | Op::UpdateRunning { .. } => self.norm(node, x, out),
            Op::StftPowerGradient(stft) => {
                signal::gradient(self, stft, &own, x[0], x[1], out)?;
            }
            Op::Leaf(_) | Op::Reshape | Op::Optimize(_) | Op::StftPower(_) => {}
        }
        Ok(())
    }

    /// Lowers a transform with the affine function and the logarithm that follow it, where nothing
    /// else uses what lies between; how many steps that is.
    fn stft_power(&mut self, number: usize, stft: &Stft) -> usize {
        let mut last = self.steps[number];
        let x = self.node(last).inputs[0];
        let mut epilogue = Epilogue {
            factor: 1.0,
            offset: 0.0,
            log: false,
        };
        let mut taken = 0;
        for &next in &self.steps[number + 1..] {
            let node = self.node(next);
            // The result is written while x is still read.
            if node.inputs.first() != Some(&last)
                || node.dtype != DType::F32
                || !self.used_once(last)
                || self.overlap(next, x)
            {
                break;
            }
            match &node.op {
                Op::Unary(Unary::Affine { factor, offset }) if taken == 0 => {
                    epilogue.factor = *factor as f32;
                    epilogue.offset = *offset as f32;
                }
                Op::Unary(Unary::Log) if !epilogue.log => epilogue.log = true,
                _ => break,
            }
            last = next;
            taken += 1;
        }
        let (from, out) = (self.address(x), self.address(last));
        let shape = self.shape(x);
        signal::power(self, stft, &shape, epilogue, from, out);
        taken
    }

    /// Whether one node and no output uses a value.
    fn used_once(&self, value: Value) -> bool {
        let graph = &self.plan.graph;
        let inputs = graph.nodes.iter().flat_map(|node| &node.inputs);
        let outputs = graph.outputs.iter().map(|(_, output)| output);
        inputs.chain(outputs).filter(|used| **used == value).count() == 1
    }

    /// Whether the places of two values have bytes in common at the largest batch.
    fn overlap(&self, a: Value, b: Value) -> bool {
        let range = |value: Value| match self.plan.places[value.index()] {
            Place::Arena(offset) => {
                let bytes = self
                    .plan
                    .bytes(value, self.plan.max_batch)
                    .unwrap_or(u64::MAX);
                offset..offset.saturating_add(bytes)
            }
            _ => 0..0,
        };
        let (a, b) = (range(a), range(b));
        a.start < b.end && b.start < a.end
    }

    fn gather(&mut self, dtype: DType, x: u64, out: u64, own: &[usize], moved: &[usize]) {
        let n: usize = own.iter().product();
        let walk = Walk::new(own, [moved]);
        // `[count, columns, rows]` of `[count, rows, columns]`: a transpose of each matrix.
        let matrix = match (&walk.sizes[..], &walk.strides[..]) {
            (&[c, r], &[[1], [s]]) if s == c => Some((1, r, c)),
            (&[count, c, r], &[[outer], [1], [s]]) if s == c && outer == r * c => {
                Some((count, r, c))
            }
            _ => None,
        };
        if let (DType::F32, Some((count, rows, columns))) = (dtype, matrix) {
            let blocks = [columns.div_ceil(32), rows.div_ceil(32), count];
            if blocks[1] <= 65_535 {
                let launch = Launch::blocks("transpose_4", blocks).with(x).with(out);
                self.launch(launch.count(rows).count(columns).count(count));
                return;
            }
        }
        let kernel = by_size(dtype, ["move_1", "move_4", "move_8"]);
        let launch = Launch::threads(kernel, n).with(x).with(out);
        self.launch(launch.with(Strided::new(own, moved)).count(n));
    }

    /// Copies the scalar outputs to one place, behind the error word.
    fn gather_scalars(&mut self) {
        let mut to = self.at.results + size_of::<super::program::ErrorWord>() as u64;
        for port in self.plan.scalars() {
            let from = self.address(port.value);
            self.commands.push(Command::Copy { to, from, bytes: 4 });
            to += 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::conformance::plans_on_gpus;
    use crate::cuda::kernels;
    use crate::cuda::layout::Layout;

    #[test]
    fn every_kernel_is_one_that_the_table_of_operators_runs() {
        let mut launched = BTreeSet::new();
        for plan in plans_on_gpus() {
            let addresses = Layout::new(&[&plan]).unwrap().addresses(0, &plan, 0);
            let lower = |part| lower(&plan, part, plan.max_batch as usize, &addresses, None);
            let parts = [Part::Prologue, Part::Run].map(|part| lower(part).unwrap().commands);
            for command in parts.into_iter().flatten() {
                match command {
                    Command::Launch(launch) => {
                        launched.insert(launch.kernel);
                    }
                    Command::Convolution(convolution) => {
                        let library = convolution.before.iter().chain(&convolution.after);
                        let launches = convolution.own.iter().chain(library);
                        launched.extend(launches.map(|launch| launch.kernel));
                    }
                    Command::Copy { .. } | Command::Product(..) => {}
                }
            }
        }
        let all: BTreeSet<&str> = kernels::names().collect();
        assert_eq!(launched, all);
    }
}
