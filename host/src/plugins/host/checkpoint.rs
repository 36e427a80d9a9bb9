//! `model`: what a session holds, saved to files and loaded from them, one tensor at a time.

use std::collections::HashMap;

use compute::DType;
use compute::graph::Role;
use data::weights::{Reader, TensorInfo};
use wasmtime::component::Resource;

use super::State;
use super::error::{HostError, Result};
use super::session::Session;
use super::storage::Checkpoint;
use crate::worker::protocol::FromWorker;

/// Metadata whose keys begin so is the host's.
const RESERVED: &str = "hangar.";
/// The optimizer steps done, in the metadata of a state.
const STEPS: &str = "hangar.steps";
/// The parameters of the task that saved a state, there.
pub const PARAMETERS: &str = "hangar.parameters";

/// The session's variables of some roles, as a file has them.
fn variables(session: &Session, roles: &[Role]) -> Vec<TensorInfo> {
    let mut parameters = session.session.parameters();
    parameters.retain(|parameter| roles.contains(&parameter.role));
    parameters
        .into_iter()
        .map(|parameter| (parameter.name, DType::F32, parameter.shape))
        .collect()
}

/// What weights are.
const WEIGHTS: [Role; 2] = [Role::Parameter, Role::Buffer];
/// What a training goes on from.
const STATE: [Role; 3] = [Role::Parameter, Role::Buffer, Role::OptimizerState];

impl State {
    fn write(
        &mut self,
        session: &Resource<Session>,
        checkpoint: Checkpoint,
        roles: &[Role],
        metadata: &[(String, String)],
    ) -> Result<()> {
        let session = self.table.get_mut(session)?;
        let infos = variables(session, roles);
        let path = self.folder.checkpoint(&checkpoint)?;
        data::weights::write(&path, &infos, metadata, |number| {
            session.on_device(|session| session.download(&infos[number].0))
        })?;
        self.tell(FromWorker::Artifact {
            name: checkpoint.file(),
        });
        Ok(())
    }

    /// Saves parameters and buffers.
    pub(super) fn write_weights(
        &mut self,
        session: &Resource<Session>,
        name: &str,
        metadata: &[(String, String)],
    ) -> Result<()> {
        self.write(session, Checkpoint::weights(name), &WEIGHTS, metadata)
    }

    /// Saves all variables and the optimizer steps done.
    pub(super) fn write_state(
        &mut self,
        session: &Resource<Session>,
        name: &str,
        mut metadata: Vec<(String, String)>,
    ) -> Result<()> {
        if let Some((key, _)) = metadata.iter().find(|(key, _)| key.starts_with(RESERVED)) {
            let message = format!(
                "the key `{}` begins with `{RESERVED}`, as the host's own do: name it otherwise",
                key.escape_debug()
            );
            return Err(HostError::new("model.metadata", message));
        }
        let steps = self.table.get(session)?.session.steps();
        metadata.push((STEPS.to_owned(), steps.to_string()));
        metadata.push((PARAMETERS.to_owned(), self.grants.parameters.clone()));
        self.write(session, Checkpoint::state(name), &STATE, &metadata)
    }

    /// Loads the weights given to the task. Gives the names of parameters that kept their values.
    pub(super) fn read_weights(
        &mut self,
        session: &Resource<Session>,
        options: &[(String, String)],
    ) -> Result<Vec<String>> {
        self.check_cancelled()?;
        if let Some((name, _)) = options
            .iter()
            .find(|(name, _)| !matches!(&**name, "ignore" | "replace"))
        {
            let message = format!("`{name}` is not an option of loading; it has ignore, replace");
            return Err(HostError::new("option.unknown", message));
        }
        let matches = |option: &str, fits: &dyn Fn(&str) -> bool| {
            let mut given = options.iter().filter(|(name, _)| name == option);
            given.any(|(_, value)| fits(value))
        };
        let mut reader = Reader::open(self.weights()?)?;
        let session = self.table.get_mut(session)?;
        // What is replaced stays as it is where the file has nothing that fits.
        let replaced = |name: &str, shape: &[usize]| {
            let mut given = reader.tensors().iter();
            matches("replace", &|start| name.starts_with(start))
                && !given.any(|(own, _, given)| own == name && given == shape)
        };
        let (kept, wanted): (Vec<TensorInfo>, Vec<TensorInfo>) = variables(session, &WEIGHTS)
            .into_iter()
            .partition(|(name, _, shape)| replaced(name, shape));
        let mut kept: Vec<String> = kept.into_iter().map(|(name, ..)| name).collect();
        kept.sort();
        let ignored = |name: &str| matches("ignore", &|end| name.ends_with(end));
        let given: Vec<usize> = (0..reader.tensors().len())
            .filter(|&number| {
                let name = &reader.tensors()[number].0;
                !ignored(name) && !kept.contains(name)
            })
            .collect();
        load(session, &mut reader, &given, wanted)?;
        Ok(kept)
    }

