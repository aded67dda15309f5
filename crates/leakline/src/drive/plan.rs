//! Turns the text of a plan file, or flags, into a checked [`Plan`]: what to ask for, how much of it and how fast.
//!
//! ```toml
//! total = 20000            # requests
//! rate = 500               # requests a second; without it as fast as the connections allow
//! concurrency = 4          # connections
//!
//! [[route]]
//! path = "/tickets/{number}"
//! weight = 8
//! parameters = { number = "1..100000" }
//!
//! [[route]]
//! method = "POST"
//! path = "/search?q={word}"
//! parameters = { word = "apple,pear,plum" }
//!
//! [[route]]
//! path = "/export"
//! client = { hang-up = 10 }           # goes after ten bytes of the body; see [`Behaviour`]
//! ```
use std::{collections::BTreeMap, fmt, ops::RangeInclusive, str::FromStr};

use fastrand::Rng;
use hyper::Method;
use serde::Deserialize;

/// The most requests that a plan may ask for.
const MOST_REQUESTS: u64 = 100_000_000;
/// The most connections that a plan may open.
const MOST_CONNECTIONS: usize = 4096;

/// The traffic to make.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// Requests in all.
    pub total: u64,
    /// Requests a second; `None`: as fast as the connections allow.
    pub rate: Option<f64>,
    /// Connections that ask at the same time.
    pub concurrency: usize,
    /// Connections are used again for the next request where the server allows it.
    pub keep_alive: bool,
    /// Equal seeds draw equal requests.
    pub seed: u64,
    /// How the next route is chosen.
    pub order: Order,
    /// Seconds after which an unfinished request counts as failed.
    pub timeout_seconds: f64,
    /// What to ask for; at least one.
    #[serde(rename = "route")]
    pub routes: Vec<Route>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            total: 1000,
            rate: None,
            concurrency: 1,
            keep_alive: true,
            seed: 1,
            order: Order::Random,
            timeout_seconds: 30.0,
            routes: Vec::new(),
        }
    }
}

/// How the next route is chosen.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Drawn by weight.
    #[default]
    Random,
    /// Each route as often as its weight says, one after the other, and from the start again.
    InTurn,
}

/// One kind of request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// `GET`, `POST`, …
    #[serde(default = "get")]
    pub method: String,
    /// Path and query, with `{name}` where a parameter's value is put.
    pub path: String,
    /// How often it is asked for in relation to the other routes.
    #[serde(default = "once")]
    pub weight: u32,
    /// Where the values of the path's parameters come from.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
    /// What the client does with the answer.
    #[serde(default)]
    pub client: Behaviour,
}

/// How a client behaves.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    /// Reads the whole answer.
    #[default]
    ReadAll,
    /// Closes the connection after so many bytes of the body; 0 is right after the headers.
    HangUp(u64),
    /// Reads so many bytes a second.
    Slow(u64),
    /// Sends what is no HTTP.
    Malformed,
    /// Downloads one object in parts: a first GET, closed without reading its body, tells the length; then so many parts
    /// of so many bytes at once; each part has to be what was asked for.
    Ranges {
        /// Bytes of a part.
        bytes: u64,
        /// Parts that are asked for at the same time.
        at_once: usize,
    },
}

/// In words, as behind a route: empty for a client that does what most do.
impl fmt::Display for Behaviour {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Behaviour::ReadAll => Ok(()),
            Behaviour::HangUp(0) => out.write_str("hang up after the headers"),
            Behaviour::HangUp(bytes) => write!(out, "hang up after {bytes} B"),
            Behaviour::Slow(bytes) => write!(out, "read {bytes} B a second"),
            Behaviour::Malformed => out.write_str("send no HTTP"),
            Behaviour::Ranges { bytes, at_once } => write!(out, "download parts of {bytes} B, {at_once} at once"),
        }
    }
}

