//! `hangar import MODEL.onnx`: a file of weights that the plugin `imported` runs.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;
use compute::{Dim, Plan};
use onnx::{Imported, Model};

use crate::output;

#[derive(Args)]
pub(super) struct Arguments {
    /// The model.
    model: PathBuf,
    /// The file to write [default: the model's, with the extension safetensors].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The names of the classes in the order of the model's first output, one a line.
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Taken off every channel of images, whose values are 0 to 1: a number for each, separated by
    /// commas.
    #[arg(long, value_delimiter = ',', requires = "deviation")]
    mean: Vec<f32>,
    /// What every channel is divided by then.
    #[arg(long, value_delimiter = ',', requires = "mean")]
    deviation: Vec<f32>,
}

/// Refuses models that no data set can be fed to.
fn check(imported: &Imported) -> anyhow::Result<()> {
    let names: Vec<&str> = imported.inputs.iter().map(|port| &*port.name).collect();
    let [input] = &imported.inputs[..] else {
        bail!(
            "the model takes {} ({}), not one input",
            names.len(),
            names.join(", ")
        );
    };
    ensure!(
        matches!(input.dims.len(), 2 | 4),
        "the model's input `{}` is neither [batch, channels, height, width] nor [batch, samples]",
        input.name
    );
    ensure!(!imported.outputs.is_empty(), "the model has no output");
    Ok(())
}

fn classes(path: &Path) -> anyhow::Result<Vec<String>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    ensure!(
        !names.is_empty() && names.iter().all(|name| !name.is_empty()),
        "{} does not hold a name on every line",
        path.display()
    );
    Ok(names)
}

fn shape(dims: &[Dim]) -> String {
    compute::Shape(dims.to_vec()).to_string()
}

/// Reads the model and writes the file.
pub(super) fn import(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let path = &arguments.model;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let read = || -> anyhow::Result<Imported> {
        let mut imported = onnx::import(&Model::parse(&bytes)?, &HashMap::new())?;
        check(&imported)?;
        imported.rename_input("x");
        if !arguments.mean.is_empty() {
            imported.normalize(&arguments.mean, &arguments.deviation)?;
        }
        Ok(imported)
    };
    let imported = read().with_context(|| format!("cannot import {}", path.display()))?;
    let mut metadata = vec![
        ("plugin".to_owned(), "imported".to_owned()),
        ("calls".to_owned(), serde_json::to_string(&imported.calls)?),
    ];
    if let Some(names) = &arguments.classes {
        let names = classes(names)?;
        let wanted = imported.outputs[0].dims.last().map(|d| d.at(1));
        ensure!(
            wanted == Some(names.len() as u64),
            "there are {} class names, and the model's first output is {}",
            names.len(),
            shape(&imported.outputs[0].dims)
        );
        metadata.push(("classes".to_owned(), serde_json::to_string(&names)?));
    }
    // A session knows only the parameters that outputs need.
    let plan = Plan::new(&imported.graph, 1)?;
    let needed: HashSet<&str> = plan.variable_names().collect();
    let mut weights = imported.weights;
    weights.retain(|(name, _)| needed.contains(&**name));
    let target = match &arguments.output {
        Some(target) => target.clone(),
        None => path.with_extension("safetensors"),
    };
    data::weights::save(&target, &weights, &metadata)?;
    let parameters: usize = weights.iter().map(|(_, t)| t.bytes().len() / 4).sum();
    let (input, result) = (&imported.inputs[0], &imported.outputs[0]);
    output::data(format_args!(
        "wrote {}: {} → {}, {parameters} parameters; run it with\n  hangar run imported infer \
         --data FOLDER --weights {}",
        target.display(),
        shape(&input.dims),
        shape(&result.dims),
        target.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}
