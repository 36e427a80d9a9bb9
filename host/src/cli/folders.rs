//! Where plugins and state are: the XDG Base Directory convention, changed by flags.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

#[derive(Args)]
pub(super) struct Arguments {
    /// The folder of plugins [default: hangar/plugins in $XDG_DATA_HOME or ~/.local/share].
    #[arg(long, global = true, value_name = "FOLDER")]
    plugins: Option<PathBuf>,
    /// The folder of tasks and their results [default: hangar in $XDG_STATE_HOME or
    /// ~/.local/state].
    #[arg(long, global = true, value_name = "FOLDER")]
    state: Option<PathBuf>,
}

impl Arguments {
    /// The state folder, which may not exist yet.
    pub(super) fn state(&self) -> anyhow::Result<PathBuf> {
        match &self.state {
            Some(folder) => Ok(folder.clone()),
            None => standard("XDG_STATE_HOME", ".local/state"),
        }
    }
}

/// The folders in use. They exist.
#[derive(Debug)]
pub(super) struct Folders {
    pub(super) plugins: PathBuf,
    pub(super) state: PathBuf,
    cache: PathBuf,
}

impl Folders {
    pub(super) fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let plugins = match &arguments.plugins {
            Some(folder) => folder.clone(),
            None => standard("XDG_DATA_HOME", ".local/share")?.join("plugins"),
        };
        let state = arguments.state()?;
        // With a state folder of one's own the cache goes there, too: nothing is left elsewhere.
        let cache = match &arguments.state {
            Some(folder) => folder.join("cache"),
            None => standard("XDG_CACHE_HOME", ".cache")?,
        };
        let made = |folder: PathBuf| {
            std::fs::create_dir_all(&folder)
                .and_then(|()| folder.canonicalize())
                .with_context(|| format!("cannot use the folder {}", folder.display()))
        };
        Ok(Self {
            plugins: made(plugins)?,
            state: made(state)?,
            cache: made(cache)?,
        })
    }

    pub(super) fn plugin_store(&self) -> PathBuf {
        self.state.join("plugins")
    }

    pub(super) fn compile_cache(&self) -> PathBuf {
        self.cache.join("compiled")
    }
}

fn standard(variable: &str, fallback: &str) -> anyhow::Result<PathBuf> {
    // The convention ignores a relative path.
    let set = std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let base = match set {
        Some(path) => path,
        None => {
            let home =
                std::env::var_os("HOME").context("HOME is not set; name folders by flags")?;
            PathBuf::from(home).join(fallback)
        }
    };
    Ok(base.join("hangar"))
}
