//! Turns one request into its outcome, as a client that behaves in a certain way, on a connection that it may keep.
use std::{io, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::Server;

/// What a whole answer was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Bytes of the body.
    pub body_bytes: u64,
}

/// Why there is no whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No connection could be made.
    Connect,
    /// The connection ended, or made no sense, before the answer was complete.
    Broken,
    /// The answer was not complete in time.
    Timeout,
}

impl Failure {
    /// The name in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Connect => "connect",
            Failure::Broken => "broken",
            Failure::Timeout => "timeout",
        }
    }
}

/// One client: it asks for one thing at a time.
pub struct Client {
    server: Server,
    keep_alive: bool,
    limit: Duration,
    connection: Option<SendRequest<Empty<Bytes>>>,
}

/// Opens a connection without asking for anything.
pub async fn connect(server: &Server) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
    // Small requests should not wait for the acknowledgement of earlier ones.
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Client {
    /// A client without a connection yet; each request may take as long as `limit`.
    pub fn new(server: Server, keep_alive: bool, limit: Duration) -> Client {
        Client { server, keep_alive, limit, connection: None }
    }

    /// Asks and reads the whole answer.
    pub async fn read_all(&mut self, method: Method, path: &str) -> Result<Answer, Failure> {
        match timeout(self.limit, self.ask(method, path)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.connection = None;
                Err(Failure::Timeout)
            }
        }
    }

    async fn ask(&mut self, method: Method, path: &str) -> Result<Answer, Failure> {
        if let Some(connection) = self.connection.take() {
            // A server may close an idle connection at any moment, so a kept one that breaks before the answer begins
            // says nothing about the request. It is asked again on a new connection, as browsers do, unless the method
            // forbids it.
            match self.exchange(connection, method.clone(), path).await {
                Err(Failure::Broken) if method.is_idempotent() => {}
                outcome => return outcome,
            }
        }
        let stream = connect(&self.server).await.map_err(|_| Failure::Connect)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Broken)?;
        // The connection ends by itself when its sender is dropped; its errors reach the sender, too.
        tokio::spawn(connection);
        self.exchange(sender, method, path).await
    }

    async fn exchange(
        &mut self,
        mut connection: SendRequest<Empty<Bytes>>,
        method: Method,
        path: &str,
    ) -> Result<Answer, Failure> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, self.server.to_string());
        if !self.keep_alive {
            request = request.header(header::CONNECTION, "close");
        }
        let request = request.body(Empty::new()).map_err(|_| Failure::Broken)?;
        connection.ready().await.map_err(|_| Failure::Broken)?;
        let response: Response<Incoming> = connection.send_request(request).await.map_err(|_| Failure::Broken)?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut body_bytes = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Failure::Broken)?;
            body_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        if self.keep_alive && connection.ready().await.is_ok() {
            self.connection = Some(connection);
        }
        Ok(Answer { status, body_bytes })
    }
}
