//! A cache line of a stored vector.

/// One cache line, one AVX-512 register: sixteen floats. Other elements lie in the
/// same bytes; only kernels of that element read them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Lane(pub(crate) [f32; Lane::WIDTH]);

impl Lane {
    /// Floats of a lane.
    pub(crate) const WIDTH: usize = 16;
    pub(crate) const ZERO: Lane = Lane([0.0; Lane::WIDTH]);

    /// Copies a vector into lanes, padded with zeros. Minus zero becomes zero, so that
    /// equal vectors are equal bytes.
    pub(crate) fn pack(vector: &[f32]) -> Box<[Lane]> {
        let mut lanes = vec![Self::ZERO; vector.len().div_ceil(Self::WIDTH)];
        for (lane, values) in lanes.iter_mut().zip(vector.chunks(Self::WIDTH)) {
            for (to, value) in lane.0.iter_mut().zip(values) {
                *to = value + 0.0;
            }
        }
        lanes.into()
    }

    /// The floats of lanes one after the other, padding included.
    #[inline]
    pub(crate) fn floats(lanes: &[Lane]) -> &[f32] {
        // SAFETY: a lane is sixteen floats and nothing else.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(lanes.as_ptr().cast(), lanes.len() * Self::WIDTH)
        }
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
        let floats = Lane::floats(&lanes);
        assert_eq!(floats[..19], vector);
        assert!(floats[19..].iter().all(|x| x.to_bits() == 0) && floats.len() == 32);
        assert!(Lane::pack(&[-0.0, 1.0]) == Lane::pack(&[0.0, 1.0]));
        assert!(Lane::pack(&[f32::NAN]) == Lane::pack(&[f32::NAN]));
    }
}
