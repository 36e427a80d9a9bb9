//! Epilogues: element-wise programs that a product, a convolution or a reduction applies to each part
//! of its result as it is finished, while that is in the cache.

use std::collections::HashMap;

use super::in_place::root;
use crate::graph::{Graph, Value};
use crate::ops::Op;

/// By the product, convolution or reduction, the step that is its epilogue. `steps` are a plan's in order;
/// `taken` tells in whose memory a step's result is made, where it is in that of an operand, which
/// nothing else reads then.
pub(crate) fn epilogues(
    graph: &Graph,
    steps: &[Value],
    taken: &HashMap<Value, Value>,
) -> HashMap<Value, Value> {
    let times: HashMap<Value, usize> = steps.iter().copied().zip(0..).collect();
    let mut readers: HashMap<Value, usize> = HashMap::new();
    for &step in steps {
        for &input in &graph.node(step).inputs {
            *readers.entry(root(graph, input)).or_default() += 1;
        }
    }
    let mut found = HashMap::new();
    for &step in steps {
        let Some(&product) = taken.get(&step) else {
            continue;
        };
        let node = graph.node(step);
        let makes_parts = matches!(
            graph.node(product).op,
            Op::Conv2d(_) | Op::Matmul { .. } | Op::Reduce { .. } | Op::FusedReduce(_)
        );
        // A normalisation's gradient is no program.
        let is_program = node.op != Op::BatchNormTrainGradient;
        let uses = node.inputs.iter().filter(|&&x| root(graph, x) == product);
        let alone = readers.get(&product) == Some(&uses.count());
        let ready = |x: &Value| {
            let own = root(graph, *x);
            own == product || times.get(&own).is_none_or(|time| *time < times[&product])
        };
        if makes_parts && is_program && alone && node.inputs.iter().all(ready) {
            found.insert(product, step);
        }
    }
    found
}
