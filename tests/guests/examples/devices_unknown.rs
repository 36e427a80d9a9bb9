//! Asks for a device that does not exist, and for strings that are no device.
use guests::host::devices::Request;
use guests::{check, refused};

guests::guest!(|| {
    for selector in ["cuda:9", "cuda:4294967295"] {
        let request = Request::new();
        request.device(selector)?;
        let refusal = request.acquire();
        if let Err(error) = &refusal {
            check(
                error.message.contains("cpu"),
                "the refusal lists the devices that exist",
            )?;
        }
        refused(selector, refusal, "device.unknown")?;
    }
    for selector in [
        "",
        "gpu",
        "cuda:",
        "cuda:-1",
        "cuda:99999999999999999999",
        "cpu:0",
        "CUDA",
        "cuda:0\0",
    ] {
        refused(selector, Request::new().device(selector), "device.invalid")?;
    }
    let request = Request::new();
    refused("no replicas", request.replicas(0), "device.replicas")?;
    refused(
        "4 billion replicas",
        request.replicas(u32::MAX),
        "device.replicas",
    )?;
    let request = Request::new();
    request.bytes(u64::MAX);
    refused(
        "all bytes there can be",
        request.acquire(),
        "memory.never-fits",
    )
});
