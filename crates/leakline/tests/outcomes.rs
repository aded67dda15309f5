//! Real servers under leakline, each asked for pages that work, that fail, and that the client leaves before they are
//! complete: has each request been counted on its route and with its outcome, and do the bytes that a page is known to
//! keep lie on its route? WebSockets are such pages, too, and end well however they end.
mod harness;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use harness::Server;
use leakline::analyze::evidence::{Phase, StackId};
use leakline::drive::plan::Plan;
use serde_json::Value;

/// A busy machine makes the sampler coarser, so servers don't run side by side.
static ALONE: Mutex<()> = Mutex::new(());

/// Requests that work, of each page that keeps something.
const KEPT: u64 = 60;
/// WebSockets that are opened.
const TALKS: u64 = 20;
/// Requests that fail.
const BROKEN: u64 = 10;
/// Requests whose client leaves.
const LEFT: u64 = 6;

/// How leakline comes to a server.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// It starts it.
    Run,
    /// It comes when the server runs, and has answered already.
    Attach,
}

/// A page that keeps something: its path, its route, and the bytes that each request keeps.
type Page = (&'static str, &'static str, u64);

const FLASK: &[Page] = &[("/sell/{number}", "GET /sell/<int:number>", 250_000)];
const THREADS: &[Page] =
    &[("/pool/{number}", "GET /pool/<int:number>", 240_000), ("/thread/{number}", "GET /thread/<int:number>", 230_000)];
const GREENLETS: &[Page] = &[
    ("/pool/{number}", "GET /pool/<int:number>", 240_000),
    ("/thread/{number}", "GET /thread/<int:number>", 230_000),
    ("/greenlet/{number}", "GET /greenlet/<int:number>", 220_000),
];
const STARLETTE: &[Page] = &[
    ("/sell/{number}", "GET /sell/{number}", 250_000),
    ("/lend/{number}", "GET /lend/{number}", 240_000),
    ("/pool/{number}", "GET /pool/{number}", 230_000),
    ("/later/{number}", "GET /later/{number}", 220_000),
    ("/branch/order/{number}", "GET /branch/order/{number}", 210_000),
];
const FASTAPI: &[Page] = &[
    ("/sell/{number}", "GET /sell/{number}", 250_000),
    ("/lend/{number}", "GET /lend/{number}", 240_000),
    ("/pool/{number}", "GET /pool/{number}", 230_000),
    ("/later/{number}", "GET /later/{number}", 220_000),
    ("/branch/here/order/{number}", "GET /branch/{town}/order/{number}", 210_000),
    ("/mounted/order/{number}", "GET /mounted/order/{number}", 210_000),
    ("/talk/{number}", "WS /talk/{number}", 600_000),
];
const NESTED: &[Page] =
    &[("/sell/{number}", "GET /sell/<int:number>", 250_000), ("/lend/{number}", "GET /lend/{number}", 240_000)];
const AIOHTTP: &[Page] = &[
    ("/sell/{number}", "GET /sell/{number}", 250_000),
    ("/lend/{number}", "GET /lend/{number}", 240_000),
    ("/pool/{number}", "GET /pool/{number}", 230_000),
    ("/later/{number}", "GET /later/{number}", 220_000),
    ("/branch/order/{number}", "GET /branch/order/{number}", 210_000),
    ("/talk/{number}", "WS /talk/{number}", 600_000),
];
const TORNADO: &[Page] = &[
    ("/sell/{number}", "GET /sell/<int:number>", 250_000),
    ("/lend/{number}", "GET /lend/([0-9]+)", 240_000),
    ("/pool/{number}", "GET /pool/(?P<number>[0-9]+)", 230_000),
    ("/later/{number}", "GET /later/([0-9]+)", 220_000),
    ("/talk/{number}", "WS /talk/([0-9]+)", 600_000),
];
const PLAIN: &[Page] = &[("/sell/{number}", "GET /sell/<id>", 250_000)];
const REST: &[Page] = &[
    ("/api/orders/{number}/", "GET /api/orders/(?P<pk>[^/.]+)/", 250_000),
    ("/lend/{number}", "GET /lend/<int:number>", 240_000),
];
const PYRAMID: &[Page] = &[("/sell/{number}", "GET /sell/{number}", 250_000)];
const FALCON: &[Page] = &[("/sell/{number}", "GET /sell/{number:int}", 250_000)];
const FALCON_ASGI: &[Page] =
    &[("/sell/{number}", "GET /sell/{number:int}", 250_000), ("/talk/{number}", "WS /talk/{number:int}", 600_000)];
