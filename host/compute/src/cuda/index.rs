//! Operators that take elements by indices, or from tables of them.

use super::lower::Lowering;
use super::numbers::by_size;
use super::program::{Check, Launch};
use crate::graph::Value;
use crate::ops::Op;

impl Lowering<'_> {
    /// Launches the kernels of an operator of this family; `x` are its inputs' addresses.
    pub(super) fn index(&mut self, value: Value, x: &[u64], out: u64, own: &[usize]) {
        let node = self.node(value);
        let n: usize = own.iter().product();
        let of = |i: usize| self.shape(node.inputs[i]);
        let error = self.at.results;
        let check = |size: usize| Check {
            error,
            node: value.0,
            size: size as u32,
        };
        let inner = |shape: &[usize], axis: usize| shape[axis + 1..].iter().product::<usize>();
        match &node.op {
            Op::Gather { axis } => {
                let kernel = by_size(node.dtype, ["gather_1", "gather_4", "gather_8"]);
                let launch = Launch::threads(kernel, n).with(x[0]).with(x[1]).with(out);
                let launch = launch.with(check(of(0)[*axis])).count(own[*axis]);
                self.launch(launch.count(inner(own, *axis)).count(n));
            }
            Op::Take { axis } => {
                let kernel = by_size(node.dtype, ["take_1", "take_4", "take_8"]);
                let (from, indices) = (of(0), of(1).iter().product());
                let launch = Launch::threads(kernel, n).with(x[0]).with(x[1]).with(out);
                let launch = launch.with(check(from[*axis])).count(indices);
                self.launch(launch.count(inner(&from, *axis)).count(n));
            }
            Op::ScatterAdd { axis } => {
                let (count, lines) = (of(1)[*axis], n / own[*axis]);
                let launch = Launch::threads("scatter_add", lines).with(x[0]).with(x[1]);
                let launch = launch.with(out).with(check(own[*axis])).count(count);
                self.launch(launch.count(inner(own, *axis)).count(lines));
            }
            Op::TakeGradient { axis } => {
                let indices = of(1).iter().product();
                self.launch(Launch::threads("zero", n).with(out).count(n));
                let launch = Launch::each("take_gradient", indices).with(x[0]).with(x[1]);
                let launch = launch.with(out).with(check(own[*axis]));
                let launch = launch.count(own[..*axis].iter().product());
                self.launch(launch.count(indices).count(inner(own, *axis)));
            }
            Op::Resample { axis } => {
                let (from, weights) = (of(0), of(2));
                let launch = Launch::threads("resample", n).with(x[0]).with(x[1]);
                let launch = launch.with(x[2]).with(out).count(from[*axis]);
                let launch = launch.count(inner(own, *axis)).count(weights[0]);
                self.launch(launch.count(weights[1]).count(n));
            }
            _ => {}
        }
    }
}
