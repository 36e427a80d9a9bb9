//! The kernels of this program, from the PTX that is checked in beside their sources.

use std::collections::HashMap;
use std::sync::Arc;

use super::driver::{Context, Function, Module};
use crate::error::Error;

/// PTX for compute capability 7.5, which newer GPUs run too, by the stem of the source.
const PTX: [(&str, &str); 17] = [
    ("attention", include_str!("kernels/ptx/attention.ptx")),
    ("conv", include_str!("kernels/ptx/conv.ptx")),
    ("convert", include_str!("kernels/ptx/convert.ptx")),
    ("elementwise", include_str!("kernels/ptx/elementwise.ptx")),
    ("fused", include_str!("kernels/ptx/fused.ptx")),
    ("index", include_str!("kernels/ptx/index.ptx")),
    ("layer_norm", include_str!("kernels/ptx/layer_norm.ptx")),
    ("loss", include_str!("kernels/ptx/loss.ptx")),
    ("movement", include_str!("kernels/ptx/movement.ptx")),
    ("norm", include_str!("kernels/ptx/norm.ptx")),
    ("optimizer", include_str!("kernels/ptx/optimizer.ptx")),
    ("pool", include_str!("kernels/ptx/pool.ptx")),
    ("random", include_str!("kernels/ptx/random.ptx")),
    ("reduce", include_str!("kernels/ptx/reduce.ptx")),
    ("resample", include_str!("kernels/ptx/resample.ptx")),
    ("signal", include_str!("kernels/ptx/signal.ptx")),
    ("softmax", include_str!("kernels/ptx/softmax.ptx")),
];

/// The names of the kernels in a PTX text.
fn entries(ptx: &'static str) -> impl Iterator<Item = &'static str> {
    ptx.lines()
        .filter_map(|line| Some(line.split(".entry ").nth(1)?.trim_end_matches('(')))
}

/// The names of all kernels.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PTX.iter().flat_map(|(_, ptx)| entries(ptx))
}

/// Every kernel, loaded for one GPU.
#[derive(Debug)]
pub(super) struct Kernels {
    functions: HashMap<&'static str, Function>,
    /// The functions are theirs.
    _modules: Vec<Module>,
}

impl Kernels {
    /// Loads every kernel. Errors: `device.failed` where the driver refuses one.
    pub(super) fn load(context: &Arc<Context>) -> Result<Self, Error> {
        let mut kernels = Self {
            functions: HashMap::new(),
            _modules: Vec::new(),
        };
        for (family, ptx) in PTX {
            let module = Module::new(context, family, ptx)?;
            for name in entries(ptx) {
                kernels.functions.insert(name, module.function(name)?);
            }
            kernels._modules.push(module);
        }
        Ok(kernels)
    }

    /// A kernel by name. Errors: `device.failed`.
    pub(super) fn get(&self, name: &str) -> Result<Function, Error> {
        let function = self.functions.get(name).copied();
        function.ok_or_else(|| Error::new("device.failed", format!("there is no kernel {name}")))
    }
}
