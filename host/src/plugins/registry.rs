//! The plugin folder: what is in it, kept up to date while files come, change and go.
//!
//! A file counts once it stays as it is for a moment. It is copied into the store under its hash,
//! inspected there, and then replaces what its name stood for: tasks that have begun keep the copy
//! they began with. A bad file is listed with its reason and replaces nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use notify::Watcher;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::description::Description;
use super::error::PluginError;
use super::{Plugin, inspect};

/// How long a file must stay as it is before it counts.
const QUIET: Duration = Duration::from_millis(300);
/// The time between looks at the folder where nothing is notified.
const PERIOD: Duration = Duration::from_secs(5);

/// Where plugins come from and where they are kept.
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    /// The folder that people put plugins into.
    pub folder: PathBuf,
    /// The folder of copies, by hash.
    pub store: PathBuf,
    /// The folder of compiled code.
    pub compile_cache: PathBuf,
}

/// A file of the plugin folder.
#[derive(Debug, Clone)]
pub struct PluginEntry {
    /// Its name.
    pub file: String,
    /// What became of it.
    pub state: PluginState,
}

/// What became of a file of the plugin folder.
#[derive(Debug, Clone)]
pub enum PluginState {
    /// Tasks can use it.
    Loaded(Arc<Plugin>),
    /// It cannot be used.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Why a model cannot be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// No plugin has it.
    #[error("there is no model `{name}`; there are {known}")]
    Unknown {
        /// Asked for.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// Several plugins have one of this name.
    #[error("several plugins have a model `{name}`; name one of {choices}")]
    Ambiguous {
        /// Asked for.
        name: String,
        /// As `PLUGIN/MODEL`.
        choices: String,
    },
}

/// The plugins that tasks can use.
#[derive(Debug, Clone)]
pub struct Registry {
    files: Arc<RwLock<BTreeMap<String, File>>>,
    settled: watch::Receiver<bool>,
    /// Ends the scanning when the last clone is dropped.
    _scanning: Arc<tokio_util::task::AbortOnDropHandle<()>>,
}

/// Whether a notification may mean a change. Reading the folder is notified, too: taking that for a
/// change would make every look at the folder cause the next.
fn changes(event: &notify::Result<notify::Event>) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    match event {
        Ok(event) => match event.kind {
            EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
            _ => true,
        },
        Err(_) => true,
    }
}

/// What a file looked like.
type Look = (u64, Option<SystemTime>);

/// A file as it was found, and what became of it.
#[derive(Debug)]
struct File {
    look: Look,
    since: Instant,
    /// The look that was inspected last.
    inspected: Option<Look>,
    loaded: Option<Arc<Plugin>>,
    problem: Option<String>,
}

type Inspected = Pin<Box<dyn Future<Output = Result<Description, PluginError>> + Send>>;
type Inspector = Box<dyn Fn(PathBuf) -> Inspected + Send + Sync>;

impl Registry {
    /// Begins to watch the folder. It must be called within a Tokio runtime.
    pub fn start(settings: RegistrySettings) -> anyhow::Result<Self> {
        let cache = settings.compile_cache.clone();
        let inspector = Box::new(move |file: PathBuf| -> Inspected {
            let cache = cache.clone();
            Box::pin(async move { inspect::describe(&file, &cache).await })
        });
        Self::start_with(settings, inspector)
    }

