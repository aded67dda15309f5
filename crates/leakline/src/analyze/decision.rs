//! Turns the ages of survivors into a decision: is this what a leak leaves behind?
//!
//! The age of a survivor is the place, between 0 and 1, of the request that left it within the window of requests that
//! can testify. In a leak every request leaves as much as any other and nothing dies, so the ages are spread evenly.
//! Whatever else keeps memory leaves another shape: first requests leave theirs near 0; a cache that warms up leaves
//! less and less; caches that evict, sessions that expire and garbage that waits for the collector leave theirs near 1.
//!
//! Two questions are asked, and both must be answered with yes:
//! 1. **Could it be a leak?** The ages must not contradict an even spread ([`Shape::is_even`]).
//! 2. **Could it be anything else?** The healthy shapes are put as an exponential trend e^(kx), rising or falling, at
//!    least as steep as k = [`mildest_trend`]; the mean age tells the trend as well as anything can (it is sufficient
//!    for k). [`Shape::doubt`] is the probability of a mean age this close to the middle under the mildest trend.
//!
//! `docs/decision.md` derives the constants and gives the measured error rates.
/// Fewer independent survivors than this are never called a leak: (Σw)² / Σw² over requests.
pub const FEWEST_SURVIVORS: f64 = 8.0;
/// Nor are survivors of fewer requests.
pub const FEWEST_REQUESTS: usize = 10;
/// Nor is less memory than this, bytes: pools, free lists and small caches of a server's own hold some hundred kB in any shape,
/// and where there are many of them and many samples, chance makes one look even.
pub const LEAST_BYTES: f64 = 1_048_576.0;
/// A finding is wrong with at most this probability, given the mildest healthy trend, over all groups looked at.
pub const ERROR: f64 = 0.02;

/// A true leak may be this many standard deviations off the even spread: 3 leaves out 0.3 % of leaks.
const TOLERANCE: f64 = 3.0;
/// Real traffic is not even. Up to this much, an offset of the mean age is no contradiction however sure it is: 0.06
/// corresponds to a rate that has halved, or doubled, over the window.
const UNEVEN_MEAN: f64 = 0.06;
/// The same for the distance between the distribution of ages and the even one.
const UNEVEN_DISTANCE: f64 = 0.12;
/// The Kolmogorov-Smirnov distance, times √n, that an even spread exceeds once in a thousand times.
const DISTANCE: f64 = 1.95;
/// An even spread leaves an end of the window empty with probability e^(-n·gap): e^-7 is once in a thousand times.
const GAP: f64 = 7.0;
/// Each third of the window must hold at least this share, or growth has paused there.
const LEAST_THIRD: f64 = 1.0 / 12.0;
/// So many survivors must have been expected before the last full collection for their absence to mean anything: a leak
/// leaves none where seven are expected once in a thousand times.
const EXPECTED_BEFORE_COLLECTION: f64 = 7.0;

/// What one request has left behind.
#[derive(Clone, Copy, Debug)]
pub struct Survivor<Request> {
    /// Which request; survivors of one request are no independent witnesses.
    pub request: Request,
    /// Its place in the window, 0 to 1.
    pub age: f64,
    /// Estimated bytes.
    pub bytes: f64,
    /// Variance of `bytes` as a share of its square.
    pub noise: f64,
    /// Bytes by which a block grew; 0 for a block of its own.
    pub growth: u64,
    /// A full collection has passed over it.
    pub collected: bool,
}

/// What the survivors were left by.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Requests in the windows of all workers.
    pub requests: f64,
    /// The longest window of a worker.
    pub longest: f64,
    /// The share of `requests` that had ended when the collector last ran over everything.
    pub collected: f64,
}

/// Whether cyclic garbage that nobody collected yet could explain the growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// No: what was there before the last full collection is still there, or most of it is in one list, which was alive
    /// when it grew last.
    RuledOut,
    /// Yes: little is left of what was there before the last full collection.
    Collected,
    /// Nobody can tell: too little was there when the collector last ran over everything, if it ever did.
    Untested,
    /// It is: a heap snapshot shows that nothing refers to most of it.
    Seen,
}

