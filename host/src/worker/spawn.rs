//! Starting a worker: this program again, with a socket for its standard input and nothing else.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::program;

/// Lines of a worker's standard error that are kept, and bytes of one.
const LINES: usize = 50;
const LINE_BYTES: u64 = 4096;

/// A worker process. Dropping it kills it.
pub struct Worker {
    child: Child,
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: tokio::task::JoinHandle<()>,
}

/// Starts a worker that sees the GPUs of these UUIDs. Gives it and the supervisor's end of the socket.
pub fn spawn(uuids: &[String]) -> anyhow::Result<(Worker, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = std::process::Command::new(program::PATH);
    program::environment(&mut command, uuids)
        .arg0("hangar")
        .arg("worker");
    let mut child = Command::from(command)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a worker")?;
    let lines: Arc<Mutex<VecDeque<String>>> = Arc::default();
    let kept = Arc::clone(&lines);
    let errors = child.stderr.take();
    let reader = tokio::spawn(async move {
        let Some(errors) = errors else { return };
        let mut errors = BufReader::new(errors);
        loop {
            let mut line = Vec::new();
            let mut bounded = (&mut errors).take(LINE_BYTES);
            match bounded.read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    if kept.len() == LINES {
                        kept.pop_front();
                    }
                    kept.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
                }
            }
        }
    });
    Ok((
        Worker {
            child,
            lines,
            reader,
        },
        UnixStream::from_std(ours)?,
    ))
}

impl Worker {
    /// The process's number.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills the process where it has not ended, and waits for it.
    pub async fn kill(mut self) {
        let _ended_before = self.child.start_kill();
        let _status = self.child.wait().await;
    }

    /// Waits for the process to end, `patience` at most, kills it then, and tells how it ended and
    /// what it last said.
    pub async fn ended(mut self, patience: Duration) -> String {
        let status = match tokio::time::timeout(patience, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                let _ended_meanwhile = self.child.start_kill();
                self.child.wait().await
            }
        };
        // What was written before the end is still to be read.
        let _read = tokio::time::timeout(Duration::from_secs(1), &mut self.reader).await;
        let how = status.map_or_else(|error| error.to_string(), describe);
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return how;
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        format!("{how}; its last lines:\n{}", lines.join("\n"))
    }
}

fn describe(status: ExitStatus) -> String {
    let name = |signal| match signal {
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    };
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("the worker was ended by signal {signal}{}", name(signal)),
        (None, Some(code)) => format!("the worker ended with status {code}"),
        (None, None) => "the worker ended".to_owned(),
    }
}