    fn start_with(settings: RegistrySettings, inspector: Inspector) -> anyhow::Result<Self> {
        for folder in [&settings.folder, &settings.store] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let (notified, mut notifications) = mpsc::channel(1);
        // One notification waiting is enough: a look at the folder sees everything.
        let mut watcher = notify::recommended_watcher(move |event| {
            if changes(&event) {
                // A full channel already says that there is something to look at.
                let _told = notified.try_send(());
            }
        })
        .context("cannot watch for plugins")?;
        watcher
            .watch(&settings.folder, notify::RecursiveMode::NonRecursive)
            .with_context(|| format!("cannot watch {}", settings.folder.display()))?;
        let files = Arc::default();
        let (settle, settled) = watch::channel(false);
        let scanner = Scanner {
            folder: settings.folder,
            store: settings.store,
            inspector,
            files: Arc::clone(&files),
        };
        let scanning = tokio::spawn(async move {
            let _watcher = watcher;
            loop {
                let quiet = scanner.scan().await;
                if quiet {
                    settle.send_replace(true);
                }
                let wait = if quiet { PERIOD } else { QUIET };
                tokio::select! {
                    _ = notifications.recv(), if quiet => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        });
        Ok(Self {
            files,
            settled,
            _scanning: Arc::new(tokio_util::task::AbortOnDropHandle::new(scanning)),
        })
    }

    /// Waits until every file that is in the folder now has been looked at.
    pub async fn settled(&self) {
        // An error means that scanning has ended: then nothing will change any more.
        let mut settled = self.settled.clone();
        let _ended = settled.wait_for(|settled| *settled).await;
    }

    /// Every file, by name. One whose replacement is bad comes twice: as it is used, and as it failed.
    pub fn list(&self) -> Vec<PluginEntry> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::new();
        for (name, file) in files.iter() {
            let mut push = |state| {
                entries.push(PluginEntry {
                    file: name.clone(),
                    state,
                });
            };
            if let Some(plugin) = &file.loaded {
                push(PluginState::Loaded(Arc::clone(plugin)));
            }
            if let Some(reason) = file.problem.clone() {
                push(PluginState::Failed { reason });
            }
        }
        entries
    }

    fn loaded(&self) -> Vec<Arc<Plugin>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files
            .values()
            .filter_map(|file| file.loaded.clone())
            .collect()
    }

    /// The plugin of a name.
    pub fn get(&self, name: &str) -> Option<Arc<Plugin>> {
        let mut loaded = self.loaded().into_iter();
        loaded.find(|plugin| plugin.description.name == name)
    }

