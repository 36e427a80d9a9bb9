//! The contract, generated from `wit/`: the traits that `host` implements, and a plugin's exports.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::error_impl_error,
    clippy::mem_forget,
    clippy::too_many_arguments,
    reason = "generated code"
)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "plugin",
    imports: {
        "hangar:pipeline/devices.[method]request.acquire": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    trappable_error_type: {
        "hangar:pipeline/types.error" => crate::plugins::host::error::HostError,
    },
    with: {
        "hangar:pipeline/devices.device": crate::plugins::host::devices::Device,
        "hangar:pipeline/devices.request": crate::plugins::host::devices::Request,
        "hangar:pipeline/devices.lease": crate::plugins::host::devices::Lease,
        "hangar:pipeline/graph.builder": crate::plugins::host::graph::Builder,
        "hangar:pipeline/model.plan": crate::plugins::host::model::Plan,
        "hangar:pipeline/model.session": crate::plugins::host::session::Session,
        "hangar:pipeline/data.dataset": crate::plugins::host::data::Dataset,
        "hangar:pipeline/data.loader": crate::plugins::host::data::Loader,
    },
});
