//! Turns the bytes that survivors stand for into bytes per request, with an interval.
//!
//! The sum of weights is unbiased. Its variance is estimated by the sum of squared weights, requests being the unit:
//! that is exact for a sampler which picks bytes by a Poisson process, and it contains the chance of which requests
//! leaked besides. The number of independent survivors that this leaves, n = (Σw)² / Σw², is Poisson, whose interval
//! is that of chi-squared, here by Wilson and Hilferty's cube root.

/// Bytes per request, with the bounds of the 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Bytes that a request leaves behind, on average.
    pub bytes: f64,
    /// It is hardly less …
    pub low: f64,
    /// … nor more.
    pub high: f64,
}

/// The normal distribution's two-sided 95 %.
const SURE: f64 = 1.96;

impl Rate {
    /// `bytes` left by `requests` requests, known from as many independent `survivors`.
    pub fn of(bytes: f64, requests: f64, survivors: f64) -> Self {
        let bound =
            |n: f64, z: f64| if n > 0.0 { n * (1.0 - 1.0 / (9.0 * n) + z / (3.0 * n.sqrt())).powi(3) } else { 0.0 };
        let rate = bytes / requests;
        let low = rate * bound(survivors, -SURE).max(0.0) / survivors;
        let high = rate * bound(survivors + 1.0, SURE) / survivors;
        Self { bytes: rate, low, high }
    }

    /// The rate of requests that left nothing, where one survivor would have stood for `weight` bytes: 3.7 of them
    /// would have been missed once in forty times.
    pub fn nothing(requests: f64, weight: f64) -> Self {
        Self { bytes: 0.0, low: 0.0, high: 3.689 * weight / requests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_poisson_distribution() {
        // Exact (chi-squared) bounds for 15 and for 100 counts.
        for (count, low, high) in [(15.0, 8.395, 24.740), (100.0, 81.364, 121.627)] {
            let rate = Rate::of(count, 1.0, count);
            assert!((rate.low / low - 1.0).abs() < 0.01, "{rate:?}");
            assert!((rate.high / high - 1.0).abs() < 0.01, "{rate:?}");
        }
    }
}
