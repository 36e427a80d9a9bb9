//! What each of several devices runs of a plan.

use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Value};
use crate::passes::cut::{cut, varies};
use crate::plan::{Options, Plan};
use crate::shape::{Dim, Shape};

/// How the outputs of replicas become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gather {
    /// One after the other along this axis, which is the batch.
    Rows(usize),
    /// Their average.
    Mean,
    /// They are the same.
    First,
    /// They are the same, and made of averages.
    Update,
}

/// What each of several devices runs of a plan.
#[derive(Debug, Clone)]
pub struct Share {
    pub(super) whole: Plan,
    /// Runs on a replica's samples; on the whole batch, on the first device alone, where there is no
    /// gathering the outputs.
    pub(super) part: Plan,
    pub(super) split: bool,
    pub(super) update: Option<Update>,
    pub(super) gathers: Vec<(String, Gather)>,
}

#[derive(Debug, Clone)]
pub(super) struct Update {
    pub(super) plan: Plan,
    /// Outputs of the part that it takes as inputs.
    pub(super) crossing: Vec<String>,
}

/// The axis of a shape that is the batch; none where there is none or more than one.
pub(super) fn batch_axis(shape: &Shape) -> Option<usize> {
    let is_batch = |dim: &Dim| matches!(dim, Dim::Batch(_));
    let axis = shape.0.iter().position(is_batch)?;
    (!shape.0[axis + 1..].iter().any(is_batch)).then_some(axis)
}

/// How the outputs of a graph are gathered; none of one for which there is no way.
fn gathers(graph: &Graph, trains: bool) -> Vec<(String, Option<Gather>)> {
    let varies = varies(graph);
    let gather = |(name, value): &(String, Value)| {
        let node = graph.node(*value);
        let averaged = node.dtype == DType::F32 && (trains || node.shape.rank() == 0);
        let batched = node.shape.0.iter().any(|dim| matches!(dim, Dim::Batch(_)));
        let gather = match batch_axis(&node.shape) {
            _ if !varies[value.index()] => Some(Gather::First),
            Some(axis) => Some(Gather::Rows(axis)),
            None => (averaged && !batched).then_some(Gather::Mean),
        };
        (name.clone(), gather)
    };
    graph.outputs.iter().map(gather).collect()
}

impl Share {
    /// What each of so many devices runs of a plan, given the graph that it was made of. Errors:
    /// `graph.replicas` where an optimizer step depends on samples otherwise than through gradients and
    /// averages, or an output of a graph that trains is neither float32 nor of the batch.
    pub fn new(whole: &Plan, graph: &Graph, replicas: u32) -> Result<Self, Error> {
        let most = u32::try_from(whole.max_batch()).unwrap_or(u32::MAX);
        let rows = most.div_ceil(replicas.max(1));
        let options = Options {
            precision: whole.precision,
        };
        let whole = whole.clone();
        if !whole.trains() {
            let gathers: Option<Vec<_>> = gathers(graph, false)
                .into_iter()
                .map(|(name, gather)| Some((name, gather?)))
                .collect();
            let Some(gathers) = gathers else {
                let part = whole.clone();
                let names = part.outputs().iter().map(|port| port.name.clone());
                return Ok(Self {
                    gathers: names.map(|name| (name, Gather::First)).collect(),
                    whole,
                    part,
                    split: false,
                    update: None,
                });
            };
            return Ok(Self {
                part: Plan::with(graph, rows, options)?,
                whole,
                split: true,
                update: None,
                gathers,
            });
        }
        let parts = cut(graph)?;
        let mut of_outputs = Vec::new();
        for (name, gather) in gathers(&parts.gradient, true) {
            let gather = gather.ok_or_else(|| {
                let message = format!(
                    "the output `{name}` of a graph that trains cannot be gathered from several devices: \
                     it is neither float32 nor of the batch"
                );
                Error::new("graph.replicas", message)
            })?;
            if !parts.crossing.contains(&name) {
                of_outputs.push((name, gather));
            }
        }
        let updated = parts.update.outputs.iter();
        of_outputs.extend(updated.map(|(name, _)| (name.clone(), Gather::Update)));
        Ok(Self {
            part: Plan::part(&parts.gradient, rows, options)?,
            update: Some(Update {
                plan: Plan::part(&parts.update, most, options)?,
                crossing: parts.crossing,
            }),
            whole,
            split: true,
            gathers: of_outputs,
        })
    }

    /// The plans that each device opens.
    pub fn plans(&self) -> impl Iterator<Item = &Plan> {
        let update = self.update.as_ref().map(|update| &update.plan);
        std::iter::once(&self.part).chain(update)
    }
}
