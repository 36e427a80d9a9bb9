//! A client of the HTTP API, for the commands that talk to a server.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::uri::{Authority, Uri};
use axum::http::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const ANSWER: usize = 256 << 20;
/// The port where an address names none.
const PORT: u16 = 8000;

/// The address of a server: `http://HOST:PORT`. The scheme may be left out, and the port where it is
/// 8000.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server(String);

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

impl From<std::net::SocketAddr> for Server {
    fn from(address: std::net::SocketAddr) -> Self {
        Self(address.to_string())
    }
}

/// A text that is no address of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the address of a server, such as http://127.0.0.1:8000")]
pub struct InvalidServer(String);

impl FromStr for Server {
    type Err = InvalidServer;

    fn from_str(text: &str) -> Result<Self, InvalidServer> {
        let invalid = || InvalidServer(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let plain = uri.scheme_str().is_none_or(|scheme| scheme == "http");
        let bare = uri.path_and_query().is_none_or(|path| path == "/");
        let authority = uri
            .authority()
            .filter(|authority| plain && bare && !authority.as_str().contains('@'));
        let authority: &Authority = authority.ok_or_else(invalid)?;
        let port = authority.port_u16().unwrap_or(PORT);
        Ok(Self(format!("{}:{port}", authority.host())))
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or the connection broke.
    #[error("no server answers at {server}: {error}; start one with `hangar serve`")]
    Unreachable {
        /// Its address.
        server: Server,
        /// What failed.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server's own words.
    #[error("{detail}")]
    Refused {
        /// The stable dotted code.
        code: String,
        /// For people.
        detail: String,
    },
    /// Another program listens there.
    #[error("what answers at {server} is not Hangar: {status}, and no JSON of its form")]
    Foreign {
        /// The address.
        server: Server,
        /// Of the answer.
        status: StatusCode,
    },
}

/// Asks one server.
#[derive(Debug, Clone)]
pub struct Client {
    server: Server,
}

impl Client {
    /// A client of that server. Connects with each request.
    pub fn new(server: Server) -> Self {
        Self { server }
    }

    /// Whom it asks.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The answer to `GET path`.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.ask(Method::GET, path, String::new()).await
    }

    /// The answer to `POST path`, with a body where it is not null.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.ask(Method::POST, path, body).await
    }

    async fn ask(&self, method: Method, path: &str, body: String) -> Result<Value, ClientError> {
        let exchanged = tokio::time::timeout(PATIENCE, self.exchange(method, path, body)).await;
        let unreachable = |error| ClientError::Unreachable {
            server: self.server.clone(),
            error,
        };
        let (status, bytes) = match exchanged {
            Ok(exchanged) => exchanged.map_err(unreachable)?,
            Err(_) => return Err(unreachable("it has not answered for 10 s".into())),
        };
        let answer: Option<Value> = serde_json::from_slice(&bytes).ok();
        if let Some(answer) = &answer
            && status.is_success()
        {
            return Ok(answer.clone());
        }
        let member = |name: &str| Some(answer.as_ref()?.get(name)?.as_str()?.to_owned());
        match member("code").zip(member("detail")) {
            Some((code, detail)) => Err(ClientError::Refused { code, detail }),
            None => Err(ClientError::Foreign {
                server: self.server.clone(),
                status,
            }),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let socket = TcpStream::connect(&self.server.0).await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(socket));
        let (mut sender, connection) = handshake.await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.server.0)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let bytes = to_bytes(Body::new(response.into_body()), ANSWER).await?;
        connection.abort();
        Ok((status, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, server) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("http://gpu-box/", "http://gpu-box:8000"),
            ("localhost", "http://localhost:8000"),
            ("http://[::1]:80", "http://[::1]:80"),
        ] {
            assert_eq!(text.parse::<Server>().unwrap().to_string(), server);
        }
        for text in [
            "",
            "https://gpu-box",
            "http://a/b",
            "http://user@a",
            "a b",
            "http://",
        ] {
            assert!(text.parse::<Server>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn who_does_not_answer_and_who_is_another_program_are_told_apart() {
        use tokio::io::AsyncWriteExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(listener.local_addr().unwrap().into());
        let answer = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>";
            socket.write_all(page).await.unwrap();
            // Until the client has read it.
            let _closed = socket.readable().await;
            socket
        };
        let (error, _socket) = tokio::join!(client.get("/"), answer);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("is not Hangar: 200 OK"), "{error}");
        drop(listener);
        let error = client.get("/").await.unwrap_err().to_string();
        assert!(
            error.contains("no server answers at http://127.0.0.1:"),
            "{error}"
        );
    }
}
