//! Errors as clients see them: `application/problem+json` (RFC 9457) with the old `detail` member
//! and a stable `code`.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::tasks::error::TaskError;

/// An answer that says what is wrong and how to mend it.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: String,
    detail: String,
    /// Seconds after which the same request may be taken.
    retry_after: Option<u64>,
}

/// After how many seconds a client asks again that was refused for want of room.
const RETRY_SECONDS: u64 = 5;

impl Problem {
    pub(super) fn new(status: StatusCode, code: &str, detail: impl ToString) -> Self {
        Self {
            status,
            code: code.to_owned(),
            detail: detail.to_string(),
            retry_after: None,
        }
    }

    /// A member of the request that cannot be used.
    pub(super) fn invalid(code: &str, detail: impl ToString) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }
}

impl From<TaskError> for Problem {
    fn from(error: TaskError) -> Self {
        let status = match &error {
            TaskError::Unknown { .. } => StatusCode::NOT_FOUND,
            TaskError::Exists { .. } | TaskError::Active { .. } | TaskError::Ended { .. } => {
                StatusCode::CONFLICT
            }
            TaskError::Id { .. } | TaskError::Device(_) => StatusCode::UNPROCESSABLE_ENTITY,
            TaskError::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            TaskError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            TaskError::Output { .. } => StatusCode::BAD_REQUEST,
            TaskError::Store(_) | TaskError::Stored(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let later = matches!(error, TaskError::QueueFull { .. } | TaskError::ShuttingDown);
        Self {
            retry_after: later.then_some(RETRY_SECONDS),
            ..Self::new(status, error.code(), error)
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
        });
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.status, kind, body.to_string()).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
