//! What sessions of every backend have in common: the variables that plans share, and the checks of
//! what a run is given and asked for.

use std::collections::HashMap;

use crate::backend::ParameterInfo;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::Variable;
use crate::plan::{Plan, Port};
use crate::shape::Shape;
use crate::tensor::HostTensor;

/// The variables of a session, each once.
pub(crate) struct Variables {
    pub(crate) infos: Vec<ParameterInfo>,
    /// The number of each plan's variables among them.
    pub(crate) of_plans: Vec<Vec<usize>>,
    declared: Vec<(Variable, Shape)>,
}

impl Variables {
    /// Errors: `model.parameter` where two plans declare a variable differently.
    pub(crate) fn new(plans: &[Plan]) -> Result<Self, Error> {
        let mut variables = Self {
            infos: Vec::new(),
            of_plans: Vec::new(),
            declared: Vec::new(),
        };
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for plan in plans {
            let mut own = Vec::with_capacity(plan.variables.len());
            for declaration @ (variable, shape) in &plan.variables {
                let number = *numbers.entry(&variable.name).or_insert_with(|| {
                    variables.infos.push(ParameterInfo {
                        name: variable.name.clone(),
                        shape: shape.at(1),
                        role: variable.role,
                    });
                    variables.declared.push(declaration.clone());
                    variables.declared.len() - 1
                });
                let (_, other) = &variables.declared[number];
                if variables.declared[number] != *declaration {
                    let message = format!(
                        "two plans declare `{}` differently: {other} and {shape}, or another \
                         initializer, seed or role",
                        variable.name
                    );
                    return Err(Error::new("model.parameter", message));
                }
                own.push(number);
            }
            variables.of_plans.push(own);
        }
        Ok(variables)
    }

    /// The values that a variable starts with.
    pub(crate) fn initial(&self, number: usize) -> Result<Vec<f32>, Error> {
        let (variable, shape) = &self.declared[number];
        let mut values = vec![0.0; shape.elements(1)? as usize];
        let Variable {
            name,
            initializer,
            seed,
            ..
        } = variable;
        initializer.fill(*seed, name, &mut values);
        Ok(values)
    }

    /// The number of a variable. Errors: `model.parameter`.
    pub(crate) fn find(&self, name: &str) -> Result<usize, Error> {
        let found = self.infos.iter().position(|info| info.name == name);
        found.ok_or_else(|| {
            let message = format!("the session has no parameter `{name}`");
            Error::new("model.parameter", message)
        })
    }

    /// A variable's number, after checking that `value` fits it. Errors: `model.parameter`.
    pub(crate) fn accept(&self, name: &str, value: &HostTensor) -> Result<usize, Error> {
        let number = self.find(name)?;
        let shape = &self.infos[number].shape;
        if value.dtype() == DType::F32 && value.shape() == shape {
            return Ok(number);
        }
        let (dtype, given) = (value.dtype(), value.shape());
        let message = format!("`{name}` is float32 {shape:?}, not {dtype} {given:?}");
        Err(Error::new("model.parameter", message))
    }
}

/// No plan of this number. The error is `model.plan`.
pub(crate) fn no_plan(count: usize, plan: usize) -> Error {
    let message = format!("the session has {count} plans, not one numbered {plan}");
    Error::new("model.plan", message)
}

fn names(ports: &[Port]) -> String {
    if ports.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<_> = ports.iter().map(|port| &*port.name).collect();
    names.join(", ")
}

/// The tensors of a plan's inputs, in its order. Errors: `model.input` for a batch out of range, an
/// input that is unknown, missing, or of another dtype or shape.
pub(crate) fn check_inputs<'a>(
    plan: &Plan,
    batch: usize,
    inputs: &[(&str, &'a HostTensor)],
) -> Result<Vec<&'a HostTensor>, Error> {
    let refuse = |message: String| Err(Error::new("model.input", message));
    let most = plan.max_batch;
    if batch == 0 || batch as u64 > most {
        return refuse(format!(
            "a batch of {batch} samples; the plan takes 1 to {most}"
        ));
    }
    for (name, _) in inputs {
        if !plan.inputs.iter().any(|port| port.name == *name) {
            let known = names(&plan.inputs);
            return refuse(format!(
                "the plan has no input `{name}`; its inputs: {known}"
            ));
        }
    }
    let mut found = Vec::with_capacity(plan.inputs.len());
    for port in &plan.inputs {
        let Some((_, tensor)) = inputs.iter().find(|(name, _)| *name == port.name) else {
            let known = names(&plan.inputs);
            return refuse(format!(
                "the input `{}` is missing; the plan takes {known}",
                port.name
            ));
        };
        if tensor.dtype() != port.dtype || tensor.shape() != port.shape.at(batch) {
            return refuse(format!(
                "the input `{}` is {} {:?}, not {} {:?}",
                port.name,
                tensor.dtype(),
                tensor.shape(),
                port.dtype,
                port.shape.at(batch)
            ));
        }
        found.push(*tensor);
    }
    Ok(found)
}

/// An output of a plan, with the batch of the last run, which must have been of this plan. Errors:
/// `model.output`.
pub(crate) fn check_output<'a>(
    plan: &'a Plan,
    number: usize,
    name: &str,
    last: Option<(usize, usize)>,
) -> Result<(&'a Port, usize), Error> {
    let refuse = |message: String| Error::new("model.output", message);
    let port = plan.outputs.iter().find(|port| port.name == name);
    let port = port.ok_or_else(|| {
        let known = names(&plan.outputs);
        refuse(format!(
            "the plan has no output `{name}`; its outputs: {known}"
        ))
    })?;
    let Some((_, batch)) = last.filter(|(last, _)| *last == number) else {
        let message = format!("plan {number} is not the one that ran last, without an error");
        return Err(refuse(message));
    };
    Ok((port, batch))
}

/// Sums over samples of every plan's scalar float32 outputs.
pub(crate) struct Sums(Vec<Vec<(String, Sum)>>);

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    total: f64,
    samples: u64,
}

impl Sums {
    pub(crate) fn new(plans: &[Plan]) -> Self {
        let sums = |plan: &Plan| {
            plan.scalars()
                .map(|port| (port.name.clone(), Sum::default()))
                .collect()
        };
        Self(plans.iter().map(sums).collect())
    }

    /// Adds a run's scalars, in the plan's order: means over so many samples.
    pub(crate) fn add(&mut self, plan: usize, batch: usize, values: impl Iterator<Item = f32>) {
        for ((_, sum), value) in self.0[plan].iter_mut().zip(values) {
            sum.total += f64::from(value) * batch as f64;
            sum.samples += batch as u64;
        }
    }

    /// The mean since the last call; not-a-number where nothing ran. Errors: `model.plan`,
    /// `model.output`.
    pub(crate) fn take(&mut self, plan: usize, name: &str) -> Result<f64, Error> {
        let count = self.0.len();
        let sums = self.0.get_mut(plan).ok_or_else(|| no_plan(count, plan))?;
        let sum = sums
            .iter_mut()
            .find(|(own, _)| own == name)
            .ok_or_else(|| {
                let message = format!("plan {plan} has no scalar float32 output `{name}`");
                Error::new("model.output", message)
            })?;
        let Sum { total, samples } = std::mem::take(&mut sum.1);
        Ok(if samples == 0 {
            f64::NAN
        } else {
            total / samples as f64
        })
    }
}
