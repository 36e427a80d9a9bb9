//! The state of an earlier training, as a request names it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::plugins::host::checkpoint::PARAMETERS;

/// The file in a task's folder that a training goes on from.
pub const STATE: &str = "last.state.safetensors";

/// Why a training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// `resume.path`.
    #[error("cannot resume from {path}: {error}; name a results folder with `{STATE}`, or such a file", path = path.display())]
    Path {
        /// As given.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// `weights.format`.
    #[error(transparent)]
    Format(#[from] data::Error),
    /// `resume.format`.
    #[error("{path}: not the state of a training: its metadata has no parameters", path = path.display())]
    Parameters {
        /// The file.
        path: PathBuf,
    },
}

impl ResumeError {
    /// A stable dotted code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Path { .. } => "resume.path",
            Self::Format(error) => error.code(),
            Self::Parameters { .. } => "resume.format",
        }
    }
}

/// What a training goes on from.
#[derive(Debug, Clone, PartialEq)]
pub struct Resume {
    /// The file.
    pub state: PathBuf,
    /// The folder that it lies in, where the results stay.
    pub folder: PathBuf,
    /// The model that was trained.
    pub model: String,
    parameters: Map<String, Value>,
}

impl Resume {
    /// Reads what a state file, or the one in a results folder, says of its task.
    pub fn open(path: &Path) -> Result<Self, ResumeError> {
        let missing = |error| ResumeError::Path {
            path: path.to_owned(),
            error,
        };
        let file = if path.is_dir() {
            path.join(STATE)
        } else {
            path.to_owned()
        };
        let state = file.canonicalize().map_err(missing)?;
        let folder = state.parent().unwrap_or(Path::new("/")).to_owned();
        let metadata = data::weights::metadata(&state)?;
        let text = metadata.iter().find(|(key, _)| key == PARAMETERS);
        let parameters = text.and_then(|(_, text)| serde_json::from_str(text).ok());
        let no_parameters = || ResumeError::Parameters {
            path: state.clone(),
        };
        let mut parameters: Map<String, Value> = parameters.ok_or_else(no_parameters)?;
        let model = parameters.remove("model");
        let model = model.as_ref().and_then(Value::as_str).unwrap_or_default();
        Ok(Self {
            model: model.to_owned(),
            folder,
            parameters,
            state,
        })
    }

    /// The earlier task's parameters, under those that are given.
    pub fn fill(&self, given: &mut Map<String, Value>) {
        for (name, value) in &self.parameters {
            given.entry(name).or_insert_with(|| value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn saved(folder: &Path, metadata: &[(&str, &str)]) -> PathBuf {
        let metadata: Vec<_> = metadata
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let path = folder.join(STATE);
        data::weights::save(&path, &[], &metadata).unwrap();
        path
    }

    #[test]
    fn a_folder_or_its_file_gives_the_model_and_the_parameters_that_are_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"model": "cnn", "epochs": 4, "seed": 7}"#;
        let file = saved(folder.path(), &[(PARAMETERS, text)]);
        let resume = Resume::open(folder.path()).unwrap();
        assert_eq!(resume, Resume::open(&file).unwrap());
        assert_eq!(resume.model, "cnn");
        assert_eq!(resume.folder, folder.path().canonicalize().unwrap());
        let mut given = Map::from_iter([("epochs".to_owned(), json!(9))]);
        resume.fill(&mut given);
        assert_eq!(Value::Object(given), json!({"epochs": 9, "seed": 7}));
    }

    #[test]
    fn what_is_no_state_is_refused_with_a_code() {
        let folder = tempfile::tempdir().unwrap();
        let code = |path: &Path| Resume::open(path).unwrap_err().code();
        assert_eq!(code(folder.path()), "resume.path");
        assert_eq!(code(Path::new("/nonexistent")), "resume.path");
        let file = saved(folder.path(), &[]);
        assert_eq!(code(&file), "resume.format");
        std::fs::write(&file, b"no weights").unwrap();
        assert_eq!(code(&file), "weights.format");
    }
}
