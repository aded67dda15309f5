//! What a found leak looks like, to people and to programs.
use leakline::analyze::decision::Garbage;
use leakline::analyze::evidence::{Evidence, Loss};
use leakline::analyze::{Finding, Holder, Kind, findings};
use leakline::report::{Printed, Report, json, text};
use serde_json::Value;

use super::apps::{Endpoint, Handler, Keeps, drive};
use super::simulator::Server;

fn leaking() -> Evidence {
    let mut server = Server::new(3, 16_384.0);
    let line = server.line("app.py", 14, "codetiming/_timer.py");
    let keeps: Box<dyn Handler> = Box::new(Keeps { lines: vec![(line, 1_000)], one_in: 1 });
    let mut endpoints = vec![Endpoint::new(&mut server, "GET /tickets/<int:number>", 1.0, vec![keeps])];
    endpoints.extend((0..30).map(|route| Endpoint::new(&mut server, &format!("GET /\x1b[31m{route}"), 0.1, vec![])));
    drive(&mut server, &mut endpoints, 8_000);
    let mut worker = server.worker();
    worker.losses.push(Loss { cause: "stack_table_full", count: 3 });
    Evidence { workers: vec![worker] }
}

fn printed(evidence: &Evidence, colour: bool) -> String {
    let source = |file: &str, _| (file == "/srv/app.py").then(|| "    with Timer(\"load\"):".to_owned());
    text(&Report::new(evidence, &findings(evidence)), Printed { source: &source, colour })
}

