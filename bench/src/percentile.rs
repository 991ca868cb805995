//! Order statistics of durations.

use std::time::Duration;

/// The nearest-rank percentile. Sorts; panics on an empty slice.
pub fn percentile(samples: &mut [Duration], percent: usize) -> Duration {
    assert!(!samples.is_empty(), "no samples");
    samples.sort_unstable();
    samples[(samples.len() * percent)
        .div_ceil(100)
        .clamp(1, samples.len())
        - 1]
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
