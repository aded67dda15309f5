//! Real servers under leakline, each with the same three questions: has every request been counted on its route, are
//! those that fail counted as failures, and is the line that keeps memory the line that is named?
mod harness;

use std::path::PathBuf;
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use harness::Server;
use leakline::drive::plan::Plan;
use serde_json::Value;

/// A busy machine makes the sampler coarser, so servers don't run side by side.
static ALONE: Mutex<()> = Mutex::new(());

/// The oldest and the newest Python that the servers' current versions agree on.
const PYTHONS: [&str; 2] = ["3.8", "3.13"];
/// Requests that keep something.
const SOLD: u64 = 400;
/// Bytes that each of them keeps.
const KEPT: f64 = 250_000.0;
/// Requests that fail.
const BROKEN: u64 = 20;

/// Where the applications are.
fn servers() -> PathBuf {
    harness::root().join("crates/leakline/tests/servers")
}

/// Runs `python ARGUMENTS` under leakline, with `{port}` replaced; nothing where this machine has no such Python.
fn start(version: &str, arguments: &str) -> Option<Server> {
    let python = harness::python(version, &servers().join("requirements.txt"))?;
    let port = harness::free_port();
    let arguments = arguments.replace("{port}", &port.to_string());
    let command: Vec<_> = [python.into_os_string()].into_iter().chain(arguments.split(' ').map(Into::into)).collect();
    // Some 400 requests within a second or two are over before a default budget has found its interval.
    let dense = ["--budget".to_owned(), "2".to_owned()];
    Some(Server::start_with(&dense, &command, &servers(), port))
}

fn plan(path: &str, total: u64, concurrency: usize) -> Plan {
    let parameters = if path.contains("{number}") { "parameters = { number = \"1..100000\" }" } else { "" };
    let text = format!("total = {total}\nconcurrency = {concurrency}\n[[route]]\npath = \"{path}\"\n{parameters}");
    Plan::parse(&text).unwrap()
}

/// Stops the server when it is done with so many requests. A client has its answer before the server has closed the
/// response, and the small servers don't finish what they do when they are told to end.
fn stop_after(server: Server, requests: u64) -> Value {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let report = server.report();
        let routes = report["routes"].as_array().unwrap();
        let ended: u64 = routes.iter().map(|route| route["requests"].as_u64().unwrap()).sum();
        if ended == requests {
            return server.stop();
        }
        assert!(Instant::now() < patience, "{ended} of {requests} requests have ended: {report:#}");
        sleep(Duration::from_millis(100));
    }
}

/// Sells, breaks, and returns the report.
fn trade(server: Server) -> Value {
    server.drive_well(&plan("/sell/{number}", SOLD, 4));
    let broken = server.drive(&plan("/broken", BROKEN, 2)).sum();
    assert_eq!(broken.statuses.get(&500), Some(&BROKEN), "failures {:?}\n{}", broken.failures, server.log());
    stop_after(server, SOLD + BROKEN)
}

/// The counts of a route: requests, ok, error.
fn counts(report: &Value, route: &str) -> [u64; 3] {
    let routes = report["routes"].as_array().unwrap();
    let route = routes.iter().find(|known| known["route"] == route).unwrap_or_else(|| panic!("no {route}: {report:#}"));
    ["requests", "ok", "error"].map(|count| route[count].as_u64().unwrap())
}

fn counted(report: &Value, route: &str) {
    assert_eq!(counts(report, route), [SOLD, SOLD, 0], "{report:#}");
    assert_eq!(counts(report, "GET /broken"), [BROKEN, 0, BROKEN], "{report:#}");
}

/// Exactly one leak is reported: of this route, on the line of the application that says so.
fn named(report: &Value, route: &str, file: &str) {
    let text = std::fs::read_to_string(servers().join(file)).unwrap();
    let line = 1 + text.lines().position(|line| line.ends_with("# kept for ever")).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let [leak] = &findings.iter().filter(|finding| finding["kind"] == "leak").collect::<Vec<_>>()[..] else {
        panic!("not one leak: {report:#}");
    };
    let frame = &leak["application"];
    let found = (leak["route"].as_str(), frame["file"].as_str(), frame["line"].as_u64());
    // Up to 3.8 a script's name is the one that it was started by, in the server's folder.
    let real = |file: &str| servers().join(file).canonicalize().ok();
    let named = found.1.is_some_and(|found| real(found) == real(file));
    assert!(named && found.0 == Some(route) && found.2 == Some(line as u64), "{found:?}\n{report:#}");
    // The estimate of 100 MB from samples 1 MB apart has a deviation of sqrt(1 MB * 100 MB) = 10 %: half or twice as
    // much is five deviations away.
    let bytes = leak["bytes_per_request"].as_f64().unwrap();
    assert!((KEPT / 2.0..KEPT * 2.0).contains(&bytes), "{bytes}\n{report:#}");
}

fn check(arguments: &str, route: &str, file: &str) {
    for version in PYTHONS {
        // A server that failed must not keep the others from running.
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(server) = start(version, arguments) else { continue };
        let report = trade(server);
        counted(&report, route);
        named(&report, route, file);
    }
}

macro_rules! servers {
    ($($name:ident: $arguments:literal, $route:literal, $file:literal;)*) => {$(
        #[test]
        fn $name() {
            check($arguments, $route, $file);
        }
    )*};
}

servers! {
    gunicorn_sync: "-m gunicorn --bind 127.0.0.1:{port} shop:app", "GET /sell/<int:number>", "shop.py";
    gunicorn_threads: "-m gunicorn --threads 4 --bind 127.0.0.1:{port} shop:app", "GET /sell/<int:number>", "shop.py";
    gunicorn_workers_preloaded: "-m gunicorn --workers 2 --preload --bind 127.0.0.1:{port} shop:app",
        "GET /sell/<int:number>", "shop.py";
    gunicorn_django: "-m gunicorn --bind 127.0.0.1:{port} manage:application", "GET /sell/<int:number>", "manage.py";
    flask_run: "-m flask --app shop run --port {port}", "GET /sell/<int:number>", "shop.py";
    werkzeug: "shop.py {port}", "GET /sell/<int:number>", "shop.py";
    waitress: "-m waitress --listen 127.0.0.1:{port} shop:app", "GET /sell/<int:number>", "shop.py";
    django_runserver: "manage.py runserver --noreload 127.0.0.1:{port}", "GET /sell/<int:number>", "manage.py";
    wsgiref: "plain.py {port}", "GET /sell/<id>", "plain.py";
}

#[test]
fn gunicorn_workers_that_are_replaced_lose_no_request() {
    for version in PYTHONS {
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let arguments = "-m gunicorn --max-requests 100 --bind 127.0.0.1:{port} shop:app";
        let Some(server) = start(version, arguments) else { continue };
        counted(&trade(server), "GET /sell/<int:number>");
    }
}

#[test]
fn ten_thousand_requests_of_eight_clients_all_succeed() {
    for version in ["3.8", "3.11", "3.13"] {
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(server) = start(version, "-m gunicorn --threads 8 --bind 127.0.0.1:{port} shop:app") else { continue };
        server.drive_well(&plan("/healthy", 10_000, 8));
        let report = stop_after(server, 10_000);
        assert_eq!(counts(&report, "GET /healthy"), [10_000, 10_000, 0], "{report:#}");
    }
}
