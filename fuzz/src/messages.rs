//! What supervisor and worker send each other.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::{FromWorker, ToWorker, read_message, write_message};

/// Reads the bytes as frames of either side. What is read is written and read again as it was.
pub fn run(bytes: &[u8]) {
    frames::<ToWorker>(bytes);
    frames::<FromWorker>(bytes);
}

fn frames<T: Serialize + DeserializeOwned>(mut bytes: &[u8]) {
    while let Ok(Some(message)) = read_message::<T>(&mut bytes) {
        let mut written = Vec::new();
        if write_message(&mut written, &message).is_ok() {
            let again = read_message::<T>(&mut &*written);
            let again = again
                .ok()
                .flatten()
                .and_then(|again| serde_json::to_vec(&again).ok());
            assert_eq!(again.as_deref(), written.get(4..));
        }
    }
}

/// One frame of every message.
pub fn seeds() -> Vec<Vec<u8>> {
    const MESSAGES: [&str; 12] = [
        r#"{"type":"cancel"}"#,
        r#"{"type":"granted","device":"cuda:0","uuid":"GPU-1","bytes":5,"fallback_reason":null}"#,
        r#"{"type":"refused","code":"a.b","message":"c"}"#,
        r#"{"type":"acquire_lease","device":"cpu","bytes":1,"gpu_bytes":2,"replicas":1}"#,
        r#"{"type":"running","device":"cpu"}"#,
        r#"{"type":"progress","fraction":0.5,"message":"a"}"#,
        r#"{"type":"metrics","epoch":1,"epochs":2,"stage":"training","values":{"loss":1.5}}"#,
        r#"{"type":"log","level":"info","message":"a"}"#,
        r#"{"type":"artifact","name":"best.safetensors"}"#,
        r#"{"type":"heartbeat"}"#,
        r#"{"type":"finished","failure":{"code":"a.b","message":"c"}}"#,
        r#"{"type":"start","task_id":"a","plugin":"b","kind":"training","model":"c","parameters":{},"device":null,"devices":[],"data":[],"weights":null,"output":"d","compile_cache":"e","threads":1,"tf32":false,"limits":{"memory_bytes":1,"table_elements":1,"handles":1,"compute_milliseconds":1,"wall_seconds":1,"artifact_bytes":1}}"#,
    ];
    let frame = |message: &str| {
        let mut frame = (message.len() as u32).to_le_bytes().to_vec();
        frame.extend(message.as_bytes());
        frame
    };
    MESSAGES.iter().map(|message| frame(message)).collect()
}
