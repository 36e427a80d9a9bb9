//! The cut of a graph that trains into what each replica computes of its own rows and what all of them
//! do alike with the averages, so that several devices train one model (data parallelism).
//!
//! The cut goes through the values that `gradients` returned: what is made of them, such as clipped
//! gradients and optimizer steps, is made of their averages. What moves a buffer by the batch's statistics
//! moves it by their average. A value that depends on no batch is computed on both sides where both need
//! it.

use std::collections::HashMap;

use super::dead;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Leaf, Node, Value};
use crate::ops::Op;
use crate::shape::{Dim, Shape};

/// The outputs of the one part that are inputs of the other are named by this and a number; no name of a
/// plugin has such a character.
const CROSSING: char = '\u{1}';

/// The two parts of a graph.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parts {
    /// Forward and backward. Its last outputs are those of [`Self::crossing`].
    pub(crate) gradient: Graph,
    /// What takes the averages, with them as inputs.
    pub(crate) update: Graph,
    /// The names of what is averaged between them: float32 without the batch.
    pub(crate) crossing: Vec<String>,
}

fn is_batch(dim: &Dim) -> bool {
    matches!(dim, Dim::Batch(_))
}

/// Whether a shape depends on the batch.
fn batched(shape: &Shape) -> bool {
    shape.0.iter().any(is_batch)
}

/// For each value, whether it depends on the batch: on the samples, on their number, or on random
/// numbers for each of them.
pub(crate) fn varies(graph: &Graph) -> Vec<bool> {
    let mut varies: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let own = matches!(&node.op, Op::DivideBy(count) if is_batch(count));
        let inputs = node.inputs.iter().any(|x| varies[x.index()]);
        varies.push(own || inputs || batched(&node.shape));
    }
    varies
}

/// For each value, whether it comes after the cut: what was made of gradients since they were returned.
fn after(graph: &Graph, live: &[bool]) -> Vec<bool> {
    let mut since: Vec<Option<u32>> = vec![None; graph.nodes.len()];
    for &(value, nodes) in graph
        .gradients
        .iter()
        .filter(|(value, _)| live[value.index()])
    {
        since[value.index()] = Some(nodes);
    }
    // What later gradients are made of is a part of the loss.
    let mut needed: Vec<bool> = since.iter().map(Option::is_some).collect();
    let mut cut = since;
    for i in (0..graph.nodes.len()).rev().filter(|&i| live[i]) {
        let own = needed[i];
        for x in graph.nodes[i].inputs.iter().filter(|_| own) {
            needed[x.index()] = true;
            cut[x.index()] = cut[x.index()].filter(|&nodes| nodes > i as u32);
        }
    }
    let mut after: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate() {
        let past = |x: &Value| {
            let cut = cut[x.index()].is_some_and(|nodes| nodes <= i as u32);
            cut || after[x.index()]
        };
        let past = node.inputs.iter().any(past);
        after.push(past || node.op.is_update());
    }
    after
}

/// A part that is being made.
struct Making<'a> {
    whole: &'a Graph,
    part: Graph,
    moved: HashMap<Value, Value>,
}

impl<'a> Making<'a> {
    fn new(whole: &'a Graph) -> Self {
        Self {
            whole,
            part: Graph::default(),
            moved: HashMap::new(),
        }
    }

    /// Adds a node of the whole graph, whose operands are there.
    fn push(&mut self, value: Value) {
        let mut node = self.whole.node(value).clone();
        for x in &mut node.inputs {
            *x = self.moved[x];
        }
        let moved = self.part.push(node);
        self.moved.insert(value, moved);
    }
}

