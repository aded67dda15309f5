//! Turns a worker's history of one route and outcome into the window of requests that can testify.
//!
//! The first requests import modules, compile templates and fill free lists; the latest ones have not let go of what
//! they hold yet: a connection that is kept alive, cycles that the collector will find in a moment. Neither says
//! anything about growth.

/// The share of a history that passes for warming up, and the fewest requests that do.
const WARM_UP: (f64, f64) = (0.10, 5.0);
/// The share of a history that is too recent to have let go, and the fewest requests that are, as long as that is no
/// more than `RECENT_AT_MOST` of the history.
const RECENT: (f64, f64) = (0.02, 16.0);
const RECENT_AT_MOST: f64 = 0.10;
/// A shorter history has no middle.
const FEWEST_REQUESTS: f64 = 20.0;

/// The requests numbered `from < n <= to` of one worker, route and outcome.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Everything up to this one is warming up.
    pub from: f64,
    /// Everything after this one is too recent.
    pub to: f64,
}

impl Window {
    /// The window of a history of so many requests, if it is long enough to have one.
    pub fn of(requests: u64) -> Option<Self> {
        let requests = requests as f64;
        let from = (requests * WARM_UP.0).max(WARM_UP.1);
        let recent = (requests * RECENT.0).max(RECENT.1.min(requests * RECENT_AT_MOST));
        (requests >= FEWEST_REQUESTS).then(|| Self { from: from.floor(), to: (requests - recent).floor() })
    }

    /// How many requests it spans.
    pub fn requests(&self) -> f64 {
        self.to - self.from
    }

    /// The requests of the window up to and with this one.
    pub fn requests_until(&self, ordinal: f64) -> f64 {
        ordinal.clamp(self.from, self.to) - self.from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_leaves_out_both_ends() {
        assert_eq!(Window::of(500), Some(Window { from: 50.0, to: 484.0 }));
        assert_eq!(Window::of(20_000), Some(Window { from: 2_000.0, to: 19_600.0 }));
    }

    #[test]
    fn a_handful_of_requests_has_no_window() {
        assert_eq!(Window::of(19), None);
        assert!(Window::of(20).is_some_and(|window| window.requests() >= 10.0));
    }
}
