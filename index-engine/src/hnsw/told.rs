//! Whether sketches tell near from far.
//!
//! They count from a point that was in the midst of the first vectors, and they are as fine
//! as vectors are far from it. Where the data has drifted away from it by some hundred times
//! its spread, they err by more than the distances of neighbours differ: a search by them
//! would pass what is near, and nobody would see it.
//!
//! So whoever has found the nearest by sketches, a search or a node that is being linked,
//! ranks them exactly anyway, compares, and where sketches were of no use looks again by exact
//! distances. Nothing is remembered: some of an index may have drifted, and one query be
//! near that and the next not.

/// Sketches are of no use where they err, on the average, by more than this part of what the
/// ranks of those compared differ by. Of Fashion-MNIST, word vectors and noise 99 of 100 nodes
/// have 0.02 at most. Of clusters thirty times their spread from the origin the median is
/// 0.12, and searches by sketches at ef 40 find 0.996 of the nearest ten, by exact distances
/// 0.999; at a hundred times it is 0.71, and they find 0.87.
const ERROR_MAX: f32 = 0.15;
/// Ranks that differ by next to nothing of the squared distance itself are as good as equal,
/// and there is nothing to tell.
const ERROR_OF_SQUARED: f32 = 1.0 / 256.0;
/// Of fewer rows all have been ranked exactly.
const COMPARED_MIN: u32 = 8;

/// Ranks by sketch of the nearest that were found, beside exact ones.
#[derive(Default)]
pub(crate) struct Told {
    count: u32,
    /// Sums.
    error: f32,
    squared: f32,
    /// The exact ranks lie between.
    range: Option<(f32, f32)>,
}

impl Told {
    /// So many of the nearest are compared.
    pub(super) const COMPARED: usize = 10;

    pub(super) fn is_asked(&self) -> bool {
        (self.count as usize) < Self::COMPARED
    }

    /// One of the nearest, and its distance from what is looked for.
    pub(super) fn compare(&mut self, rough: f32, exact: f32, distance: f32) {
        let (least, most) = self.range.unwrap_or((exact, exact));
        self.range = Some((least.min(exact), most.max(exact)));
        self.error += (rough - exact).abs();
        self.squared += distance * distance;
        self.count += 1;
    }

    /// Numbers too large to tell anything tell nothing.
    pub(crate) fn is_good(&self) -> bool {
        let (least, most) = self.range.unwrap_or_default();
        let count = self.count as f32;
        let bound = (ERROR_MAX * (most - least)).max(ERROR_OF_SQUARED * self.squared / count);
        self.count < COMPARED_MIN || self.error / count <= bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of ten rows a rank of one apart, a hundred from what is looked for.
    fn told(errors: impl Fn(usize) -> f32, distance: f32) -> bool {
        let mut told = Told::default();
        for i in 0..Told::COMPARED {
            assert!(told.is_asked());
            told.compare(i as f32 + errors(i), i as f32, distance);
        }
        !told.is_asked() && told.is_good()
    }

    #[test]
    fn errors_count_beside_what_ranks_differ_by() {
        assert!(told(|_| 0.0, 1.0) && told(|i| 0.1 * i as f32, 1.0));
        assert!(!told(|_| 2.0, 1.0) && !told(|i| if i == 0 { 30.0 } else { 0.0 }, 1.0));
        assert!(told(|_| 2.0, 100.0), "next to nothing of the distance");
        assert!(!told(|_| f32::NAN, 1.0) && !told(|_| f32::INFINITY, 1.0));
    }

    #[test]
    fn a_few_rows_tell_nothing() {
        let mut told = Told::default();
        assert!(told.is_good());
        (0..7).for_each(|_| told.compare(9.0, 0.0, 1.0));
        assert!(told.is_good());
        told.compare(9.0, 0.0, 1.0);
        assert!(!told.is_good());
    }
}
