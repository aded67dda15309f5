//! Servers whose requests ask a peer over connections that they share: each byte that is read belongs to the request that
//! asked for it, whichever thread, task or greenlet reads it, and whoever opened the connection.
mod harness;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use harness::Server;
use leakline::drive::plan::Plan;
use serde_json::Value;

/// A busy machine makes everything slow, so servers don't run side by side.
static ALONE: Mutex<()> = Mutex::new(());

/// Requests of each route, of which eight are in flight at the same time.
const REQUESTS: u64 = 240;
/// What one of them reads.
const LITTLE: u64 = 1_000;
const MUCH: u64 = 200_000;

/// A peer that sends as many bytes as it is asked for with eight digits, on a port of its own. It ends with the test.
fn peer() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(stream.unwrap()));
        }
    });
    port
}

fn answer(mut stream: TcpStream) {
    let mut asked = [0; 8];
    while stream.read_exact(&mut asked).is_ok() {
        let bytes: usize = std::str::from_utf8(&asked).unwrap().parse().unwrap();
        if stream.write_all(&vec![b'x'; bytes]).is_err() {
            return;
        }
    }
}

fn folder() -> PathBuf {
    harness::root().join("crates/leakline/tests/sockets")
}

/// What requests of a route exchanged with a peer: how many did, and the bytes that they read and wrote.
fn exchanged(report: &Value, route: &str, peer: &str) -> [u64; 3] {
    let find = |objects: &Value, key: &str, value: &str| {
        let found = objects.as_array().unwrap().iter().find(|object| object[key] == value).cloned();
        found.unwrap_or_else(|| panic!("no {key} {value}: {report:#}"))
    };
    let socket = find(&find(&report["routes"], "route", route)["sockets"], "peer", peer);
    ["requests", "bytes_read", "bytes_written"].map(|count| socket[count].as_u64().unwrap())
}

/// The server on 127.0.0.1 that these arguments start, if there is a Python for it here, and the port of its peer.
fn start(pooled: &str, arguments: &str) -> Option<(Server, u16)> {
    let python = harness::python("3.11", &folder().join("requirements.txt"))?;
    let (port, peer) = (harness::free_port(), peer());
    let arguments = arguments.replace("{port}", &port.to_string());
    let environment = [format!("PEER_PORT={peer}"), format!("POOLED={pooled}")].map(Into::into);
    let mut command: Vec<OsString> = ["env".into()].into_iter().chain(environment).collect();
    command.push(python.into_os_string());
    command.extend(arguments.split(' ').map(Into::into));
    Some((Server::start(&command, &folder(), port), peer))
}

fn check(pooled: &str, arguments: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some((server, peer)) = start(pooled, arguments) else { return };
    let text = format!(
        "total = {}\nconcurrency = 8\norder = \"in-turn\"\n[[route]]\npath = \"/little/{LITTLE}\"\n[[route]]\npath = \"/much/{MUCH}\"",
        2 * REQUESTS
    );
    server.drive_well(&Plan::parse(&text).unwrap());
    let report = server.stop();
    // Where a thread lost its processor for long with the agent's lock, another one lost what it was about to count.
    let lost = report["evidence"]["lost"]["contention"].as_u64().unwrap_or(0) * MUCH;
    let peer = format!("127.0.0.1:{peer}");
    for (route, bytes) in [("GET /little/<id>", LITTLE), ("GET /much/<id>", MUCH)] {
        let found = exchanged(&report, route, &peer);
        let exact = [REQUESTS, REQUESTS * bytes, REQUESTS * 8];
        let differs = found.iter().zip(exact).any(|(found, exact)| found.abs_diff(exact) > lost);
        assert!(!differs, "{route}: {found:?} instead of {exact:?}: {report:#}");
        let [answered, _, written] = exchanged(&report, route, "client");
        assert!(answered == REQUESTS && written > REQUESTS * 2, "{route}: {answered} got {written}: {report:#}");
    }
}

const UVLOOP: &str = "-m uvicorn --loop uvloop --http h11 --port {port} --log-level critical pooled_asgi:application";

/// The request has ended well, as far as its application and its server know.
#[test]
fn a_client_that_leaves_before_uvloop_has_sent_all_has_aborted_its_request() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some((server, _)) = start("no", UVLOOP) else { return };
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
    write!(stream, "GET /large/30000000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    drop(stream);
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let report = server.report();
        let aborted = report["routes"].as_array().unwrap().iter().find(|route| route["aborted"] == 1);
        if let Some(route) = aborted {
            assert_eq!(route["route"], "GET /large/<id>", "{report:#}");
            return;
        }
        assert!(Instant::now() < patience, "{report:#}\n{}", server.log());
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn asyncio() {
    check("yes", "-m uvicorn --loop asyncio --http h11 --port {port} --log-level critical pooled_asgi:application");
}

/// Whose a pooled connection is under uvloop, nobody can tell.
#[test]
fn uvloop() {
    check("no", UVLOOP);
}

#[test]
fn gevent() {
    check("yes", "-m gunicorn --worker-class gevent --bind 127.0.0.1:{port} pooled_wsgi:application");
}

#[test]
fn threads() {
    check("yes", "-m gunicorn --threads 8 --bind 127.0.0.1:{port} pooled_wsgi:application");
}