const LITESTAR: &[Page] = &[
    ("/sell/{number}", "GET /sell/{number}", 250_000),
    ("/lend/{number}", "GET /lend/{number}", 240_000),
    ("/branch/order/{number}", "GET /branch/order/{number}", 210_000),
];
const SANIC: &[Page] =
    &[("/sell/{number}", "GET /sell/<number:int>", 250_000), ("/pool/{number}", "GET /pool/<number:int>", 240_000)];
const BOTTLE: &[Page] = &[
    ("/sell/{number}", "GET /sell/<number:int>", 250_000),
    ("/branch/order/{number}", "GET /branch/order/<number>", 210_000),
];
const CHERRYPY: &[Page] =
    &[("/sell/{number}", "GET /sell/{number}", 250_000), ("/orders/{number}", "GET /orders/{0}", 210_000)];
const DJANGO: &[Page] = &[
    ("/sell/{number}", "GET /sell/<int:number>", 250_000),
    ("/lend/{number}", "GET /lend/<int:number>", 240_000),
    ("/talk/{number}", "WS /talk/<id>", 600_000),
];

/// Where the applications are.
fn applications() -> PathBuf {
    harness::root().join("crates/leakline/tests/outcomes")
}

fn plan(path: &str, total: u64) -> Plan {
    let parameters = if path.contains("{number}") { "parameters = { number = \"1..100000\" }" } else { "" };
    let text = format!("total = {total}\nconcurrency = 3\n[[route]]\npath = \"{path}\"\n{parameters}");
    Plan::parse(&text).unwrap()
}

/// Asks for a page and hangs up when its first bytes are there.
fn leave(server: &Server, path: &str) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 10]).unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
}

/// Opens a WebSocket, says something and hears it back. Every other client then just goes.
fn talk(server: &Server, path: &str, number: u64) {
    let path = path.replace("{number}", &number.to_string());
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .unwrap();
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}\n{}", String::from_utf8_lossy(&head), server.log());
    // What clients send is masked (RFC 6455, 5.3), here by zeros, which leave it as it is.
    let (text, goodbye): (&[u8], &[u8]) = (b"\x81\x85\0\0\0\0hello", b"\x88\x82\0\0\0\0\x03\xe8");
    let mut heard = |said: &[u8], expected: &[u8]| {
        stream.write_all(said).unwrap();
        let mut heard = vec![0; expected.len()];
        stream.read_exact(&mut heard).unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
        assert_eq!(heard, expected, "{path}");
    };
    heard(text, b"\x81\x05hello");
    if number.is_multiple_of(2) {
        heard(goodbye, b"\x88\x02\x03\xe8");
    }
}

/// Asks for a page that keeps something, as often as it is to be asked for.
fn visit(server: &Server, (path, route, _): &Page) {
    if route.starts_with("WS ") {
        (0..TALKS).for_each(|number| talk(server, path, number));
    } else {
        server.drive_well(&plan(path, KEPT));
    }
}

/// How often that is.
fn visits((_, route, _): &Page) -> u64 {
    if route.starts_with("WS ") { TALKS } else { KEPT }
}