/// The shape of the survivors' ages.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Independent survivors: (Σw)² / Σw², requests being the unit.
    pub survivors: f64,
    /// Distinct requests among them.
    pub requests: usize,
    /// What they hold, bytes.
    pub bytes: f64,
    /// Like `survivors`, with the growth of a list, whose risers are no accidents, counted by its own noise.
    pub witnesses: f64,
    mean: f64,
    distance: f64,
    gap: f64,
    least_third: f64,
    mildest_trend: f64,
    /// What the collector has to say.
    pub garbage: Garbage,
}

impl Shape {
    /// The shape of these survivors.
    pub fn of<Request: Ord + Copy>(survivors: &[Survivor<Request>], served: &Served) -> Self {
        let total: f64 = survivors.iter().map(|survivor| survivor.bytes).sum();
        let requests = by_request(survivors);
        let squares: f64 = requests.iter().map(|(bytes, _)| bytes * bytes).sum();
        let noise: f64 = requests.iter().map(|(bytes, noise)| bytes * noise).sum();
        let mut ages: Vec<(f64, f64)> =
            survivors.iter().map(|survivor| (survivor.age, survivor.bytes / total)).collect();
        ages.sort_by(|one, other| one.0.total_cmp(&other.0));
        let grown: f64 = survivors.iter().filter(|survivor| survivor.growth > 0).map(|survivor| survivor.bytes).sum();
        let count = total * total / squares;
        Self {
            survivors: count,
            requests: requests.len(),
            bytes: total,
            witnesses: total * total / noise,
            mean: ages.iter().map(|(age, share)| age * share).sum(),
            distance: distance_from_even(&ages),
            gap: ages.first().map_or(1.0, |first| first.0).max(ages.last().map_or(1.0, |last| 1.0 - last.0)),
            least_third: least_third(&ages),
            mildest_trend: mildest_trend(served.longest, total, grown / total),
            garbage: garbage(survivors, total, count, served.collected),
        }
    }

    /// There is enough to be judged at all.
    pub fn is_enough(&self) -> bool {
        self.survivors >= FEWEST_SURVIVORS && self.requests >= FEWEST_REQUESTS && self.bytes >= LEAST_BYTES
    }

    /// The ages do not contradict an even spread over the window, to its very ends, and before the last full collection.
    pub fn is_even(&self) -> bool {
        let n = self.survivors;
        (self.mean - 0.5).abs() <= (TOLERANCE / (12.0 * n).sqrt()).max(UNEVEN_MEAN)
            && self.distance <= (DISTANCE / n.sqrt()).max(UNEVEN_DISTANCE)
            && self.gap <= (GAP / n).max(UNEVEN_MEAN)
            && self.least_third >= LEAST_THIRD
            && self.garbage != Garbage::Collected
    }

    /// The probability of ages as even as these, if the growth were of the mildest healthy trend.
    pub fn doubt(&self) -> f64 {
        let (offset, deviation) = trend(self.mildest_trend);
        upper_tail((offset - (self.mean - 0.5).abs()) * self.witnesses.sqrt() / deviation)
    }
}

/// Survivors that a leak must be expected to leave so that it is found 19 times in 20, when so many `groups` are looked
/// at without it: its mean age may be two standard deviations off the middle, and the survivors themselves be fewer than
/// expected by two of theirs.
pub fn survivors_needed(longest: f64, bytes: f64, groups: usize) -> f64 {
    // A leak is itself looked at as a function, as a line and with its route.
    let groups = groups as f64 + 3.0;
    let (offset, deviation) = trend(mildest_trend(longest, bytes, 0.0));
    let root = (upper_tail_inverse(ERROR / groups) * deviation + 2.0 * EVEN_DEVIATION) / offset;
    let enough = (root * root).max(FEWEST_SURVIVORS).max(FEWEST_REQUESTS as f64);
    enough + 2.0 * enough.sqrt()
}

/// Standard deviation of an age under an even spread.
const EVEN_DEVIATION: f64 = 0.288_675_134_594_812_9;

