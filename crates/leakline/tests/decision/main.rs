//! Leaks must be found and healthy servers left in peace: the decision is tried on simulated histories. Seeds are
//! fixed, so a run is repeatable; `rates` measures the error rates over many seeds (`docs/decision.md`):
//!
//! `cargo test -p leakline --release --test decision -- --ignored --nocapture rates`
mod apps;
mod simulator;

use std::collections::{HashMap, VecDeque};

use apps::{AppendsTo, Drops, Endpoint, Expires, Handler, Hoards, Keeps, LruCache, Once, Replaces, Sawtooth, drive};
use fastrand::Rng;
use leakline::analyze::evidence::Evidence;
use leakline::analyze::{Analysis, Finding, findings};
use simulator::Server;

const KB: f64 = 1024.0;

fn analyze(server: Server) -> Analysis {
    findings(&Evidence { workers: vec![server.worker()] })
}

fn names(finding: &Finding, route: &str, file: &str) -> bool {
    let application = finding.application.as_ref();
    finding.route.as_deref() == Some(route) && application.is_some_and(|line| line.file.ends_with(file))
}

/// Ordinary company for a leak, and the whole of a healthy server: routes that warm up, cache, expire and replace, and
/// that answer `requests` requests together.
fn healthy_endpoints(server: &mut Server, requests: u64) -> Vec<Endpoint> {
    let weights: Vec<f64> = (0..server.rng.usize(1..6)).map(|_| 0.1 + server.rng.f64()).collect();
    let total: f64 = weights.iter().sum();
    let mut endpoints = vec![];
    for (index, weight) in weights.into_iter().enumerate() {
        let expected = requests as f64 * weight / total;
        let count = server.rng.usize(1..4);
        let handlers = (0..count).map(|at| healthy_handler(server, index * 10 + at, expected)).collect();
        let mut endpoint = Endpoint::new(server, &format!("GET /healthy/{index}"), weight, handlers);
        endpoint.errors = if server.rng.bool() { 0.02 } else { 0.0 };
        endpoints.push(endpoint);
    }
    endpoints
}

/// One healthy use of memory by a route that answers `requests` requests: of a size that a fifth of them fills.
fn healthy_handler(server: &mut Server, number: usize, requests: f64) -> Box<dyn Handler> {
    let library = if server.rng.bool() { "lib/cache.py" } else { "" };
    let line = server.line(&format!("healthy{number}.py"), number as u32 + 1, library);
    let size = 2f64.powf(5.0 + server.rng.f64() * 10.0) as u64;
    let scale = (requests * 0.2 * 10f64.powf(-2.0 * server.rng.f64())).max(4.0) as usize;
    match server.rng.u32(0..7) {
        0 => Box::new(LruCache::new(line, scale as u64, scale, size)),
        1 => Box::new(LruCache::new(line, 3 * scale as u64, scale, size)),
        2 => Box::new(Expires { line, size, lifetime: scale, alive: VecDeque::new() }),
        3 | 4 => {
            let is_garbage = server.rng.bool();
            Box::new(Sawtooth { line, size, period: scale as u64, is_garbage, served: 0, kept: vec![] })
        }
        5 => {
            let sizes = (0..server.rng.usize(1..9)).map(|_| server.rng.u64(4_000..2_000_000)).collect();
            Box::new(Once { line, sizes, chance: server.rng.f64() })
        }
        _ => Box::new(Replaces { line, size, keys: scale, values: HashMap::new() }),
    }
}

fn random_interval(rng: &mut Rng) -> f64 {
    16.0 * KB * 2f64.powf(rng.f64() * 5.0)
}

fn healthy_history(seed: u64) -> Analysis {
    let interval = random_interval(&mut Rng::with_seed(seed ^ 0xfeed));
    let mut server = Server::new(seed, interval);
    let requests = [500, 1_500, 5_000, 15_000][server.rng.usize(0..4)];
    let imports = server.line("settings.py", 3, "");
    for _ in 0..2_000 {
        server.allocate(imports, 2_000);
    }
    let mut endpoints = healthy_endpoints(&mut server, requests);
    drive(&mut server, &mut endpoints, requests / 2);
    if server.rng.bool() {
        server.thin();
    }
    drive(&mut server, &mut endpoints, requests - requests / 2);
    analyze(server)
}

/// A leak of `bytes` a request in blocks of `bytes`, beside healthy company; whether it is named.
fn steady_leak(seed: u64, interval: f64, requests: u64, bytes: u64) -> bool {
    let mut server = Server::new(seed, interval);
    let line = server.line("leak.py", 7, "");
    let keeps = Keeps { lines: vec![(line, bytes)], one_in: 1 };
    let mut endpoints = vec![Endpoint::new(&mut server, "GET /leak", 1.0, vec![Box::new(keeps)])];
    drive(&mut server, &mut endpoints, requests);
    analyze(server).findings.iter().any(|finding| names(finding, "GET /leak", "leak.py"))
}