/// The report, when so many requests have ended, not counting those that only were to wake the server up. Servers notice
/// late that a client has gone, and what a page keeps after its answer, it keeps before its request ends.
fn report_after(server: &Server, requests: u64, waking: &[String]) -> Value {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let report = server.report();
        let counted = routes(&report).iter().filter(|route| !waking.iter().any(|name| route["route"] == name.as_str()));
        let ended: u64 = counted.map(|route| route["requests"].as_u64().unwrap()).sum();
        if ended == requests {
            return report;
        }
        assert!(Instant::now() < patience, "{ended} of {requests} requests: {report:#}\n{}", server.log());
        sleep(Duration::from_millis(200));
    }
}

fn routes(report: &Value) -> &[Value] {
    report["routes"].as_array().unwrap()
}

/// Requests of this route that ended ok, in an error, and aborted; and its live bytes.
fn ended(report: &Value, name: &str) -> ([u64; 3], f64) {
    let route = routes(report).iter().find(|route| route["route"] == name);
    let route = route.unwrap_or_else(|| panic!("no {name}: {report:#}"));
    (["ok", "error", "aborted"].map(|outcome| route[outcome].as_u64().unwrap()), route["live_bytes"].as_f64().unwrap())
}

fn keeps(report: &Value, route: &str, outcomes: [u64; 3], bytes: u64) {
    let (found, live) = ended(report, route);
    assert_eq!(found, outcomes, "{route}: {report:#}");
    // Samples 100 kB apart give 12 MB a deviation of sqrt(100 kB * 12 MB) = 1.1 MB. A few requests leave something in
    // caches beside.
    let exact = (outcomes.iter().sum::<u64>() * bytes) as f64;
    assert!((exact / 2.0..exact * 2.0).contains(&live), "{route} keeps {exact}, and {live} was found: {report:#}");
}

/// `python ARGUMENTS`, or `uwsgi …` or `pyuwsgi …` from its environment, and its port; nothing where this machine has no
/// such Python.
fn command(version: &str, arguments: &str) -> Option<(Vec<OsString>, u16)> {
    let (program, requirements, arguments) = match arguments.split_once(' ') {
        Some(("uwsgi", arguments)) => ("uwsgi", "requirements.txt", arguments),
        // The two don't live together.
        Some(("pyuwsgi", arguments)) => ("pyuwsgi", "pyuwsgi.txt", arguments),
        _ => ("python", "requirements.txt", arguments),
    };
    let program = harness::python(version, &applications().join(requirements))?.with_file_name(program);
    let port = harness::free_port();
    // Who waits for a slow client while this machine waits for something else is not to give up.
    let patience = match program.file_name().and_then(|name| name.to_str()) {
        Some("uwsgi" | "pyuwsgi") => " --socket-timeout 60",
        _ if arguments.starts_with("-m gunicorn") => " --timeout 120",
        _ => "",
    };
    let arguments = arguments.replace("{port}", &port.to_string()) + patience;
    let words = [program.into_os_string()].into_iter().chain(arguments.split(' ').map(Into::into));
    Some((words.collect(), port))
}

/// Few requests and dense samples.
const DENSE: [&str; 2] = ["--budget", "20"];

/// The server, with leakline in it, and the routes of the requests that were needed to get it in.
fn start(version: &str, arguments: &str, way: Way) -> Option<(Server, Vec<String>)> {
    let (command, port) = command(version, arguments)?;
    match way {
        Way::Run => {
            let server = Server::start_with(&DENSE.map(str::to_owned), &command, &applications(), port);
            Some((server, Vec::new()))
        }
        Way::Attach => {
            let server = Server::start_alone(&command, &applications(), port);
            let workers = if ["--processes 2", "prefork"].iter().any(|two| arguments.contains(two)) { 2 } else { 1 };
            let waking = match arguments.starts_with("celery") {
                true => {
                    attach(&server);
                    await_workers(&server, workers, |server| order(server, b"n"))
                }
                // Once it answers, its worker is there.
                false => {
                    let wake = |server: &Server| _ = server.drive(&plan("/nothing", 10));
                    wake(&server);
                    beside_a_slow_client(&server, || attach(&server));
                    await_workers(&server, workers, wake)
                }
            };
            Some((server, waking))
        }
    }
}