/// The mildest trend k of e^(kx) that is still taken for healthy: with 3, the rate falls or rises twentyfold over the
/// window, with 1.5 four- to fivefold.
///
/// A cache whose keys come again at random fills at a rate of e^(-n/keys), so its trend is requests / keys. Ordinary
/// caches hold some hundreds to some thousand entries: one that has served 16,000 requests and still fills evenly is
/// bigger than that. So is one that holds 64 MiB, and a list that grows by realloc over many requests is no cache of
/// entries at all. Before that, patience: the ages must speak against the milder trend too.
fn mildest_trend(longest: f64, bytes: f64, grown: f64) -> f64 {
    const IMPATIENT: f64 = 3.5;
    const PATIENT: f64 = 1.5;
    if bytes >= 64.0 * 1024.0 * 1024.0 || grown >= 0.5 {
        return IMPATIENT;
    }
    let experience = ((longest / 1_000.0).ln() / 16.0_f64.ln()).clamp(0.0, 1.0);
    PATIENT + (IMPATIENT - PATIENT) * experience * experience
}

/// How far the mean age under a trend k is off the middle, and the standard deviation of an age: those of the
/// exponential distribution cut off at 1.
fn trend(k: f64) -> (f64, f64) {
    let mean = 1.0 / k - 1.0 / k.exp_m1();
    let variance = 1.0 / (k * k) - k.exp() / k.exp_m1().powi(2);
    (0.5 - mean, variance.sqrt())
}

/// The bytes of each request, and the sum of their noise.
fn by_request<Request: Ord + Copy>(survivors: &[Survivor<Request>]) -> Vec<(f64, f64)> {
    let mut sorted: Vec<_> = survivors.iter().collect();
    sorted.sort_unstable_by_key(|survivor| survivor.request);
    let of_one = |one: &[&Survivor<Request>]| {
        one.iter().fold((0.0, 0.0), |(bytes, noise), survivor| {
            (bytes + survivor.bytes, noise + survivor.bytes * survivor.noise)
        })
    };
    sorted.chunk_by(|one, other| one.request == other.request).map(of_one).collect()
}

fn distance_from_even(ages: &[(f64, f64)]) -> f64 {
    let mut below = 0.0;
    let mut distance: f64 = 0.0;
    for (age, share) in ages {
        distance = distance.max((below - age).abs());
        below += share;
        distance = distance.max((below - age).abs());
    }
    distance
}

fn least_third(ages: &[(f64, f64)]) -> f64 {
    let mut thirds = [0.0; 3];
    for (age, share) in ages {
        thirds[((age * 3.0) as usize).min(2)] += share;
    }
    thirds.into_iter().fold(1.0, f64::min)
}

/// Under a leak the bytes from before the last full collection are binomial with the share of requests before it.
///
/// Where it cannot tell, a list may: it grows by an eighth of its length at a time, so that a riser of a sixteenth of all
/// bytes shows one that holds at least half of them, and nobody appends to garbage.
fn garbage<Request>(survivors: &[Survivor<Request>], total: f64, count: f64, before: f64) -> Garbage {
    if before * count < EXPECTED_BEFORE_COLLECTION {
        let riser = survivors.iter().map(|survivor| survivor.growth).max().unwrap_or(0);
        return if riser as f64 * 16.0 >= total { Garbage::RuledOut } else { Garbage::Untested };
    }
    let left: f64 = survivors.iter().filter(|survivor| survivor.collected).map(|survivor| survivor.bytes).sum();
    let missing = before - left / total;
    let deviation = (before * (1.0 - before) / count).sqrt();
    match missing > (TOLERANCE * deviation).max(before * 0.5) || left == 0.0 {
        true => Garbage::Collected,
        false => Garbage::RuledOut,
    }
}

/// P(Z > z) of the standard normal distribution.
fn upper_tail(z: f64) -> f64 {
    libm::erfc(z / std::f64::consts::SQRT_2) / 2.0
}

