//! Numbers of sixteen bits, as pgvector's `halfvec` holds them.

/// An IEEE 754 binary16: its bit pattern.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Half(pub u16);

const SIGN: u16 = 0x8000;
const INFINITY: u16 = 0x7C00;
/// Bits by which a mantissa of f32 is longer.
const SHIFT: u32 = 13;
/// By how much exponents of f32 are larger: 127 less 15.
const BIAS: u32 = 112;

impl Half {
    /// The nearest, of two equally near the even one. Beyond 65,504 infinity, as the
    /// processor converts.
    pub fn from_f32(value: f32) -> Self {
        /// The smallest normal half, as f32.
        const NORMAL: u32 = (BIAS + 1) << 23;
        let bits = value.to_bits();
        let sign = (bits >> 16) as u16 & SIGN;
        let size = bits & 0x7FFF_FFFF;
        let half = if value.is_nan() {
            INFINITY | 0x200
        } else if size < NORMAL {
            // In the sum the last bit of the mantissa is worth what a half's is.
            let sum = f32::from_bits(size) + 0.5;
            (sum.to_bits() - 0.5f32.to_bits()) as u16
        } else {
            // A mantissa that overflows counts the exponent up, as it should.
            let is_odd = size >> SHIFT & 1;
            let half = (size - (BIAS << 23) + 0xFFF + is_odd) >> SHIFT;
            half.min(u32::from(INFINITY)) as u16
        };
        Self(sign | half)
    }

    /// Exact.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        let size = u32::from(self.0 & !SIGN);
        let finite = Self(self.0).finite_to_f32().to_bits();
        let beyond = if size >= u32::from(INFINITY) {
            0x7F80_0000
        } else {
            0
        };
        f32::from_bits(finite | beyond)
    }

    /// The same for what is finite, without a branch.
    #[inline(always)]
    pub(crate) fn finite_to_f32(self) -> f32 {
        let sign = u32::from(self.0 & SIGN) << 16;
        // As if the exponent had f32's bias; the product puts that right. What is
        // subnormal as a half is subnormal as f32 before, and normal after.
        let size = f32::from_bits(u32::from(self.0 & !SIGN) << SHIFT);
        let scale = f32::from_bits((127 + BIAS) << 23);
        f32::from_bits((size * scale).to_bits() | sign)
    }

    pub fn is_finite(self) -> bool {
        self.0 & !SIGN < INFINITY
    }

    /// Zero has no sign where vectors are stored.
    pub(crate) fn without_sign_of_zero(self) -> u16 {
        if self.0 == SIGN { 0 } else { self.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use simsimd::f16;

    #[test]
    fn every_half_is_itself_again() {
        for bits in 0..=u16::MAX {
            let half = Half(bits);
            let value = half.to_f32();
            assert_eq!(half.is_finite(), value.is_finite(), "{bits:#x}");
            if value.is_nan() {
                assert!(Half::from_f32(value).to_f32().is_nan());
                continue;
            }
            assert_eq!(Half::from_f32(value), half, "{value}");
            if half.is_finite() {
                assert_eq!(value, f16(bits).to_f32(), "{bits:#x}");
                assert_eq!(value.to_bits(), half.finite_to_f32().to_bits());
            }
        }
        assert_eq!(Half(1).to_f32(), 2f32.powi(-24));
        assert_eq!(Half(0x7BFF).to_f32(), 65_504.0);
    }

    #[test]
    fn numbers_between_two_halves_go_to_the_nearest_and_to_the_even_one() {
        for bits in 0..0x7C00u16 {
            let (low, high) = (Half(bits).to_f32(), Half(bits + 1).to_f32());
            // Half way to where the next one would be, had exponents no end.
            let high = if high.is_infinite() { 65_536.0 } else { high };
            let middle = low + (high - low) / 2.0;
            let even = bits + (bits & 1);
            for (value, expected) in [
                (middle, even),
                (middle.next_down(), bits),
                (middle.next_up(), bits + 1),
            ] {
                assert_eq!(Half::from_f32(value).0, expected, "{value}");
                assert_eq!(Half::from_f32(-value).0, expected | SIGN, "-{value}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_number_becomes_the_nearest_half(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            let half = Half::from_f32(value);
            if value.is_nan() {
                prop_assert!(half.to_f32().is_nan());
            } else if value.abs() < 65_520.0 {
                let error = (half.to_f32() - value).abs();
                prop_assert!(error <= (value.abs() / 2048.0).max(2f32.powi(-25)));
            } else {
                prop_assert_eq!(half.to_f32(), value.signum() * f32::INFINITY);
            }
        }
    }
}
