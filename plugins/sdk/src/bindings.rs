//! The contract, generated from `wit/`: what the host offers and what a plugin exports.
#![allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    clippy::error_impl_error,
    clippy::undocumented_unsafe_blocks,
    clippy::mem_forget,
    reason = "generated code"
)]

wit_bindgen::generate!({
    path: "wit",
    world: "plugin",
    pub_export_macro: true,
    export_macro_name: "export_plugin",
    default_bindings_module: "hangar_sdk::bindings",
});
