//! `leakline drive` against a server of ours that knows what it was asked.
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use leakline::drive::plan::Plan;
use leakline::drive::{self, Server};
use serde_json::Value;

/// How long it takes to answer `/slow`, ms.
const SLOW_MS: u64 = 40;

/// Answers `/ok`, `/slow` in its time and `/never` never, and hangs up on everything else. It also closes a connection
/// after five answers, without a word, as servers do with connections that were idle for too long.
fn serve(stream: TcpStream, asked: &AtomicU64) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    for _ in 0..5 {
        let mut request = String::new();
        while reader.read_line(&mut request)? > 2 {}
        match request.split('/').nth(1).unwrap_or_default() {
            "ok" => {}
            "slow" => thread::sleep(Duration::from_millis(SLOW_MS)),
            "never" => thread::sleep(Duration::from_secs(3600)),
            _ => break,
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

fn leakline_drive(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leakline")).args(["--json", "drive"]).args(arguments).output().unwrap()
}

#[test]
fn every_request_is_made_and_its_outcome_counted() {
    let (url, asked) = start();
    let routes = ["--route", "3 GET /ok/{n}", "--route", "/broken", "--parameter", "n=1..9", "--in-turn"];
    let output = leakline_drive(&[&[url.as_str(), "--total", "200", "--concurrency", "3"][..], &routes].concat());
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

/// Connections on which something was asked: by a client that keeps its own each is good for five answers.
#[test]
fn a_client_that_keeps_no_connection_opens_one_for_each_request() {
    for (option, expected) in [(None, 4), (Some("--no-keep-alive"), 20)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let used = Arc::new(AtomicU64::new(0));
        let counter = used.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answered = AtomicU64::new(0);
                let _ = serve(stream, &answered);
                counter.fetch_add(answered.into_inner().min(1), Ordering::Relaxed);
            }
        });
        let arguments = ["--total", "20", "--route", "/ok/1"].into_iter().chain(option);
        let output = leakline_drive(&[url.as_str()].into_iter().chain(arguments).collect::<Vec<_>>());
        let tally: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(tally["statuses"]["200"], 20, "{tally:#}");
        // The last one may be counted a moment later.
        for _ in 0..6000 {
            if used.load(Ordering::Relaxed) < expected {
                thread::sleep(Duration::from_millis(10));
            }
        }
        assert_eq!(used.load(Ordering::Relaxed), expected, "{option:?}");
    }
}

#[test]
fn traffic_without_one_answer_is_an_error() {
    let (url, _) = start();
    assert_eq!(leakline_drive(&[&url, "--total", "3", "--route", "/broken"]).status.code(), Some(1));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = leakline_drive(&[&format!("http://{free}/")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot connect to 127.0.0.1"));
}

#[test]
fn what_takes_long_is_in_the_quantiles_and_what_takes_too_long_has_failed() {
    let (url, _) = start();
    let routes = ["--route", "9 /ok/1", "--route", "/slow/1", "--in-turn", "--route", "/never/1", "--timeout", "1"];
    let output = leakline_drive(&[&[url.as_str(), "--total", "22", "--concurrency", "2"][..], &routes].concat());
    let tally: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&tally["statuses"]["200"], &tally["failures"]["timeout"]), (&20.into(), &2.into()), "{tally:#}");
    let quantiles = |of: &Value| ["p50_ms", "p90_ms", "p99_ms", "max_ms"].map(|name| of[name].as_f64().unwrap());
    let slow = quantiles(&tally["routes"][1]);
    assert!(slow.iter().all(|ms| *ms >= SLOW_MS as f64 * 0.99), "{tally:#}");
    assert!(quantiles(&tally).is_sorted() && quantiles(&tally)[3] >= slow[3], "{tally:#}");
}

#[test]
fn progress_is_told_until_the_end() {
    let (url, _) = start();
    let port = url.rsplit(':').next().unwrap().parse().unwrap();
    let plan = Plan::parse("total = 20\n[[route]]\npath = '/slow/1'").unwrap();
    let mut told = Vec::new();
    let server = Server { host: "127.0.0.1".to_owned(), port };
    let tally = drive::run(&server, &plan, |tally| told.push((tally.sum().requests(), tally.planned))).unwrap();
    assert_eq!(tally.sum().requests(), 20);
    // It is told every quarter of a second, and the whole takes 0.8 s at least.
    assert!(told.len() >= 3 && told.is_sorted() && told.iter().all(|(_, planned)| *planned == 20), "{told:?}");
}