    /// The plugin and the model that `MODEL`, `PLUGIN/MODEL` or `PLUGIN` (its default) names.
    pub fn model(&self, name: &str) -> Result<(Arc<Plugin>, String), ModelError> {
        let loaded = self.loaded();
        let models = || {
            loaded.iter().flat_map(|plugin| {
                let models = plugin.description.models.iter();
                models.map(move |model| (plugin, &model.name))
            })
        };
        let full = |plugin: &Plugin, model: &str| format!("{}/{model}", plugin.description.name);
        let named: Vec<_> = models()
            .filter(|(plugin, model)| *model == name || full(plugin, model) == name)
            .collect();
        match named[..] {
            [(plugin, model)] => Ok((Arc::clone(plugin), model.clone())),
            [] => {
                let plugin = loaded.iter().find(|plugin| plugin.description.name == name);
                if let Some((plugin, model)) =
                    plugin.and_then(|plugin| Some((plugin, plugin.description.models.first()?)))
                {
                    return Ok((Arc::clone(plugin), model.name.clone()));
                }
                let known: Vec<_> = models()
                    .map(|(plugin, model)| full(plugin, model))
                    .collect();
                Err(ModelError::Unknown {
                    name: name.escape_debug().to_string(),
                    known: if known.is_empty() {
                        "none, as no plugin is loaded".to_owned()
                    } else {
                        known.join(", ")
                    },
                })
            }
            _ => Err(ModelError::Ambiguous {
                name: name.to_owned(),
                choices: named
                    .iter()
                    .map(|(plugin, model)| full(plugin, model))
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }
}

/// Looks at the folder and keeps `files` up to date.
struct Scanner {
    folder: PathBuf,
    store: PathBuf,
    inspector: Inspector,
    files: Arc<RwLock<BTreeMap<String, File>>>,
}

impl Scanner {
    /// Looks once. Gives whether every file has been inspected as it is.
    async fn scan(&self) -> bool {
        let mut quiet = true;
        for name in self.look() {
            match self.load(&name).await {
                Some(loaded) => self.publish(&name, loaded),
                None => quiet = false,
            }
        }
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        quiet && files.values().all(|file| file.inspected == Some(file.look))
    }

    /// Notes what is in the folder. Gives the files that are at rest and not yet inspected.
    fn look(&self) -> Vec<String> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten()
        {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.ends_with(".wasm")
                && !name.starts_with('.')
                && let Some(look) = look(&entry.path())
            {
                found.insert(name, look);
            }
        }
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let before = files.len();
        files.retain(|name, _| found.contains_key(name));
        if files.len() < before {
            // A file that failed because another gave its plugin may be the one now.
            for file in files.values_mut().filter(|file| file.problem.is_some()) {
                file.inspected = None;
            }
        }
        let now = Instant::now();
        let mut rested = Vec::new();
        for (name, look) in found {
            let file = files.entry(name.clone()).or_insert_with(|| File {
                look,
                since: now.checked_sub(age(look)).unwrap_or(now),
                inspected: None,
                loaded: None,
                problem: None,
            });
            if file.look != look {
                file.look = look;
                file.since = now;
            }
            if file.inspected != Some(look) && now.duration_since(file.since) >= QUIET {
                rested.push(name);
            }
        }
        rested
    }

    /// Copies and inspects a file. None where it changed meanwhile.
    async fn load(&self, name: &str) -> Option<(Look, Result<Plugin, String>)> {
        let path = self.folder.join(name);
        let before = look(&path)?;
        let store = self.store.clone();
        let source = path.clone();
        let kept = tokio::task::spawn_blocking(move || keep(&source, &store)).await;
        if look(&path)? != before {
            return None;
        }
        let loaded = match kept {
            Ok(Ok((hash, file))) => match (self.inspector)(file.clone()).await {
                Ok(description) => Ok(Plugin {
                    description,
                    hash,
                    file,
                }),
                Err(error) => Err(error.to_string()),
            },
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        Some((before, loaded))
    }

    fn publish(&self, name: &str, (look, loaded): (Look, Result<Plugin, String>)) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.and_then(|plugin| {
            let given = files.iter().find(|(other, file)| {
                let other_plugin = file.loaded.as_ref();
                *other != name
                    && other_plugin
                        .is_some_and(|other| other.description.name == plugin.description.name)
            });
            match given {
                Some((other, _)) => Err(format!(
                    "the plugin `{}` is in {other} already: remove one of the two",
                    plugin.description.name
                )),
                None => Ok(plugin),
            }
        });
        let Some(file) = files.get_mut(name) else {
            return;
        };
        file.inspected = Some(look);
        match loaded {
            Ok(plugin) => {
                file.loaded = Some(Arc::new(plugin));
                file.problem = None;
            }
            Err(reason) => file.problem = Some(reason),
        }
    }
}

fn look(path: &Path) -> Option<Look> {
    let metadata = std::fs::metadata(path).ok()?;
    metadata
        .is_file()
        .then(|| (metadata.len(), metadata.modified().ok()))
}

/// How long ago a file changed, as far as its time tells.
fn age((_, modified): Look) -> Duration {
    modified
        .and_then(|modified| modified.elapsed().ok())
        .unwrap_or_default()
        .min(QUIET)
}

/// Copies a file into the store under its hash, durably.
fn keep(source: &Path, store: &Path) -> Result<(String, PathBuf), PluginError> {
    let bytes = inspect::read(source)?;
    let hash = inspect::hash(&bytes);
    let kept = store.join(format!("{hash}.wasm"));
    if !std::fs::metadata(&kept).is_ok_and(|kept| kept.len() == bytes.len() as u64) {
        let mut copy = tempfile::NamedTempFile::new_in(store)?;
        copy.write_all(&bytes)?;
        copy.as_file().sync_all()?;
        copy.persist(&kept).map_err(|error| error.error)?;
    }
    Ok((hash, kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::error::failure;

    struct Bench {
        folder: tempfile::TempDir,
        registry: Registry,
    }

    /// A registry whose plugins are their descriptions.
    fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let settings = RegistrySettings {
            folder: folder.path().join("plugins"),
            store: folder.path().join("store"),
            compile_cache: folder.path().join("cache"),
        };
        let inspector = Box::new(|file: PathBuf| -> Inspected {
            Box::pin(async move {
                let text = std::fs::read_to_string(file)?;
                Description::parse(&text)
                    .map_err(|error| PluginError::Refused(failure("plugin.description", error)))
            })
        });
        let registry = Registry::start_with(settings, inspector).unwrap();
        Bench { folder, registry }
    }

    fn text(name: &str, version: &str, models: &[&str]) -> String {
        let models: Vec<_> = models
            .iter()
            .map(|name| serde_json::json!({"name": name}))
            .collect();
        serde_json::json!({"name": name, "version": version, "description": "",
            "kinds": ["training"], "models": models})
        .to_string()
    }

    impl Bench {
        fn write(&self, file: &str, text: &str) {
            std::fs::write(self.folder.path().join("plugins").join(file), text).unwrap();
        }

        async fn until(&self, what: impl Fn(&Registry) -> bool) {
            let waited = tokio::time::timeout(Duration::from_secs(20), async {
                while !what(&self.registry) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            assert!(waited.await.is_ok(), "{:?}", self.registry.list());
        }
    }

    fn version(registry: &Registry, name: &str) -> Option<String> {
        Some(registry.get(name)?.description.version.clone())
    }

    #[tokio::test]
    async fn a_file_that_appears_is_loaded_and_one_that_goes_is_not_offered_any_more() {
        let bench = bench();
        bench.registry.settled().await;
        bench.write("a.wasm", &text("a", "1.0.0", &["m"]));
        bench.until(|registry| registry.get("a").is_some()).await;
        let file = bench.registry.get("a").unwrap().file.clone();
        std::fs::remove_file(bench.folder.path().join("plugins/a.wasm")).unwrap();
        bench.until(|registry| registry.get("a").is_none()).await;
        assert!(file.exists(), "tasks that began with it keep their copy");
    }

    #[tokio::test]
    async fn a_replaced_file_replaces_the_plugin_and_a_bad_one_does_not() {
        let bench = bench();
        bench.write("a.wasm", &text("a", "1.0.0", &["m"]));
        bench
            .until(|registry| version(registry, "a").as_deref() == Some("1.0.0"))
            .await;
        bench.write("a.wasm", &text("a", "1.0.1", &["m"]));
        bench
            .until(|registry| version(registry, "a").as_deref() == Some("1.0.1"))
            .await;
        bench.write("a.wasm", "rubbish");
        let failed = |registry: &Registry| {
            let entries = registry.list();
            entries.iter().any(|entry| matches!(&entry.state, PluginState::Failed { reason } if !reason.is_empty()))
        };
        bench.until(failed).await;
        assert_eq!(version(&bench.registry, "a").as_deref(), Some("1.0.1"));
    }

    #[tokio::test]
    async fn two_files_of_one_plugin_are_told_and_the_second_takes_over() {
        let bench = bench();
        bench.write("a.wasm", &text("same", "1.0.0", &["m"]));
        bench.until(|registry| registry.get("same").is_some()).await;
        bench.write("b.wasm", &text("same", "2.0.0", &["m"]));
        bench.until(|registry| registry.list().len() == 2).await;
        assert_eq!(version(&bench.registry, "same").as_deref(), Some("1.0.0"));
        std::fs::remove_file(bench.folder.path().join("plugins/a.wasm")).unwrap();
        bench
            .until(|registry| version(registry, "same").as_deref() == Some("2.0.0"))
            .await;
    }

    #[tokio::test]
    async fn a_file_that_is_still_written_is_not_looked_at() {
        let bench = bench();
        bench.registry.settled().await;
        let whole = text("a", "1.0.0", &["m"]);
        for end in (1..=whole.len()).step_by(whole.len() / 8) {
            bench.write("a.wasm", &whole[..end]);
            tokio::time::sleep(QUIET / 3).await;
            assert!(bench.registry.list().is_empty());
        }
        bench.write("a.wasm", &whole);
        bench.until(|registry| registry.get("a").is_some()).await;
    }

    #[tokio::test]
    async fn models_are_found_by_their_name_by_both_names_and_by_the_plugin() {
        let bench = bench();
        bench.write("a.wasm", &text("a", "1.0.0", &["one", "two"]));
        bench.write("b.wasm", &text("b", "1.0.0", &["two"]));
        bench.write(".hidden.wasm", &text("c", "1.0.0", &["three"]));
        bench.until(|registry| registry.list().len() == 2).await;
        let found = |name: &str| {
            let (plugin, model) = bench.registry.model(name).ok()?;
            Some(format!("{}/{model}", plugin.description.name))
        };
        assert_eq!(found("one").as_deref(), Some("a/one"));
        assert_eq!(found("b/two").as_deref(), Some("b/two"));
        assert_eq!(found("a").as_deref(), Some("a/one"));
        let ambiguous = bench.registry.model("two").unwrap_err().to_string();
        assert!(ambiguous.contains("a/two, b/two"), "{ambiguous}");
        let unknown = bench.registry.model("three").unwrap_err().to_string();
        assert!(unknown.contains("a/one, a/two, b/two"), "{unknown}");
    }
}
