//! `model`: plans, and the metadata of the task's weights. Sessions are in `session`.

use wasmtime::component::Resource;

use super::State;
use super::devices::Request;
use super::error::{HostError, Result};
use super::graph::Builder;
use crate::plugins::bindings::hangar::pipeline::model;

/// A planned graph, and the bytes that it is charged for.
pub struct Plan {
    pub(super) plan: compute::Plan,
    bytes: usize,
}

/// Plans that are kept for when the plugin asks for the same again.
const MOST_KNOWN: usize = 8;

/// Plans made before, the one asked for last at the end.
#[derive(Default)]
pub(super) struct Known(Vec<Made>);

struct Made {
    graph: compute::Graph,
    batch_size: u32,
    options: compute::plan::Options,
    plan: compute::Plan,
    bytes: usize,
}

impl Known {
    /// The plan of this graph, batch size and options.
    fn find(
        &mut self,
        graph: &compute::Graph,
        batch_size: u32,
        options: compute::plan::Options,
    ) -> Option<compute::Plan> {
        let same = |made: &Made| {
            (made.batch_size, made.options) == (batch_size, options) && made.graph == *graph
        };
        let made = self.0.remove(self.0.iter().position(same)?);
        let plan = made.plan.clone();
        self.0.push(made);
        Some(plan)
    }

    /// Drops the plan that was asked for longest ago, and says how many bytes it was charged for.
    pub(super) fn forget(&mut self) -> Option<usize> {
        (!self.0.is_empty()).then(|| self.0.remove(0).bytes)
    }
}

impl model::Host for State {
    fn reserve(
        &mut self,
        on: Resource<Request>,
        plans: Vec<Resource<Plan>>,
    ) -> wasmtime::Result<()> {
        let plans: Vec<&compute::Plan> = plans
            .iter()
            .map(|plan| Ok(&self.table.get(plan)?.plan))
            .collect::<wasmtime::Result<_>>()?;
        let needed = compute::peak_bytes_of(&plans);
        // Plans that no GPU can run fit none.
        let on_gpu = compute::cuda::session_bytes(&plans).unwrap_or(u64::MAX);
        let request = self.table.get_mut(&on)?;
        request.bytes = request.bytes.max(needed);
        request.gpu_bytes = request.gpu_bytes.max(on_gpu);
        Ok(())
    }

    fn weights_metadata(&mut self) -> Result<Vec<(String, String)>> {
        Ok(data::weights::metadata(self.weights()?)?)
    }

    fn resume_metadata(&mut self) -> Result<Vec<(String, String)>> {
        Ok(data::weights::metadata(self.resumed()?)?)
    }
}

impl State {
    /// The file of the state that the user resumes from.
    pub(super) fn resumed(&self) -> Result<&std::path::Path> {
        let message = "this task resumes none that was interrupted";
        self.grants
            .resume
            .as_deref()
            .ok_or_else(|| HostError::new("resume.none", message))
    }

    /// The file of the weights given by the user.
    pub(super) fn weights(&self) -> Result<&std::path::Path> {
        self.grants
            .weights
            .as_deref()
            .ok_or_else(|| HostError::new("weights.none", "no weights were given to this task"))
    }
}

impl State {
    /// Plans a graph of so many bytes, unless the same was planned before.
    fn planned(
        &mut self,
        graph: compute::Graph,
        batch_size: u32,
        options: compute::plan::Options,
        bytes: usize,
    ) -> Result<compute::Plan> {
        if let Some(plan) = self.plans.find(&graph, batch_size, options) {
            return Ok(plan);
        }
        let plan = compute::Plan::with(&graph, batch_size, options)?;
        if self.plans.0.len() >= MOST_KNOWN
            && let Some(freed) = self.plans.forget()
        {
            self.graph_bytes = self.graph_bytes.saturating_sub(freed);
        }
        // Kept where there is room for it beside what the plugin holds.
        let total = self.graph_bytes.saturating_add(bytes);
        if total <= self.grants.limits.memory_bytes {
            self.graph_bytes = total;
            self.plans.0.push(Made {
                graph,
                batch_size,
                options,
                plan: plan.clone(),
                bytes,
            });
        }
        Ok(plan)
    }
}

