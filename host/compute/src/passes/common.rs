//! Common subexpressions: nodes that compute the same from the same become one.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::rewrite::rewrite;
use crate::dtype::DType;
use crate::graph::{Graph, Leaf, Node, Value};
use crate::ops::Op;
use crate::shape::Shape;

/// What equal nodes have in common.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    /// A hash of the elements.
    Constant(u64, DType, Shape),
    /// Every field but the origin.
    Computed(String),
}

fn key(node: &Node) -> Option<Key> {
    match &node.op {
        Op::Leaf(Leaf::Constant(bytes)) => {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            Some(Key::Constant(
                hasher.finish(),
                node.dtype,
                node.shape.clone(),
            ))
        }
        // A name is used once, an update is made each time, and what repeats elements is cheaper to
        // make again than to keep.
        Op::Leaf(_) | Op::Expand => None,
        op if op.is_update() => None,
        // Random numbers of one seed at one place of one shape are the same draw.
        _ => {
            let anywhere = Node {
                origin: Value(0),
                ..node.clone()
            };
            Some(Key::Computed(format!("{anywhere:?}")))
        }
    }
}

/// The graph with each such node once.
pub(crate) fn merge(graph: Graph) -> Graph {
    let mut seen: HashMap<Key, Value> = HashMap::new();
    rewrite(graph, |new, node| {
        let Some(key) = key(&node) else {
            return new.push(node);
        };
        match seen.get(&key) {
            // Constants may differ in spite of their hash.
            Some(&known) if new.node(known).op == node.op || !is_constant(&node) => known,
            _ => {
                let value = new.push(node);
                seen.insert(key, value);
                value
            }
        }
    })
}

fn is_constant(node: &Node) -> bool {
    matches!(node.op, Op::Leaf(Leaf::Constant(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::shape::Dim;

    fn count(graph: &Graph, op: &str) -> usize {
        let lines = graph.describe();
        lines.lines().filter(|line| line.contains(op)).count()
    }

    #[test]
    fn the_same_of_the_same_is_computed_once() {
        let mut b = Builder::new();
        let x = b.input("x", DType::F32, &[Dim::Batch(1)]).unwrap();
        let products = [2.0, 2.0, 3.0].map(|k| {
            let k = b.scalar(k).unwrap();
            let product = b.mul(x, k).unwrap();
            b.exp(product).unwrap()
        });
        for (i, y) in products.into_iter().enumerate() {
            b.output(&i.to_string(), y).unwrap();
        }
        // What differs in the sign of a zero differs.
        for (i, offset) in [0.0, -0.0].into_iter().enumerate() {
            let y = b.affine(x, 2.0, offset).unwrap();
            b.output(&format!("affine {i}"), y).unwrap();
        }
        let graph = merge(b.graph());
        let counts = ["constant", "Mul", "Exp", "Affine"].map(|op| count(&graph, op));
        assert_eq!(counts, [2, 2, 2, 2], "{}", graph.describe());
        assert_eq!(graph.outputs[0].1, graph.outputs[1].1);
        assert_ne!(graph.outputs[0].1, graph.outputs[2].1);
    }

    #[test]
    fn random_numbers_are_merged_only_where_they_are_the_same_draw() {
        let mut b = Builder::new();
        let x = b.input("x", DType::F32, &[Dim::Batch(1)]).unwrap();
        let mut outputs = Vec::new();
        for seed in [1, 1, 2] {
            outputs.push(b.random_uniform(&[Dim::Batch(1)], seed).unwrap());
            outputs.push(b.dropout(x, 0.5, seed).unwrap());
        }
        outputs.push(
            b.random_uniform(&[Dim::Batch(1), Dim::Fixed(2)], 1)
                .unwrap(),
        );
        for (i, y) in outputs.into_iter().enumerate() {
            b.output(&i.to_string(), y).unwrap();
        }
        let graph = merge(b.graph());
        assert_eq!([count(&graph, "Random"), count(&graph, "Dropout")], [3, 2]);
    }
}
