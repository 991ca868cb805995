//! A cache line of a stored vector, and how vectors lie in lines.
//!
//! | element | a line | |
//! |---|---|---|
//! | f32 | 16 floats | padded with zeros |
//! | f16 | 32 halves | padded with zeros |
//! | bit | 512 bits | padded with zeros |
//! | sparse | 16 words | a count, as many indices in order, as many floats, zeros |

use crate::half::Half;
use crate::params::{Element, SPARSE_NONZERO_MAX};

/// One cache line, one AVX-512 register: sixteen floats. Other elements lie in the
/// same bytes; only kernels of that element read them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Lane(pub(crate) [f32; Lane::WIDTH]);

/// Numbers for which any bytes are a value.
///
/// # Safety
/// Implementors have no padding, no invalid bit pattern, an alignment of at most 64 and
/// a size that divides it.
#[allow(unsafe_code)]
pub(crate) unsafe trait Number: Copy {}
// SAFETY: floats and integers are such numbers, and `Half` is an integer.
#[allow(unsafe_code)]
mod numbers {
    use super::{Half, Number};
    unsafe impl Number for f32 {}
    unsafe impl Number for u8 {}
    unsafe impl Number for u16 {}
    unsafe impl Number for u32 {}
    unsafe impl Number for u64 {}
    unsafe impl Number for Half {}
    #[cfg(test)]
    unsafe impl Number for simsimd::f16 {}
}

/// Lanes of every vector of the element; `None` where that varies.
pub(crate) fn lanes_of(element: Element, dimensions: usize) -> Option<usize> {
    match element {
        Element::F32 => Some(dimensions.div_ceil(Lane::WIDTH)),
        Element::F16 => Some(dimensions.div_ceil(2 * Lane::WIDTH)),
        Element::Bit => Some(dimensions.div_ceil(8 * size_of::<Lane>())),
        Element::Sparse => None,
    }
}

/// Do these lanes hold a sparse vector, and all of it? Asked of bytes from a disk.
pub(crate) fn is_sparse(lanes: &[Lane], dimensions: usize) -> bool {
    let words: &[u32] = Lane::view(lanes);
    let count = words.first().map_or(0, |count| *count as usize);
    if count > SPARSE_NONZERO_MAX || lanes.len() != sparse_lanes(count) {
        return false;
    }
    let (indices, values) = Lane::sparse(lanes);
    let is_ascending = indices.is_sorted_by(|a, b| a < b);
    let is_within = indices.last().is_none_or(|i| (*i as usize) < dimensions);
    is_ascending && is_within && values.iter().all(|x| x.is_finite())
}

/// Lanes of a sparse vector with so many elements.
fn sparse_lanes(count: usize) -> usize {
    (1 + 2 * count).div_ceil(Lane::WIDTH)
}

impl Lane {
    /// Floats of a lane.
    pub(crate) const WIDTH: usize = 16;
    pub(crate) const ZERO: Lane = Lane([0.0; Lane::WIDTH]);

