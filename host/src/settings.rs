//! What the operator set of the devices: limits, the policy, pools, GPUs that are drained. Kept in the
//! state folder, so that it outlives the host.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use devices::{COOL, InvalidPool, Limits, PartialLimits, Policy, Pool, PoolName, XidTable};
use serde::{Deserialize, Serialize};

/// The file in the state folder.
const FILE: &str = "devices.json";
/// The key of every GPU.
const EVERY_GPU: &str = "cuda";

/// The settings in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Which of several free devices a task gets.
    pub policy: Policy,
    /// Whether `cuda` means the CPU where no GPU can run tasks.
    pub cpu_fallback: bool,
    /// Limits by `cpu`, `cuda` (every GPU) or a GPU's UUID; what is none is the default.
    pub max_concurrent: BTreeMap<String, PartialLimits>,
    /// Memory that no lease takes, in bytes, by `cuda` (every GPU) or a GPU's UUID; what is none is the
    /// default.
    pub headroom_bytes: BTreeMap<String, u64>,
    /// Pools by name.
    pub pools: BTreeMap<String, Pool>,
    /// UUIDs of GPUs that take no new tasks.
    pub drained: BTreeSet<String>,
    /// What follows from how well GPUs are.
    pub health: HealthSettings,
}

/// What follows from how well GPUs are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthSettings {
    /// Seconds for which a GPU that was too hot stays cool before it takes tasks again.
    pub cool_seconds: u64,
    /// What is done at Xids where it is not what NVIDIA's catalogue says.
    pub xid: XidTable,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            cool_seconds: COOL.as_secs(),
            xid: XidTable::default(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            cpu_fallback: true,
            max_concurrent: BTreeMap::new(),
            headroom_bytes: BTreeMap::new(),
            pools: BTreeMap::new(),
            drained: BTreeSet::new(),
            health: HealthSettings::default(),
        }
    }
}

impl Settings {
    /// Reads those of a state folder; the defaults where there are none. Errors: a file that cannot be
    /// read.
    pub fn read(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(FILE);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let settings: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{}: mend it, or remove it", path.display()))?;
        settings
            .named_pools()
            .with_context(|| format!("{}: mend it, or remove it", path.display()))?;
        Ok(settings)
    }

