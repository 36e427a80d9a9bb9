//! Operators that move parts of tensors.

use super::lower::Lowering;
use super::numbers::{by_size, pair};
use super::program::{Launch, Strided, Window};
use crate::dtype::DType;
use crate::graph::Node;
use crate::ops::Op;
use crate::walk::broadcast;

impl Lowering<'_> {
    /// Launches the kernels of an operator of this family; `x` are its inputs' addresses.
    pub(super) fn window(&mut self, node: &Node, x: &[u64], out: u64, own: &[usize]) {
        let n: usize = own.iter().product();
        let shape = |i: usize| self.shape(node.inputs[i]);
        match &node.op {
            Op::Select => {
                let kernel = by_size(node.dtype, ["select_1", "select_4", "select_8"]);
                let launch = Launch::threads(kernel, n).with(x[0]).with(x[1]).with(x[2]);
                let shown = Strided::new(own, &broadcast(&shape(0), own));
                let pair = pair(&shape(1), &shape(2), own);
                self.launch(launch.with(out).with(shown).with(pair).count(n));
            }
            Op::Slice(window) => {
                let kernel = by_size(node.dtype, ["slice_1", "slice_4", "slice_8"]);
                let window = Window::new(window, &shape(0), own);
                let launch = Launch::threads(kernel, n).with(x[0]).with(out);
                self.launch(launch.with(window).count(n));
            }
            Op::Place { window, fill } => {
                let kernel = by_size(node.dtype, ["place_1", "place_4", "place_8"]);
                let window = Window::new(window, &shape(0), own);
                let launch = Launch::threads(kernel, n).with(x[0]).with(out).with(window);
                let launch = match node.dtype {
                    DType::I64 => launch.with(*fill as i64),
                    _ => launch.with(*fill as f32),
                };
                self.launch(launch.count(n));
            }
            Op::Concat { axis } => {
                let kernel = by_size(node.dtype, ["concat_1", "concat_4", "concat_8"]);
                let inner: usize = own[axis + 1..].iter().product();
                let mut start = 0;
                for (i, &x) in x.iter().enumerate() {
                    let part = self.shape(node.inputs[i])[*axis] * inner;
                    let n = n / (own[*axis] * inner) * part;
                    let launch = Launch::threads(kernel, n).with(x).with(out).count(part);
                    self.launch(launch.count(own[*axis] * inner).count(start).count(n));
                    start += part;
                }
            }
            _ => {}
        }
    }
}