fn attach(server: &Server) {
    let attached = server.leakline(&["attach", DENSE[0], DENSE[1], &server.launcher().to_string()]);
    assert!(attached.status.success(), "{attached:?}\n{}", server.log());
}

/// Bytes of the page `/large`.
const LARGE: usize = 30_000_000;

/// Does something while a client gets a large page, which is more than the system keeps for the two: it is read slowly until
/// that is done, and is to arrive whole.
fn beside_a_slow_client(server: &Server, act: impl FnOnce()) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
    write!(stream, "GET /large HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = vec![0; 10];
    stream.read_exact(&mut page).unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
    let is_done = AtomicBool::new(false);
    let page = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut part = vec![0; 1 << 16];
            loop {
                match stream.read(&mut part).unwrap_or_else(|error| panic!("{error}\n{}", server.log())) {
                    0 => return page,
                    bytes => page.extend_from_slice(&part[..bytes]),
                }
                if !is_done.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(50));
                }
            }
        });
        act();
        is_done.store(true, Ordering::Relaxed);
        client.join().unwrap()
    });
    let head = page.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("its head ends");
    assert_eq!(page.len() - head - 4, LARGE, "{}\n{}", String::from_utf8_lossy(&page[..head]), server.log());
}

/// Asks until so many workers of a server that was attached to have answered; the routes of these requests. A server whose
/// main thread sleeps until a request comes lets the agent in with the first one that does, which is then not seen, or not
/// whole.
fn await_workers(server: &Server, workers: usize, wake: impl Fn(&Server)) -> Vec<String> {
    let pid = server.launcher().to_string();
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        wake(server);
        let report = server.leakline(&["report", "--json", &pid]);
        let report: Value = serde_json::from_slice(&report.stdout).unwrap_or_default();
        let waking: Vec<String> = report["routes"].as_array().into_iter().flatten().map(name).collect();
        let processes = report["target"]["workers"].as_array().into_iter().flatten();
        if processes.filter(|process| process["requests"] != 0).count() >= workers {
            return waking;
        }
        assert!(Instant::now() < patience, "{report:#}\n{}", server.log());
    }
}

fn name(route: &Value) -> String {
    route["route"].as_str().unwrap().to_owned()
}

fn check(way: Way, versions: &[&str], arguments: &str, pages: &[Page]) {
    for version in versions {
        // A server that failed must not keep the others from running.
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some((server, waking)) = start(version, arguments, way) else { continue };
        pages.iter().for_each(|page| visit(&server, page));
        let broken = server.drive(&plan("/broken", BROKEN)).sum();
        assert_eq!(broken.statuses.get(&500), Some(&BROKEN), "failures {:?}\n{}", broken.failures, server.log());
        for _ in 0..LEFT {
            leave(&server, "/endless");
        }
        leave(&server, "/large");
        let kept: u64 = pages.iter().map(visits).sum();
        let mut report = report_after(&server, kept + BROKEN + LEFT + 1, &waking);
        // Servers that keep in a buffer what they have to send learn of it when the request has ended.
        let patience = Instant::now() + Duration::from_secs(60);
        while ended(&report, "GET /large").0 != [0, 0, 1] {
            assert!(Instant::now() < patience, "the large page's client left: {report:#}\n{}", server.log());
            sleep(Duration::from_millis(200));
            report = server.report();
        }
        for page in pages {
            keeps(&report, page.1, [visits(page), 0, 0], page.2);
        }
        assert_eq!(ended(&report, "GET /broken").0, [0, BROKEN, 0], "{report:#}");
        assert_eq!(ended(&report, "GET /endless").0, [0, 0, LEFT], "{report:#}");
        if way == Way::Attach {
            let left = server.leakline(&["detach", &server.launcher().to_string()]);
            assert!(left.status.success(), "{left:?}");
            server.drive_well(&plan(pages[0].0, 10));
        }
        server.stop();
    }
}