/// Story 2: 40 kB of pointers a request, in one list.
fn user_list(seed: u64, interval: f64, requests: u64) -> Analysis {
    let mut server = Server::new(seed, interval);
    let line = server.line("fetchuserdata.py", 6, "");
    let list: Vec<Box<dyn Handler>> = vec![Box::new(AppendsTo::list(line, 5_000, u64::MAX))];
    let mut endpoints = vec![Endpoint::new(&mut server, "GET /", 1.0, list)];
    drive(&mut server, &mut endpoints, requests);
    analyze(server)
}

/// Story 4: four floats in each request's timers and four lists of pointers to them, in a library.
fn slow_timer(seed: u64, interval: f64, requests: u64) -> Analysis {
    let mut server = Server::new(seed, interval);
    let float = server.line("app.py", 14, "codetiming/_timer.py");
    let list = server.line("app.py", 14, "codetiming/_timers.py");
    let floats = Keeps { lines: vec![(float, 40); 4], one_in: 1 };
    let mut handlers: Vec<Box<dyn Handler>> = vec![Box::new(floats)];
    handlers.extend((0..4).map(|_| Box::new(AppendsTo::list(list, 1, u64::MAX)) as Box<dyn Handler>));
    let mut endpoints = vec![Endpoint::new(&mut server, "GET /tickets/<int:number>", 4.0, handlers)];
    endpoints.extend(healthy_endpoints(&mut server, requests / 3));
    drive(&mut server, &mut endpoints, requests);
    analyze(server)
}

/// The free-list trap: what /healthy drops, /report keeps.
fn recycled(seed: u64, interval: f64, requests: u64) -> Analysis {
    let mut server = Server::new(seed, interval);
    let dropping = server.line("app.py", 14, "");
    let keeping = server.line("ledger.py", 9, "");
    let drops = Drops { line: dropping, count: 140, size: 288 };
    let hoards = Hoards { line: keeping, count: 140, size: 288 };
    let mut endpoints = vec![
        Endpoint::new(&mut server, "GET /healthy", 1.0, vec![Box::new(drops)]),
        Endpoint::new(&mut server, "GET /report", 1.0, vec![Box::new(hoards)]),
    ];
    drive(&mut server, &mut endpoints, requests);
    analyze(server)
}

#[test]
fn a_list_that_only_grows_is_named_within_500_requests() {
    for (seed, interval) in [16.0, 64.0, 128.0, 512.0].into_iter().enumerate() {
        let analysis = user_list(seed as u64, interval * KB, 500);
        let [finding] = &analysis.findings[..] else { panic!("one in {interval} kB: {analysis:?}") };
        assert!(names(finding, "GET /", "fetchuserdata.py") && finding.outcome.is_none(), "{finding:?}");
        assert!(finding.rate.low < 40_000.0 && 40_000.0 < finding.rate.high, "{finding:?}");
    }
}

fn share<T>(results: impl Iterator<Item = T>, is_so: impl Fn(&T) -> bool) -> f64 {
    let (mut so, mut all) = (0, 0);
    for result in results {
        so += usize::from(is_so(&result));
        all += 1;
    }
    so as f64 / all as f64
}

#[test]
#[ignore = "measures rates for docs/decision.md; takes a minute in release"]
fn rates() {
    let alarms = |seeds: std::ops::Range<u64>| {
        let mut shapes = vec![];
        for seed in seeds.clone() {
            let analysis = healthy_history(seed);
            for finding in &analysis.findings {
                shapes.push((seed, finding.route.clone(), finding.site.clone().map(|site| site.file), finding.samples));
            }
        }
        for shape in shapes.iter().take(20) {
            println!("  {shape:?}");
        }
        println!("false alarms: {} findings in {} healthy histories", shapes.len(), seeds.end - seeds.start);
    };
    alarms(0..4_000);
    for interval in [16.0, 32.0, 64.0, 128.0, 256.0, 512.0] {
        let found = |analysis: &Analysis, route, file| analysis.findings.iter().any(|one| names(one, route, file));
        let list = share((0..500).map(|seed| user_list(seed, interval * KB, 500)), |one| {
            found(one, "GET /", "fetchuserdata.py")
        });
        let timer = share((0..200).map(|seed| slow_timer(seed, interval * KB, 20_000)), |one| {
            found(one, "GET /tickets/<int:number>", "app.py")
        });
        let hoard = share((0..20).map(|seed| recycled(seed, interval * KB, 2_000)), |one| {
            found(one, "GET /report", "ledger.py") && one.findings.len() == 1
        });
        println!("one in {interval} kB: user-list {list:.3} slow-timer {timer:.3} recycled {hoard:.3}");
    }
    for (requests, bytes) in
        [(2_000, 1_000), (2_000, 10_000), (2_000, 40_000), (20_000, 132), (20_000, 500), (20_000, 5_000)]
    {
        let rates: Vec<f64> = [16.0, 64.0, 256.0]
            .iter()
            .map(|interval| {
                share((0..300).map(|seed| steady_leak(seed, interval * KB, requests, bytes)), |&found| found)
            })
            .collect();
        println!("{bytes} B in {requests} requests at 16, 64, 256 kB: {rates:.3?}");
    }
}
