//! What the guests share: a short way to export a plugin, and to expect a refusal.
//!
//! A guest is one file in `examples/`, named `<suite>_<case>` after the misbehaviour it shows; the
//! component is `target/wasm32-wasip2/release/examples/<suite>_<case>.wasm`. A guest that expects
//! refusals ends well when every one came with the right code, and fails with `guest.expected`
//! otherwise.

pub use hangar_sdk::{Result, bindings, error, host};
use serde_json::{Value, json};

/// The description of a plugin that trains one model and takes `properties`.
pub fn describe(name: &str, properties: Value) -> String {
    json!({
        "name": name.replace('_', "-"),
        "version": "0.1.0",
        "description": "A guest for tests",
        "kinds": ["training"],
        "models": [{ "name": "model", "description": "The only one" }],
        "parameters": { "training": { "type": "object", "properties": properties } },
    })
    .to_string()
}

/// Exports a plugin named after its file, whose `run` is the given function.
#[macro_export]
macro_rules! guest {
    ($run:expr) => {
        $crate::guest!($run, || {
            let name = env!("CARGO_CRATE_NAME");
            $crate::describe(name, ::serde_json::json!({}))
        });
    };
    ($run:expr, $describe:expr) => {
        struct Guest;

        impl $crate::bindings::Guest for Guest {
            fn describe() -> String {
                $describe()
            }

            fn run(_kind: String) -> $crate::Result<()> {
                $run()
            }
        }

        $crate::bindings::export_plugin!(Guest with_types_in $crate::bindings);
    };
}

/// Ends well only where `result` is an error with the given code.
pub fn refused<T>(call: &str, result: Result<T>, code: &str) -> Result<()> {
    let found = match result {
        Ok(_) => "success".to_owned(),
        Err(refusal) if refusal.code == code => return Ok(()),
        Err(refusal) => format!("{}: {}", refusal.code, refusal.message),
    };
    Err(error(
        "guest.expected",
        format!("{call}: expected {code}, found {found}"),
    ))
}

/// Ends well only where `condition` holds.
pub fn check(condition: bool, what: &str) -> Result<()> {
    if condition {
        Ok(())
    } else {
        Err(error("guest.expected", what))
    }
}