    /// Writes them into a state folder: durable when this returns, and whole at any moment.
    pub fn write(&self, state: &Path) -> anyhow::Result<()> {
        let path = state.join(FILE);
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(state)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            std::fs::File::open(state)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The limits of a device whose key is `cpu` or a GPU's identity.
    pub fn limits(&self, key: &str, default: Limits) -> Limits {
        let mut limits = default;
        if key != "cpu" {
            limits = limits.with(self.change_of(EVERY_GPU));
        }
        limits.with(self.change_of(key))
    }

    fn change_of(&self, key: &str) -> PartialLimits {
        self.max_concurrent.get(key).copied().unwrap_or_default()
    }

    /// Changes the limits of a device; of every GPU those that were set for one alone as well.
    pub fn set_limits(&mut self, key: &str, change: PartialLimits) {
        if key == EVERY_GPU {
            let single = self
                .max_concurrent
                .iter_mut()
                .filter(|(key, _)| *key != "cpu");
            single.for_each(|(_, limits)| *limits = limits.with(change));
        }
        let limits = self.max_concurrent.entry(key.to_owned()).or_default();
        *limits = limits.with(change);
    }

    /// The headroom of a GPU whose key is its identity.
    pub fn headroom_bytes(&self, key: &str, default: u64) -> u64 {
        let keys = [key, EVERY_GPU].into_iter();
        let mut set = keys.filter_map(|key| self.headroom_bytes.get(key));
        set.next().copied().unwrap_or(default)
    }

    /// Sets the headroom of a GPU, or takes the setting back; of every GPU those that were set for one
    /// alone as well.
    pub fn set_headroom(&mut self, key: &str, bytes: Option<u64>) {
        if key == EVERY_GPU {
            self.headroom_bytes.clear();
        }
        match bytes {
            Some(bytes) => drop(self.headroom_bytes.insert(key.to_owned(), bytes)),
            None => drop(self.headroom_bytes.remove(key)),
        }
    }

    /// The pools by checked names.
    pub fn named_pools(&self) -> Result<Vec<(PoolName, Pool)>, InvalidPool> {
        let pools = self.pools.iter();
        pools
            .map(|(name, pool)| Ok((pool.check(name)?, pool.clone())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Limits = Limits {
        training: 1,
        inference: 3,
    };

    fn change(training: Option<u32>, inference: Option<u32>) -> PartialLimits {
        PartialLimits {
            training,
            inference,
        }
    }

    #[test]
    fn limits_are_merged_and_the_later_of_one_gpu_and_all_counts() {
        let mut settings = Settings::default();
        assert_eq!(settings.limits("GPU-a", DEFAULT), DEFAULT);
        settings.set_limits("GPU-a", change(Some(5), None));
        settings.set_limits("GPU-a", change(None, Some(6)));
        settings.set_limits("cuda", change(Some(2), None));
        settings.set_limits("cpu", change(Some(9), Some(9)));
        let limits = |training, inference| Limits {
            training,
            inference,
        };
        assert_eq!(settings.limits("GPU-a", DEFAULT), limits(2, 6));
        assert_eq!(settings.limits("GPU-b", DEFAULT), limits(2, 3));
        settings.set_limits("GPU-b", change(Some(4), None));
        assert_eq!(settings.limits("GPU-b", DEFAULT), limits(4, 3));
        assert_eq!(settings.limits("cpu", DEFAULT), limits(9, 9));
    }

    #[test]
    fn the_later_headroom_of_one_gpu_and_all_counts() {
        let mut settings = Settings::default();
        assert_eq!(settings.headroom_bytes("GPU-a", 7), 7);
        settings.set_headroom("GPU-a", Some(1));
        assert_eq!(settings.headroom_bytes("GPU-a", 7), 1);
        settings.set_headroom("cuda", Some(2));
        assert_eq!(settings.headroom_bytes("GPU-a", 7), 2);
        settings.set_headroom("GPU-a", Some(3));
        assert_eq!(settings.headroom_bytes("GPU-a", 7), 3);
        assert_eq!(settings.headroom_bytes("GPU-b", 7), 2);
        settings.set_headroom("GPU-a", None);
        assert_eq!(settings.headroom_bytes("GPU-a", 7), 2);
        settings.set_headroom("cuda", None);
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn settings_are_read_as_they_were_written_and_bad_ones_are_told() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Settings::read(folder.path()).unwrap(), Settings::default());
        let mut settings = Settings {
            policy: Policy::Pack,
            cpu_fallback: false,
            ..Settings::default()
        };
        settings.set_limits("cuda", change(Some(2), None));
        settings.drained.insert("GPU-a".to_owned());
        settings.health.cool_seconds = 5;
        settings.health.xid.set("109", Some("RESTART_APP")).unwrap();
        settings.set_headroom("GPU-a", Some(1 << 30));
        let pool = Pool {
            models: vec!["H100".to_owned()],
            ..Pool::default()
        };
        settings.pools.insert("fast".to_owned(), pool);
        settings.write(folder.path()).unwrap();
        assert_eq!(Settings::read(folder.path()).unwrap(), settings);
        for (bad, why) in [
            ("{", "EOF"),
            (r#"{"bogus": 1}"#, "unknown field `bogus`"),
            (r#"{"pools": {"cuda": {}}}"#, "cuda"),
            (
                r#"{"health": {"xid": {"13.5": "IGNORE"}}}"#,
                "`13.5` is no Xid: it is a number from 1 to 65535",
            ),
            (
                r#"{"health": {"xid": {"109": "RESTART"}}}"#,
                "Xid 109: `RESTART` is no action; the actions are IGNORE, RESTART_APP,",
            ),
        ] {
            std::fs::write(folder.path().join(FILE), bad).unwrap();
            let error = format!("{:#}", Settings::read(folder.path()).unwrap_err());
            assert!(error.contains("devices.json: mend it"), "{error}");
            assert!(error.contains(why), "{error}");
        }
    }
}
