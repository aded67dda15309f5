//! A real server whose failing requests take much memory at once: the balloon is found by route, outcome and line, and
//! what always takes much, or takes little, is left in peace.
mod harness;

use std::path::PathBuf;

use harness::Server;
use leakline::drive::plan::Plan;
use serde_json::{Value, json};

/// Requests that succeed, of each of the two routes.
const WELL: u64 = 40;
/// Requests that fail.
const FAILING: u64 = 12;
/// What each of those takes at once: 64 MiB.
const TAKEN: f64 = 67_108_864.0;

fn plan(path: &str, total: u64) -> Plan {
    Plan::parse(&format!("total = {total}\n[[route]]\npath = \"{path}\"")).unwrap()
}

/// The folder of the server.
fn folder() -> PathBuf {
    harness::root().join("crates/leakline/tests/balloons")
}

fn check(version: &str) {
    let requirements = harness::root().join("crates/leakline/tests/servers/requirements.txt");
    let Some(python) = harness::python(version, &requirements) else { return };
    let port = harness::free_port();
    let arguments = format!("-m gunicorn --bind 127.0.0.1:{port} statements:app");
    let command: Vec<_> = [python.into_os_string()].into_iter().chain(arguments.split(' ').map(Into::into)).collect();
    let mut server = Server::start(&command, &folder(), port);
    server.drive_well(&plan("/statement/7", WELL));
    server.drive_well(&plan("/export", WELL));
    let failed = server.drive(&plan("/statement/0", FAILING)).sum();
    assert_eq!(failed.statuses.get(&500), Some(&FAILING), "failures {:?}\n{}", failed.failures, server.log());
    server.terminate();

    let report = server.report();
    let [balloon] = &report["findings"].as_array().unwrap()[..] else { panic!("not one finding: {report:#}") };
    let facts = ["kind", "route", "outcome", "phase"].map(|fact| balloon[fact].as_str().unwrap_or_default());
    assert_eq!(facts, ["balloon", "GET /statement/<int:number>", "error", "handler"], "{report:#}");
    // Were the samples as much as 8 MiB apart, a piece would be missed with 37 % and the estimate have a deviation of
    // 27 %: twice as much is more than three deviations away.
    let peak = balloon["peak_bytes"].as_f64().unwrap();
    assert!((TAKEN * 0.5..TAKEN * 2.0).contains(&peak), "{report:#}");
    assert!(balloon["live_bytes"].as_f64().unwrap() < TAKEN * 0.25, "{report:#}");
    assert!(balloon["rss_peak"].as_f64().unwrap() > TAKEN, "{report:#}");
    let reached = |outcome: &Value| [&outcome["outcome"], &outcome["requests"], &outcome["reached"]].map(Value::clone);
    let outcomes: Vec<_> = balloon["outcomes"].as_array().unwrap().iter().map(reached).collect();
    assert_eq!(outcomes, [[json!("ok"), json!(WELL), json!(0)], [json!("error"), json!(FAILING), json!(FAILING)]]);

    let text = std::fs::read_to_string(folder().join("statements.py")).unwrap();
    let line = 1 + text.lines().position(|line| line.ends_with("# the balloon")).unwrap();
    let stack = balloon["stack"].as_array().unwrap();
    assert!(balloon["application"]["function"] != json!(null), "{report:#}");
    assert!(stack.iter().any(|frame| frame["function"] == "statement" && frame["line"] == line), "{report:#}");
    assert!(server.fails_on("balloon") && !server.fails_on("leak"), "{report:#}");
}

#[test]
fn failures_that_take_much_at_once_are_named() {
    for version in ["3.8", "3.13"] {
        check(version);
    }
}