/// `hang-up=10`, `slow=65536`, `malformed`, `ranges=1048576x4`.
impl FromStr for Behaviour {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Behaviour, Invalid> {
        let invalid =
            || Invalid(format!("{text:?}: write read-all, hang-up=BYTES, slow=BYTES, malformed or ranges=BYTESxN"));
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let number = |text: &str| text.parse::<u64>().map_err(|_| invalid());
        match (name, value) {
            ("read-all", "") => Ok(Behaviour::ReadAll),
            ("malformed", "") => Ok(Behaviour::Malformed),
            ("hang-up", bytes) => Ok(Behaviour::HangUp(number(bytes)?)),
            ("slow", bytes) => Ok(Behaviour::Slow(number(bytes)?)),
            ("ranges", parts) => {
                let (bytes, at_once) = parts.split_once('x').ok_or_else(invalid)?;
                Ok(Behaviour::Ranges { bytes: number(bytes)?, at_once: number(at_once)? as usize })
            }
            _ => Err(invalid()),
        }
    }
}

fn get() -> String {
    "GET".to_owned()
}

fn once() -> u32 {
    1
}

/// The values that a parameter takes, each equally often.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "String")]
pub enum Parameter {
    /// `1..100`: the whole numbers from 1 to 100, both included.
    Number(RangeInclusive<u64>),
    /// `apple,pear`: one of the words.
    Word(Vec<String>),
}

/// A plan that cannot be carried out, in words for the person who wrote it.
#[derive(Debug, PartialEq)]
pub struct Invalid(String);

impl fmt::Display for Invalid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

impl Plan {
    /// Reads a plan file's text. It still has to be [checked](Plan::check), after flags have had their say.
    pub fn parse(text: &str) -> Result<Plan, Invalid> {
        toml::from_str(text).map_err(|error| Invalid(error.to_string().trim_end().to_owned()))
    }

    /// Says what would keep this plan from being carried out.
    pub fn check(&self) -> Result<(), Invalid> {
        let invalid = |text: String| Err(Invalid(text));
        if self.routes.is_empty() {
            return invalid("the plan has no route; add one, such as [[route]] with path = \"/\"".to_owned());
        }
        if !(1..=MOST_REQUESTS).contains(&self.total) {
            return invalid(format!("total = {}: choose from 1 to {MOST_REQUESTS} requests", self.total));
        }
        if !(1..=MOST_CONNECTIONS).contains(&self.concurrency) {
            return invalid(format!("concurrency = {}: choose from 1 to {MOST_CONNECTIONS}", self.concurrency));
        }
        if self.rate.is_some_and(|rate| !(0.001..=1e6).contains(&rate)) {
            return invalid("rate: choose from 0.001 to 1,000,000 requests a second".to_owned());
        }
        if !(0.001..=86_400.0).contains(&self.timeout_seconds) {
            return invalid("timeout_seconds: choose from 0.001 to 86,400".to_owned());
        }
        if self.routes.iter().all(|route| route.weight == 0) {
            return invalid("every route has weight 0; give one of them a weight".to_owned());
        }
        self.routes.iter().try_for_each(Route::check)
    }
}

impl Route {
    /// Path and query of one request, with every parameter's value drawn.
    pub fn draw(&self, random: &mut Rng) -> String {
        self.parameters.iter().fold(self.path.clone(), |path, (name, parameter)| {
            path.replace(&format!("{{{name}}}"), &parameter.draw(random))
        })
    }

    fn check(&self) -> Result<(), Invalid> {
        if !self.path.starts_with('/') {
            return Err(Invalid(format!("path {:?} has to begin with /", self.path)));
        }
        if Method::from_bytes(self.method.as_bytes()).is_err() {
            return Err(Invalid(format!("{:?} is no method of HTTP", self.method)));
        }
        match self.client {
            Behaviour::Slow(0) => return Err(Invalid("slow: choose at least 1 byte a second".to_owned())),
            Behaviour::Ranges { bytes, at_once } if bytes == 0 || !(1..=MOST_CONNECTIONS).contains(&at_once) => {
                return Err(Invalid(format!(
                    "ranges: choose parts of 1 byte or more, 1 to {MOST_CONNECTIONS} at once"
                )));
            }
            _ => {}
        }
        let example = self.draw(&mut Rng::with_seed(0));
        if example.contains(['{', '}']) {
            return Err(Invalid(format!(
                "path {:?} names a parameter without values; add parameters = {{ NAME = \"1..100\" }}",
                self.path
            )));
        }
        match example.parse::<hyper::Uri>() {
            Ok(_) => Ok(()),
            Err(error) => Err(Invalid(format!("{example:?} is no path of a URL: {error}"))),
        }
    }
}

