//! Turns one request into its outcome, as a client that behaves in a certain way, on a connection that it may keep.
use std::{io, rc::Rc, time::Duration};

use crc32fast::Hasher;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Method, Response,
    body::{Body, Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};

use super::{Server, objects::Objects, plan::Behaviour, ranges, schedule::Request};

/// What an answer was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Bytes of the body that were read.
    pub body_bytes: u64,
    /// The client hung up before the answer was complete, as it was told to.
    pub left: bool,
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
    /// A part of an object was not what was asked for.
    WrongPart,
    /// An object that was put together from its parts is another one than the last time, or than the one that was read
    /// at once.
    WrongObject,
}

impl Failure {
    /// The name in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Connect => "connect",
            Failure::Broken => "broken",
            Failure::Timeout => "timeout",
            Failure::WrongPart => "wrong part",
            Failure::WrongObject => "wrong object",
        }
    }
}

/// One client: it asks for one thing at a time.
pub struct Client {
    server: Server,
    keep_alive: bool,
    limit: Duration,
    objects: Rc<Objects>,
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
    /// A client without a connection yet; each request may take as long as `limit`. What it downloads has to be what all
    /// clients with these objects have got.
    pub fn new(server: Server, keep_alive: bool, limit: Duration, objects: Rc<Objects>) -> Client {
        Client { server, keep_alive, limit, objects, connection: None }
    }

    /// Asks, and treats the answer as this client does.
    pub async fn perform(&mut self, request: &Request) -> Result<Answer, Failure> {
        let limit = self.limit;
        let behaviour = async {
            match request.client {
                Behaviour::ReadAll => self.read_all(request).await,
                Behaviour::HangUp(bytes) => self.ask(&request.method, &request.path, &mut HangUp(bytes)).await,
                Behaviour::Slow(bytes) => self.ask(&request.method, &request.path, &mut Slow::new(bytes)).await,
                Behaviour::Malformed => malformed(&self.server).await,
                Behaviour::Ranges { bytes, at_once } => {
                    ranges::download(&self.server, &request.path, bytes, at_once, &self.objects).await
                }
            }
        };
        match timeout(limit, behaviour).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.connection = None;
                Err(Failure::Timeout)
            }
        }
    }

    async fn read_all(&mut self, request: &Request) -> Result<Answer, Failure> {
        let mut reader = ReadAll { checksum: request.is_object.then(Hasher::new) };
        let answer = self.ask(&request.method, &request.path, &mut reader).await?;
        match reader.checksum {
            Some(checksum) if answer.status == 200 => self.objects.compare(&request.path, checksum).map(|()| answer),
            _ => Ok(answer),
        }
    }

    async fn ask(&mut self, method: &Method, path: &str, reader: &mut impl Reader) -> Result<Answer, Failure> {
        if let Some(connection) = self.connection.take() {
            // A server may close an idle connection at any moment, so a kept one that breaks before the answer begins
            // says nothing about the request. It is asked again on a new connection, as browsers do, unless the method
            // forbids it.
            match self.exchange(connection, method, path, reader).await {
                Err(Failure::Broken) if method.is_idempotent() => {}
                outcome => return outcome,
            }
        }
        let sender = open(&self.server).await?;
        self.exchange(sender, method, path, reader).await
    }

    async fn exchange(
        &mut self,
        mut connection: SendRequest<Empty<Bytes>>,
        method: &Method,
        path: &str,
        reader: &mut impl Reader,
    ) -> Result<Answer, Failure> {
        let mut request =
            hyper::Request::builder().method(method).uri(path).header(header::HOST, self.server.to_string());
        if !self.keep_alive {
            request = request.header(header::CONNECTION, "close");
        }
        let request = request.body(Empty::new()).map_err(|_| Failure::Broken)?;
        connection.ready().await.map_err(|_| Failure::Broken)?;
        let response: Response<Incoming> = connection.send_request(request).await.map_err(|_| Failure::Broken)?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut body_bytes = 0;
        let mut left = !reader.goes_on(0).await;
        while !left {
            let Some(frame) = body.frame().await else { break };
            let frame = frame.map_err(|_| Failure::Broken)?;
            if let Some(data) = frame.data_ref() {
                body_bytes += data.len() as u64;
                reader.take(data);
            }
            left = !reader.goes_on(body_bytes).await;
        }
        // Where the body ended with the last byte that was wanted, nobody left early.
        left &= !body.is_end_stream();
        // Whoever leaves drops both halves, and with them the connection.
        if !left && self.keep_alive && connection.ready().await.is_ok() {
            self.connection = Some(connection);
        }
        Ok(Answer { status, body_bytes, left })
    }
}

/// Opens a connection that speaks HTTP. It ends by itself when its sender is dropped; its errors reach the sender, too.
pub(super) async fn open(server: &Server) -> Result<SendRequest<Empty<Bytes>>, Failure> {
    let stream = connect(server).await.map_err(|_| Failure::Connect)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Broken)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// How a client reads a body.
trait Reader {
    /// Gets a piece of it.
    fn take(&mut self, _data: &[u8]) {}

    /// Does it read on, having read so many bytes?
    async fn goes_on(&mut self, body_bytes: u64) -> bool;
}

struct ReadAll {
    /// Of what was read, where somebody wants to know.
    checksum: Option<Hasher>,
}

impl Reader for ReadAll {
    fn take(&mut self, data: &[u8]) {
        if let Some(checksum) = &mut self.checksum {
            checksum.update(data);
        }
    }

    async fn goes_on(&mut self, _: u64) -> bool {
        true
    }
}

/// Reads so many bytes and closes the connection.
struct HangUp(u64);

impl Reader for HangUp {
    async fn goes_on(&mut self, body_bytes: u64) -> bool {
        body_bytes < self.0
    }
}

/// Reads so many bytes a second.
struct Slow {
    bytes_per_second: f64,
    began: Instant,
}

impl Slow {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second as f64, began: Instant::now() }
    }
}

impl Reader for Slow {
    async fn goes_on(&mut self, body_bytes: u64) -> bool {
        sleep_until(self.began + Duration::from_secs_f64(body_bytes as f64 / self.bytes_per_second)).await;
        true
    }
}

/// Sends what is no HTTP. A server that answers has understood that much; one that hangs up has, too.
async fn malformed(server: &Server) -> Result<Answer, Failure> {
    let mut stream = connect(server).await.map_err(|_| Failure::Connect)?;
    stream.write_all(b"GET / HTP/one\r\nno header\r\n\r\n").await.map_err(|_| Failure::Broken)?;
    let mut answer = Vec::new();
    // A reset after the answer does not take it back.
    let _ = stream.take(65536).read_to_end(&mut answer).await;
    let status =
        answer.split(|byte| *byte == b' ').nth(1).and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| answer.len() - at - 4);
    status.map(|status| Answer { status, body_bytes: body as u64, left: false }).ok_or(Failure::Broken)
}
