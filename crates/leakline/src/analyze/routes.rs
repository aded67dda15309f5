//! Turns the workers' routes into one table: what each route has answered, and what it holds now.
use super::deposit::{Deposits, RouteIndex, Source};
use super::evidence::{Evidence, Outcome, Owner};
use super::sockets::{SocketTotals, exchanged};

/// One route, over all workers.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteTotals {
    /// `GET /data/<id>`
    pub route: String,
    /// Requests by outcome, in the order of [`Outcome`].
    pub requests: [u64; 3],
    /// Estimated bytes that they allocated, freed since or not.
    pub allocated_bytes: f64,
    /// Estimated bytes of them that live.
    pub live_bytes: f64,
    /// The most that one of its requests held at once, in estimated bytes.
    pub peak_bytes: f64,
    /// Half of the requests took no longer than this many milliseconds; known to a factor of two.
    pub p50_ms: Option<f64>,
    /// 99 of 100 took no longer.
    pub p99_ms: Option<f64>,
    /// What they exchanged over sockets, that which they read most from first.
    pub sockets: Vec<SocketTotals>,
}

/// What was allocated outside of any request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Unattributed {
    /// Estimated bytes that live.
    pub live_bytes: f64,
    /// Estimated bytes allocated, freed since or not.
    pub allocated_bytes: f64,
}

/// The routes, those that hold most first.
pub fn totals(evidence: &Evidence, deposits: &Deposits) -> Vec<RouteTotals> {
    let total = |(index, name): (usize, &String)| {
        let routes = || evidence.workers.iter().flat_map(|worker| &worker.routes).filter(|route| &route.name == name);
        let mut durations = [0u64; 32];
        for route in routes() {
            durations.iter_mut().zip(route.durations).for_each(|(sum, count)| *sum += count);
        }
        let served = |outcome: Outcome| routes().map(|route| route.served[outcome as usize].requests).sum();
        let live = deposits
            .all
            .iter()
            .filter(|deposit| matches!(deposit.source, Source::Route(route, _) if route == RouteIndex(index)));
        RouteTotals {
            route: name.clone(),
            requests: Outcome::ALL.map(served),
            allocated_bytes: sum(routes().flat_map(|route| route.served).map(|served| served.allocated_bytes)),
            live_bytes: sum(live.map(|deposit| deposit.bytes)),
            peak_bytes: routes().flat_map(|route| route.served).map(|served| served.peak_bytes).fold(0.0, f64::max),
            p50_ms: quantile(&durations, 0.50),
            p99_ms: quantile(&durations, 0.99),
            sockets: exchanged(evidence, std::slice::from_ref(name), &Outcome::ALL, &Outcome::ALL),
        }
    };
    // Workers name routes that another one has answered, and one for requests that none fits.
    let answered = |totals: &RouteTotals| totals.requests != [0; 3];
    let mut totals: Vec<_> = deposits.routes.iter().enumerate().map(total).filter(answered).collect();
    totals.sort_by(|one, other| other.live_bytes.total_cmp(&one.live_bytes).then(other.requests.cmp(&one.requests)));
    totals
}

/// What runs outside of requests.
pub fn unattributed(evidence: &Evidence) -> Unattributed {
    let samples = evidence.workers.iter().flat_map(|worker| &worker.samples);
    let outside = samples.filter(|sample| sample.owner == Owner::Unattributed);
    Unattributed {
        live_bytes: sum(outside.map(|sample| sample.weight)),
        allocated_bytes: sum(evidence.workers.iter().map(|worker| worker.unattributed_allocated_bytes)),
    }
}

/// The sum, which is 0 for no terms: `Iterator::sum` makes that -0, which JSON shows.
fn sum(terms: impl Iterator<Item = f64>) -> f64 {
    terms.fold(0.0, |sum, term| sum + term)
}

/// The upper bound, in milliseconds, of the histogram's bucket that holds the quantile.
fn quantile(durations: &[u64; 32], share: f64) -> Option<f64> {
    let total: u64 = durations.iter().sum();
    let rank = (total as f64 * share).ceil().max(1.0) as u64;
    let mut below = 0;
    let bucket = durations.iter().position(|&count| {
        below += count;
        below >= rank
    });
    bucket.map(|bucket| (1u64 << bucket) as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_upper_bounds_of_their_buckets() {
        let mut durations = [0; 32];
        durations[10] = 98;
        durations[13] = 2;
        assert_eq!(quantile(&durations, 0.50), Some(1.024));
        assert_eq!(quantile(&durations, 0.99), Some(8.192));
        assert_eq!(quantile(&[0; 32], 0.50), None);
    }
}