macro_rules! servers {
    ($($name:ident $versions:tt $arguments:literal $pages:ident;)*) => {
        $(
            #[test]
            fn $name() {
                check(Way::Run, &$versions, $arguments, $pages);
            }
        )*

        /// Their names, command lines and pages.
        const SERVERS: &[(&str, &str, &[Page])] = &[$((stringify!($name), $arguments, $pages)),*];

        /// The same servers, when they have answered already.
        mod attached {
            use super::*;

            $(
                #[test]
                fn $name() {
                    check(Way::Attach, &["3.11"], $arguments, $pages);
                }
            )*
        }
    };
}

servers! {
    gunicorn_sync ["3.11"] "-m gunicorn --bind 127.0.0.1:{port} flask_shop:app" FLASK;
    gunicorn_threads ["3.11"] "-m gunicorn --threads 4 --bind 127.0.0.1:{port} flask_shop:app" FLASK;
    gunicorn_gevent ["3.11"] "-m gunicorn --worker-class gevent --bind 127.0.0.1:{port} flask_shop:app" FLASK;
    waitress ["3.11"] "-m waitress --listen 127.0.0.1:{port} flask_shop:app" FLASK;
    cheroot ["3.11"] "flask_shop.py cheroot {port}" FLASK;
    gevent ["3.11"] "flask_shop.py gevent {port}" FLASK;
    werkzeug ["3.11"] "flask_shop.py werkzeug {port}" FLASK;
    wsgiref ["3.11"] "flask_shop.py wsgiref {port}" FLASK;
    uvicorn_h11 ["3.8", "3.11", "3.13"]
        "-m uvicorn --http h11 --port {port} --log-level critical fastapi_shop:app" FASTAPI;
    uvicorn_httptools ["3.11"]
        "-m uvicorn --http httptools --ws websockets --port {port} --log-level critical fastapi_shop:app" FASTAPI;
    uvicorn_as_a_worker_of_gunicorn ["3.11"]
        "-m gunicorn --worker-class uvicorn_worker.UvicornWorker --bind 127.0.0.1:{port} fastapi_shop:app" FASTAPI;
    hypercorn ["3.8", "3.11"] "-m hypercorn --bind 127.0.0.1:{port} fastapi_shop:app" FASTAPI;
    daphne_with_django ["3.11"] "-m daphne --verbosity 0 --port {port} django_shop:application" DJANGO;
    aiohttp ["3.11"] "aiohttp_shop.py {port}" AIOHTTP;
    aiohttp_as_a_worker_of_gunicorn ["3.11"]
        "-m gunicorn --worker-class aiohttp.GunicornWebWorker --bind 127.0.0.1:{port} aiohttp_shop:app" AIOHTTP;
    tornado_with_flask_below ["3.11"] "tornado_shop.py {port}" TORNADO;
    uwsgi_with_a_module ["3.11"] "uwsgi --http-socket 127.0.0.1:{port} --module flask_shop:app --master --processes 2 \
        --enable-threads --threads 2 --die-on-term" FLASK;
    uwsgi_with_a_file ["3.11"] "uwsgi --http-socket 127.0.0.1:{port} --wsgi-file plain_shop.py --die-on-term" PLAIN;
    uwsgi_in_a_wheel ["3.11"]
        "pyuwsgi --http-socket 127.0.0.1:{port} --wsgi-file plain_shop.py --master --die-on-term" PLAIN;
    uwsgi_with_rest_framework ["3.11"]
        "uwsgi --http-socket 127.0.0.1:{port} --wsgi-file drf_shop.py --master --lazy-apps --die-on-term" REST;
    pyramid ["3.11"] "-m waitress --listen 127.0.0.1:{port} pyramid_shop:app" PYRAMID;
    falcon ["3.11"] "-m gunicorn --bind 127.0.0.1:{port} falcon_shop:app" FALCON;
    falcon_asgi ["3.11"] "-m uvicorn --ws wsproto --port {port} --log-level critical falcon_shop:asgi" FALCON_ASGI;
    bottle ["3.11"] "-m gunicorn --threads 4 --bind 127.0.0.1:{port} bottle_shop:app" BOTTLE;
    cherrypy ["3.11"] "cherrypy_shop.py {port}" CHERRYPY;
}

