//! The middles of the lists, and which of them is nearest.
//!
//! Assigning a row compares it with every centroid, and training assigns its sample
//! ten times over: so two rows are compared with four centroids at once, out of
//! registers, by one inner product each. For L2 that is taken with the centroid's
//! difference from the middle of all centroids, so that little is cancelled where
//! rows lie far from zero.

use crate::distance::Lane;

/// Rows and centroids whose inner products are summed side by side: eight sums of
/// eight floats leave AVX2 half of its registers for what is multiplied.
const ROWS: usize = 2;
const COLUMNS: usize = 4;
/// Centroids compared with all rows of a call before the next: they stay in the
/// first cache.
const TILE: usize = 2 * COLUMNS;

/// What nearness to a centroid means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Geometry {
    /// Centroids are means, the nearest by Euclidean distance is taken.
    Euclidean,
    /// Centroids have length one, the one of the greatest inner product is taken:
    /// what pgvector does for inner products and cosines.
    Spherical,
}

pub(super) struct Centroids {
    /// Lanes of a vector.
    width: usize,
    points: Box<[Lane]>,
    /// Differences from the middle of all; empty where that is not needed.
    shifted: Box<[Lane]>,
    /// `score(x, c) = offset - <x, shifted c>`
    offsets: Box<[f32]>,
    kernel: Kernel,
}

impl Centroids {
    /// `points` are vectors of `width` lanes one behind the other.
    pub(super) fn new(geometry: Geometry, width: usize, points: Box<[Lane]>) -> Self {
        let count = points.len() / width;
        let (mut shifted, mut offsets) = (Box::default(), vec![0.0; count]);
        if geometry == Geometry::Euclidean {
            let middle = mean(width, &points);
            let mut moved = points.clone();
            for (point, offset) in moved.chunks_exact_mut(width).zip(&mut offsets) {
                let mut sum = 0f64;
                for (lane, middle) in point.iter_mut().zip(&middle) {
                    for (x, m) in lane.0.iter_mut().zip(&middle.0) {
                        *x -= m;
                        sum += f64::from(*x) * (f64::from(*m) + 0.5 * f64::from(*x));
                    }
                }
                *offset = sum as f32;
            }
            shifted = moved;
        }
        Self {
            width,
            points,
            shifted,
            offsets: offsets.into(),
            kernel: detect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    pub(super) fn point(&self, list: u32) -> &[Lane] {
        &self.points[list as usize * self.width..][..self.width]
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.points) + size_of_val(&*self.shifted) + size_of_val(&*self.offsets)
    }

    /// The nearest list of each row. Among equals the first; what is near nothing
    /// (infinite products) goes to list 0.
    pub(super) fn nearest(&self, rows: &[&[Lane]]) -> Vec<u32> {
        let mut best = vec![(f32::INFINITY, 0u32); rows.len()];
        self.each_score(rows, |row, list, score| {
            if score < best[row].0 {
                best[row] = (score, list);
            }
        });
        best.into_iter().map(|(_, list)| list).collect()
    }

    /// How far the target is from each list: smaller is nearer, never NaN. Good for
    /// ordering only.
    pub(super) fn scores(&self, target: &[Lane]) -> Vec<f32> {
        let mut scores = vec![f32::INFINITY; self.len()];
        self.each_score(&[target], |_, list, score| {
            if !score.is_nan() {
                scores[list as usize] = score;
            }
        });
        scores
    }

    #[inline]
    fn each_score(&self, rows: &[&[Lane]], mut each: impl FnMut(usize, u32, f32)) {
        let vectors = match self.shifted.is_empty() {
            true => &self.points,
            false => &self.shifted,
        };
        let last = self.len() - 1;
        let column = |list: usize| &vectors[list.min(last) * self.width..][..self.width];
        for tile in (0..self.len()).step_by(TILE) {
            for (pair, rows) in rows.chunks(ROWS).enumerate() {
                // An odd row is computed twice.
                let two = [rows[0], rows[rows.len() - 1]];
                for first in (tile..(tile + TILE).min(self.len())).step_by(COLUMNS) {
                    let columns = std::array::from_fn(|i| column(first + i));
                    // SAFETY: `detect` chose a kernel that this processor has.
                    #[allow(unsafe_code)]
                    let products = unsafe { (self.kernel)(two, columns) };
                    for (i, products) in products.iter().enumerate().take(rows.len()) {
                        for (list, product) in (first..self.len()).zip(products) {
                            each(pair * ROWS + i, list as u32, self.offsets[list] - product);
                        }
                    }
                }
            }
        }
    }
}

/// The mean of vectors of `width` lanes.
fn mean(width: usize, vectors: &[Lane]) -> Vec<Lane> {
    let mut sums = vec![[0f64; Lane::WIDTH]; width];
    for vector in vectors.chunks_exact(width) {
        for (sum, lane) in sums.iter_mut().zip(vector) {
            for (sum, x) in sum.iter_mut().zip(&lane.0) {
                *sum += f64::from(*x);
            }
        }
    }
    let count = (vectors.len() / width).max(1) as f64;
    let lane = |sum: &[f64; Lane::WIDTH]| Lane(sum.map(|x| (x / count) as f32));
    sums.iter().map(lane).collect()
}

/// May be called only on a processor with the features that it was compiled for.
#[allow(unsafe_code)]
type Kernel = unsafe fn([&[Lane]; ROWS], [&[Lane]; COLUMNS]) -> [[f32; COLUMNS]; ROWS];

fn detect() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return products_avx2;
    }
    products
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn products_avx2(rows: [&[Lane]; ROWS], columns: [&[Lane]; COLUMNS]) -> [[f32; COLUMNS]; ROWS] {
    products_body::<true>(rows, columns)
}

