//! Event streams (`text/event-stream`), with replay from the start or from `Last-Event-ID`.

use std::convert::Infallible;
use std::sync::atomic::Ordering;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use tokio::sync::mpsc::Sender;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use super::problem::Problem;
use super::{Host, Shared};

/// A task's events until it ends.
pub(super) async fn logs(
    State(host): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    host.tasks.get(&id)?;
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let after: u64 = last.unwrap_or(0);
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    host.streams.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(async move {
        follow(&host, &id, after, &sender).await;
        host.streams.fetch_sub(1, Ordering::Relaxed);
    });
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()))
}

/// Sends a task's events after one of a number until the last, or until the client is gone.
async fn follow(host: &Host, id: &str, mut after: u64, client: &Sender<Result<Event, Infallible>>) {
    loop {
        let events = tokio::select! {
            events = host.tasks.events(id, after) => events,
            () = client.closed() => return,
        };
        let Ok(events) = events else { return };
        if events.is_empty() {
            return;
        }
        for event in events {
            after = event.sequence;
            let last = event.status.is_some();
            let Ok(json) = serde_json::to_string(&event) else {
                return;
            };
            let sent = Event::default().id(after.to_string()).data(json);
            if client.send(Ok(sent)).await.is_err() || last {
                return;
            }
        }
    }
}
