//! Sums what requests exchanged over sockets, by peer, and says what is usual: an unusual request beside the route's
//! others is what a reader wants to see.
use std::collections::BTreeMap;
use std::ops::AddAssign;

use super::evidence::{Evidence, Exchange, Exchanged, Outcome, Passed, Peer};

/// What some requests exchanged with one peer, over all workers.
#[derive(Clone, Debug, PartialEq)]
pub struct SocketTotals {
    /// With whom.
    pub peer: Peer,
    /// What they did.
    pub sum: Exchange,
    /// Half of the requests that these are compared with read less; 0 where half read nothing.
    pub usual_read: u64,
    /// Half of them wrote less; 0 where half wrote nothing.
    pub usual_written: u64,
}

/// What the requests of these routes and outcomes exchanged, beside those of the `compared` outcomes; the peer that they
/// read most from first.
pub fn exchanged(
    evidence: &Evidence,
    routes: &[String],
    outcomes: &[Outcome],
    compared: &[Outcome],
) -> Vec<SocketTotals> {
    let mut peers: BTreeMap<&Peer, Exchange> = BTreeMap::new();
    for exchanged in of_routes(evidence, routes, outcomes) {
        *peers.entry(&exchanged.peer).or_default() += exchanged.sum;
    }
    let of_route = |worker: &'_ super::evidence::Worker| -> u64 {
        let known = worker.routes.iter().filter(|route| routes.contains(&route.name));
        known.flat_map(|route| compared.iter().map(|&outcome| route.served[outcome as usize].requests)).sum()
    };
    let requests: u64 = evidence.workers.iter().map(of_route).sum();
    let beside_usual = |(peer, sum): (&Peer, Exchange)| {
        let mut all = Exchange::default();
        of_routes(evidence, routes, compared)
            .filter(|exchanged| exchanged.peer == *peer)
            .for_each(|exchanged| all += exchanged.sum);
        let (usual_read, usual_written) = (all.read.usual(requests), all.written.usual(requests));
        SocketTotals { peer: peer.clone(), sum, usual_read, usual_written }
    };
    let mut totals: Vec<SocketTotals> = peers.into_iter().map(beside_usual).collect();
    totals.sort_by_key(|totals| std::cmp::Reverse(totals.sum.read.bytes));
    totals
}

fn of_routes<'a>(
    evidence: &'a Evidence,
    routes: &'a [String],
    outcomes: &'a [Outcome],
) -> impl Iterator<Item = &'a Exchanged> {
    evidence.workers.iter().flat_map(move |worker| {
        worker.exchanged.iter().filter(move |exchanged| {
            let route = worker.routes.get(exchanged.route.0 as usize);
            route.is_some_and(|route| routes.contains(&route.name)) && outcomes.contains(&exchanged.outcome)
        })
    })
}

impl AddAssign for Exchange {
    fn add_assign(&mut self, other: Self) {
        if other.read.most > self.read.most {
            self.most_after_client_left = other.most_after_client_left;
        }
        self.requests = self.requests.saturating_add(other.requests);
        self.read_after_client_left = self.read_after_client_left.saturating_add(other.read_after_client_left);
        self.read += other.read;
        self.written += other.written;
    }
}

impl AddAssign for Passed {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.most = self.most.max(other.most);
        self.requests.iter_mut().zip(other.requests).for_each(|(sum, count)| *sum = sum.saturating_add(count));
    }
}

impl Passed {
    /// Half of so many requests had fewer bytes; those that are not in the histogram had none.
    fn usual(&self, requests: u64) -> u64 {
        let above =
            |bucket: usize| self.requests[bucket + 1..].iter().fold(0u64, |sum, &count| sum.saturating_add(count));
        match (0..31).find(|&bucket| above(bucket).saturating_mul(2) <= requests) {
            Some(0) => 0,
            bucket => 1 << bucket.unwrap_or(31),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::evidence::{Route, RouteId, Served, Worker};

    fn exchanged_by(outcome: Outcome, sizes: &[u64], after_client_left: u64) -> Exchanged {
        let mut read =
            Passed { bytes: sizes.iter().sum(), most: sizes.iter().copied().max().unwrap(), requests: [0; 32] };
        for size in sizes {
            read.requests[size.checked_ilog2().map_or(0, |log| log as usize + 1)] += 1;
        }
        Exchanged {
            route: RouteId(0),
            outcome,
            peer: Peer::At("127.0.0.1:3306".to_owned()),
            sum: Exchange {
                requests: sizes.len() as u64,
                read,
                written: Passed::default(),
                read_after_client_left: after_client_left,
                most_after_client_left: after_client_left,
            },
        }
    }

    fn evidence(ok: u64) -> Evidence {
        let served = |requests| Served { requests, ..Served::default() };
        let route = Route { name: "GET /".to_owned(), served: [served(ok), served(0), served(1)], durations: [0; 32] };
        let exchanged = vec![
            exchanged_by(Outcome::Ok, &[12_000; 10], 0),
            exchanged_by(Outcome::Aborted, &[91_500_000], 90_000_000),
        ];
        let worker = Worker { routes: vec![route], exchanged, ..Worker::default() };
        Evidence { workers: vec![worker.clone(), worker] }
    }

    #[test]
    fn an_unusual_request_stands_beside_what_is_usual() {
        let others = [Outcome::Ok, Outcome::Error];
        let [totals] = &exchanged(&evidence(12), &["GET /".to_owned()], &[Outcome::Aborted], &others)[..] else {
            panic!("one peer");
        };
        let sum = totals.sum;
        assert_eq!((sum.requests, sum.read.bytes, sum.read.most), (2, 183_000_000, 91_500_000));
        assert_eq!((sum.read_after_client_left, sum.most_after_client_left), (180_000_000, 90_000_000));
        // 12,000 lies below 2^14.
        assert_eq!((totals.usual_read, totals.usual_written), (16_384, 0));
    }

    #[test]
    fn requests_that_read_nothing_count_for_what_is_usual() {
        let sockets = exchanged(&evidence(100), &["GET /".to_owned()], &Outcome::ALL, &Outcome::ALL);
        assert_eq!(sockets[0].usual_read, 0);
        assert!(exchanged(&evidence(1), &["GET /other".to_owned()], &Outcome::ALL, &Outcome::ALL).is_empty());
    }
}
