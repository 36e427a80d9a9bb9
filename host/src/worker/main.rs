//! The body of a worker process: one task, from its start message to its last.
//!
//! The socket to the supervisor is standard input. A thread of its own reads it, so that a cancel
//! is seen and the supervisor's death ends this process whatever the plugin does.

use std::future::Future;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::sync::oneshot;

use super::protocol::{
    Failure, FromWorker, Grant, LeaseRequest, Start, ToWorker, read_message, write_message,
};
use crate::output;
use crate::plugins::{self, Grants, Supervisor};

/// The time between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(1);

type Answer = Result<Grant, Failure>;

/// The socket to the supervisor, shared by the plugin, the heartbeat and the reader.
struct Link {
    socket: Mutex<UnixStream>,
    /// Who waits for the answer to a lease request.
    waiting: Mutex<Option<oneshot::Sender<Answer>>>,
    cancelled: Arc<AtomicBool>,
}

impl Link {
    fn answer(&self, answer: Answer) {
        let waiting = self
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waiting) = waiting {
            // Nobody listens any more once the plugin was ended.
            let _unheard = waiting.send(answer);
        }
    }

    /// Reads what the supervisor says until it is gone.
    fn listen(&self, mut socket: UnixStream) {
        while let Ok(Some(message)) = read_message(&mut socket) {
            match message {
                ToWorker::Start(_) => break,
                ToWorker::Granted(grant) => self.answer(Ok(grant)),
                ToWorker::Refused(failure) => self.answer(Err(failure)),
                ToWorker::Cancel => {
                    self.cancelled.store(true, Ordering::Relaxed);
                    self.answer(Err(cancelled()));
                }
            }
        }
        end();
    }
}

/// Ends this process at once, as nobody is left to work for.
#[allow(clippy::exit, reason = "the plugin's thread may never come back")]
fn end() {
    std::process::exit(1);
}

fn cancelled() -> Failure {
    Failure {
        code: "task.cancelled".to_owned(),
        message: "the task was cancelled".to_owned(),
    }
}

impl Supervisor for Link {
    fn tell(&self, message: FromWorker) {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if write_message(&mut *socket, &message).is_err() {
            end();
        }
    }

    fn acquire(&self, request: LeaseRequest) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        Box::pin(async move {
            let (sender, answer) = oneshot::channel();
            *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(cancelled());
            }
            self.tell(FromWorker::AcquireLease(request));
            answer.await.unwrap_or_else(|_| Err(cancelled()))
        })
    }
}

/// Runs the task that the supervisor sends over standard input.
pub fn run() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::message(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn work() -> anyhow::Result<()> {
    let mut socket = supervisor().context(
        "`hangar worker` is how the host runs a task: it takes no part in a command line",
    )?;
    let Some(ToWorker::Start(start)) = read_message(&mut socket)? else {
        bail!("the first message is not the start of a task");
    };
    let link = Arc::new(Link {
        socket: Mutex::new(socket.try_clone()?),
        waiting: Mutex::default(),
        cancelled: Arc::default(),
    });
    let reader = Arc::clone(&link);
    std::thread::Builder::new()
        .name("supervisor".to_owned())
        .spawn(move || reader.listen(socket))?;
    let beating = Arc::clone(&link);
    std::thread::Builder::new()
        .name("heartbeat".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(HEARTBEAT);
                beating.tell(FromWorker::Heartbeat);
            }
        })?;
    let failure = task(*start, &link).err();
    link.tell(FromWorker::Finished { failure });
    Ok(())
}

/// The socket that standard input is.
fn supervisor() -> anyhow::Result<UnixStream> {
    let input = rustix::stdio::stdin();
    rustix::net::sockopt::socket_type(input).context("standard input is no socket")?;
    Ok(UnixStream::from(input.try_clone_to_owned()?))
}

fn task(start: Start, link: &Arc<Link>) -> Result<(), Failure> {
    let Start {
        mut parameters,
        model,
        ..
    } = start;
    parameters.insert("model".to_owned(), Value::String(model));
    let grants = Grants {
        parameters: Value::Object(parameters).to_string(),
        device: start.device,
        gpus: start.gpus,
        devices: start.devices,
        data: start.data,
        weights: start.weights,
        resume: start.resume,
        output: Some(start.output),
        threads: start.threads,
        tf32: start.tf32,
        limits: start.limits,
        cancelled: Arc::clone(&link.cancelled),
        supervisor: Arc::clone(link) as Arc<dyn Supervisor>,
    };
    plugins::run(&start.plugin, &start.compile_cache, &start.kind, grants)
}
