//! Plans that store bfloat16: kernels of our own compute on float32 copies in the workspace, the
//! libraries on bfloat16.

use super::blas::Element;
use super::lower::Lowering;
use super::program::{Command, Launch};
use crate::dtype::DType;
use crate::graph::Value;
use crate::ops::Op;
use crate::passes::precision::{Conversion, conversion};

/// What elements are computed as.
pub(super) fn computed(stored: DType) -> DType {
    match stored {
        DType::BF16 => DType::F32,
        other => other,
    }
}

/// The addresses of a node's operands and its result as its kernels see them.
pub(super) struct Converted {
    pub(super) x: Vec<u64>,
    pub(super) out: u64,
    pub(super) before: Vec<Launch>,
    pub(super) after: Option<Launch>,
}

/// `count` elements from one address to another.
fn convert(kernel: &'static str, from: u64, to: u64, count: usize) -> Launch {
    Launch::threads(kernel, count)
        .with(from)
        .with(to)
        .count(count)
}

impl Lowering<'_> {
    fn count(&self, value: Value) -> usize {
        self.shape(value).iter().product()
    }

    fn stored(&self, value: Value) -> Element {
        match self.node(value).dtype {
            DType::BF16 => Element::Bfloat16,
            _ => Element::Float32,
        }
    }

    /// Float32 copies of what is stored as bfloat16 or has to be rounded to it.
    pub(super) fn converted(&mut self, value: Value) -> Converted {
        let node = self.node(value);
        let (mut x, mut before): (Vec<u64>, _) = (Vec::new(), Vec::new());
        for (i, &operand) in node.inputs.iter().enumerate() {
            let earlier = node.inputs[..i].iter().position(|other| *other == operand);
            let at = earlier.map_or_else(|| self.address(operand), |earlier| x[earlier]);
            let kernel = match conversion(&self.plan.graph, node, i, self.precision()) {
                Some(Conversion::Widen) => "widen",
                Some(Conversion::Round) => "round_to_bfloat16",
                None => {
                    x.push(at);
                    continue;
                }
            };
            let count = self.count(operand);
            let to = self.reserve(count as u64 * 4);
            before.push(convert(kernel, at, to, count));
            x.push(to);
        }
        let (stored, mut out, mut after) = (self.address(value), self.address(value), None);
        if node.dtype == DType::BF16 {
            let count = self.count(value);
            out = self.reserve(count as u64 * 4);
            after = Some(convert("narrow", out, stored, count));
        }
        Converted {
            x,
            out,
            before,
            after,
        }
    }

    /// The address of a value as bfloat16, in the workspace where it is stored otherwise.
    fn halves(&mut self, value: Value, before: &mut Vec<Launch>) -> u64 {
        let at = self.address(value);
        if self.stored(value) == Element::Bfloat16 {
            return at;
        }
        let count = self.count(value);
        let to = self.reserve(count as u64 * 2);
        before.push(convert("narrow", at, to, count));
        to
    }

    /// A product of bfloat16 matrices. A bias has the result's type.
    pub(super) fn narrow_matmul(&mut self, value: Value) {
        let node = self.node(value);
        let Op::Matmul {
            transpose_a,
            transpose_b,
        } = node.op
        else {
            return;
        };
        let mut before = Vec::new();
        let (a, b) = (node.inputs[0], node.inputs[1]);
        let (a_at, b_at) = (self.halves(a, &mut before), self.halves(b, &mut before));
        let result = self.stored(value);
        let bias = node.inputs.get(2).map(|&bias| match result {
            Element::Bfloat16 => self.halves(bias, &mut before),
            Element::Float32 => self.address(bias),
        });
        before.into_iter().for_each(|launch| self.launch(launch));
        let (a_shape, b_shape, own) = (self.shape(a), self.shape(b), self.shape(value));
        self.matmul(
            (a_at, &a_shape, transpose_a),
            (b_at, &b_shape, transpose_b),
            bias,
            (self.address(value), &own),
            [Element::Bfloat16, result],
        );
    }

    /// Makes one convolution of what was lowered from the command `start` on: by cuDNN on bfloat16,
    /// or by the kernels that were lowered, on converted operands. The convolution is the command
    /// `at`.
    pub(super) fn narrow_convolution(&mut self, value: Value, start: usize, at: usize) {
        let node = self.node(value);
        let mut own = Vec::new();
        let mut convolution = None;
        for (number, command) in (start..).zip(self.commands.split_off(start)) {
            match command {
                Command::Launch(launch) => own.push(launch),
                Command::Convolution(found) if number == at => {
                    own.extend(found.own.iter().cloned());
                    convolution = Some(found);
                }
                other => self.commands.push(other),
            }
        }
        let Some(mut convolution) = convolution else {
            return;
        };
        let mut before = Vec::new();
        let halves = [node.inputs[0], node.inputs[1]].map(|x| self.halves(x, &mut before));
        let (stored, count) = (self.address(value), self.count(value));
        let narrow = self.stored(value) == Element::Bfloat16;
        let result = if narrow {
            stored
        } else {
            self.reserve(count as u64 * 2)
        };
        let operands = &mut convolution.operands;
        // The kernels' result, which a bias is added to.
        let wide = match node.op {
            Op::Conv2dInputGradient(_) => {
                let wide = operands.x;
                [operands.y, operands.weight] = halves;
                operands.x = result;
                wide
            }
            Op::Conv2dWeightGradient(_) => {
                let wide = operands.weight;
                [operands.x, operands.y] = halves;
                operands.weight = result;
                wide
            }
            _ => {
                let wide = operands.y;
                [operands.x, operands.weight] = halves;
                operands.y = result;
                wide
            }
        };
        let mut after = std::mem::take(&mut convolution.after);
        if !narrow || !after.is_empty() {
            after.insert(0, convert("widen", result, wide, count));
        }
        if narrow && !after.is_empty() {
            after.push(convert("narrow", wide, stored, count));
        }
        convolution.shape.bfloat16 = true;
        convolution.before = before;
        convolution.after = after;
        convolution.own = own;
        self.convolve(convolution);
    }
}