/// The z with P(Z > z) = p, by bisection.
fn upper_tail_inverse(p: f64) -> f64 {
    let (mut low, mut high) = (0.0, 12.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        match upper_tail(middle) > p {
            true => low = middle,
            false => high = middle,
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(ages: impl Iterator<Item = f64>, served: Served) -> Shape {
        let survivors: Vec<_> = ages
            .enumerate()
            .map(|(request, age)| Survivor {
                request,
                age,
                bytes: 65_536.0,
                noise: 1.0,
                growth: 0,
                collected: age <= served.collected,
            })
            .collect();
        Shape::of(&survivors, &served)
    }

    const SERVED: Served = Served { requests: 20_000.0, longest: 20_000.0, collected: 0.0 };

    fn even(n: usize) -> impl Iterator<Item = f64> {
        (0..n).map(move |i| (i as f64 + 0.5) / n as f64)
    }

    #[test]
    fn evenly_spread_survivors_leave_no_doubt() {
        let shape = shape(even(40), SERVED);
        assert!(shape.is_enough() && shape.is_even());
        assert!(shape.doubt() < 1e-6, "{}", shape.doubt());
    }

    #[test]
    fn survivors_at_either_end_or_at_both_are_no_leak() {
        assert!(!shape(even(40).map(|age| age * 0.5), SERVED).is_even());
        assert!(!shape(even(40).map(|age| 0.5 + age * 0.5), SERVED).is_even());
        let both = even(20).map(|age| age * 0.2).chain(even(20).map(|age| 0.8 + age * 0.2));
        assert!(!shape(both, SERVED).is_even());
    }

    /// The ages of the density 1.72 - 1.44 x: the mean age sees what the distance is too blunt for.
    #[test]
    fn a_mild_decline_is_no_leak() {
        let declining = |n| even(n).map(|share| (1.72 - (1.72_f64.powi(2) - 4.0 * 0.72 * share).sqrt()) / 1.44);
        assert!(!shape(declining(80), SERVED).is_even());
        assert!(shape(declining(80), SERVED).distance < DISTANCE / 80_f64.sqrt());
    }

    #[test]
    fn growth_that_stopped_a_while_ago_is_no_leak() {
        assert!(!shape(even(200).map(|age| age * 0.93), SERVED).is_even());
    }

    #[test]
    fn many_survivors_of_few_requests_are_too_little() {
        let survivors: Vec<_> = even(100)
            .enumerate()
            .map(|(at, age)| Survivor { request: at / 20, age, bytes: 1.0, noise: 1.0, growth: 0, collected: false })
            .collect();
        assert!(!Shape::of(&survivors, &SERVED).is_enough());
    }

    #[test]
    fn the_collector_decides_where_it_can() {
        let at = |collected| Served { collected, ..SERVED };
        assert_eq!(shape(even(40), at(0.5)).garbage, Garbage::RuledOut);
        assert_eq!(shape(even(40), at(0.0)).garbage, Garbage::Untested);
        assert_eq!(shape(even(40).map(|age| 0.2 + 0.8 * age), at(0.2)).garbage, Garbage::Collected);
    }

    #[test]
    fn a_list_that_holds_most_of_it_was_no_garbage_when_it_grew() {
        let with_last_riser = |growth: u64| {
            let risers = (0..40).map(|request| Survivor {
                request,
                age: (request as f64 + 0.5) / 40.0,
                bytes: 1_000.0,
                noise: 0.2,
                growth: if request == 39 { growth } else { 100 },
                collected: false,
            });
            Shape::of(&risers.collect::<Vec<_>>(), &SERVED).garbage
        };
        assert_eq!(with_last_riser(4_000), Garbage::RuledOut);
        assert_eq!(with_last_riser(100), Garbage::Untested);
    }

    #[test]
    fn a_trend_has_the_moments_of_the_cut_exponential() {
        for k in [0.5, 1.5, 3.0] {
            let steps = 200_000;
            let points = (0..steps).map(|i| (i as f64 + 0.5) / steps as f64);
            let (mut mass, mut first, mut second) = (0.0, 0.0, 0.0);
            for x in points {
                let density = (-k * x).exp();
                mass += density;
                first += density * x;
                second += density * x * x;
            }
            let mean = first / mass;
            let (offset, deviation) = trend(k);
            assert!((0.5 - mean - offset).abs() < 1e-6);
            assert!(((second / mass - mean * mean).sqrt() - deviation).abs() < 1e-6);
        }
    }

    #[test]
    fn the_tail_and_its_inverse_agree_with_the_tables() {
        assert!((upper_tail(1.959_964) - 0.025).abs() < 1e-6);
        assert!((upper_tail_inverse(0.001) - 3.090_232).abs() < 1e-5);
    }
}
