//! The engine that compiles and runs plugins, and the clock of their deadlines.

use std::path::Path;
use std::time::Duration;

use wasmtime::{Cache, CacheConfig, Config, Engine, WasmFeatures};

/// The time between two ticks of the engine's epoch.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// The stack of a plugin, in bytes.
const STACK_BYTES: usize = 1 << 20;

/// What a plugin's code may use: what Rust emits for `wasm32-wasip2`, and nothing that is young.
const REFUSED: WasmFeatures = WasmFeatures::MEMORY64
    .union(WasmFeatures::THREADS)
    .union(WasmFeatures::GC)
    .union(WasmFeatures::EXCEPTIONS)
    .union(WasmFeatures::FUNCTION_REFERENCES)
    .union(WasmFeatures::CM_ASYNC);

/// An engine whose compiled code is kept in `cache` by its content, and whose epoch ticks as long as
/// the engine lives.
pub(super) fn engine(cache: &Path) -> wasmtime::Result<Engine> {
    let mut caching = CacheConfig::new();
    caching.with_directory(cache);
    let mut config = Config::new();
    config
        .cache(Some(Cache::new(caching)?))
        .epoch_interruption(true)
        .concurrency_support(false)
        .max_wasm_stack(STACK_BYTES)
        .wasm_features(REFUSED, false);
    let engine = Engine::new(&config)?;
    let ticking = engine.weak();
    std::thread::Builder::new()
        .name("epoch".to_owned())
        .spawn(move || {
            while let Some(engine) = ticking.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(TICK);
            }
        })?;
    Ok(engine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmtime::component::Component;

    #[test]
    fn young_features_of_webassembly_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(folder.path()).unwrap();
        // A component with a core module that holds one memory, with the flags given.
        let with_memory = |flags: u8| {
            let module = [&b"\0asm\x01\0\0\0"[..], &[5, 3, 1, flags, 1]].concat();
            let mut component = b"\0asm\x0d\0\x01\0".to_vec();
            component.extend([1, module.len() as u8]);
            component.extend(module);
            Component::from_binary(&engine, &component)
        };
        assert!(with_memory(0).is_ok());
        let memory64 = with_memory(4).unwrap_err();
        assert!(format!("{memory64:#}").contains("64"), "{memory64:#}");
    }

    #[test]
    fn native_code_is_never_loaded_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(folder.path()).unwrap();
        let native = engine.precompile_component(b"\0asm\x0d\0\x01\0").unwrap();
        assert!(Component::from_binary(&engine, &native).is_err());
    }
}
