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

impl model::HostPlan for State {
    fn create(
        &mut self,
        source: Resource<Builder>,
        batch_size: u32,
        options: Vec<(String, String)>,
    ) -> Result<Resource<Plan>> {
        if let Some((name, _)) = options.first() {
            let message = format!("`{name}` is not an option of a plan; there are none");
            return Err(HostError::new("option.unknown", message));
        }
        let bytes = self.table.get(&source)?.bytes;
        self.charge_graph(bytes)?;
        let graph = self.table.get(&source)?.graph.graph();
        let planned = compute::Plan::new(&graph, batch_size)
            .map_err(HostError::from)
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
