//! Turns a finding into one sentence, and a remedy into a line.
use super::text::{plural, size};
use crate::analyze::decision::Garbage;
use crate::analyze::evidence::{Frame, Outcome};
use crate::analyze::{After, Balloon, Blamed, Finding, Kind, Remedy, Retained, Taken};

/// What may be done about memory that is retained.
pub(super) fn remedy(remedy: Remedy, retained: &Retained) -> String {
    let trim = size(retained.trim_would_return as f64);
    match remedy {
        Remedy::Trim => format!("ctypes.CDLL(None).malloc_trim(0) after such requests: it would return {trim} now"),
        Remedy::FewerArenas => format!("MALLOC_ARENA_MAX=2: there are {} arenas", retained.arenas),
        Remedy::OtherAllocator => {
            "jemalloc by LD_PRELOAD, with MALLOC_CONF=background_thread:true,dirty_decay_ms:1000: the holes are small"
                .to_owned()
        }
        Remedy::LessAtOnce => {
            "less at once, or a process of its own for it: pymalloc gives no arena back in which an object lives"
                .to_owned()
        }
    }
}

/// `128 MB of 200 MB resident are free memory that the allocators keep …`
pub(super) fn retained_summary(retained: &Retained) -> String {
    let (bytes, resident) = (size(retained.bytes as f64), size(retained.resident_bytes as f64));
    let after = match &retained.after {
        Some(After { route, bytes }) => {
            format!(" after a request of {route} that took {} at once", size(*bytes))
        }
        None => String::new(),
    };
    format!("{bytes} of {resident} resident are free memory that the allocators keep{after}; it is no leak.")
}

/// Which of a route's requests it is.
fn condition(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        None => "",
        Some(Outcome::Ok) => " that succeeds",
        Some(Outcome::Error) => " that fails",
        Some(Outcome::Aborted) => " whose client goes away",
    }
}

/// At which line, and by which library.
fn place(blamed: Option<&Blamed>, application: Option<&Frame>, site: Option<&Frame>) -> String {
    let line = application.or(site);
    let line = line.map_or(String::new(), |line| format!(", at {}:{} in {}", line.file, line.line, line.function));
    let taker = |blamed: &Blamed| {
        let function = blamed.symbol.as_ref().map_or(String::new(), |symbol| format!(" by {symbol}"));
        format!(", taken in {}{function}", blamed.library_name())
    };
    line + &blamed.filter(|blamed| blamed.taken != Taken::ByPython).map_or(String::new(), taker)
}

/// `A request of GET /export took 96 MB at once and gave it back, at …`
pub(super) fn balloon_summary(balloon: &Balloon) -> String {
    let bytes = size(balloon.peak_bytes);
    let condition = condition(balloon.outcome);
    let place = place(balloon.blamed.as_ref(), balloon.application.as_ref(), balloon.site.as_ref());
    if balloon.waits {
        return format!(
            "A request of {}{condition} took {bytes} at once, and has not given it back as no full collection has run since{place}.",
            balloon.route
        );
    }
    if let Some(pid) = balloon.killed {
        return format!(
            "A request of {} held {bytes} when process {pid} was killed in the midst of it{place}.",
            balloon.route
        );
    }
    format!("A request of {}{condition} took {bytes} at once and gave it back{place}.", balloon.route)
}

/// `Every request of GET / leaves 40.0 kB behind, at …`
pub(super) fn leak_summary(finding: &Finding) -> String {
    let condition = condition(finding.outcome);
    let who = match &finding.routes[..] {
        [] => "work outside of requests".to_owned(),
        [route] => format!("every request of {route}{condition}"),
        [busiest, others @ ..] => {
            format!("every request of {busiest} and {}{condition}", plural(others.len() as u64, "other route"))
        }
    };
    let bytes = size(finding.rate.bytes);
    let place = place(finding.blamed.as_ref(), finding.application.as_ref(), finding.site.as_ref());
    let per = if finding.routes.is_empty() { " per request served" } else { "" };
    let garbage = match (finding.kind, finding.garbage) {
        (Kind::Garbage, _) => ", in cycles that wait for the collector",
        (_, Garbage::Seen) => ", in cycles, and the collector is switched off",
        (_, Garbage::Untested) => ", unless that is garbage which waits for the collector",
        _ => "",
    };
    let mut sentence = format!("{who} leaves {bytes}{per} behind{place}{garbage}");
    sentence[..1].make_ascii_uppercase();
    sentence + "."
}
