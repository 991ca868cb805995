//! Medians, percentiles, recall, and what lies between measured points.

/// The nearest-rank percentile of sorted values.
///
/// # Panics
/// If there are none.
pub fn percentile<T: Copy>(sorted: &[T], percent: usize) -> T {
    assert!(!sorted.is_empty(), "no samples");
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The lower one of two in the middle.
///
/// # Panics
/// If there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 50)
}

/// Share of the nearest `rows` that were found, over queries.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Recall {
    pub mean: f64,
    /// What all but a twentieth of the queries reach: the low tail.
    pub p5: f64,
}

/// `found` and `nearest` of each query; both are cut after `rows`.
///
/// # Panics
/// If there is no query.
pub fn recall<'a>(
    found: impl Iterator<Item = &'a [u32]>,
    nearest: impl Iterator<Item = &'a [u32]>,
    rows: usize,
) -> Recall {
    let mut shares: Vec<f64> = found
        .zip(nearest)
        .map(|(found, nearest)| {
            let nearest = &nearest[..rows.min(nearest.len())];
            let hits = found.iter().take(rows).filter(|id| nearest.contains(id));
            hits.count() as f64 / nearest.len() as f64
        })
        .collect();
    shares.sort_by(f64::total_cmp);
    Recall {
        mean: shares.iter().sum::<f64>() / shares.len() as f64,
        p5: percentile(&shares, 5),
    }
}

/// A figure at a recall, from points `(recall, figure)` of rising `ef`: between two
/// of them on a straight line of the figure's logarithm. Below the first point the
/// first one's, beyond the last none.
pub fn at_recall(points: &[(f64, f64)], target: f64) -> Option<f64> {
    let first = points.first()?;
    if first.0 >= target {
        return Some(first.1);
    }
    let pair = points
        .windows(2)
        .find(|pair| pair[0].0 < target && target <= pair[1].0)?;
    let part = (target - pair[0].0) / (pair[1].0 - pair[0].0);
    Some((pair[0].1.ln() * (1.0 - part) + pair[1].1.ln() * part).exp())
}

/// Seconds by rows, on the straight line of logarithms through two measured points.
pub fn power_law(small: (f64, f64), large: (f64, f64), rows: f64) -> f64 {
    let exponent = (large.1 / small.1).ln() / (large.0 / small.0).ln();
    large.1 * (rows / large.0).powf(exponent)
}

/// The speed-up of `threads`, by Amdahl's law from the one that two gave.
pub fn amdahl(two: f64, threads: f64) -> f64 {
    let parallel = (2.0 * (1.0 - 1.0 / two)).clamp(0.0, 1.0);
    1.0 / (1.0 - parallel + parallel / threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let sorted: Vec<u32> = (1..=200).collect();
        assert_eq!(percentile(&sorted, 99), 198);
        assert_eq!(percentile(&sorted, 5), 10);
        assert_eq!(percentile(&sorted, 100), 200);
        assert_eq!(percentile(&[7], 1), 7);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn recall_counts_what_is_near_in_any_order_and_its_low_tail() {
        let mut found: Vec<&[u32]> = vec![&[1, 2, 9]; 19];
        found.push(&[8, 9]);
        let nearest: Vec<&[u32]> = vec![&[2, 1, 3]; 20];
        let of = |rows| recall(found.iter().copied(), nearest.iter().copied(), rows);
        assert_eq!(of(2).mean, 0.95);
        assert_eq!(of(2).p5, 0.0);
        assert_eq!(of(1).mean, 0.0);
    }

    #[test]
    fn between_points_the_logarithm_is_straight() {
        let points = [(0.90, 1_000.0), (0.98, 100.0)];
        let half = at_recall(&points, 0.94).unwrap();
        assert!(
            (half - 1_000_000f64.sqrt() / 10f64.sqrt()).abs() < 1e-6,
            "{half}"
        );
        assert_eq!(at_recall(&points, 0.5), Some(1_000.0));
        assert_eq!(at_recall(&points, 0.99), None);
        assert_eq!(at_recall(&[], 0.9), None);
    }

    #[test]
    fn growth_and_threads_are_continued_as_measured() {
        let doubled = power_law((1e4, 1.0), (1e5, 20.0), 1e6);
        assert!((doubled - 400.0).abs() < 1e-6, "{doubled}");
        assert_eq!(amdahl(2.0, 8.0), 8.0);
        assert_eq!(amdahl(1.0, 8.0), 1.0);
        let half = amdahl(4.0 / 3.0, 8.0);
        assert!((half - 1.0 / (0.5 + 0.5 / 8.0)).abs() < 1e-9, "{half}");
    }
}