const ON_STARLETTE: &str = "-m uvicorn --port {port} --log-level critical starlette_shop:app";
const IN_THREADS: &str = "-m gunicorn --threads 4 --bind 127.0.0.1:{port} flask_shop:app";
const IN_GREENLETS: &str = "-m gunicorn --worker-class gevent --bind 127.0.0.1:{port} flask_shop:app";

#[test]
fn starlette() {
    check(Way::Run, &["3.8", "3.11"], ON_STARLETTE, STARLETTE);
}

const ON_EVENTLET: &str = "flask_shop.py eventlet {port}";
const ON_LITESTAR: &str = "-m uvicorn --port {port} --log-level critical litestar_shop:app";
const ON_SANIC: &str = "sanic_shop.py {port}";

#[test]
fn litestar() {
    check(Way::Run, &["3.11"], ON_LITESTAR, LITESTAR);
}

#[test]
fn sanic() {
    check(Way::Run, &["3.11"], ON_SANIC, SANIC);
}

/// By hand: scripts/attach-long.
#[test]
#[ignore = "takes a minute"]
fn attached_to_eventlet_litestar_and_sanic() {
    check(Way::Run, &["3.11"], ON_EVENTLET, FLASK);
    for (arguments, pages) in [(ON_EVENTLET, FLASK), (ON_LITESTAR, LITESTAR), (ON_SANIC, SANIC)] {
        check(Way::Attach, &["3.11"], arguments, pages);
    }
}

#[test]
fn threads_that_requests_start() {
    check(Way::Run, &["3.11"], IN_THREADS, THREADS);
}

#[test]
fn greenlets_that_requests_start() {
    check(Way::Run, &["3.11"], IN_GREENLETS, GREENLETS);
}

/// Those that are installed there, too. By hand: scripts/attach-long.
#[test]
#[ignore = "takes minutes"]
fn attached_on_the_newest_python() {
    let names = [
        "gunicorn_sync",
        "gunicorn_threads",
        "gunicorn_gevent",
        "waitress",
        "cheroot",
        "werkzeug",
        "wsgiref",
        "uvicorn_h11",
        "uvicorn_httptools",
        "uvicorn_as_a_worker_of_gunicorn",
        "hypercorn",
        "daphne_with_django",
    ];
    for name in names {
        eprintln!("{name}");
        let (_, arguments, pages) = SERVERS.iter().find(|(known, ..)| *known == name).unwrap();
        check(Way::Attach, &["3.13"], arguments, pages);
    }
}

/// By hand: scripts/attach-long.
#[test]
#[ignore = "takes a minute"]
fn attached_to_what_requests_start() {
    for (arguments, pages) in [(ON_STARLETTE, STARLETTE), (IN_THREADS, THREADS), (IN_GREENLETS, GREENLETS)] {
        check(Way::Attach, &["3.11"], arguments, pages);
    }
}

#[test]
fn attached_to_django_runserver() {
    check(Way::Attach, &["3.11"], "drf_shop.py runserver --noreload 127.0.0.1:{port}", REST);
}

