//! `task`: the task's parameters, and what users see of it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::State;
use super::error::Result;
use crate::plugins::bindings::hangar::pipeline::task;
use crate::worker::protocol::{FromWorker, Metrics};

/// The least time between two reports of progress that are passed on.
const PROGRESS_PERIOD: Duration = Duration::from_millis(50);
/// The longest text passed on, in characters.
const TEXT: usize = 4_096;
/// Metrics of one report, at most.
const METRICS: usize = 256;

/// Text of a plugin as one line that a terminal can show.
pub(super) fn line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(TEXT)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(TEXT).is_some() {
        line.push('…');
    }
    line
}

impl task::Host for State {
    fn parameters(&mut self) -> wasmtime::Result<String> {
        Ok(self.grants.parameters.clone())
    }

    fn progress(&mut self, fraction: f64, message: String) -> wasmtime::Result<()> {
        let now = Instant::now();
        let early = self
            .told_progress
            .is_some_and(|told| now.duration_since(told) < PROGRESS_PERIOD);
        if early && fraction < 1.0 {
            return Ok(());
        }
        self.told_progress = Some(now);
        self.tell(FromWorker::Progress {
            fraction: if fraction.is_nan() {
                0.0
            } else {
                fraction.clamp(0.0, 1.0)
            },
            message: line(&message),
        });
        Ok(())
    }

    fn metrics(
        &mut self,
        epoch: u64,
        epochs: u64,
        stage: String,
        values: Vec<(String, f64)>,
    ) -> wasmtime::Result<()> {
        let values: Map<String, Value> = values
            .into_iter()
            .take(METRICS)
            .filter(|(_, value)| value.is_finite())
            .map(|(name, value)| (line(&name), value.into()))
            .collect();
        self.tell(FromWorker::Metrics(Metrics {
            epoch,
            epochs,
            stage: line(&stage),
            values,
        }));
        Ok(())
    }

    fn log(&mut self, level: String, message: String) -> wasmtime::Result<()> {
        let level = match level.as_str() {
            "debug" | "warning" | "error" => level,
            _ => "info".to_owned(),
        };
        self.tell(FromWorker::Log {
            level,
            message: line(&message),
        });
        Ok(())
    }

    fn artifact(&mut self, name: String, data: Vec<u8>) -> Result<()> {
        if self.folder.append(&name, &data)? {
            self.tell(FromWorker::Artifact { name });
        }
        Ok(())
    }

    fn replace_artifact(&mut self, name: String, data: Vec<u8>) -> Result<()> {
        if self.folder.replace(&name, &data)? {
            self.tell(FromWorker::Artifact { name });
        }
        Ok(())
    }

    fn cancelled(&mut self) -> wasmtime::Result<bool> {
        Ok(self.grants.cancelled.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn text_of_a_plugin_is_one_short_line_without_escapes() {
        assert_eq!(line("\u{1b}[31mred\r\n\0end"), " [31mred   end");
        let long = line(&"é".repeat(10_000));
        assert_eq!(long.chars().count(), 4_097);
        assert!(long.ends_with('…'));
    }
}
