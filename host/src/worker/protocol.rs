//! What supervisor and worker say to each other over their socket pair.
//!
//! Every message is a frame: its length in bytes as a little-endian u32, then JSON. The supervisor
//! opens with [`ToWorker::Start`]; the worker plans, asks for a lease, runs and ends with
//! [`FromWorker::Finished`]. End of file on the socket means that the other side is gone.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest frame either side accepts, in bytes; it bounds what a broken peer can make us hold.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// The bytes of a frame's length.
const HEADER_BYTES: usize = 4;

/// From the supervisor to its worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// The task to run. Always the first message, sent once.
    Start(Box<Start>),
    /// The answer to [`FromWorker::AcquireLease`].
    Granted(Grant),
    /// The lease was refused for good.
    Refused(Failure),
    /// The user cancelled the task: host calls fail from now on.
    Cancel,
}

/// From a worker to its supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromWorker {
    /// The plans are made; this many bytes are needed on each device before work can start.
    AcquireLease(LeaseRequest),
    /// What of its lease the worker has taken changed. What it takes is told afterwards, what it gives
    /// back before: the supervisor never takes for free what is in use.
    Memory {
        /// Whether it has made a context on the GPU.
        context: bool,
        /// What its sessions hold, in bytes: by their arenas' word.
        session_bytes: u64,
    },
    /// The backend opened its session: the device on which the kernels run, by the backend's word.
    Running {
        /// `cpu` or `cuda:N`.
        device: String,
        /// The most host memory that libraries and staging take beside the session's own.
        scratch_bytes: u64,
    },
    /// A device failed, by the backend's word: the failure that the task ends with is its. Told before the
    /// lease is given back.
    Fault {
        /// `cuda:N`.
        device: String,
        /// What the backend says.
        message: String,
    },
    /// How much is done, 0 to 1.
    Progress {
        /// 0 to 1.
        fraction: f64,
        /// On what.
        message: String,
    },
    /// Metrics of an epoch.
    Metrics(Metrics),
    /// A line of the task's log.
    Log {
        /// `debug`, `info`, `warning` or `error`.
        level: String,
        /// One line.
        message: String,
    },
    /// A file was written into the task's folder.
    Artifact {
        /// Its plain file name.
        name: String,
    },
    /// The worker lives; sent every second.
    Heartbeat,
    /// The lease was dropped, all that it had taken is given back.
    LeaseReleased,
    /// The task ended; the last message.
    Finished {
        /// None on success.
        failure: Option<Failure>,
    },
}

/// All that a worker needs to know of its task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// The task's identity.
    pub task_id: String,
    /// The plugin's file: a copy that stays as it is while the task runs.
    pub plugin: PathBuf,
    /// `training` or `inference`.
    pub kind: String,
    /// The plugin's model.
    pub model: String,
    /// Checked, with defaults filled in.
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// The device that the user chose, which wins over the plugin's wish; none leaves the choice
    /// to the plugin.
    pub device: Option<String>,
    /// On how many GPUs the user wants it, which wins over the plugin's wish.
    pub gpus: Option<u32>,
    /// Every device of the machine.
    pub devices: Vec<DeviceFacts>,
    /// The data sets granted.
    pub data: Vec<DataGrant>,
    /// Weights to load, where the user gave some.
    pub weights: Option<PathBuf>,
    /// The state to go on from, where the task resumes another.
    pub resume: Option<PathBuf>,
    /// The task's folder for checkpoints and artifacts. It exists.
    pub output: PathBuf,
    /// The folder of compiled plugins.
    pub compile_cache: PathBuf,
    /// Threads for compute on the CPU.
    pub threads: usize,
    /// Whether matrix products on a GPU may round their inputs to TF32.
    pub tf32: bool,
    /// What the plugin may use.
    pub limits: Limits,
}

/// A device as plugins see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// `cpu` or `cuda:N`.
    pub selector: String,
    /// Product name.
    pub name: String,
    /// All memory, in bytes.
    pub total_bytes: u64,
    /// `uuid`, `compute-capability`, `free-bytes`, `schedulable`, `reason`.
    pub properties: Vec<(String, String)>,
}

/// A data set that the user granted to the task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DataGrant {
    /// `train`, `validation` or `input`.
    pub name: String,
    /// A folder or a file.
    pub path: PathBuf,
    /// A part of what is there, such as `train` or `test`; none for all of it.
    pub part: Option<String>,
}

/// Limits of one plugin instance.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    /// Linear memories together, in bytes.
    pub memory_bytes: usize,
    /// Elements of all tables together.
    pub table_elements: usize,
    /// Host resources held at once.
    pub handles: usize,
    /// Time the plugin may compute between two host calls, in milliseconds.
    pub compute_milliseconds: u64,
    /// Time the whole task may take, in seconds.
    pub wall_seconds: u64,
    /// What a plugin may log and write as artifacts, in bytes.
    pub artifact_bytes: u64,
}