/// uWSGI tells of the last mount only. (It gives each an interpreter of its own, unless it is told not to.)
#[test]
fn uwsgi_with_two_mounts() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let arguments = "uwsgi --http-socket 127.0.0.1:{port} --mount /one=flask_shop:app --mount /two=bottle_shop:app \
                     --single-interpreter --manage-script-name --die-on-term";
    let Some((server, _)) = start("3.11", arguments, Way::Run) else { return };
    for path in ["/one/sell/{number}", "/two/sell/{number}"] {
        server.drive_well(&plan(path, KEPT));
    }
    server.drive(&plan("/one/broken", BROKEN));
    leave(&server, "/one/endless");
    let report = report_after(&server, 2 * KEPT + BROKEN + 1, &[]);
    for route in ["GET /one/sell/<int:number>", "GET /two/sell/<number:int>"] {
        keeps(&report, route, [KEPT, 0, 0], 250_000);
    }
    assert_eq!(ended(&report, "GET /one/broken").0, [0, BROKEN, 0], "{report:#}");
    assert_eq!(ended(&report, "GET /one/endless").0, [0, 0, 1], "{report:#}");
    server.stop();
}

/// What is served in an interpreter of its own is not seen, and that is said.
#[test]
fn uwsgi_with_an_interpreter_for_each_mount() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let arguments = "uwsgi --http-socket 127.0.0.1:{port} --mount /one=flask_shop:app --mount /two=bottle_shop:app \
                     --manage-script-name --die-on-term";
    let Some((server, _)) = start("3.11", arguments, Way::Run) else { return };
    for path in ["/one/sell/{number}", "/two/sell/{number}"] {
        server.drive_well(&plan(path, KEPT));
    }
    let report = report_after(&server, KEPT, &[]);
    keeps(&report, "GET /one/sell/<int:number>", [KEPT, 0, 0], 250_000);
    assert!(report["evidence"]["lost"]["other_interpreters"].as_u64().is_some(), "{report:#}");
    let told = server.leakline(&["report", &server.launcher().to_string()]);
    let told = String::from_utf8_lossy(&told.stdout);
    assert!(told.contains("Not seen: requests that other interpreters of the same process serve. Without "), "{told}");
    server.stop();
}

#[test]
fn uwsgi_with_a_mounted_factory() {
    let arguments = "uwsgi --http-socket 127.0.0.1:{port} --mount /=plain_shop:make() --die-on-term";
    check(Way::Run, &["3.11"], arguments, PLAIN);
}

/// A function that a factory has made for uWSGI is known to uWSGI alone: who comes later does not see its requests, and
/// says so. A framework's application is known by its class.
#[test]
fn attached_to_uwsgi_with_a_mounted_factory() {
    let arguments = "uwsgi --http-socket 127.0.0.1:{port} --mount /={shop}:make() --die-on-term";
    for (shop, is_seen) in [("flask_shop", true), ("plain_shop", false)] {
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some((command, port)) = command("3.11", &arguments.replace("{shop}", shop)) else { return };
        let server = Server::start_alone(&command, &applications(), port);
        server.drive_well(&plan("/sell/1", 1));
        let attached = server.leakline(&["attach", &server.launcher().to_string()]);
        assert!(attached.status.success(), "{attached:?}\n{}", server.log());
        server.drive_well(&plan("/sell/1", 10));
        let report = server.report();
        // The first one may be what lets the agent in.
        let seen = report["window"]["requests"].as_u64().is_some_and(|requests| requests >= 9);
        let failures = report["evidence"]["lost"]["shim_failures"].as_u64();
        assert_eq!((seen, failures), (is_seen, (!is_seen).then_some(1)), "{shop}: {report:#}");
    }
}

