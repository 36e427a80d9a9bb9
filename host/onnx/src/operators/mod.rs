//! ONNX's operators, by family.

mod attention;
mod elementwise;
mod index;
mod layers;
mod losses;
mod movement;
mod reduce;
mod resize;
mod shapes;
mod windows;

use crate::error::Refusal;
use crate::graph::Item;
use crate::import::Node;
use crate::proto::NodeProto;
use compute::Value;

/// An operator's results; none where it is of another family.
type Results = Result<Option<Vec<Item>>, Refusal>;

type Family = (&'static [&'static str], fn(&mut Node<'_>) -> Results);

/// The names of each family's operators, and how they are converted.
const FAMILIES: [Family; 10] = [
    (elementwise::NAMES, elementwise::convert),
    (shapes::NAMES, shapes::convert),
    (movement::NAMES, movement::convert),
    (reduce::NAMES, reduce::convert),
    (layers::NAMES, layers::convert),
    (losses::NAMES, losses::convert),
    (windows::NAMES, windows::convert),
    (attention::NAMES, attention::convert),
    (resize::NAMES, resize::convert),
    (index::NAMES, index::convert),
];

/// The names of all operators that are converted.
pub fn names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|(names, _)| *names).copied()
}

/// An operator's name, with its set where that is not ONNX's own.
pub(crate) fn name(node: &NodeProto) -> String {
    match &*node.domain {
        "" | "ai.onnx" => node.op_type.clone(),
        domain => format!("{domain}.{}", node.op_type),
    }
}

pub(crate) fn is_supported(node: &NodeProto) -> bool {
    let name = name(node);
    names().any(|known| known == name)
}

/// Adds an operator to the computation: its results.
pub(crate) fn convert(node: &mut Node<'_>) -> Result<Vec<Item>, Refusal> {
    for (names, family) in FAMILIES {
        if names.contains(&node.operator())
            && let Some(results) = family(node)?
        {
            return Ok(results);
        }
    }
    Err(Refusal::Operator)
}

/// One computed result.
fn one(value: Value) -> Results {
    Ok(Some(vec![Item::Computed(value)]))
}
