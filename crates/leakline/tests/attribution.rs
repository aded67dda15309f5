//! Two pages of one asynchronous server keep different amounts, each in functions of its own, while two hundred requests
//! are in flight: by the functions on a sample's stack we know which page has kept it, and so how much of what was
//! sampled lies on the wrong one.
mod harness;

use harness::Server;
use leakline::analyze::evidence::{Owner, Sample, Worker};
use leakline::drive::plan::Plan;

/// Requests of either page.
const REQUESTS: u64 = 1500;

/// The route that a sample belongs to by its stack, and the one that it was given; `None` where nothing of the
/// application's was kept.
fn judged<'a>(worker: &'a Worker, sample: &Sample) -> Option<(&'static str, Option<&'a str>)> {
    let stack = &worker.stacks[sample.stack?.0 as usize];
    let called = |function: &str| stack.iter().any(|frame| frame.function.ends_with(function));
    let truth = match (called("keep_little"), called("keep_much")) {
        (true, false) => "GET /little/{number}",
        (false, true) => "GET /much/{number}",
        _ => return None,
    };
    let found = match sample.owner {
        Owner::Request(request) => Some(&*worker.routes[request.route.0 as usize].name),
        _ => None,
    };
    Some((truth, found))
}

#[test]
fn two_pages_with_two_hundred_requests_in_flight() {
    let applications = harness::root().join("crates/leakline/tests");
    let requirements = applications.join("outcomes/requirements.txt");
    for version in ["3.8", "3.11"] {
        let Some(python) = harness::python(version, &requirements) else { continue };
        let port = harness::free_port();
        let arguments = format!("-m uvicorn --port {port} --log-level critical two_pages:app");
        let command: Vec<_> =
            [python.into_os_string()].into_iter().chain(arguments.split(' ').map(Into::into)).collect();
        let options = ["--budget".to_owned(), "20".to_owned()];
        let server = Server::start_with(&options, &command, &applications.join("attribution"), port);
        let text = format!(
            "total = {}\nconcurrency = 200\norder = \"in-turn\"
             [[route]]\npath = \"/little/{{number}}\"\nparameters = {{ number = \"1..100000\" }}
             [[route]]\npath = \"/much/{{number}}\"\nparameters = {{ number = \"1..100000\" }}",
            2 * REQUESTS
        );
        server.drive_well(&Plan::parse(&text).unwrap());
        let (mut right, mut wrong, mut nobodys, mut samples) = (0.0, 0.0, 0.0, 0);
        for worker in server.workers() {
            for sample in &worker.samples {
                let Some((truth, found)) = judged(&worker, sample) else { continue };
                samples += 1;
                *match found {
                    Some(found) if found == truth => &mut right,
                    Some(_) => &mut wrong,
                    None => &mut nobodys,
                } += sample.weight;
            }
        }
        let all: f64 = right + wrong + nobodys;
        let said =
            format!("{version}: {samples} samples, {right:.0} B right, {wrong:.0} B wrong, {nobodys:.0} B nobody's");
        eprintln!("{said}");
        assert!(samples > 300, "too few to tell: {said}");
        assert!(wrong < 0.02 * all, "{said}");
        // What a request keeps must not be lost from sight either.
        assert!(nobodys < 0.02 * all, "{said}");
        server.stop();
    }
}
