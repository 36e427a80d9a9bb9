//! The answer about GPUs, written once for each change of what it tells (a sample, a lease, a setting)
//! and served many times: only the sample's age is put in anew.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use devices::Snapshot;
use serde_json::Value;

use super::resources::gpu_info;
use crate::machine::Machine;

/// The member that changes by itself.
const AGE: &str = "sample_age_ms";
/// Stands for the age in what is written; no age is as high.
const MARK: u64 = u64::MAX;

/// The last answer.
#[derive(Default)]
pub struct Written(Mutex<Option<Answer>>);

struct Answer {
    /// Of what it tells.
    snapshot: Arc<Snapshot>,
    version: u64,
    /// Before and after the age.
    parts: (Bytes, Bytes),
    /// With this age in milliseconds; none where no sample was taken yet.
    age: Option<u64>,
    body: Bytes,
}

impl Answer {
    fn new(snapshot: Arc<Snapshot>, version: u64, mut info: Value) -> Self {
        if snapshot.taken.is_some() {
            info[AGE] = MARK.into();
        }
        let text = info.to_string();
        let mark = format!("\"{AGE}\":{MARK}");
        let (head, tail) = match text.find(&mark) {
            Some(at) => (
                &text[..at + AGE.len() + "\"\":".len()],
                &text[at + mark.len()..],
            ),
            None => (&*text, ""),
        };
        Self {
            snapshot,
            version,
            parts: (
                Bytes::copy_from_slice(head.as_bytes()),
                Bytes::copy_from_slice(tail.as_bytes()),
            ),
            age: None,
            body: Bytes::from(text),
        }
    }

    /// The body at this age of its sample.
    fn at(&mut self, age: Option<u64>) -> Bytes {
        if let Some(age) = age.filter(|age| self.age != Some(*age)) {
            let (head, tail) = &self.parts;
            let age_text = age.to_string();
            let parts = [&head[..], age_text.as_bytes(), &tail[..]];
            self.body = Bytes::from(parts.concat());
            self.age = Some(age);
        }
        self.body.clone()
    }
}

impl Written {
    /// The body that tells of the machine's GPUs now.
    pub(super) fn body(&self, machine: &Machine) -> Bytes {
        // The version is read before what it counts: a change meanwhile is told by the next answer.
        let version = machine.version();
        let snapshot = machine.monitor.snapshot();
        let age = snapshot
            .taken
            .map(|taken| taken.elapsed().as_millis() as u64);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = last
            .take()
            .filter(|answer| answer.version == version && Arc::ptr_eq(&answer.snapshot, &snapshot));
        let answer = current.unwrap_or_else(|| {
            let info = gpu_info(machine, &snapshot);
            Answer::new(snapshot, version, info)
        });
        last.insert(answer).at(age)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use devices::Monitor;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_written_once_and_its_age_goes_on() {
        let monitor = Monitor::start(
            std::time::Duration::from_secs(3600),
            std::time::Duration::ZERO,
            None,
            Box::new(|| Ok(Vec::new())),
        );
        let mut snapshot = Snapshot::clone(&monitor.snapshot());
        let info = || json!({ "a": 1, AGE: 5, "z": [{ "name": "\"sample_age_ms\":9" }] });
        snapshot.taken = Some(Instant::now());
        let mut answer = Answer::new(Arc::new(snapshot.clone()), 0, info());
        for age in [0, 7, 7, 12_345] {
            let mut expected = info();
            expected[AGE] = age.into();
            let told: Value = serde_json::from_slice(&answer.at(Some(age))).unwrap();
            assert_eq!(told, expected);
        }
        let first = answer.at(Some(3));
        assert_eq!(first.as_ptr(), answer.at(Some(3)).as_ptr());
        snapshot.taken = None;
        let mut info = info();
        info[AGE] = Value::Null;
        let mut answer = Answer::new(Arc::new(snapshot), 0, info.clone());
        assert_eq!(
            serde_json::from_slice::<Value>(&answer.at(None)).unwrap(),
            info
        );
    }
}
