//! `leakline drive` against a server of ours that knows what it was asked.
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::Value;

/// Answers `/ok`, and hangs up on everything else. It also closes a connection after five answers, without a word, as
/// servers do with connections that were idle for too long.
fn serve(stream: TcpStream, asked: &AtomicU64) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    for _ in 0..5 {
        let mut request = String::new();
        while reader.read_line(&mut request)? > 2 {}
        if !request.starts_with("GET /ok/") {
            break;
        }
        asked.fetch_add(1, Ordering::Relaxed);
        (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfine\n")?;
    }
    Ok(())
}

fn start() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicU64::new(0));
    let counter = asked.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counter = counter.clone();
            thread::spawn(move || serve(stream, &counter));
        }
    });
    (url, asked)
}

fn drive(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leakline")).args(["--json", "drive"]).args(arguments).output().unwrap()
}

#[test]
fn every_request_is_made_and_its_outcome_counted() {
    let (url, asked) = start();
    let routes = ["--route", "3 GET /ok/{n}", "--route", "/broken", "--parameter", "n=1..9", "--in-turn"];
    let output = drive(&[&[url.as_str(), "--total", "200", "--concurrency", "3"][..], &routes].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tally: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(tally["requests"], 200);
    assert_eq!(tally["statuses"]["200"], 150);
    assert_eq!(tally["failures"]["broken"], 50);
    assert_eq!(tally["body_bytes"], 150 * 5);
    assert_eq!(tally["routes"][0]["route"], "GET /ok/{n}");
    assert_eq!(tally["routes"][1]["failures"]["broken"], 50);
    assert_eq!(asked.load(Ordering::Relaxed), 150);
}

#[test]
fn traffic_without_one_answer_is_an_error() {
    let (url, _) = start();
    assert_eq!(drive(&[&url, "--total", "3", "--route", "/broken"]).status.code(), Some(1));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = drive(&[&format!("http://{free}/")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot connect to 127.0.0.1"));
}

#[test]
fn a_plan_that_cannot_be_carried_out_is_wrong_usage() {
    let plan = format!("{}/unsound-plan.toml", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&plan, "total = 5\n[[route]]\npath = 'index'\n").unwrap();
    let output = drive(&["http://127.0.0.1:1/", "--plan", &plan]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has to begin with /"));
    assert_eq!(drive(&["https://127.0.0.1:1/"]).status.code(), Some(2));
}
