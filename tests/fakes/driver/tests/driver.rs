//! The simulated driver shows what a real one may hide: work that nobody waited for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use fakedriver::cuda::exports::*;

const INSIDE: &str = "HANGAR_TEST_INSIDE";

/// Runs `body` in a process on a machine of two GPUs.
fn on_two_gpus(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let folder = tempfile::tempdir().unwrap();
    let machine = "[[gpu]]\nprofile = \"t4\"\n".repeat(2);
    std::fs::write(folder.path().join("machine.toml"), machine).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact"])
        .env("LD_LIBRARY_PATH", folder.path());
    let output = command.env(INSIDE, "1").output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// A handle or an address that a function gives.
fn given(call: impl FnOnce(*mut u64) -> u32) -> u64 {
    let mut value = 0;
    assert_eq!(call(&raw mut value), 0);
    value
}

/// A context on a GPU, current, with a stream and some memory of it, and pinned memory.
fn device(ordinal: i32) -> (u64, u64, u64, u64) {
    let context = given(|out| cuDevicePrimaryCtxRetain(out, ordinal));
    assert_eq!(cuCtxSetCurrent(context), 0);
    let stream = given(|out| cuStreamCreate(out, 1));
    let memory = given(|out| cuMemAlloc_v2(out, 64));
    let pinned = given(|out| cuMemHostAlloc(out, 64, 0));
    (context, stream, memory, pinned)
}

fn byte(at: u64) -> u8 {
    // SAFETY: pinned memory of this test.
    unsafe { (at as *const u8).read() }
}

#[test]
fn a_copy_between_devices_is_done_when_it_was_waited_for() {
    on_two_gpus(
        "a_copy_between_devices_is_done_when_it_was_waited_for",
        || {
            assert_eq!(cuInit(0), 0);
            let (one, stream, from, _) = device(0);
            assert_eq!(cuMemsetD8Async(from, 7, 64, stream), 0);
            let recorded = given(|out| cuEventCreate(out, 2));
            assert_eq!(cuEventRecord(recorded, stream), 0);
            let (two, other, to, pinned) = device(1);
            let mut can = 0;
            assert_eq!((cuDeviceCanAccessPeer(&raw mut can, 0, 1), can), (0, 1));
            // Without the wait, the copy finds what was there before.
            assert_eq!(cuMemcpyPeerAsync(to, two, from, one, 64, other), 0);
            assert_eq!(cuMemcpyDtoHAsync_v2(pinned, to, 64, other), 0);
            assert_eq!(byte(pinned), 0xCD);
            assert_eq!(cuStreamSynchronize(other), 0);
            assert_eq!(byte(pinned), 0xCD);
            assert_eq!(cuStreamWaitEvent(other, recorded, 0), 0);
            assert_eq!(cuMemcpyPeerAsync(to, two, from, one, 64, other), 0);
            assert_eq!(cuMemcpyDtoHAsync_v2(pinned, to, 64, other), 0);
            assert_eq!(byte(pinned), 0xCD);
            assert_eq!(cuStreamSynchronize(other), 0);
            assert_eq!(byte(pinned), 7);
            // No copy leaves its allocation.
            assert_eq!(cuMemcpyPeerAsync(to, two, from, one, 65, other), 1);
        },
    );
}

#[test]
fn a_graph_reads_pinned_memory_when_it_runs() {
    on_two_gpus("a_graph_reads_pinned_memory_when_it_runs", || {
        assert_eq!(cuInit(0), 0);
        let (_, stream, memory, pinned) = device(0);
        assert_eq!(cuStreamBeginCapture_v2(stream, 1), 0);
        assert_eq!(cuMemcpyHtoDAsync_v2(memory, pinned, 64, stream), 0);
        let graph = given(|out| cuStreamEndCapture(stream, out));
        let ready = given(|out| cuGraphInstantiateWithFlags(out, graph, 0));
        for value in [1u8, 2] {
            // SAFETY: pinned memory of this test.
            unsafe { (pinned as *mut u8).write_bytes(value, 64) };
            assert_eq!(cuGraphLaunch(ready, stream), 0);
            assert_eq!(cuStreamSynchronize(stream), 0);
            assert_eq!(byte(memory), value);
        }
        assert_eq!(cuGraphExecDestroy(ready), 0);
        assert_eq!(cuGraphDestroy(graph), 0);
    });
}
