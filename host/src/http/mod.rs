//! The HTTP API: axum's router on our own accept loop.

mod devices;
mod gpu;
mod guard;
mod problem;
mod requests;
mod resources;
mod stream;
mod tasks;
mod written;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::problem::Problem;
pub use self::written::Written;
use crate::machine::Machine;
use crate::plugins::Registry;
use crate::tasks::Tasks;

/// Connections at once.
const CONNECTIONS: usize = 1024;
/// A client that sends its headers more slowly is disconnected.
const HEADERS: Duration = Duration::from_secs(10);
/// How long a shutdown waits for answers under way.
const DRAIN: Duration = Duration::from_secs(2);
/// Bytes of a request.
const BODY: usize = 1 << 20;

/// What routes need.
pub struct Host {
    /// The devices.
    pub machine: Arc<Machine>,
    /// The plugins.
    pub registry: Registry,
    /// The tasks.
    pub tasks: Tasks,
    /// The state folder.
    pub state: PathBuf,
    /// Event streams open at the moment.
    pub streams: AtomicUsize,
    /// The last answer about GPUs.
    pub gpus: Written,
}

type Shared = axum::extract::State<Arc<Host>>;

/// The routes.
fn router(host: Arc<Host>, loopback: bool) -> Router {
    Router::new()
        .route("/", get(resources::root))
        .route("/api/v1/health", get(resources::health))
        .route("/api/v1/info", get(resources::info))
        .route("/api/v2/resources", get(resources::all))
        .route("/api/v2/resources/gpu", get(resources::gpu))
        .route("/api/v2/resources/gpu/{device}/history", get(gpu::history))
        .route("/api/v2/resources/cpu", get(resources::cpu))
        .route(
            "/api/v2/resources/config",
            get(devices::config).post(devices::configure),
        )
        .route("/api/v2/devices/{device}/drain", post(devices::drain))
        .route("/api/v2/devices/{device}/enable", post(devices::enable))
        .route("/api/v2/plugins", get(resources::plugins))
        .route("/api/v2/training/start", post(tasks::train))
        .route("/api/v2/training/{id}", get(tasks::get))
        .route("/api/v2/training/{id}/logs", get(stream::logs))
        .route("/api/v2/training/{id}/stop", post(tasks::cancel))
        .route("/api/v2/inference/start", post(tasks::infer))
        .route("/api/v2/inference/{id}", get(tasks::get))
        .route("/api/v2/inference/{id}/logs", get(stream::logs))
        .route("/api/v2/inference/{id}/stop", post(tasks::cancel))
        .route("/api/v2/tasks", get(tasks::list))
        .route("/api/v2/tasks/{id}", get(tasks::get).delete(tasks::delete))
        .route("/api/v2/tasks/{id}/logs", get(stream::logs))
        .route("/api/v2/tasks/{id}/cancel", post(tasks::cancel))
        .fallback(async || {
            Problem::new(
                StatusCode::NOT_FOUND,
                "route.unknown",
                "there is no such route; GET / lists them",
            )
        })
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "route.method",
                "the route has another method; GET / lists them",
            )
        })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(axum::middleware::from_fn(move |request, next| {
            guard::same_origin(loopback, request, next)
        }))
        .with_state(host)
}

/// Binds an address. Errors: one in use, named.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; another program may use it: choose one with --listen")
    })
}

/// Serves until `stop` is ready.
pub async fn serve(listener: TcpListener, host: Arc<Host>, stop: impl Future<Output = ()>) {
    let loopback = listener
        .local_addr()
        .is_ok_and(|address| address.ip().is_loopback());
    let router = router(host, loopback);
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let permit = Arc::clone(&room).acquire_owned().await;
                (listener.accept().await, permit)
            } => accepted,
            () = &mut stop => break,
        };
        let (Ok((socket, _)), Ok(permit)) = accepted else {
            // Out of file descriptors, for example: wait for some to come back.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .serve_connection(TokioIo::new(socket), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that went away is no matter.
            let _gone = connection.await;
            drop(permit);
        });
    }
    let _late = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
}
