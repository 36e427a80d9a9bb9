//! Where a session keeps what on the GPU: one allocation, with every place known before it is made.

use std::collections::HashMap;

use super::driver::{LIBRARY_WORKSPACE_BYTES, MOST_WORKSPACE_BYTES};
use super::lower::{Addresses, Part, lower};
use super::optimizer::{STEP_BYTES, groups, step_bytes};
use super::program::{Command, ErrorWord, Target};
use super::signal;
use crate::error::Error;
use crate::ops::Op;
use crate::ops::signal::Stft;
use crate::plan::Plan;

/// Every part starts at a multiple of this many bytes, as cudaMalloc's results do.
const ALIGNMENT: u64 = 256;
/// The driver gives memory in multiples of so many bytes.
const GRANULE: u64 = 2 << 20;
/// Batches that are on their way to the GPU, or run there, at once.
pub(super) const SLOTS: usize = 2;

/// Offsets in bytes from the start of a session's memory.
#[derive(Debug)]
pub(super) struct Layout {
    /// By variable name.
    pub(super) variables: HashMap<String, u64>,
    /// By plan.
    pub(super) plans: Vec<PlanLayout>,
    pub(super) tables: Vec<(Stft, u64)>,
    /// Error word and scalars.
    pub(super) results: u64,
    pub(super) results_bytes: u64,
    pub(super) arena: u64,
    pub(super) workspace: u64,
    pub(super) workspace_bytes: u64,
    /// Of cuBLASLt and cuDNN.
    pub(super) library: u64,
    pub(super) library_bytes: u64,
    pub(super) staging: [u64; SLOTS],
    pub(super) staging_bytes: u64,
    /// All of it, as the driver gives it.
    pub(super) total_bytes: u64,
}

/// The parts of one plan.
#[derive(Debug)]
pub(super) struct PlanLayout {
    pub(super) constants: Vec<u64>,
    /// What the plan keeps between runs.
    pub(super) kept: u64,
    pub(super) targets: u64,
    pub(super) steps: u64,
    /// Of the number of the step, from `steps`.
    step: u64,
    /// Of each input within a staging buffer, then of the step values; all bytes of a run.
    pub(super) staged: Vec<u64>,
}

struct Cursor(u64);

impl Cursor {
    fn take(&mut self, bytes: u64) -> u64 {
        let at = self.0;
        self.0 = at.saturating_add(bytes).next_multiple_of(ALIGNMENT);
        at
    }
}