#[test]
fn a_plan_that_cannot_be_carried_out_is_wrong_usage() {
    let plan = format!("{}/unsound-plan.toml", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&plan, "total = 5\n[[route]]\npath = 'index'\n").unwrap();
    let output = leakline_drive(&["http://127.0.0.1:1/", "--plan", &plan]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has to begin with /"));
    assert_eq!(leakline_drive(&["https://127.0.0.1:1/"]).status.code(), Some(2));
}

/// The size of the object that [`serve_object`] has.
const OBJECT: usize = 300_000;

/// Answers every request with an object, or the part of it that was asked for. On `/confused` parts begin elsewhere than
/// their headers say.
fn serve_object(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut range, mut shift, mut has_body) = (None, 0, true);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if line.starts_with("GET / HTP") {
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
        has_body &= !line.starts_with("HEAD ");
        if line.starts_with("GET /confused ") {
            shift = 1;
        }
        if let Some(bytes) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (from, to) = bytes.trim().split_once('-').unwrap();
            range = Some((from.parse::<usize>().unwrap(), to.parse::<usize>().unwrap()));
        }
    }
    let (status, from, to) = match range {
        Some((from, to)) => (format!("206 Partial\r\nContent-Range: bytes {from}-{to}/{OBJECT}"), from, to + 1),
        None => {
            shift = 0;
            ("200 OK".to_owned(), 0, OBJECT)
        }
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", to - from)?;
    let byte = |at| ((at + shift) % 251) as u8;
    stream.write_all(&if has_body { (from..to).map(byte).collect() } else { Vec::new() })
}

fn start_object() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve_object(stream));
        }
    });
    url
}

#[test]
fn clients_behave_as_they_are_told() {
    let url = start_object();
    let tally = |client: &str, total: &str| -> Value {
        let output = leakline_drive(&[&url, "--route", "/object", "--client", client, "--total", total]);
        assert!(output.status.success(), "{client}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(tally("read-all", "3")["body_bytes"], 3 * OBJECT);
    assert_eq!(tally("hang-up=10", "5")["left"]["200"], 5);
    assert_eq!(tally("hang-up=0", "5")["left"]["200"], 5);
    assert_eq!(tally("hang-up=300000", "2")["statuses"]["200"], 2, "the whole was read");
    assert_eq!(tally("malformed", "4")["statuses"]["400"], 4);
    assert_eq!(tally("slow=600000", "1")["body_bytes"], OBJECT);
    let ranges = tally("ranges=70000x4", "2");
    assert_eq!((&ranges["body_bytes"], &ranges["statuses"]["200"]), (&(2 * OBJECT).into(), &2.into()));
    let head = leakline_drive(&[&url, "--route", "HEAD /object", "--total", "3"]);
    let head: Value = serde_json::from_slice(&head.stdout).unwrap();
    assert_eq!((&head["body_bytes"], &head["statuses"]["200"]), (&0.into(), &3.into()));
}

/// Parts that fit their headers may still be parts of something else.
#[test]
fn what_is_put_together_from_parts_is_what_is_read_at_once() {
    let url = start_object();
    for (path, wrong) in [("/object", 0), ("/confused", 2)] {
        let plan = format!("{}/parts{}.toml", env!("CARGO_TARGET_TMPDIR"), path.replace('/', "-"));
        let text = format!(
            "total = 4\norder = 'in-turn'\n[[route]]\npath = '{path}'\n[[route]]\npath = '{path}'\n\
             client = {{ ranges = {{ bytes = 70000, at_once = 4 }} }}"
        );
        std::fs::write(&plan, text).unwrap();
        let tally: Value = serde_json::from_slice(&leakline_drive(&[&url, "--plan", &plan]).stdout).unwrap();
        assert_eq!(tally["failures"]["wrong object"].as_u64().unwrap_or(0), wrong, "{path}: {tally:#}");
        assert_eq!(tally["statuses"]["200"], 4 - wrong, "{path}: {tally:#}");
    }
}