#[test]
fn the_text_says_what_and_where_within_a_terminals_size() {
    let page = printed(&leaking(), false);
    for part in [
        "LEAK OR GARBAGE: GET /tickets/<int:number> leaves",
        "/srv/app.py:14 in view",
        "with Timer(\"load\"):",
        "stack table full (3)",
    ] {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    assert!(page.contains("→ codetiming/_timer.py:140 in keep"), "{page}");
    assert!(page.lines().count() <= 40 && page.lines().all(|line| line.chars().count() <= 100), "{page}");
    assert!(!page.contains('\x1b'), "{page:?}");
    assert!(printed(&leaking(), true).contains("\x1b[1m"), "colour was asked for");
}

#[test]
fn a_leak_of_one_outcome_is_told_with_the_others_beside() {
    let mut server = Server::new(5, 32_768.0);
    let line = server.line("pdf.py", 20, "");
    let mut endpoint = Endpoint::new(&mut server, "POST /pdf", 1.0, vec![]);
    endpoint.errors = 0.05;
    endpoint.on_error = vec![Box::new(Keeps { lines: vec![(line, 200_000)], one_in: 1 })];
    drive(&mut server, &mut [endpoint], 2_000);
    let page = printed(&Evidence { workers: vec![server.worker()] }, false);
    assert!(page.contains("behind, only when it fails"), "{page}");
    assert!(page.contains("  others   ok leaves nothing, or "), "{page}");
}

/// The same growth, by what is known of the collector and of the objects that were left behind.
#[test]
fn what_may_be_garbage_is_called_so() {
    let evidence = leaking();
    let told = |kind, garbage| {
        let mut analysis = findings(&evidence);
        (analysis.findings[0].kind, analysis.findings[0].garbage) = (kind, garbage);
        let report = Report::new(&evidence, &analysis);
        let page = text(&report, Printed { source: &|_, _| None, colour: false });
        let first = page.split(':').next().unwrap_or_default().to_owned();
        (first, report.findings[0].confidence, report.findings[0].garbage, page.contains("NO LEAK FOUND"))
    };
    let expected = [
        (Kind::Leak, Garbage::Untested, ("LEAK OR GARBAGE", 0.9, Some("untested"), false)),
        (Kind::Leak, Garbage::RuledOut, ("LEAK", 0.99, Some("no"), false)),
        (Kind::Leak, Garbage::Seen, ("LEAK", 0.99, Some("yes"), false)),
        (Kind::Garbage, Garbage::Seen, ("GARBAGE", 0.99, Some("yes"), true)),
    ];
    for (kind, garbage, (first, confidence, is_garbage, is_no_leak)) in expected {
        assert_eq!(told(kind, garbage), (first.to_owned(), confidence, is_garbage, is_no_leak));
    }
}

/// What one container keeps for each request is one leak, whoever made the parts.
#[test]
fn what_one_container_holds_is_told_together() {
    let evidence = leaking();
    let joined = |change: &dyn Fn(&mut Finding)| {
        let mut analysis = findings(&evidence);
        let path = vec!["module shop".to_owned(), "listeners".to_owned()];
        analysis.findings.truncate(1);
        analysis.findings[0].holder = Some(Holder { text: path.join(" → "), path, share: 0.9, bound_bytes: None });
        let mut part = Finding { live_bytes: 1_000.0, ..analysis.findings[0].clone() };
        change(&mut part);
        analysis.findings.push(part);
        analysis.join_by_holder();
        let page = text(&Report::new(&evidence, &analysis), Printed { source: &|_, _| None, colour: false });
        (analysis.findings.len(), analysis.findings[0].beside.len(), page.contains("\n  beside   "))
    };
    let (together, apart) = ((1, 1, true), (2, 0, false));
    assert_eq!(joined(&|_| {}), together);
    assert_eq!(joined(&|part| part.routes.clear()), together, "made by the server, before the request begins");
    assert_eq!(joined(&|part| part.routes = vec!["GET /other".to_owned()]), apart);
    assert_eq!(joined(&|part| part.kind = Kind::Cache), apart);
    assert_eq!(joined(&|part| part.holder = None), apart);
    assert_eq!(joined(&|part| part.holder.as_mut().unwrap().path.truncate(1)), apart);
}

#[test]
fn without_a_leak_the_text_says_what_would_have_been_seen() {
    let mut server = Server::new(3, 16_384.0);
    let mut endpoints = vec![Endpoint::new(&mut server, "GET /", 1.0, vec![])];
    drive(&mut server, &mut endpoints, 3_000);
    let page = printed(&Evidence { workers: vec![server.worker()] }, false);
    assert!(page.starts_with("NO LEAK FOUND: would have seen "), "{page}");
    let page = printed(&Evidence::default(), false);
    assert!(page.starts_with("NO LEAK FOUND: no request has been seen yet"), "{page}");
}

#[test]
fn the_json_has_every_field_of_schema_1() {
    let evidence = leaking();
    let report: Value = serde_json::from_str(&json(&Report::new(&evidence, &findings(&evidence)))).unwrap();
    let has = |value: &Value, fields: &str| {
        for field in fields.split_whitespace() {
            assert!(value.get(field).is_some(), "{field} is not in {value:#}");
        }
    };
    has(&report, "schema target window evidence rss findings routes unattributed");
    has(&report["target"], "pid command python server workers");
    has(&report["target"]["workers"][0], "pid alive requests rss");
    has(&report["window"], "start seconds requests");
    has(&report["evidence"], "samples mean_interval_bytes lost smallest_visible_bytes_per_request");
    has(&report["rss"], "start now peak limit ledger trim_would_return");
    has(
        &report["findings"][0],
        "kind origin route outcome phase bytes_per_request low high live_bytes peak_bytes confidence site application \
         stack library holder beside sockets limit_reached_in_seconds summary",
    );
    has(&report["findings"][0]["site"], "file function line");
    has(&report["routes"][0], "route requests ok error aborted allocated_bytes live_bytes peak_bytes p50_ms p99_ms");
    has(&report["unattributed"], "live_bytes allocated_bytes");
    assert_eq!(report["findings"][0]["library"], "codetiming");
    assert_eq!(report["findings"][0]["outcome"], "any");
}