impl Layout {
    /// The places for plans that share a session. Errors: `graph.limit`.
    pub(super) fn new(plans: &[&Plan]) -> Result<Self, Error> {
        let mut cursor = Cursor(0);
        let mut variables = HashMap::new();
        for (variable, shape) in plans.iter().flat_map(|plan| &plan.variables) {
            if !variables.contains_key(&variable.name) {
                let at = cursor.take(shape.elements(1)? * 4);
                variables.insert(variable.name.clone(), at);
            }
        }
        let mut tables: Vec<(Stft, u64)> = Vec::new();
        let mut layouts = Vec::new();
        let (mut staging_bytes, mut scalar_count) = (0, 0);
        for plan in plans {
            let constants = plan
                .constants
                .iter()
                .map(|&v| Ok(cursor.take(plan.bytes(v, 1)?)));
            let constants = constants.collect::<Result<_, Error>>()?;
            for step in plan.all_steps() {
                if let Op::StftPower(stft) | Op::StftPowerGradient(stft) = &plan.graph.node(step).op
                    && !tables.iter().any(|(known, _)| known == stft)
                {
                    tables.push((*stft, cursor.take(signal::table_bytes(stft))));
                }
            }
            let groups = groups(plan);
            let targets: usize = groups.iter().map(|group| group.nodes.len()).sum();
            let mut staged = Cursor(0);
            let inputs = plan
                .inputs
                .iter()
                .map(|port| Ok(staged.take(plan.bytes(port.value, plan.max_batch)?)));
            let mut places: Vec<u64> = inputs.collect::<Result<_, Error>>()?;
            places.push(staged.take(step_bytes(&groups)));
            staging_bytes = staging_bytes.max(staged.0);
            scalar_count = scalar_count.max(plan.scalars().count());
            layouts.push(PlanLayout {
                constants,
                kept: cursor.take(plan.kept_bytes),
                targets: cursor.take((targets * size_of::<Target>()) as u64),
                steps: cursor.take(step_bytes(&groups)),
                step: groups.len() as u64 * STEP_BYTES,
                staged: places,
            });
        }
        let results_bytes = (size_of::<ErrorWord>() + 4 * scalar_count) as u64;
        let results = cursor.take(results_bytes);
        let arena_bytes = plans.iter().map(|plan| plan.arena_bytes).max().unwrap_or(0);
        let arena = cursor.take(arena_bytes);
        let mut workspace_bytes = 0;
        let (mut uses_libraries, mut convolves) = (false, false);
        for plan in plans {
            let unplaced = Addresses {
                variables: vec![0; plan.variables.len()],
                constants: vec![0; plan.constants.len()],
                ..Addresses::default()
            };
            let batch = usize::try_from(plan.max_batch).unwrap_or(usize::MAX);
            for part in [Part::Prologue, Part::Run] {
                let lowered = lower(plan, part, batch, &unplaced, None)?;
                workspace_bytes = workspace_bytes.max(lowered.workspace_bytes);
                convolves |= lowered
                    .commands
                    .iter()
                    .any(|command| matches!(command, Command::Convolution(..)));
                uses_libraries |= lowered.commands.iter().any(|command| {
                    matches!(command, Command::Product(..) | Command::Convolution(..))
                });
            }
        }
        let workspace = cursor.take(workspace_bytes);
        let library_bytes = match (uses_libraries, convolves) {
            (false, _) => 0,
            (true, false) => LIBRARY_WORKSPACE_BYTES,
            (true, true) => (arena_bytes / 2).clamp(LIBRARY_WORKSPACE_BYTES, MOST_WORKSPACE_BYTES),
        };
        let library = cursor.take(library_bytes);
        let staging = std::array::from_fn(|_| cursor.take(staging_bytes));
        Ok(Self {
            variables,
            plans: layouts,
            tables,
            results,
            results_bytes,
            arena,
            workspace,
            workspace_bytes,
            library,
            library_bytes,
            staging,
            staging_bytes,
            total_bytes: cursor.0.max(1).next_multiple_of(GRANULE),
        })
    }

    /// The addresses of a plan's values, where the session's memory starts at `base`.
    pub(super) fn addresses(&self, plan: usize, of: &Plan, base: u64) -> Addresses {
        let own = &self.plans[plan];
        Addresses {
            arena: base + self.arena,
            kept: base + own.kept,
            workspace: base + self.workspace,
            variables: of
                .variables
                .iter()
                .map(|(v, _)| base + self.variables[&v.name])
                .collect(),
            constants: own.constants.iter().map(|offset| base + offset).collect(),
            tables: self
                .tables
                .iter()
                .map(|(stft, offset)| (*stft, base + offset))
                .collect(),
            targets: base + own.targets,
            steps: base + own.steps,
            step: base + own.steps + own.step,
            results: base + self.results,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Conv2d;
    use crate::{Builder, DType, Dim};

    /// The libraries' bytes of a convolution of images of so many pixels a side, and the arena's.
    fn bytes(side: u64) -> (u64, u64) {
        let mut b = Builder::new();
        let images = [
            Dim::Batch(1),
            Dim::Fixed(3),
            Dim::Fixed(side),
            Dim::Fixed(side),
        ];
        let x = b.input("x", DType::F32, &images).unwrap();
        let weight = b.parameter("weight", &[16, 3, 3, 3], "ones", 0).unwrap();
        let y = b.conv2d(x, weight, None, Conv2d::default()).unwrap();
        b.output("y", y).unwrap();
        let plan = Plan::new(&b.graph(), 16).unwrap();
        (
            Layout::new(&[&plan]).unwrap().library_bytes,
            plan.arena_bytes,
        )
    }

    #[test]
    fn convolutions_have_a_workspace_of_half_the_arena_within_bounds() {
        assert_eq!(bytes(16).0, LIBRARY_WORKSPACE_BYTES);
        let (library, arena) = bytes(256);
        assert!(library > LIBRARY_WORKSPACE_BYTES && library < MOST_WORKSPACE_BYTES);
        assert_eq!(library, arena / 2);
        assert_eq!(bytes(2048).0, MOST_WORKSPACE_BYTES);
    }
}
