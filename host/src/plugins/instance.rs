//! One instance of a plugin: linked with the host, limited, run once, and thrown away.

use std::path::Path;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Engine, Store, Trap, UpdateDeadline};

use super::bindings::{Plugin, PluginPre};
use super::engine::TICK;
use super::error::failure;
use super::host::{Grants, State};
use crate::worker::protocol::{Failure, Limits};

/// The most bytes that one host call may bring over.
const CALL_BYTES: usize = 64 << 20;
/// How often, in a plugin's time between two host calls, it is looked whether that time is over.
const LOOKS: u64 = 8;

/// A plugin compiled and linked.
pub(super) struct Linked {
    engine: Engine,
    plugin: PluginPre<State>,
}

impl Linked {
    /// Compiles a file, or takes it from the cache, and links it. Errors: `plugin.format` for
    /// what is no component, `plugin.link` where imports or exports do not fit this host.
    pub(super) fn new(engine: &Engine, file: &Path) -> Result<Self, Failure> {
        let bytes = std::fs::read(file)
            .map_err(|error| failure("plugin.read", format!("cannot read the plugin: {error}")))?;
        let component = Component::from_binary(engine, &bytes).map_err(|error| {
            let message = format!("not a WebAssembly component: {error:#}");
            failure("plugin.format", message)
        })?;
        let link = || -> wasmtime::Result<PluginPre<State>> {
            let mut linker = Linker::<State>::new(engine);
            wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
            Plugin::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| {
                state.calls = state.calls.wrapping_add(1);
                state
            })?;
            PluginPre::new(linker.instantiate_pre(&component)?)
        };
        let plugin = link().map_err(|error| {
            let message = format!("not a plugin for this host: {error:#}");
            failure("plugin.link", message)
        })?;
        Ok(Self {
            engine: engine.clone(),
            plugin,
        })
    }

    /// What the plugin says of itself, as it says it.
    pub(super) async fn describe(&self, limits: Limits) -> Result<String, Failure> {
        let mut store = self.store(Grants::none(limits), &limits);
        let described = async {
            let plugin = self.plugin.instantiate_async(&mut store).await?;
            plugin.call_describe(&mut store).await
        };
        let described = described.await;
        described.map_err(|error| ended(&error, store.data(), &limits))
    }

    /// Runs a task of a kind to its end.
    pub(super) async fn run(&self, kind: &str, grants: Grants) -> Result<(), Failure> {
        let limits = grants.limits;
        let mut store = self.store(grants, &limits);
        let ran = async {
            let plugin = self.plugin.instantiate_async(&mut store).await?;
            plugin.call_run(&mut store, kind).await
        };
        match ran.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failure(&error.code, error.message)),
            Err(error) => Err(ended(&error, store.data(), &limits)),
        }
    }

    fn store(&self, grants: Grants, limits: &Limits) -> Store<State> {
        let mut store = Store::new(&self.engine, State::new(grants));
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(CALL_BYTES);
        let ticks = (limits.compute_milliseconds / TICK.as_millis() as u64 / LOOKS).max(1);
        store.set_epoch_deadline(ticks);
        let (mut calls, mut silent) = (0, 0);
        store.epoch_deadline_callback(move |store| {
            let now = store.data().calls;
            silent = if now == calls { silent + 1 } else { 0 };
            calls = now;
            Ok(if silent >= LOOKS {
                UpdateDeadline::Interrupt
            } else {
                UpdateDeadline::Continue(ticks)
            })
        });
        store
    }
}

/// Why a plugin ended without an error of its own.
fn ended(error: &wasmtime::Error, state: &State, limits: &Limits) -> Failure {
    let said = state.standard_error.text();
    let said = if said.is_empty() {
        String::new()
    } else {
        format!("; it wrote: {said}")
    };
    if state.limiter.refused_memory() {
        let message = format!(
            "the plugin ended after it wanted more than the {} bytes of memory that it may have{said}",
            limits.memory_bytes
        );
        return failure("plugin.memory", message);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => failure(
            "plugin.time",
            format!(
                "the plugin computed for more than {} ms between two calls of the host",
                limits.compute_milliseconds
            ),
        ),
        Some(Trap::StackOverflow) => failure(
            "plugin.stack",
            format!("the plugin used up its stack: a function calls itself without end{said}"),
        ),
        Some(trap) => failure("plugin.trap", format!("the plugin failed: {trap}{said}")),
        None => failure(
            "plugin.failed",
            format!("the plugin was ended: {}{said}", error.root_cause()),
        ),
    }
}