/// Cuts a graph that takes optimizer steps. Errors: `graph.replicas` where a step depends on samples
/// otherwise than through gradients and means over the batch.
pub(crate) fn cut(graph: &Graph) -> Result<Parts, Error> {
    let live = dead::live(graph);
    let (varies, after) = (varies(graph), after(graph, &live));
    // What the update computes, and what it is given.
    let both = after.iter().zip(&live);
    let mut needed: Vec<bool> = both.map(|(after, live)| *after && *live).collect();
    let mut crossing = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        if !needed[i] {
            continue;
        }
        let own = Value(i as u32);
        if after[i] && batched(&node.shape) {
            let why =
                "a step on several devices is made of averages; this has the batch in its shape";
            return Err(Error::new("graph.replicas", why).at(node.origin));
        }
        for &x in &node.inputs {
            if after[x.index()] || !varies[x.index()] {
                needed[x.index()] = true;
            } else if !crossing.contains(&x) {
                let given = graph.node(x);
                if given.dtype != DType::F32 || batched(&given.shape) {
                    let why = format!(
                        "a step on several devices is made of averages; it cannot be made of {} {}",
                        given.dtype, given.shape
                    );
                    return Err(Error::new("graph.replicas", why).at(graph.node(own).origin));
                }
                crossing.push(x);
            }
        }
    }
    crossing.sort_unstable();
    let names: Vec<String> = (0..crossing.len())
        .map(|n| format!("{CROSSING}{n}"))
        .collect();
    let (mut gradient, mut update) = (Making::new(graph), Making::new(graph));
    for (i, node) in graph.nodes.iter().enumerate() {
        let value = Value(i as u32);
        if !after[i] && live[i] {
            gradient.push(value);
        }
        if let Ok(number) = crossing.binary_search(&value) {
            let given = update.part.push(Node {
                op: Op::Leaf(Leaf::Input(names[number].clone())),
                inputs: Vec::new(),
                ..node.clone()
            });
            update.moved.insert(value, given);
        } else if needed[i] {
            update.push(value);
        }
    }
    for (name, value) in &graph.outputs {
        let making = if after[value.index()] {
            &mut update
        } else {
            &mut gradient
        };
        let output = (name.clone(), making.moved[value]);
        making.part.outputs.push(output);
    }
    for (name, value) in names.iter().zip(&crossing) {
        let output = (name.clone(), gradient.moved[value]);
        gradient.part.outputs.push(output);
    }
    Ok(Parts {
        gradient: dead::remove(gradient.part),
        update: update.part,
        crossing: names,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;

    /// The mean over the batch of x·w, with its weight.
    fn linear(b: &mut Builder) -> (Value, Value) {
        let x = b
            .input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(3)])
            .unwrap();
        let w = b.parameter("w", &[3], "ones", 0).unwrap();
        let product = b.mul(x, w).unwrap();
        let squares = b.mul(product, product).unwrap();
        (b.mean(squares, &[], false).unwrap(), w)
    }

    /// The operators of a part, the leaves last.
    fn operators(graph: &Graph) -> String {
        let described = graph.nodes.iter().map(|node| node.op.describe());
        described.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_is_made_of_gradients_is_made_of_their_averages() {
        let mut b = Builder::new();
        let (loss, w) = linear(&mut b);
        let gradients = b.gradients(loss, &[w]).unwrap();
        // A penalty on the weights themselves, which depends on no sample, and a common norm.
        let decayed = b.affine(w, 0.1, 0.0).unwrap();
        let sum = b.add(gradients[0], decayed).unwrap();
        let clipped = b.clip_gradients(&[sum], 1.0).unwrap();
        b.sgd(&[w], &clipped, 0.9, false, 0.0).unwrap();
        b.output("loss", loss).unwrap();
        b.output("step", clipped[0]).unwrap();
        let parts = cut(&b.graph()).unwrap();
        let [name] = &parts.crossing[..] else {
            panic!("{:?}", parts.crossing);
        };
        let outputs = |graph: &Graph| {
            graph
                .outputs
                .iter()
                .map(|(name, _)| name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(outputs(&parts.gradient), ["loss", name]);
        assert_eq!(outputs(&parts.update), ["step"]);
        assert!(!dead::trains(&parts.gradient) && dead::trains(&parts.update));
        let (before, after) = (operators(&parts.gradient), operators(&parts.update));
        assert!(
            !before.contains("Sqrt") && !before.contains("momentum"),
            "{before}"
        );
        assert!(
            after.contains("Sqrt") && !after.contains("input x"),
            "{after}"
        );
        assert!(before.contains("parameter w") && after.contains("parameter w"));
        assert_eq!(varies(&parts.update), vec![false; parts.update.nodes.len()]);
    }

    #[test]
    fn gradients_of_which_a_loss_is_made_are_not_cut() {
        let mut b = Builder::new();
        let (loss, w) = linear(&mut b);
        let first = b.gradients(loss, &[w]).unwrap();
        let squares = b.mul(first[0], first[0]).unwrap();
        let penalty = b.sum(squares, &[], false).unwrap();
        let loss = b.add(loss, penalty).unwrap();
        let gradients = b.gradients(loss, &[w]).unwrap();
        b.sgd(&[w], &gradients, 0.0, false, 0.0).unwrap();
        b.output("loss", loss).unwrap();
        let parts = cut(&b.graph()).unwrap();
        assert_eq!((parts.crossing.len(), parts.gradient.outputs.len()), (1, 2));
        assert_eq!(parts.update.nodes.len(), 3, "{}", parts.update.describe());
    }

    #[test]
    fn a_loss_that_uses_what_is_a_gradient_too_is_each_replicas_own() {
        let mut b = Builder::new();
        let x = b.input("x", DType::F32, &[Dim::Batch(1)]).unwrap();
        let w = b.parameter("w", &[], "ones", 0).unwrap();
        let mean = b.mean(x, &[], false).unwrap();
        let loss = b.mul(w, mean).unwrap();
        // It is the mean itself.
        let gradients = b.gradients(loss, &[w]).unwrap();
        b.sgd(&[w], &gradients, 0.0, false, 0.0).unwrap();
        b.output("loss", loss).unwrap();
        let parts = cut(&b.graph()).unwrap();
        assert_eq!(parts.gradient.outputs[0].0, "loss");
        assert_eq!(parts.crossing.len(), 1);
    }

    #[test]
    fn running_statistics_move_by_averages_and_a_step_made_of_samples_is_refused() {
        let mut b = Builder::new();
        let x = b
            .input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(3)])
            .unwrap();
        let [scale, bias] =
            ["scale", "bias"].map(|name| b.parameter(name, &[3], "ones", 0).unwrap());
        let [mean, variance] = ["m", "v"].map(|name| b.buffer(name, &[3], "ones").unwrap());
        let y = b
            .batch_norm_train(x, scale, bias, mean, variance, 0.1, 1e-5)
            .unwrap();
        let squares = b.mul(y, y).unwrap();
        let loss = b.mean(squares, &[], false).unwrap();
        let gradients = b.gradients(loss, &[scale, bias]).unwrap();
        b.sgd(&[scale, bias], &gradients, 0.0, false, 0.0).unwrap();
        let parts = cut(&b.graph()).unwrap();
        // The statistics and two gradients.
        assert_eq!(parts.crossing.len(), 3);
        let updates = parts.update.nodes.iter().filter(|node| node.op.is_update());
        assert_eq!(updates.count(), 3);

        let mut b = Builder::new();
        let (loss, w) = linear(&mut b);
        let gradients = b.gradients(loss, &[w]).unwrap();
        let z = b
            .input("z", DType::F32, &[Dim::Batch(1), Dim::Fixed(3)])
            .unwrap();
        let by_sample = b.mul(gradients[0], z).unwrap();
        let sum = b.sum(by_sample, &[0], false).unwrap();
        b.sgd(&[w], &[sum], 0.0, false, 0.0).unwrap();
        let refused = cut(&b.graph()).unwrap_err();
        assert_eq!(
            (refused.code(), refused.node()),
            ("graph.replicas", Some(by_sample.0))
        );
    }
}
