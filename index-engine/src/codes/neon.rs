//! Sums of products of sixteen-bit numbers with bytes, by NEON.
//!
//! The instructions that sum products of bytes four at a time (`udot`, `usdot`) would need the
//! numbers in two bytes each, so twice the products: nothing is gained.

use crate::distance::Lane;
use std::arch::aarch64::*;

/// Sixteen sums, side by side.
#[derive(Clone, Copy)]
pub(super) struct Products([int32x4_t; 4]);

impl Products {
    #[target_feature(enable = "neon")]
    #[inline]
    pub(super) fn zero() -> Self {
        Self([vdupq_n_s32(0); 4])
    }

    #[target_feature(enable = "neon")]
    #[inline]
    pub(super) fn add(&mut self, numbers: &[i16; Lane::WIDTH], bytes: uint8x16_t) {
        let at = numbers.as_ptr();
        // SAFETY: sixteen numbers.
        #[allow(unsafe_code)]
        let (low, high) = unsafe { (vld1q_s16(at), vld1q_s16(at.add(8))) };
        let low_bytes = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
        let high_bytes = vreinterpretq_s16_u16(vmovl_high_u8(bytes));
        let [a, b, c, d] = self.0;
        self.0 = [
            vmlal_s16(a, vget_low_s16(low), vget_low_s16(low_bytes)),
            vmlal_high_s16(b, low, low_bytes),
            vmlal_s16(c, vget_low_s16(high), vget_low_s16(high_bytes)),
            vmlal_high_s16(d, high, high_bytes),
        ];
    }

    /// Of both.
    #[target_feature(enable = "neon")]
    #[inline]
    pub(super) fn total(self, other: Self) -> i32 {
        let of_one = |Self([a, b, c, d])| vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d));
        vaddvq_s32(vaddq_s32(of_one(self), of_one(other)))
    }
}
