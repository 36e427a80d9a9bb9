//! What a backend does: open plans, and run them.

use std::sync::atomic::AtomicBool;

use crate::error::Error;
use crate::graph::Role;
use crate::plan::Plan;
use crate::schedule::Schedule;
use crate::tensor::HostTensor;

/// A variable of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterInfo {
    /// The dotted name.
    pub name: String,
    /// The sizes.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

/// A device that runs plans.
pub trait Backend: Send + Sync {
    /// The device: `cpu` or `cuda:N`.
    fn device(&self) -> &str;

    /// Allocates and initialises all that the plans need. Errors: `memory.exceeds-lease` where that
    /// is more than `budget_bytes`, `model.parameter` where plans disagree on a variable.
    fn open(&self, plans: Vec<Plan>, budget_bytes: u64) -> Result<Box<dyn Session>, Error>;
}

/// Plans ready to run, with their variables.
pub trait Session: Send {
    /// The device on which the kernels run.
    fn device(&self) -> &str;

    /// Runs a plan on `batch` samples. Errors: `model.plan`, `model.input` for an input that is
    /// missing or does not fit, `data.label`, `task.cancelled` once `cancel` is set. A device may
    /// go on after this returns: an error of its own, or of the data, may come with a later call.
    fn run(
        &mut self,
        plan: usize,
        batch: usize,
        inputs: &[(&str, &HostTensor)],
        cancel: &AtomicBool,
    ) -> Result<(), Error>;

    /// An output of the last run of a plan. Errors: `model.plan`, `model.output`.
    fn output(&mut self, plan: usize, name: &str) -> Result<HostTensor, Error>;

    /// The mean of a scalar float32 output over the samples of the runs since the last call for it;
    /// not-a-number where there were none. Errors: `model.plan`, `model.output`.
    fn mean(&mut self, plan: usize, name: &str) -> Result<f64, Error>;

    /// Every variable, in the order of the plans.
    fn parameters(&self) -> Vec<ParameterInfo>;

    /// A variable's values. Errors: `model.parameter`.
    fn download(&mut self, name: &str) -> Result<HostTensor, Error>;

    /// Replaces a variable's values. Errors: `model.parameter` for an unknown name or another shape.
    fn upload(&mut self, name: &str, value: &HostTensor) -> Result<(), Error>;

    /// Sets the learning rates of the steps to come.
    fn set_schedule(&mut self, schedule: Schedule);

    /// The learning rate of the next step.
    fn learning_rate(&self) -> f64;

    /// Optimizer steps done.
    fn steps(&self) -> u64;

    /// Goes on as after so many optimizer steps: the learning rate, an optimizer's corrections and
    /// random numbers depend on it. With every variable uploaded as it was then, the runs to come
    /// give the bits that they would have given.
    fn set_steps(&mut self, steps: u64);

    /// Memory that the session holds on its device, in bytes.
    fn used_bytes(&self) -> u64;

    /// The most host memory that runs take beside `used_bytes`, in bytes: what libraries and
    /// kernels pack, and what a batch is staged in.
    fn scratch_bytes(&self) -> u64;
}