/// `[WEIGHT] [METHOD] PATH`, as in `8 GET /tickets/{number}`.
impl FromStr for Route {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Route, Invalid> {
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let path = words.pop().ok_or_else(|| Invalid("a route needs a path".to_owned()))?.to_owned();
        let weight = match words.first().and_then(|word| word.parse().ok()) {
            Some(weight) => {
                words.remove(0);
                weight
            }
            None => once(),
        };
        match words[..] {
            [] => Ok(Route { method: get(), path, weight, ..Route::default() }),
            [method] => Ok(Route { method: method.to_owned(), path, weight, ..Route::default() }),
            _ => Err(Invalid(format!("{text:?} is no route; write [WEIGHT] [METHOD] PATH, such as \"8 GET /items\""))),
        }
    }
}

impl Parameter {
    fn draw(&self, random: &mut Rng) -> String {
        match self {
            Parameter::Number(range) => random.u64(range.clone()).to_string(),
            Parameter::Word(words) => words[random.usize(..words.len())].clone(),
        }
    }
}

impl FromStr for Parameter {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Parameter, Invalid> {
        let bounds = text.split_once("..").map(|(from, to)| (from.trim().parse(), to.trim().parse()));
        match bounds {
            Some((Ok(from), Ok(to))) if from <= to => Ok(Parameter::Number(from..=to)),
            Some((Ok(_), Ok(_))) => Err(Invalid(format!("{text:?} is an empty range"))),
            _ => Ok(Parameter::Word(text.split(',').map(str::to_owned).collect())),
        }
    }
}

impl TryFrom<String> for Parameter {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Parameter, Invalid> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Plan::parse(text).and_then(|plan| plan.check()).unwrap_err().to_string()
    }

    #[test]
    fn a_plan_says_what_is_wrong_with_it() {
        assert!(refusal("total = 5").contains("no route"));
        assert!(refusal("totall = 5\n[[route]]\npath = '/'").contains("totall"));
        assert!(refusal("total = 0\n[[route]]\npath = '/'").contains("total = 0"));
        assert!(refusal("rate = -1.0\n[[route]]\npath = '/'").contains("rate"));
        assert!(refusal("[[route]]\npath = 'index'").contains("begin with /"));
        assert!(refusal("[[route]]\npath = '/{id}'").contains("without values"));
        assert!(refusal("[[route]]\npath = '/{id}'\nparameters = { id = '9..1' }").contains("empty range"));
        assert!(refusal("[[route]]\npath = '/a b'").contains("no path of a URL"));
        assert!(refusal("[[route]]\npath = '/'\nweight = 0").contains("weight 0"));
        assert!(refusal("[[route]]\npath = '/'\nclient = { slow = 0 }").contains("slow"));
        assert!(refusal("[[route]]\npath = '/'\nclient = { ranges = { bytes = 1, at_once = 0 } }").contains("ranges"));
    }

    #[test]
    fn a_client_is_described_alike_in_plans_and_flags() {
        for (plan, flag) in [
            ("'malformed'", "malformed"),
            ("{ hang-up = 10 }", "hang-up=10"),
            ("{ slow = 5 }", "slow=5"),
            ("{ ranges = { bytes = 100, at_once = 4 } }", "ranges=100x4"),
        ] {
            let plan = Plan::parse(&format!("[[route]]\npath = '/'\nclient = {plan}")).unwrap();
            assert_eq!(plan.routes[0].client, flag.parse().unwrap());
        }
        assert!("ranges=100".parse::<Behaviour>().is_err() && "hang-up".parse::<Behaviour>().is_err());
    }

    #[test]
    fn flags_describe_routes_and_parameters() {
        let route: Route = "8 POST /tickets".parse().unwrap();
        assert_eq!((route.weight, route.method.as_str(), route.path.as_str()), (8, "POST", "/tickets"));
        let route: Route = "/".parse().unwrap();
        assert_eq!((route.weight, route.method.as_str()), (1, "GET"));
        assert!("many GET /".parse::<Route>().is_err());
        assert_eq!("1..3".parse::<Parameter>().unwrap(), Parameter::Number(1..=3));
        assert_eq!("a,b".parse::<Parameter>().unwrap(), Parameter::Word(vec!["a".to_owned(), "b".to_owned()]));
    }
}
