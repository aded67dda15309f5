//! Turns a plan into its requests, one after the other: which route, with which values, and when it is due.
use std::time::Duration;

use fastrand::Rng;
use hyper::Method;

use super::plan::{Behaviour, Order, Plan, Route};

/// One request to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Index into the plan's routes.
    pub route: usize,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// What the client does with the answer.
    pub client: Behaviour,
    /// The same path is also downloaded in parts, so what is read at once is worth comparing.
    pub is_object: bool,
    /// When it is due, from the start; `None`: as soon as a connection is free.
    pub due: Option<Duration>,
}

/// The requests of a plan that are still to be made.
pub struct Schedule {
    routes: Vec<Route>,
    methods: Vec<Method>,
    order: Order,
    rate: Option<f64>,
    random: Rng,
    next: u64,
    total: u64,
}

impl Schedule {
    /// The whole of a plan that was checked.
    pub fn new(plan: &Plan) -> Schedule {
        let method = |route: &Route| route.method.parse().expect("the plan was checked");
        Schedule {
            methods: plan.routes.iter().map(method).collect(),
            routes: plan.routes.clone(),
            order: plan.order,
            rate: plan.rate,
            random: Rng::with_seed(plan.seed),
            next: 0,
            total: plan.total,
        }
    }

    /// The route whose share of the weights holds `ticket`.
    fn route(&self, mut ticket: u64) -> usize {
        for (index, route) in self.routes.iter().enumerate() {
            match ticket.checked_sub(u64::from(route.weight)) {
                Some(rest) => ticket = rest,
                None => return index,
            }
        }
        unreachable!("a ticket is less than the sum of all weights")
    }
}

impl Iterator for Schedule {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        if self.next == self.total {
            return None;
        }
        let weights: u64 = self.routes.iter().map(|route| u64::from(route.weight)).sum();
        let route = match self.order {
            Order::Random => {
                let ticket = self.random.u64(..weights);
                self.route(ticket)
            }
            Order::InTurn => self.route(self.next % weights),
        };
        let due = self.rate.map(|rate| Duration::from_secs_f64(self.next as f64 / rate));
        self.next += 1;
        let path = self.routes[route].draw(&mut self.random);
        let (method, client) = (self.methods[route].clone(), self.routes[route].client);
        let in_parts = |other: &Route| matches!(other.client, Behaviour::Ranges { .. });
        let is_object = method == Method::GET
            && self.routes.iter().any(|other| in_parts(other) && other.path == self.routes[route].path);
        Some(Request { route, method, path, client, is_object, due })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(order: &str) -> Plan {
        let text = format!(
            "total = 4000\nrate = 100\norder = '{order}'\n[[route]]\npath = '/a/{{n}}'\nweight = 3\n\
             parameters = {{ n = '1..9' }}\n[[route]]\npath = '/b'\n"
        );
        Plan::parse(&text).unwrap()
    }

    #[test]
    fn routes_in_turn_follow_their_weights_exactly() {
        let routes: Vec<usize> = Schedule::new(&plan("in-turn")).map(|request| request.route).take(8).collect();
        assert_eq!(routes, [0, 0, 0, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn random_routes_follow_their_weights_and_their_seed() {
        let requests: Vec<Request> = Schedule::new(&plan("random")).collect();
        assert_eq!(requests.len(), 4000);
        assert_eq!(requests, Schedule::new(&plan("random")).collect::<Vec<_>>());
        assert_ne!(requests, Schedule::new(&Plan { seed: 2, ..plan("random") }).collect::<Vec<_>>());
        // Six sigmas of a binomial with n = 4000 and p = 3/4 are 164 requests; the seed is fixed.
        let first = requests.iter().filter(|request| request.route == 0).count();
        assert!(first.abs_diff(3000) < 164, "{first} of 4000");
        assert!(requests.iter().all(|request| request.path == "/b" || request.path.len() == "/a/1".len()));
        assert_eq!(requests[200].due, Some(Duration::from_secs(2)));
    }
}
