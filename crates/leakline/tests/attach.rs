//! `leakline attach` and `detach` on servers that run, and on whatever else somebody may name: is the leak found as under
//! `leakline run`, does no request fail, and is the process left as it was?
mod harness;

use std::ffi::OsString;
use std::path::Path;
use std::process::Output;
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use harness::Server;
use leakline::drive::plan::Plan;
use serde_json::Value;

/// A busy machine makes the sampler coarser, so servers don't run side by side.
static ALONE: Mutex<()> = Mutex::new(());

const PYTHONS: [&str; 4] = ["3.8", "3.11", "3.13", "system"];

/// So many requests, `rate` a second where that is not 0.
fn plan(path: &str, total: u64, rate: u64) -> Plan {
    let parameters = if path.contains("{number}") { "parameters = { number = \"1..100000\" }" } else { "" };
    let rate = if rate == 0 { String::new() } else { format!("rate = {rate}\n") };
    let text = format!("total = {total}\nconcurrency = 2\n{rate}[[route]]\npath = \"{path}\"\n{parameters}");
    Plan::parse(&text).unwrap()
}

/// Starts `python ARGUMENTS` in a folder, with `{port}` replaced; nothing where this machine has no such Python.
fn start(version: &str, folder: &str, arguments: &str) -> Option<Server> {
    let at = harness::root().join(folder);
    let python = harness::python(version, &at.join("requirements.txt"))?;
    let port = harness::free_port();
    let arguments = arguments.replace("{port}", &port.to_string());
    let command: Vec<OsString> =
        [python.into_os_string()].into_iter().chain(arguments.split(' ').map(Into::into)).collect();
    Some(Server::start_alone(&command, &at, port))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a command on the server's process tree, which has to do it.
fn done(server: &Server, arguments: &[&str]) {
    let pid = server.launcher().to_string();
    let output = server.leakline(&[arguments, &[&pid]].concat());
    assert_eq!(output.status.code(), Some(0), "leakline {arguments:?}: {}\n{}", said(&output), server.log());
}

/// Does it while requests are served, none of which may fail.
fn under_traffic(server: &Server, path: &str, act: impl FnOnce()) {
    std::thread::scope(|scope| {
        scope.spawn(|| server.drive_well(&plan(path, 150, 100)));
        sleep(Duration::from_millis(300));
        act();
    });
}

/// One leak is found: of this route, on the line that says so, and of so many bytes a request.
fn named(report: &Value, story: &Story) {
    let text = std::fs::read_to_string(harness::root().join(story.file)).unwrap();
    let line = 1 + text.lines().position(|line| line.contains(story.line)).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let leaks: Vec<_> = findings.iter().filter(|finding| finding["kind"] == "leak").collect();
    let [leak] = &leaks[..] else { panic!("not one leak: {report:#}") };
    let frame = &leak["application"];
    let name = Path::new(story.file).file_name().unwrap().to_str().unwrap();
    assert!(frame["file"].as_str().unwrap().ends_with(name) && frame["line"] == line, "{leak:#}");
    assert_eq!(leak["route"], story.route, "{leak:#}");
    // An estimate of 25 MB from samples 4 kB to 100 kB apart has a deviation of 7 % at most.
    let found = leak["bytes_per_request"].as_f64().unwrap();
    assert!((story.bytes / 2.0..story.bytes * 2.0).contains(&found), "{leak:#}");
}

/// What is kept, and how it is found.
struct Story<'s> {
    folder: &'s str,
    path: &'s str,
    route: &'s str,
    file: &'s str,
    line: &'s str,
    bytes: f64,
}

/// A list that has lived long before we come, and grows.
const USER_LIST: Story = Story {
    folder: "cases/user-list",
    path: "/",
    route: "GET /",
    file: "cases/user-list/fetchuserdata.py",
    line: "users_list.append",
    bytes: 40000.0,
};

const SHOP: Story = Story {
    folder: "crates/leakline/tests/outcomes",
    path: "/sell/{number}",
    route: "GET /sell/{number}",
    file: "crates/leakline/tests/outcomes/fastapi_shop.py",
    line: "kept.append(",
    bytes: 250_000.0,
};

/// Attaches to a server at work, finds its leak, leaves it, and comes again.
fn check(versions: &[&str], arguments: &str, story: &Story) {
    for version in versions {
        // A server that failed must not keep the others from running.
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(server) = start(version, story.folder, arguments) else { continue };
        // Few requests and dense samples. (A list grows by an eighth of its length at a time, so that the leak of one that is
        // long already shows late.)
        under_traffic(&server, story.path, || done(&server, &["attach", "--budget", "20"]));
        server.drive_well(&plan(story.path, 600, 0));
        let attached = server.report();
        named(&attached, story);

        under_traffic(&server, story.path, || done(&server, &["detach"]));
        let left = server.report();
        named(&left, story);
        server.drive_well(&plan(story.path, 50, 0));
        assert_eq!(server.report()["window"]["requests"], left["window"]["requests"], "nothing is recorded any more");

        under_traffic(&server, story.path, || done(&server, &["attach", "--budget", "20"]));
        server.drive_well(&plan(story.path, 250, 0));
        let again = server.report();
        let route = again["routes"].as_array().unwrap().iter().find(|route| route["route"] == story.route);
        let number = |key: &str| route.unwrap_or_else(|| panic!("{again:#}"))[key].as_f64().unwrap();
        assert!(number("requests") >= 250.0 && number("live_bytes") > 1e6, "{again:#}");
    }
}

#[test]
fn gunicorn_sync() {
    check(&PYTHONS, "-m gunicorn --bind 127.0.0.1:{port} app:app", &USER_LIST);
}

#[test]
fn gunicorn_threads() {
    check(&["3.8", "3.13"], "-m gunicorn --threads 4 --bind 127.0.0.1:{port} app:app", &USER_LIST);
}

#[test]
fn flask_run() {
    check(&["3.11", "system"], "-m flask --app app run --port {port}", &USER_LIST);
}

#[test]
fn uvicorn() {
    let arguments = "-m uvicorn --http h11 --port {port} --log-level critical fastapi_shop:app";
    check(&["3.11", "3.13"], arguments, &SHOP);
}
