//! A server whose memory grows in three ways, over glibc's malloc and over others that users preload: each way is found and
//! blamed on whoever keeps the memory, and the ledger adds up, whoever's allocator it is.
mod harness;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use harness::Server;
use leakline::drive::plan::Plan;
use serde_json::Value;

/// A busy machine makes the sampler coarser, so servers don't run side by side.
static ALONE: Mutex<()> = Mutex::new(());

const TRAFFIC: &str = r#"
total = 1200
concurrency = 2
order = "in-turn"
[[route]]
path = "/list"
[[route]]
path = "/pool"
[[route]]
path = "/pages"
"#;

/// The library of the server.
fn pool(folder: &Path) -> PathBuf {
    let (source, library) = (harness::root().join("crates/leakline/tests/native/pool.c"), folder.join("libpool.so"));
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O2", "-pthread", "-Wl,--build-id", "-o"]).arg(&library).arg(source);
    assert!(compiler.status().unwrap().success(), "cc, which Rust links with, fails");
    library
}

/// The leak of this route; of what runs outside of requests, where there is none.
fn leak<'r>(report: &'r Value, route: Option<&str>) -> &'r Value {
    let findings = report["findings"].as_array().unwrap();
    let mut leaks = findings.iter().filter(|finding| finding["kind"] == "leak" && finding["route"].as_str() == route);
    match (leaks.next(), leaks.next()) {
        (Some(leak), None) => leak,
        _ => panic!("not one leak of {route:?}: {findings:#?}"),
    }
}

/// A leak's origin, and the library and function that it blames.
fn blamed(leak: &Value) -> (&str, Option<&str>, Option<&str>) {
    let library = leak["library"].as_str().map(|path| path.rsplit('/').next().unwrap());
    (leak["origin"].as_str().unwrap(), library, leak["blamed"]["symbol"].as_str())
}

/// Bytes a request, which are an estimate: 12 MB of the pool's, in samples that are 64 kB apart at first and less soon after,
/// have a deviation of 7 % at most.
fn near(leak: &Value, bytes: f64) {
    let found = leak["bytes_per_request"].as_f64().unwrap();
    assert!((bytes * 0.65..bytes * 1.35).contains(&found), "{found} B a request, and not {bytes}: {leak:#}");
}

/// Serves over an allocator, `None` for glibc's, and looks at the report.
fn check(allocator: Option<&Path>) {
    let environment = harness::root().join("cases/user-list/requirements.txt");
    let Some(python) = harness::python("3.11", &environment) else { return };
    // A server that failed must not keep the others from running.
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let folder = harness::folder("allocators");
    let library = pool(&folder);
    let port = harness::free_port();
    let arguments = format!(
        "-m gunicorn --threads 4 --bind 127.0.0.1:{port} --env POOL={} --chdir {} pool:app",
        library.display(),
        harness::root().join("crates/leakline/tests/native").display()
    );
    let words = arguments.split(' ').map(OsString::from);
    let command: Vec<OsString> = [python.into_os_string()].into_iter().chain(words).collect();
    let options = ["--budget", "20"].map(str::to_owned);
    let server = Server::start_beside(allocator, &options, &command, &folder, port);
    server.drive_well(&Plan::parse(TRAFFIC).unwrap());
    let report = server.report();

    let list = leak(&report, Some("GET /list"));
    assert_eq!((blamed(list), list["application"]["function"].as_str()), (("python", None, None), Some("remember")));
    near(list, 40_000.0);
    let pages = leak(&report, Some("GET /pages"));
    assert_eq!(blamed(pages), ("native", Some("libpool.so"), Some("map_pages")), "{pages:#}");
    assert_eq!(pages["application"]["function"], "open_pages", "{pages:#}");
    near(pages, 65_536.0);
    // Its threads run no Python, and nobody knows for which request they work: it is told for all requests together.
    let pool = leak(&report, None);
    assert_eq!(blamed(pool), ("native", Some("libpool.so"), Some("digest")), "{pool:#}");
    assert_eq!(pool["application"], Value::Null, "{pool:#}");
    near(pool, 10_000.0);
    assert_eq!(report["findings"].as_array().unwrap().len(), 3, "{report:#}");

    harness::adds_up(&report).unwrap();
    if let Some(ledger) = report["rss"]["ledger"].as_object() {
        let of = |part: &str| ledger[part].as_u64().unwrap();
        // Heaps of other allocators are not taken for glibc's, nor is anything said of what these would give back.
        let expected = match allocator {
            Some(_) => of("native_used") < 4_000_000 && of("mapped") > 50_000_000,
            None => of("native_used") > 20_000_000 && of("mapped") > 20_000_000,
        };
        assert!(expected, "{ledger:#?}");
    }
    drop(server);
    fs::remove_dir_all(&folder).unwrap();
}

/// What apt has to install for it stands beside the tests of native stacks; without it the test is skipped, and says so.
fn check_preloaded(library: &str) {
    let packages = harness::root().join("crates/leakline/tests/native/allocators/requirements.txt");
    if harness::python("3.11", &packages).is_some() {
        check(Some(&Path::new("/usr/lib/x86_64-linux-gnu").join(library)));
    }
}

#[test]
fn glibc() {
    check(None);
}

#[test]
fn jemalloc() {
    check_preloaded("libjemalloc.so.2");
}

#[test]
fn tcmalloc() {
    check_preloaded("libtcmalloc_minimal.so.4");
}

#[test]
fn mimalloc() {
    check_preloaded("libmimalloc.so.2");
}