fn products(rows: [&[Lane]; ROWS], columns: [&[Lane]; COLUMNS]) -> [[f32; COLUMNS]; ROWS] {
    const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    products_body::<FUSED>(rows, columns)
}

/// The inner products of each row with each column.
#[inline(always)]
fn products_body<const FUSED: bool>(
    rows: [&[Lane]; ROWS],
    columns: [&[Lane]; COLUMNS],
) -> [[f32; COLUMNS]; ROWS] {
    let width = rows[0].len();
    let halves = |vector: &'_ [Lane]| -> *const Eight {
        assert_eq!(vector.len(), width, "vectors of one index have one length");
        vector.as_ptr().cast()
    };
    let (rows, columns) = (rows.map(halves), columns.map(halves));
    let mut sums = [[[0f32; EIGHT]; COLUMNS]; ROWS];
    for at in 0..width * (Lane::WIDTH / EIGHT) {
        // SAFETY: each vector has `width` lanes, and a lane is whole eights of floats.
        #[allow(unsafe_code)]
        let (x, y) = unsafe { (rows.map(|v| *v.add(at)), columns.map(|v| *v.add(at))) };
        // By constant numbers: so the sums stay in registers.
        #[allow(clippy::needless_range_loop)]
        for r in 0..ROWS {
            for c in 0..COLUMNS {
                for i in 0..EIGHT {
                    sums[r][c][i] = match FUSED {
                        true => x[r][i].mul_add(y[c][i], sums[r][c][i]),
                        false => x[r][i] * y[c][i] + sums[r][c][i],
                    };
                }
            }
        }
    }
    sums.map(|row| row.map(|sum| sum.into_iter().sum()))
}

/// Floats of an AVX register.
const EIGHT: usize = 8;
type Eight = [f32; EIGHT];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distance::Scorer;
    use crate::params::{Element, Metric};
    use crate::seeded::next;

    fn vectors(count: usize, width: usize, offset: f32) -> Vec<Lane> {
        let mut state = 11;
        let mut unit = || (next(&mut state) >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        let mut lane = |_| Lane(std::array::from_fn(|_| offset + unit()));
        (0..count * width).map(&mut lane).collect()
    }

    #[test]
    fn the_nearest_is_that_of_the_distance_kernel_far_from_zero_too() {
        for (geometry, metric, offset) in [
            (Geometry::Euclidean, Metric::L2, 0.0),
            (Geometry::Euclidean, Metric::L2, 300.0),
            (Geometry::Spherical, Metric::InnerProduct, 0.0),
        ] {
            for (width, lists) in [(1, 1), (3, 5), (49, 19)] {
                let points = vectors(lists, width, offset);
                let centroids = Centroids::new(geometry, width, points.into());
                // The first rows are the centroids themselves.
                let rows = vectors(lists + 30, width, offset);
                let rows: Vec<&[Lane]> = rows.chunks(width).collect();
                let scorer = Scorer::new(metric, Element::F32);
                for (row, list) in rows.iter().zip(centroids.nearest(&rows)) {
                    let rank = |list| scorer.rank(row, centroids.point(list));
                    let best = (0..lists as u32).map(rank).fold(f32::INFINITY, f32::min);
                    let (got, slack) = (rank(list), 1e-4 * best.abs().max(0.01));
                    assert!(
                        got <= best + slack,
                        "{geometry:?} {width} {offset}: {got} {best}"
                    );
                    let scores = centroids.scores(row);
                    let least = (0..lists).min_by(|a, b| scores[*a].total_cmp(&scores[*b]));
                    assert_eq!(least, Some(list as usize), "searches look where rows went");
                }
            }
        }
    }

    #[test]
    fn overflow_is_far_and_no_panic() {
        let points = vec![Lane([1.0; 16]), Lane([-1.0; 16])];
        let centroids = Centroids::new(Geometry::Spherical, 1, points.into());
        let mixed = [Lane(std::array::from_fn(|i| {
            if i < 8 { f32::MAX } else { -f32::MAX }
        }))];
        assert!(centroids.nearest(&[&mixed])[0] < 2);
        assert!(centroids.scores(&mixed).iter().all(|s| !s.is_nan()));
    }
}