impl model::HostPlan for State {
    fn create(
        &mut self,
        source: Resource<Builder>,
        batch_size: u32,
        options: Vec<(String, String)>,
    ) -> Result<Resource<Plan>> {
        let options = plan_options(&options)?;
        let bytes = self.table.get(&source)?.bytes;
        self.charge_graph(bytes)?;
        let graph = self.table.get(&source)?.graph.graph();
        let planned = self
            .planned(graph, batch_size, options, bytes)
            .and_then(|plan| Ok(self.table.push(Plan { plan, bytes })?));
        if planned.is_err() {
            self.graph_bytes -= bytes;
        }
        planned
    }

    fn peak_bytes(&mut self, plan: Resource<Plan>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&plan)?.plan.peak_bytes())
    }

    fn describe(&mut self, plan: Resource<Plan>) -> wasmtime::Result<String> {
        Ok(self.table.get(&plan)?.plan.describe())
    }

    fn drop(&mut self, plan: Resource<Plan>) -> wasmtime::Result<()> {
        let plan = self.table.delete(plan)?;
        self.graph_bytes = self.graph_bytes.saturating_sub(plan.bytes);
        Ok(())
    }
}

/// The options of a plan from the contract's words.
fn plan_options(given: &[(String, String)]) -> Result<compute::plan::Options> {
    let mut options = compute::plan::Options::default();
    for (name, value) in given {
        match &**name {
            "precision" => options.precision = compute::plan::Precision::parse(value)?,
            _ => {
                let message = format!("`{name}` is not an option of a plan; it has precision");
                return Err(HostError::new("option.unknown", message));
            }
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(size: u64, batch_size: u32) -> Made {
        let mut b = compute::Builder::new();
        let shape = [compute::Dim::Batch(1), compute::Dim::Fixed(size)];
        let y = b
            .input("x", compute::DType::F32, &shape)
            .and_then(|x| b.exp(x));
        b.output("y", y.unwrap()).unwrap();
        let options = compute::plan::Options::default();
        Made {
            plan: compute::Plan::with(&b.graph(), batch_size, options).unwrap(),
            graph: b.graph(),
            batch_size,
            options,
            bytes: size as usize,
        }
    }

    #[test]
    fn a_plan_is_known_by_graph_batch_size_and_options() {
        let mut known = Known(vec![made(3, 8), made(4, 8)]);
        let options = compute::plan::Options::default();
        let found = known.find(&made(3, 8).graph, 8, options).unwrap();
        assert_eq!(found.describe(), made(3, 8).plan.describe());
        let narrow = compute::plan::Options {
            precision: compute::plan::Precision::Bfloat16,
        };
        assert!(known.find(&made(3, 8).graph, 9, options).is_none());
        assert!(known.find(&made(3, 8).graph, 8, narrow).is_none());
        assert!(known.find(&made(5, 8).graph, 8, options).is_none());
        // The one asked for last goes last.
        assert_eq!(
            [known.forget(), known.forget(), known.forget()],
            [Some(4), Some(3), None]
        );
    }

    #[test]
    fn a_plans_options_are_checked() {
        let given = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let narrow = plan_options(&given("precision", "bfloat16")).unwrap();
        assert_eq!(narrow.precision, compute::plan::Precision::Bfloat16);
        for (name, value, code) in [
            ("precision", "float8", "option.value"),
            ("speed", "high", "option.unknown"),
        ] {
            match plan_options(&given(name, value)) {
                Err(HostError::Told(error)) => assert_eq!(error.code, code),
                other => panic!("{other:?}"),
            }
        }
    }
}
