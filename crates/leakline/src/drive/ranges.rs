//! Downloads one object as download accelerators do: a first GET, which is closed without reading its body, tells how
//! long the object is; then several connections ask for its parts; each part is checked, and the object that they make
//! together is compared with what other clients got.
use std::{cell::Cell, rc::Rc};

use crc32fast::Hasher;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, StatusCode, body::Incoming, header};
use tokio::task::spawn_local;

use super::{
    Server,
    client::{Answer, Failure, open},
    objects::Objects,
};

/// Where a part begins, and its checksum: parts arrive in any order, and nobody could keep an object of a gigabyte.
type Part = (u64, Hasher);

/// Downloads the object at `path` in parts of `bytes`, `at_once` of them at the same time.
pub(super) async fn download(
    server: &Server,
    path: &str,
    bytes: u64,
    at_once: usize,
    objects: &Objects,
) -> Result<Answer, Failure> {
    let first = get(server, path, None).await?;
    let status = first.status().as_u16();
    let length: u64 = number(&first, header::CONTENT_LENGTH, str::parse).ok_or(Failure::WrongPart)?;
    // Here the client closes the connection and leaves the body to the server.
    drop(first);

    let next = Rc::new(Cell::new(0));
    let connections: Vec<_> = (0..at_once)
        .map(|_| spawn_local(fetch_parts(server.clone(), path.to_owned(), bytes, length, next.clone())))
        .collect();
    let mut parts: Vec<Part> = Vec::new();
    for connection in connections {
        parts.extend(connection.await.map_err(|_| Failure::Broken)??);
    }
    parts.sort_by_key(|part| part.0);
    let mut object = Hasher::new();
    parts.iter().for_each(|(_, part)| object.combine(part));
    objects.compare(path, object)?;
    Ok(Answer { status, body_bytes: length, left: false })
}

/// Asks for the next part that nobody has asked for, until there is none; returns what it got.
async fn fetch_parts(
    server: Server,
    path: String,
    bytes: u64,
    length: u64,
    next: Rc<Cell<u64>>,
) -> Result<Vec<Part>, Failure> {
    let mut got = Vec::new();
    loop {
        let from = next.get();
        if from >= length {
            return Ok(got);
        }
        let to = from.saturating_add(bytes).min(length);
        next.set(to);
        let part = get(&server, &path, Some(format!("bytes={from}-{}", to - 1))).await?;
        let expected = format!("bytes {from}-{}/{length}", to - 1);
        let range = number(&part, header::CONTENT_RANGE, |text| Ok::<_, ()>(text.to_owned()));
        if part.status() != StatusCode::PARTIAL_CONTENT || range.as_deref() != Some(&expected) {
            return Err(Failure::WrongPart);
        }
        let (mut body, mut got_bytes, mut checksum) = (part.into_body(), 0, Hasher::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Failure::Broken)?;
            if let Some(data) = frame.data_ref() {
                got_bytes += data.len() as u64;
                checksum.update(data);
            }
        }
        if got_bytes != to - from {
            return Err(Failure::WrongPart);
        }
        got.push((from, checksum));
    }
}

/// Asks on a connection of its own, which lives as long as the answer's body.
async fn get(server: &Server, path: &str, range: Option<String>) -> Result<Response<Incoming>, Failure> {
    let mut request = Request::get(path).header(header::HOST, server.to_string()).header(header::CONNECTION, "close");
    if let Some(range) = range {
        request = request.header(header::RANGE, range);
    }
    let request = request.body(Empty::new()).map_err(|_| Failure::Broken)?;
    open(server).await?.send_request(request).await.map_err(|_| Failure::Broken)
}

fn number<T, E>(
    answer: &Response<Incoming>,
    name: header::HeaderName,
    read: impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    read(answer.headers().get(name)?.to_str().ok()?).ok()
}
