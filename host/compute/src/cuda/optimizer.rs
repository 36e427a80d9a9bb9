//! Optimizer steps: many parameters in one launch.

use super::lower::Lowering;
use super::program::{Launch, Target};
use crate::graph::Value;
use crate::ops::Op;
use crate::ops::optimizer::Optimizer;
use crate::plan::{Place, Plan};

/// Optimizer steps of one rule, done in one launch.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) rule: Optimizer,
    /// The plan's steps.
    pub(super) nodes: Vec<Value>,
}

/// Bytes of a group's values of a step.
pub(super) const STEP_BYTES: u64 = 16;
/// Bytes of all groups' values of a step, and of its number.
pub(super) fn step_bytes(groups: &[Group]) -> u64 {
    groups.len() as u64 * STEP_BYTES + size_of::<u64>() as u64
}

/// The most parameters of one launch: the grid's limit along y.
const GROUP_NODES: usize = 65_535;

/// The plan's optimizer steps in groups: neighbours of one rule whose gradients are results, so
/// that none sees another's change.
pub(super) fn groups(plan: &Plan) -> Vec<Group> {
    let mut groups: Vec<(Group, bool)> = Vec::new();
    for &step in &plan.steps {
        let node = plan.graph.node(step);
        let Op::Optimize(rule) = &node.op else {
            continue;
        };
        // An average is seen by none.
        let follows = matches!(rule, Optimizer::Average { .. });
        let alone = !follows && matches!(plan.places[node.inputs[1].index()], Place::Variable(_));
        match groups.last_mut() {
            Some((group, false))
                if !alone && group.rule == *rule && group.nodes.len() < GROUP_NODES =>
            {
                group.nodes.push(step);
            }
            _ => groups.push((
                Group {
                    rule: *rule,
                    nodes: vec![step],
                },
                alone,
            )),
        }
    }
    groups.into_iter().map(|(group, _)| group).collect()
}

impl Lowering<'_> {
    /// Launches every group.
    pub(super) fn optimize(&mut self) {
        let mut first = 0;
        for (number, group) in groups(self.plan).iter().enumerate() {
            let elements = |v: &Value| {
                let parameter = self.node(*v).inputs[0];
                self.shape(parameter).iter().product::<usize>()
            };
            let most = group.nodes.iter().map(elements).max().unwrap_or(0);
            let targets = self.at.targets + (first * size_of::<Target>()) as u64;
            let step = self.at.steps + number as u64 * STEP_BYTES;
            let blocks = [most.div_ceil(256).clamp(1, 1024), group.nodes.len(), 1];
            let launch = match group.rule {
                Optimizer::Sgd {
                    momentum,
                    nesterov,
                    decay,
                } => Launch::blocks("sgd", blocks)
                    .with(targets)
                    .with(step)
                    .with(momentum as f32)
                    .with(decay as f32)
                    .with(i32::from(nesterov)),
                Optimizer::Average { .. } => {
                    Launch::blocks("average", blocks).with(targets).with(step)
                }
                Optimizer::Adam {
                    beta1,
                    beta2,
                    epsilon,
                    decay,
                    decoupled,
                } => {
                    let added = if decoupled { 0.0 } else { decay };
                    Launch::blocks("adam", blocks)
                        .with(targets)
                        .with(step)
                        .with(beta1 as f32)
                        .with(beta2 as f32)
                        .with((1.0 - beta1) as f32)
                        .with((1.0 - beta2) as f32)
                        .with(epsilon as f32)
                        .with(added as f32)
                }
            };
            self.launch(launch);
            first += group.nodes.len();
        }
    }
}
