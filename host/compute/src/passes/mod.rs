//! Passes over graphs, each a function of the graph alone.
//!
//! A plan's graph goes through [`optimize`]; gradients are made before.

mod common;
mod constants;
pub(crate) mod cut;
pub(crate) mod dead;
pub(crate) mod epilogue;
mod fuse;
#[cfg(test)]
mod goldens;
pub(crate) mod gradient;
pub(crate) mod in_place;
pub(crate) mod memory;
mod norm;
pub(crate) mod precision;
pub(crate) mod prologue;
mod rewrite;
mod simplify;
#[cfg(any(test, debug_assertions))]
mod verify;

use crate::graph::Graph;

/// A name and a function from graph to graph.
type Pass = (&'static str, fn(Graph) -> Graph);

/// The passes after dead code is removed, in order.
pub(crate) const PASSES: &[Pass] = &[
    ("constants", constants::fold),
    ("algebra", simplify::simplify),
    ("common subexpressions", common::merge),
    ("batch norm", norm::fold),
    ("fusion", fuse::fuse),
    ("dead code", dead::remove),
];

/// A graph that takes, keeps and gives the same, with fewer or cheaper nodes.
pub(crate) fn optimize(graph: &Graph) -> Graph {
    let start = dead::remove(graph.clone());
    PASSES.iter().fold(start, |graph, pass| apply(*pass, graph))
}

#[cfg(not(any(test, debug_assertions)))]
fn apply((_, pass): Pass, graph: Graph) -> Graph {
    pass(graph)
}

/// Applies a pass, and ends the program where what it makes is wrong.
#[cfg(any(test, debug_assertions))]
fn apply((name, pass): Pass, graph: Graph) -> Graph {
    let after = pass(graph.clone());
    assert_eq!(verify::verify(&graph, &after), Ok(()), "after {name}");
    after
}
