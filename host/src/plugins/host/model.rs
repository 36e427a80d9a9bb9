//! `model`: plans, and the metadata of the task's weights. Sessions are in `session`.

use std::sync::Arc;

use compute::replicas::Share;
use wasmtime::component::Resource;

use super::State;
use super::devices::Request;
use super::error::{HostError, Result};
use super::graph::Builder;
use crate::plugins::bindings::hangar::pipeline::model;

/// A planned graph, and the bytes that it is charged for.
pub struct Plan {
    pub(super) plan: compute::Plan,
    /// What it was made of.
    graph: Arc<compute::Graph>,
    /// What each of so many devices runs of it, where it was asked for.
    share: Option<(u32, Share)>,
    bytes: usize,
}

impl Plan {
    /// What each of so many devices runs of it.
    pub(super) fn share(&mut self, devices: u32) -> std::result::Result<&Share, compute::Error> {
        let known = self.share.take().filter(|(known, _)| *known == devices);
        let share = match known {
            Some((_, share)) => share,
            None => Share::new(&self.plan, &self.graph, devices)?,
        };
        Ok(&self.share.insert((devices, share)).1)
    }
}

/// Plans that are kept for when the plugin asks for the same again.
const MOST_KNOWN: usize = 8;

/// Plans made before, the one asked for last at the end.
#[derive(Default)]
pub(super) struct Known(Vec<Made>);

struct Made {
    graph: Arc<compute::Graph>,
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
    ) -> Option<(compute::Plan, Arc<compute::Graph>)> {
        let same = |made: &Made| {
            (made.batch_size, made.options) == (batch_size, options) && *made.graph == *graph
        };
        let made = self.0.remove(self.0.iter().position(same)?);
        let found = (made.plan.clone(), Arc::clone(&made.graph));
        self.0.push(made);
        Some(found)
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
        let devices = self.devices_of(self.table.get(&on)?);
        let mut refused = None;
        for plan in plans.iter().filter(|_| devices > 1) {
            if let Err(error) = self.table.get_mut(plan)?.share(devices) {
                refused = Some(error);
            }
        }
        let plans: Vec<&Plan> = plans
            .iter()
            .map(|plan| Ok(self.table.get(plan)?))
            .collect::<wasmtime::Result<_>>()?;
        let whole: Vec<&compute::Plan> = plans.iter().map(|plan| &plan.plan).collect();
        let needed = compute::peak_bytes_of(&whole);
        let shares = plans.iter().filter_map(|plan| plan.share.as_ref());
        let parts: Vec<&compute::Plan> = shares.flat_map(|(_, share)| share.plans()).collect();
        let run = if devices > 1 { &parts } else { &whole };
        // Plans that no GPU can run fit none.
        let on_gpu = compute::cuda::session_bytes(run).unwrap_or(u64::MAX);
        let request = self.table.get_mut(&on)?;
        request.bytes = request.bytes.max(needed);
        request.gpu_bytes = request.gpu_bytes.max(on_gpu);
        request.reserved = Some(devices);
        if let Some(HostError::Told(error)) = refused.map(HostError::from) {
            request.refused.get_or_insert(error);
        }
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
    ) -> Result<(compute::Plan, Arc<compute::Graph>)> {
        if let Some(found) = self.plans.find(&graph, batch_size, options) {
            return Ok(found);
        }
        let graph = Arc::new(graph);
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
                graph: Arc::clone(&graph),
                batch_size,
                options,
                plan: plan.clone(),
                bytes,
            });
        }
        Ok((plan, graph))
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
            .and_then(|(plan, graph)| {
                let share = None;
                Ok(self.table.push(Plan {
                    plan,
                    graph,
                    share,
                    bytes,
                })?)
            });
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
            graph: Arc::new(b.graph()),
            batch_size,
            options,
            bytes: size as usize,
        }
    }

    #[test]
    fn a_plan_is_known_by_graph_batch_size_and_options() {
        let mut known = Known(vec![made(3, 8), made(4, 8)]);
        let options = compute::plan::Options::default();
        let (found, _) = known.find(&made(3, 8).graph, 8, options).unwrap();
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
