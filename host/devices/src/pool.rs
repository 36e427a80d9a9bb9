//! Pools: named sets of GPUs, with limits, a policy and plugins of their own.

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::request::PartialLimits;
use crate::selector::PoolName;

/// A pool as an operator writes it. A GPU belongs to it that meets every condition that is given; with
/// none, every GPU does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// One of these: `cuda:N`, or the beginning of a UUID.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// A product name with one of these in it, such as `H100`, whatever the case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// So much memory or more, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_memory_bytes: Option<u64>,
    /// This compute capability or a newer one, such as `8.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_compute_capability: Option<String>,
    /// Tasks at once on all its GPUs together, however they asked for them; none for no limit but
    /// those of the GPUs.
    pub limits: PartialLimits,
    /// Which of its GPUs a task gets that asks for the pool; none for the host's policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Its GPUs run tasks of these plugins alone; none for every plugin.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
}

/// What pools know a GPU by.
#[derive(Debug, Clone, Copy)]
pub struct GpuFacts<'a> {
    /// N of `cuda:N`.
    pub index: u32,
    /// NVML's identity.
    pub uuid: Option<&'a str>,
    /// The product name.
    pub model: &'a str,
    /// All memory, in bytes.
    pub memory_bytes: u64,
    /// Such as `8.6`.
    pub compute_capability: Option<&'a str>,
}

/// A pool that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPool {
    /// Its name.
    #[error(
        "`{0}` cannot name a pool: 1 to 64 letters, digits, `-`, `_` and `.`, a letter first, not `cpu` or `cuda`"
    )]
    Name(String),
    /// A GPU in it.
    #[error("`{0}` in a pool's `gpus` is neither `cuda:N` nor the beginning of a UUID (`GPU-…`)")]
    Gpu(String),
    /// Its compute capability.
    #[error("`{0}` is no compute capability, such as `8.0`")]
    ComputeCapability(String),
}

/// Major and minor.
fn capability(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl Pool {
    /// Whether the pool can be, under this name.
    pub fn check(&self, name: &str) -> Result<PoolName, InvalidPool> {
        let name = name
            .parse()
            .map_err(|_| InvalidPool::Name(name.chars().take(64).collect()))?;
        let named = |gpu: &&String| !gpu.starts_with("GPU-") && ordinal(gpu).is_none();
        if let Some(gpu) = self.gpus.iter().find(named) {
            return Err(InvalidPool::Gpu(gpu.clone()));
        }
        match &self.min_compute_capability {
            Some(text) if capability(text).is_none() => {
                Err(InvalidPool::ComputeCapability(text.clone()))
            }
            _ => Ok(name),
        }
    }

    /// Whether a GPU belongs to it.
    pub fn contains(&self, gpu: &GpuFacts<'_>) -> bool {
        let named = |text: &String| match gpu.uuid {
            Some(uuid) if text.starts_with("GPU-") => uuid.starts_with(text.as_str()),
            _ => ordinal(text) == Some(gpu.index),
        };
        let model = gpu.model.to_lowercase();
        let modelled = |text: &String| model.contains(&text.to_lowercase());
        let least = self.min_compute_capability.as_deref().and_then(capability);
        (self.gpus.is_empty() || self.gpus.iter().any(named))
            && (self.models.is_empty() || self.models.iter().any(modelled))
            && self
                .min_memory_bytes
                .is_none_or(|least| gpu.memory_bytes >= least)
            && least.is_none_or(|least| {
                gpu.compute_capability
                    .and_then(capability)
                    .is_some_and(|own| own >= least)
            })
    }

    /// Whether its GPUs run tasks of a plugin.
    pub fn allows(&self, plugin: &str) -> bool {
        self.plugins.is_empty() || self.plugins.iter().any(|name| name == plugin)
    }
}

/// N of `cuda:N`.
fn ordinal(text: &str) -> Option<u32> {
    text.strip_prefix("cuda:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(pool: &str) -> Vec<u32> {
        let pool: Pool = serde_json::from_str(pool).unwrap();
        let gpus = [
            ("GPU-aa", "NVIDIA A100-SXM4-40GB", 40, "8.0"),
            ("GPU-bb", "NVIDIA H100 80GB HBM3", 80, "9.0"),
            ("GPU-bc", "Tesla T4", 15, "7.5"),
            ("GPU-cc", "NVIDIA B200", 180, "10.0"),
        ];
        let facts = (0..)
            .zip(gpus)
            .map(|(index, (uuid, model, gigabytes, cc))| GpuFacts {
                index,
                uuid: Some(uuid),
                model,
                memory_bytes: gigabytes << 30,
                compute_capability: Some(cc),
            });
        facts
            .filter(|gpu| pool.contains(gpu))
            .map(|gpu| gpu.index)
            .collect()
    }

    #[test]
    fn gpus_belong_by_index_uuid_model_memory_and_compute_capability() {
        assert_eq!(members("{}"), [0, 1, 2, 3]);
        assert_eq!(members(r#"{"gpus": ["cuda:2", "GPU-b"]}"#), [1, 2]);
        assert_eq!(members(r#"{"models": ["h100", "t4"]}"#), [1, 2]);
        assert_eq!(members(r#"{"min_memory_bytes": 42949672960}"#), [0, 1, 3]);
        // 10.0 is newer than 9.0, though its text is not.
        assert_eq!(members(r#"{"min_compute_capability": "9.0"}"#), [1, 3]);
        assert_eq!(
            members(r#"{"models": ["100"], "min_compute_capability": "8.6"}"#),
            [1]
        );
    }

    #[test]
    fn a_pool_that_cannot_be_says_what_is_wrong() {
        let check = |name: &str, pool: &str| {
            let pool: Pool = serde_json::from_str(pool).unwrap();
            pool.check(name)
                .map(|name| name.to_string())
                .map_err(|error| error.to_string())
        };
        assert_eq!(check("fast", "{}"), Ok("fast".to_owned()));
        for name in ["cuda", "cpu", "", "9", "a b", "cuda:1"] {
            assert!(
                check(name, "{}")
                    .unwrap_err()
                    .contains("cannot name a pool"),
                "{name}"
            );
        }
        assert!(
            check("a", r#"{"gpus": ["0"]}"#)
                .unwrap_err()
                .contains("`0`")
        );
        assert!(
            check("a", r#"{"min_compute_capability": "new"}"#)
                .unwrap_err()
                .contains("`new`")
        );
        assert!(serde_json::from_str::<Pool>(r#"{"memory": 1}"#).is_err());
    }
}