    /// Loads the state that the task resumes from.
    pub(super) fn read_state(&mut self, session: &Resource<Session>) -> Result<()> {
        self.check_cancelled()?;
        let path = self.resumed()?;
        let mut reader = Reader::open(path)?;
        let steps = reader.metadata().iter().find(|(key, _)| key == STEPS);
        let Some(steps) = steps.and_then(|(_, steps)| steps.parse().ok()) else {
            let message = format!(
                "{}: not the state of a training: its metadata has no `{STEPS}`",
                path.display()
            );
            return Err(HostError::new("weights.format", message));
        };
        let session = self.table.get_mut(session)?;
        let wanted = variables(session, &STATE);
        let all: Vec<usize> = (0..reader.tensors().len()).collect();
        load(session, &mut reader, &all, wanted)?;
        session.session.set_steps(steps);
        Ok(())
    }
}

/// Loads the tensors of these numbers, which must be those wanted.
fn load(
    session: &mut Session,
    reader: &mut Reader,
    numbers: &[usize],
    wanted: Vec<TensorInfo>,
) -> Result<()> {
    let wanted = wanted
        .into_iter()
        .map(|(name, _, shape)| (name, shape))
        .collect();
    let tensors = reader.tensors();
    let given: Vec<TensorInfo> = numbers.iter().map(|&i| tensors[i].clone()).collect();
    check_weights(&wanted, &given)?;
    for (&number, (name, ..)) in numbers.iter().zip(&given) {
        let tensor = reader.read(number)?;
        session.on_device(|session| session.upload(name, &tensor))?;
    }
    Ok(())
}

/// Refuses weights that are not those of the session's parameters, and says how they differ.
fn check_weights(wanted: &HashMap<String, Vec<usize>>, given: &[TensorInfo]) -> Result<()> {
    /// Names listed of each kind.
    const LISTED: usize = 10;
    let mut missing: Vec<String> = wanted
        .keys()
        .filter(|name| !given.iter().any(|(given, ..)| given == *name))
        .cloned()
        .collect();
    missing.sort();
    let (mut unknown, mut misshaped) = (Vec::new(), Vec::new());
    for (name, dtype, given) in given {
        match wanted.get(name) {
            None => unknown.push(name.clone()),
            Some(shape) if shape != given || *dtype != DType::F32 => {
                misshaped.push(format!(
                    "{name} ({dtype} {given:?}, the model's is float32 {shape:?})"
                ));
            }
            Some(_) => {}
        }
    }
    let differences: Vec<String> = [
        ("missing", missing),
        ("unknown", unknown),
        ("mis-shaped", misshaped),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| {
        let more = names.len().saturating_sub(LISTED);
        let listed: Vec<_> = names.into_iter().take(LISTED).collect();
        let rest = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        format!("{what}: {}{rest}", listed.join(", "))
    })
    .collect();
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the weights are not those of this model; {}",
        differences.join("; ")
    );
    Err(HostError::new("weights.mismatch", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_another_model_are_refused_with_every_difference() {
        let wanted = HashMap::from([
            ("fc.weight".to_owned(), vec![2, 3]),
            ("fc.bias".to_owned(), vec![2]),
        ]);
        let given = vec![
            ("fc.weight".to_owned(), DType::F32, vec![3, 2]),
            ("head".to_owned(), DType::F32, vec![1]),
        ];
        let Err(HostError::Told(refusal)) = check_weights(&wanted, &given) else {
            panic!("not refused");
        };
        let message = refusal.message;
        assert_eq!(refusal.code, "weights.mismatch");
        for part in ["missing: fc.bias", "unknown: head", "mis-shaped: fc.weight"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
