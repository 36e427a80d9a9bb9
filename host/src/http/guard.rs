//! Keeps web pages of other sites from using the API through a visitor's browser: a request with a
//! foreign `Origin`, or one whose `Host` is no name of this machine's loopback (DNS rebinding).

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;

/// Lets through what no foreign web page can send. `loopback` tells that the host listens there.
pub(super) async fn same_origin(loopback: bool, request: Request, next: Next) -> Response {
    match foreign(loopback, request.headers()) {
        Some(detail) => {
            Problem::new(StatusCode::FORBIDDEN, "request.origin", detail).into_response()
        }
        None => next.run(request).await,
    }
}

/// Why a request may come from a foreign web page.
fn foreign(loopback: bool, headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) {
            name
        } else {
            host
        }
    });
    if loopback && !["localhost", "127.0.0.1", "[::1]"].contains(&name) {
        return Some(format!(
            "`{host}` is not a name of this host; use localhost or 127.0.0.1"
        ));
    }
    let origin = text(header::ORIGIN)?;
    (origin != format!("http://{host}"))
        .then(|| format!("web pages of `{origin}` may not use this host"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(loopback: bool, headers: &[(header::HeaderName, &'static str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), header::HeaderValue::from_static(value)));
        foreign(loopback, &headers.collect()).is_some()
    }

    #[test]
    fn programs_and_own_pages_pass() {
        for host in [
            "localhost:8000",
            "127.0.0.1:8000",
            "[::1]:8000",
            "localhost",
        ] {
            assert!(!refused(true, &[(header::HOST, host)]), "{host}");
        }
        let own = [
            (header::HOST, "localhost:8000"),
            (header::ORIGIN, "http://localhost:8000"),
        ];
        assert!(!refused(true, &own));
        assert!(!refused(false, &[(header::HOST, "gpu-box.lab:8000")]));
    }

    #[test]
    fn foreign_pages_and_rebound_names_do_not() {
        for origin in ["https://evil.example", "null", "http://localhost:9000"] {
            let headers = [(header::HOST, "localhost:8000"), (header::ORIGIN, origin)];
            assert!(refused(true, &headers), "{origin}");
            assert!(refused(false, &headers), "{origin}");
        }
        for host in ["evil.example:8000", "127.0.0.1.evil.example", ""] {
            assert!(refused(true, &[(header::HOST, host)]), "{host}");
        }
    }
}