impl Default for Limits {
    /// 256 MiB of memory, 100,000 table elements, 4,096 handles, 10 s between host calls, 7 days,
    /// 1 GiB of artifacts.
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            table_elements: 100_000,
            handles: 4_096,
            compute_milliseconds: 10_000,
            wall_seconds: 7 * 24 * 3600,
            artifact_bytes: 1 << 30,
        }
    }
}

/// What a worker needs to go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// `cpu`, `cuda`, `cuda:N` or a pool: the user's choice, else the plugin's.
    pub device: String,
    /// Bytes on the CPU.
    pub bytes: u64,
    /// Bytes on each GPU.
    pub gpu_bytes: u64,
    /// Devices wanted.
    pub replicas: u32,
}

/// A lease as the worker holds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Grant {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// The GPU's UUID; none for the CPU.
    pub uuid: Option<String>,
    /// The other GPUs of a task on several, in order.
    pub others: Vec<GrantedGpu>,
    /// Bytes granted on each device.
    pub bytes: u64,
    /// Why the CPU was granted where a GPU was asked for.
    pub fallback_reason: Option<String>,
}

/// A GPU of a lease.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GrantedGpu {
    /// `cuda:N`.
    pub device: String,
    /// Its UUID.
    pub uuid: String,
}

/// Metrics of an epoch, as the plugin reported them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Metrics {
    /// From 1.
    pub epoch: u64,
    /// Epochs in all.
    pub epochs: u64,
    /// `epoch_start`, `training`, `validation`, `epoch_end` or `completed`.
    pub stage: String,
    /// By name; not-a-number and infinities are left out, as JSON has none.
    pub values: serde_json::Map<String, serde_json::Value>,
}

/// Why something failed, for records and users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A stable dotted code.
    pub code: String,
    /// For a person.
    pub message: String,
}

/// Reads a message; none at the end of the stream between two messages. Errors: `InvalidData` for
/// a frame that is too long or holds no such message, `UnexpectedEof` for a torn one.
pub fn read_message<T: DeserializeOwned>(source: &mut impl Read) -> io::Result<Option<T>> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match source.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut frame = vec![0; frame_bytes(header)?];
    source.read_exact(&mut frame)?;
    serde_json::from_slice(&frame).map(Some).map_err(invalid)
}

/// Writes a message in one call. Errors: `InvalidData` for one that is too long.
pub fn write_message(sink: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    sink.write_all(&encode(message)?)
}

/// Reads a message as [`read_message`] does.
pub async fn receive<T: DeserializeOwned>(
    source: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match source.read(&mut header[filled..]).await? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    let mut frame = vec![0; frame_bytes(header)?];
    source.read_exact(&mut frame).await?;
    serde_json::from_slice(&frame).map(Some).map_err(invalid)
}

/// Writes a message as [`write_message`] does.
pub async fn send(
    sink: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    sink.write_all(&encode(message)?).await
}

fn frame_bytes(header: [u8; HEADER_BYTES]) -> io::Result<usize> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(invalid(format!(
            "a frame of {length} bytes: at most {MAX_FRAME_BYTES} are allowed"
        )));
    }
    Ok(length)
}

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, message).map_err(invalid)?;
    let length = frame.len() - HEADER_BYTES;
    if length > MAX_FRAME_BYTES {
        return Err(invalid(format!(
            "a message of {length} bytes: at most {MAX_FRAME_BYTES} are allowed"
        )));
    }
    frame[..HEADER_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Option<ToWorker>> {
        read_message(&mut &bytes[..])
    }

    #[test]
    fn a_message_is_read_as_it_was_written_and_then_the_stream_ends() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &ToWorker::Cancel).unwrap();
        let mut source = &bytes[..];
        let message: Option<ToWorker> = read_message(&mut source).unwrap();
        assert!(matches!(message, Some(ToWorker::Cancel)));
        let end: Option<ToWorker> = read_message(&mut source).unwrap();
        assert!(end.is_none());
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_is_held() {
        let error = read(&u32::MAX.to_le_bytes()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let long = "x".repeat(MAX_FRAME_BYTES);
        assert!(write_message(&mut Vec::new(), &long).is_err());
    }

    #[test]
    fn every_torn_message_is_an_error() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &ToWorker::Cancel).unwrap();
        for end in 1..bytes.len() {
            let error = read(&bytes[..end]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}");
        }
    }

    #[test]
    fn garbage_is_an_error() {
        let mut bytes = 4_u32.to_le_bytes().to_vec();
        bytes.extend(b"{{{{");
        let error = read(&bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn both_sides_read_each_other() {
        let (mut here, mut there) = tokio::io::duplex(64);
        let sent = tokio::spawn(async move {
            let long = "y".repeat(100_000);
            send(&mut here, &long).await.unwrap();
        });
        let got: Option<String> = receive(&mut there).await.unwrap();
        assert_eq!(got.map(|text| text.len()), Some(100_000));
        sent.await.unwrap();
        let end: Option<String> = receive(&mut there).await.unwrap();
        assert!(end.is_none());
    }
}