/// The bridge between the two does not hear of clients that leave and reads a response to its end, so that one without end
/// is served for ever; the server, which hears of it, tells how the others have ended.
fn check_nested(way: Way) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let arguments = "-m uvicorn --port {port} --log-level critical nested_shop:app";
    let Some((server, waking)) = start("3.11", arguments, way) else { return };
    for (path, _, _) in NESTED {
        server.drive_well(&plan(path, KEPT));
    }
    let broken = server.drive(&plan("/broken", BROKEN)).sum();
    assert_eq!(broken.statuses.get(&500), Some(&BROKEN), "failures {:?}\n{}", broken.failures, server.log());
    leave(&server, "/large");
    let report = report_after(&server, 2 * KEPT + BROKEN + 1, &waking);
    for (_, route, bytes) in NESTED {
        keeps(&report, route, [KEPT, 0, 0], *bytes);
    }
    assert_eq!(ended(&report, "GET /broken").0, [0, BROKEN, 0], "{report:#}");
    assert_eq!(ended(&report, "GET /large").0, [0, 0, 1], "{report:#}");
    server.stop();
}

#[test]
fn flask_below_fastapi() {
    check_nested(Way::Run);
}

#[test]
fn attached_to_flask_below_fastapi() {
    check_nested(Way::Attach);
}

/// What a page keeps in functions that are named by what its request then does, is known to be kept just then.
fn check_phases(arguments: &str, last: (&str, Phase)) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some((server, _)) = start("3.11", arguments, Way::Run) else { return };
    server.drive_well(&plan("/phases", KEPT));
    report_after(&server, KEPT, &[]);
    let workers = server.workers();
    for (function, phase) in [("keep_in_handler", Phase::Handler), ("keep_while_streaming", Phase::Streaming), last] {
        let kept = workers.iter().flat_map(|worker| {
            let calls =
                |stack: &StackId| worker.stacks[stack.0 as usize].iter().any(|frame| frame.function == function);
            worker.samples.iter().filter(move |sample| sample.stack.as_ref().is_some_and(calls))
        });
        let phases: Vec<Phase> = kept.map(|sample| sample.phase).collect();
        assert!(!phases.is_empty() && phases.iter().all(|found| *found == phase), "{function}: {phases:?}");
    }
    server.stop();
}

#[test]
fn phases_of_aiohttp() {
    check_phases("aiohttp_shop.py {port}", ("keep_after", Phase::After));
}

#[test]
fn phases_of_tornado() {
    check_phases("tornado_shop.py {port}", ("keep_after", Phase::After));
}

#[test]
fn phases_of_starlette() {
    let arguments = "-m uvicorn --port {port} --log-level critical starlette_shop:app";
    check_phases(arguments, ("keep_after", Phase::After));
}

#[test]
fn phases_of_flask() {
    for server in ["-m gunicorn --bind 127.0.0.1:{port}", "-m waitress --listen 127.0.0.1:{port}"] {
        check_phases(&format!("{server} flask_shop:app"), ("keep_while_closing", Phase::Closing));
    }
}

/// Tells the shop which tasks it is to send itself.
fn order(server: &Server, letter: &[u8]) {
    TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap().write_all(letter).unwrap();
}

/// A worker has no clients, but tasks. (It is not asked to end: it would take seconds.)
fn check_tasks(way: Way, pool: &str) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some((server, waking)) = start("3.11", &format!("celery_shop.py {pool} {{port}}"), way) else { return };
    order(&server, b"o");
    let report = report_after(&server, 2 * KEPT + BROKEN, &waking);
    keeps(&report, "TASK shop.sell", [KEPT, 0, 0], 250_000);
    keeps(&report, "TASK shop.bundle", [KEPT, 0, 0], 240_000);
    assert_eq!(ended(&report, "TASK shop.broken").0, [0, BROKEN, 0], "{report:#}");
}

#[test]
fn celery_in_one_process() {
    check_tasks(Way::Run, "solo");
}

#[test]
fn celery_with_children() {
    check_tasks(Way::Run, "prefork");
}

#[test]
fn attached_to_celery_with_children() {
    check_tasks(Way::Attach, "prefork");
}