    /// The numbers of lanes one after the other, padding included.
    #[inline(always)]
    pub(crate) fn view<T: Number>(lanes: &[Lane]) -> &[T] {
        // SAFETY: within the lanes, which are aligned as any `Number` is.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(lanes.as_ptr().cast(), size_of_val(lanes) / size_of::<T>())
        }
    }

    pub(super) fn view_mut<T: Number>(lanes: &mut [Lane]) -> &mut [T] {
        let len = size_of_val(lanes) / size_of::<T>();
        // SAFETY: as above, and any value of `T` makes valid floats.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), len)
        }
    }

    fn packed<T: Number>(values: impl ExactSizeIterator<Item = T>) -> Box<[Lane]> {
        let lanes = (values.len() * size_of::<T>()).div_ceil(size_of::<Lane>());
        let mut lanes = vec![Self::ZERO; lanes].into_boxed_slice();
        for (to, value) in Self::view_mut(&mut lanes).iter_mut().zip(values) {
            *to = value;
        }
        lanes
    }

    /// Minus zero becomes zero, so that equal vectors are equal bytes.
    pub(crate) fn pack(vector: &[f32]) -> Box<[Lane]> {
        Self::packed(vector.iter().map(|x| x + 0.0))
    }

    pub(crate) fn pack_halves(vector: &[Half]) -> Box<[Lane]> {
        Self::packed(vector.iter().map(|x| x.without_sign_of_zero()))
    }

    pub(crate) fn pack_bits(bytes: &[u8]) -> Box<[Lane]> {
        Self::packed(bytes.iter().copied())
    }

    /// As many values as indices.
    pub(crate) fn pack_sparse(indices: &[u32], values: &[f32]) -> Box<[Lane]> {
        let mut lanes = vec![Self::ZERO; sparse_lanes(indices.len())].into_boxed_slice();
        let (count, rest) = Self::view_mut::<u32>(&mut lanes).split_at_mut(1);
        count[0] = indices.len() as u32;
        rest[..indices.len()].copy_from_slice(indices);
        for (to, value) in rest[indices.len()..].iter_mut().zip(values) {
            *to = value.to_bits();
        }
        lanes
    }

    /// Indices and values of a sparse vector.
    #[inline(always)]
    pub(crate) fn sparse(lanes: &[Lane]) -> (&[u32], &[f32]) {
        let words: &[u32] = Self::view(lanes);
        let count = words[0] as usize;
        let values: &[f32] = Self::view(lanes);
        (&words[1..1 + count], &values[1 + count..1 + 2 * count])
    }
}

/// Bit for bit: what a lane holds need not be floats.
impl PartialEq for Lane {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.0.map(f32::to_bits) == other.0.map(f32::to_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_padded_with_zeros_and_zero_has_no_sign() {
        let vector: Vec<f32> = (0..19).map(|i| i as f32 - 4.0).collect();
        let lanes = Lane::pack(&vector);
        let floats: &[f32] = Lane::view(&lanes);
        assert_eq!(floats[..19], vector);
        assert!(floats[19..].iter().all(|x| x.to_bits() == 0) && floats.len() == 32);
        assert!(Lane::pack(&[-0.0, 1.0]) == Lane::pack(&[0.0, 1.0]));
        assert!(Lane::pack_halves(&[Half(0x8000)]) == Lane::pack_halves(&[Half(0)]));
        assert!(Lane::pack(&[f32::NAN]) == Lane::pack(&[f32::NAN]));
        let halves: Vec<Half> = (1..=33).map(Half).collect();
        let lanes = Lane::pack_halves(&halves);
        assert_eq!(
            (lanes.len(), &Lane::view::<Half>(&lanes)[..33]),
            (2, &*halves)
        );
        assert!(Lane::view::<u16>(&lanes)[33..].iter().all(|x| *x == 0));
        let bytes: Vec<u8> = (0..65).map(|i| i * 3).collect();
        let lanes = Lane::pack_bits(&bytes);
        assert_eq!((lanes.len(), &Lane::view::<u8>(&lanes)[..65]), (2, &*bytes));
    }

    #[test]
    fn sparse_vectors_lie_in_as_many_lanes_as_they_need() {
        for count in [0usize, 1, 7, 8, 100] {
            let indices: Vec<u32> = (0..count as u32).map(|i| 7 * i + 3).collect();
            let values: Vec<f32> = indices.iter().map(|i| *i as f32 + 0.5).collect();
            let lanes = Lane::pack_sparse(&indices, &values);
            assert_eq!(lanes.len(), (1 + 2 * count).div_ceil(16));
            assert_eq!(Lane::sparse(&lanes), (&*indices, &*values));
            let dimensions = indices.last().map_or(1, |last| *last as usize + 1);
            assert!(is_sparse(&lanes, dimensions));
            assert!(count == 0 || !is_sparse(&lanes, dimensions - 1));
            let mut longer = lanes.to_vec();
            longer.push(Lane::ZERO);
            assert!(!is_sparse(&longer, dimensions));
            assert!(!is_sparse(&lanes[1..], dimensions));
            let mut lying = lanes.clone();
            Lane::view_mut::<u32>(&mut lying)[0] = u32::MAX;
            assert!(!is_sparse(&lying, dimensions));
            if count > 1 {
                let mut unordered = lanes.clone();
                Lane::view_mut::<u32>(&mut unordered).swap(1, 2);
                assert!(!is_sparse(&unordered, dimensions));
            }
        }
    }
}
