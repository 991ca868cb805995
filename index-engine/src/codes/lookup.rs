//! A query's table, and the scan of 32 codes against it.
//!
//! For each group of four dimensions the table holds what its sixteen possible
//! signs add to the inner product with the query, as bytes. The scan looks the
//! bytes up by shuffles within registers and adds them, without a branch
//! (FastScan: Andre et al., VLDB 2015).

use super::block::{GROUP, SIGNS};
use super::{BATCH, Line};
use crate::distance::Lane;

pub(crate) struct Lookup {
    /// Sixteen bytes a group.
    table: Box<[Line]>,
    /// `<sign, q> = step * sum of bytes + offset`
    step: f32,
    offset: f32,
    kernel: Kernel,
    /// The query in sixteen bits an element, and what one is worth.
    fine: Box<[Fine]>,
    pub(super) fine_step: f32,
    pub(super) sum: f32,
    /// Of the query as it is counted from the origin …
    pub(super) squares: f32,
    /// … and from zero.
    pub(super) whole: f32,
}

/// Sixteen elements of a query.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Fine([i16; Lane::WIDTH]);

/// See [`Lookup::scan`].
#[allow(unsafe_code)]
type Kernel = unsafe fn(
    batch: *const u8,
    ahead: *const u8,
    lookup: &Lookup,
    rank: f32,
    margin: f32,
    threshold: f32,
    &mut [f32; BATCH],
) -> u32;

impl Lookup {
    /// For a rotated query, whose dimensions are a multiple of 16.
    pub(crate) fn from(origin: &[Lane], query: &[Lane]) -> Self {
        let mut whole = [0f32; Lane::WIDTH];
        let counted = query.iter().zip(origin).map(|(q, o)| {
            whole.iter_mut().zip(q.0).for_each(|(sum, x)| *sum += x * x);
            Lane(std::array::from_fn(|i| q.0[i] - o.0[i]))
        });
        let counted: Vec<Lane> = counted.collect();
        Self {
            whole: whole.into_iter().sum(),
            ..Self::new(&counted)
        }
    }

    /// Where the origin is zero.
    fn new(query: &[Lane]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features were detected.
            #[allow(unsafe_code)]
            return unsafe { x86::new_avx2(query) };
        }
        Self::of(query, fill)
    }

    #[inline(always)]
    fn of(query: &[Lane], fill: impl Fn(&[Fine], &mut [Line])) -> Self {
        let (mut most, mut widest) = ([0f32; Lane::WIDTH], 0f32);
        let (mut size, mut sum, mut squares) = (
            [0f32; Lane::WIDTH],
            [0f32; Lane::WIDTH],
            [0f32; Lane::WIDTH],
        );
        for lane in query {
            let mut ranges = [0f32; Lane::WIDTH / GROUP];
            for i in 0..Lane::WIDTH {
                let (x, length) = (lane.0[i], lane.0[i].abs());
                most[i] = most[i].max(length);
                size[i] += length;
                sum[i] += x;
                squares[i] += x * x;
            }
            for (range, group) in ranges.iter_mut().zip(lane.0.as_chunks::<GROUP>().0) {
                *range = (group[0].abs() + group[1].abs()) + (group[2].abs() + group[3].abs());
            }
            widest = ranges.into_iter().fold(widest, f32::max);
        }
        let total = |parts: [f32; Lane::WIDTH]| parts.into_iter().sum::<f32>();
        let most = most.into_iter().fold(0f32, f32::max);
        // Sums of products with bytes stay within 31 bits.
        let dimensions = query.len() * Lane::WIDTH;
        let fine_limit = (i32::MAX as f32 / (256.0 * dimensions as f32)).min(16_000.0);
        let fine_per = inverse(most) * fine_limit;
        let table_per = inverse(widest) * (TABLE_MOST << TABLE_BITS) as f32;
        // What overflowed is no number everywhere, and fits nowhere.
        let is_finite = total(size).is_finite();
        let quantized = |per: f32| -> Vec<Fine> {
            let lane = |lane: &Lane| Fine(std::array::from_fn(|i| nearest(lane.0[i] * per)));
            match is_finite {
                true => query.iter().map(lane).collect(),
                false => vec![Fine([0; Lane::WIDTH]); query.len()],
            }
        };
        let mut table = vec![Line::ZERO; query.len()].into_boxed_slice();
        fill(&quantized(table_per), &mut table);
        // `<sign, q> = 2 * (sum of bytes * widest / 63 + sum of least) - sum q`, and the
        // last two make minus the sum of |q|.
        Self {
            table,
            step: 2.0 * widest / TABLE_MOST as f32,
            offset: -total(size),
            kernel: detect(),
            fine: quantized(fine_per).into(),
            fine_step: most / fine_limit,
            sum: total(sum),
            squares: total(squares),
            whole: total(squares),
        }
    }

    /// Estimated ranks of a batch's slots, and the set of those that are below
    /// `threshold` or beyond it by less than `margin` times their scale, which is
    /// negative.
    ///
    /// # Safety
    /// `batch` points to a whole batch of as many dimensions as the query has. `ahead`
    /// is only asked for.
    #[inline]
    #[allow(unsafe_code)]
    pub(super) unsafe fn scan(
        &self,
        batch: *const u8,
        ahead: *const u8,
        rank: f32,
        margin: f32,
        threshold: f32,
        estimates: &mut [f32; BATCH],
    ) -> u32 {
        // SAFETY: `detect` chose a kernel that this processor has; the rest is the caller's.
        unsafe { (self.kernel)(batch, ahead, self, rank, margin, threshold, estimates) }
    }

    /// The inner product with a byte a dimension.
    ///
    /// # Safety
    /// `bytes` points to as many as the query has dimensions.
    #[inline]
    #[allow(unsafe_code)]
    pub(super) unsafe fn dot8(&self, bytes: *const u8) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was detected; the rest is the caller's.
            return unsafe { x86::dot8_avx2(bytes, &self.fine) } as f32 * self.fine_step;
        }
        let mut sum = 0i32;
        for (i, lane) in self.fine.iter().enumerate() {
            for (j, q) in lane.0.iter().enumerate() {
                // SAFETY: within the bytes by the contract.
                sum += i32::from(*q) * i32::from(unsafe { *bytes.add(i * Lane::WIDTH + j) });
            }
        }
        sum as f32 * self.fine_step
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.table)
    }
}

fn detect() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return x86::scan_avx2;
        }
    }
    scan_portable
}

/// Zero for what has no inverse: its vector then counts as zero.
#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x > 0.0 && x.is_finite() {
        1.0 / x
    } else {
        0.0
    }
}

/// To the nearest integer, for what is known to fit.
#[inline(always)]
fn nearest(x: f32) -> i16 {
    // Adding 1.5 * 2^23 leaves the integer in the lowest bits of the mantissa.
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT).to_bits() as i16
}

/// The table is summed up with so many bits more than it keeps.
const TABLE_BITS: u32 = 8;
/// The table's largest byte: four of them fit into one.
const TABLE_MOST: i32 = 63;

/// The table's bytes, from a query such that a group's range is at most 63 in them.
fn fill(query: &[Fine], table: &mut [Line]) {
    for (fine, line) in query.iter().zip(table) {
        for (group, bytes) in fine
            .0
            .as_chunks::<GROUP>()
            .0
            .iter()
            .zip(line.0.as_chunks_mut::<16>().0)
        {
            let least: i32 = group.iter().map(|q| i32::from(*q).min(0)).sum();
            for (signs, byte) in bytes.iter_mut().enumerate() {
                let chosen = group
                    .iter()
                    .enumerate()
                    .filter(|(t, _)| signs >> t & 1 == 1);
                let sum: i32 = chosen.map(|(_, q)| i32::from(*q)).sum();
                *byte =
                    ((sum - least + (1 << (TABLE_BITS - 1))) >> TABLE_BITS).min(TABLE_MOST) as u8;
            }
        }
    }
}

/// # Safety
/// As [`Lookup::scan`].
#[allow(unsafe_code)]
unsafe fn scan_portable(
    batch: *const u8,
    _ahead: *const u8,
    lookup: &Lookup,
    rank: f32,
    margin: f32,
    threshold: f32,
    estimates: &mut [f32; BATCH],
) -> u32 {
    let mut sums = [0u32; BATCH];
    for (i, line) in lookup.table.iter().enumerate() {
        for (j, bytes) in line.0.as_chunks::<16>().0.iter().enumerate() {
            for slot in 0..16 {
                // SAFETY: within the batch by the function's contract.
                let signs = unsafe { batch.add(SIGNS + (i * 4 + j) * 16 + slot).read_volatile() };
                sums[slot] += u32::from(bytes[usize::from(signs & 0xF)]);
                sums[slot + 16] += u32::from(bytes[usize::from(signs >> 4)]);
            }
        }
    }
    let mut near = 0;
    for slot in 0..BATCH {
        // SAFETY: as above.
        let (add, scale) = unsafe {
            let factors = batch.add(super::BATCH * 4).cast::<f32>();
            (
                factors.add(slot).read_volatile(),
                factors.add(BATCH + slot).read_volatile(),
            )
        };
        let along = sums[slot] as f32 * lookup.step + lookup.offset;
        estimates[slot] = rank + add + scale * along;
        near |= u32::from(estimates[slot] + scale * margin < threshold) << slot;
    }
    near
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    /// Each adds at most 63 to a sum of sixteen bits.
    const HALVES_MAX: usize = 1024;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn new_avx2(query: &[Lane]) -> Lookup {
        // Closures take the features of the function around them.
        Lookup::of(query, |query, table| fill_avx2(query, table))
    }

    /// Sixteen sums of a group in one register.
    #[target_feature(enable = "avx2")]
    fn fill_avx2(query: &[Fine], table: &mut [Line]) {
        let with = |t: u32| {
            let bit = |signs: i32| if signs >> t & 1 == 1 { -1 } else { 0 };
            let (a, b) = (|i| bit(i) as i16, |i| bit(i + 8) as i16);
            _mm256_setr_epi16(
                a(0),
                a(1),
                a(2),
                a(3),
                a(4),
                a(5),
                a(6),
                a(7),
                b(0),
                b(1),
                b(2),
                b(3),
                b(4),
                b(5),
                b(6),
                b(7),
            )
        };
        let masks = [with(0), with(1), with(2), with(3)];
        let half = 1i16 << (TABLE_BITS - 1);
        let sums = |group: &[i16; GROUP]| {
            let mut sum = half;
            for q in group {
                sum -= (*q).min(0);
            }
            let mut sums = _mm256_set1_epi16(sum);
            for (q, mask) in group.iter().zip(masks) {
                sums = _mm256_add_epi16(sums, _mm256_and_si256(_mm256_set1_epi16(*q), mask));
            }
            _mm256_srli_epi16::<{ TABLE_BITS as i32 }>(sums)
        };
        for (fine, line) in query.iter().zip(table) {
            let groups = fine.0.as_chunks::<GROUP>().0;
            for (pair, bytes) in groups
                .as_chunks::<2>()
                .0
                .iter()
                .zip(line.0.as_chunks_mut::<32>().0)
            {
                let packed = _mm256_packus_epi16(sums(&pair[0]), sums(&pair[1]));
                let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                // SAFETY: 32 bytes.
                #[allow(unsafe_code)]
                unsafe {
                    _mm256_storeu_si256(bytes.as_mut_ptr().cast(), ordered);
                }
            }
        }
    }

    /// # Safety
    /// `bytes` points to sixteen for each of `fine`.
    #[target_feature(enable = "avx2")]
    #[allow(unsafe_code)]
    pub(super) unsafe fn dot8_avx2(bytes: *const u8, fine: &[Fine]) -> i32 {
        let mut sums = [_mm256_setzero_si256(); 4];
        let product = |i: usize, fine: &Fine| {
            // SAFETY: within both by the contract.
            let (q, v) = unsafe {
                (
                    _mm256_load_si256(std::ptr::from_ref(fine).cast()),
                    _mm_load_si128(bytes.add(i * Lane::WIDTH).cast()),
                )
            };
            _mm256_madd_epi16(q, _mm256_cvtepu8_epi16(v))
        };
        let (fours, rest) = fine.as_chunks::<4>();
        for (i, four) in fours.iter().enumerate() {
            for j in 0..4 {
                sums[j] = _mm256_add_epi32(sums[j], product(4 * i + j, &four[j]));
            }
        }
        for (j, fine) in rest.iter().enumerate() {
            sums[0] = _mm256_add_epi32(sums[0], product(4 * fours.len() + j, fine));
        }
        let sum = _mm256_add_epi32(
            _mm256_add_epi32(sums[0], sums[1]),
            _mm256_add_epi32(sums[2], sums[3]),
        );
        let half = _mm_add_epi32(
            _mm256_castsi256_si128(sum),
            _mm256_extracti128_si256::<1>(sum),
        );
        let pair = _mm_add_epi32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
        _mm_cvtsi128_si32(_mm_add_epi32(
            pair,
            _mm_shuffle_epi32::<0b10_11_00_01>(pair),
        ))
    }

    /// # Safety
    /// As [`Lookup::scan`].
    #[target_feature(enable = "avx2,fma")]
    #[allow(unsafe_code)]
    pub(super) unsafe fn scan_avx2(
        batch: *const u8,
        ahead: *const u8,
        lookup: &Lookup,
        rank: f32,
        margin: f32,
        threshold: f32,
        estimates: &mut [f32; BATCH],
    ) -> u32 {
        let low_half = _mm256_set1_epi8(0xF);
        let zero = _mm256_setzero_si256();
        let table = lookup.table.as_ptr().cast::<__m256i>();
        // SAFETY: the batch's signs, aligned.
        let signs = unsafe { batch.add(SIGNS).cast::<__m256i>() };
        // The bytes that two groups add, for the first sixteen slots and the others.
        let looked_up = |i: usize| {
            // SAFETY: `i` is below the halves of the table's lines; the batch has as many.
            let (bytes, signs) = unsafe {
                (
                    _mm256_load_si256(table.add(i)),
                    signs.add(i).read_volatile(),
                )
            };
            let low = _mm256_shuffle_epi8(bytes, _mm256_and_si256(signs, low_half));
            let high = _mm256_shuffle_epi8(
                bytes,
                _mm256_and_si256(_mm256_srli_epi16::<4>(signs), low_half),
            );
            (low, high)
        };
        // Between the sums, not before them: a burst would be waited for.
        let ask_for = |line: usize| {
            let at = ahead.wrapping_add(line * Line::BYTES);
            _mm_prefetch::<_MM_HINT_T1>(at.cast());
        };
        for line in 0..SIGNS / Line::BYTES {
            ask_for(line);
        }
        let halves = 2 * lookup.table.len();
        let mut wide = [0u32; BATCH];
        let mut from = 0;
        while from < halves {
            let end = halves.min(from + HALVES_MAX);
            // Sums of sixteen bits: of even bytes with the odd ones above, and of odd bytes.
            let (mut a_low, mut b_low, mut a_high, mut b_high) = (zero, zero, zero, zero);
            let mut i = from;
            while i < end {
                // Two of a line, and as a rule two lines: four bytes fit into one.
                ask_for(SIGNS / Line::BYTES + i / 2);
                let (mut low, mut high) = looked_up(i);
                let mut add = |i| {
                    let (more_low, more_high) = looked_up(i);
                    low = _mm256_add_epi8(low, more_low);
                    high = _mm256_add_epi8(high, more_high);
                };
                add(i + 1);
                if i + 4 <= end {
                    ask_for(SIGNS / Line::BYTES + i / 2 + 1);
                    add(i + 2);
                    add(i + 3);
                }
                a_low = _mm256_add_epi16(a_low, low);
                b_low = _mm256_add_epi16(b_low, _mm256_srli_epi16::<8>(low));
                a_high = _mm256_add_epi16(a_high, high);
                b_high = _mm256_add_epi16(b_high, _mm256_srli_epi16::<8>(high));
                i += 4;
            }
            from = end;
            for (first, (a, b)) in [(0, (a_low, b_low)), (16, (a_high, b_high))] {
                let (mut even, mut odd) = ([0u16; 16], [0u16; 16]);
                let a = _mm256_sub_epi16(a, _mm256_slli_epi16::<8>(b));
                // SAFETY: 32 bytes each.
                unsafe {
                    _mm256_storeu_si256(even.as_mut_ptr().cast(), a);
                    _mm256_storeu_si256(odd.as_mut_ptr().cast(), b);
                }
                for i in 0..8 {
                    wide[first + 2 * i] += u32::from(even[i]) + u32::from(even[i + 8]);
                    wide[first + 2 * i + 1] += u32::from(odd[i]) + u32::from(odd[i + 8]);
                }
            }
        }
        let (step, offset) = (_mm256_set1_ps(lookup.step), _mm256_set1_ps(lookup.offset));
        let (rank, margin) = (_mm256_set1_ps(rank), _mm256_set1_ps(margin));
        let threshold = _mm256_set1_ps(threshold);
        let mut near = 0;
        for eight in 0..BATCH / 8 {
            // SAFETY: of the batch's factors and the sums, eight each.
            let (add, scale, sum) = unsafe {
                let factors = batch.add(BATCH * 4).cast::<__m256>().add(eight);
                (
                    factors.read_volatile(),
                    factors.add(BATCH / 8).read_volatile(),
                    _mm256_loadu_si256(wide.as_ptr().cast::<__m256i>().add(eight)),
                )
            };
            let along = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), step, offset);
            let estimate = _mm256_fmadd_ps(scale, along, _mm256_add_ps(rank, add));
            let least = _mm256_fmadd_ps(scale, margin, estimate);
            let is_near = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(least, threshold));
            near |= (is_near as u32) << (8 * eight);
            // SAFETY: eight of the estimates.
            unsafe {
                _mm256_storeu_ps(estimates.as_mut_ptr().add(8 * eight), estimate);
            }
        }
        near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_overflowed_has_a_table_and_no_kernel_panics() {
        // What a rotation makes of the largest floats, and what a disk may hold.
        let strange = [
            f32::NAN,
            f32::INFINITY,
            f32::from_bits(0x7f81_ffff),
            f32::MAX,
        ];
        for strange in strange {
            let mut query = vec![1.0; 128];
            query[4..8].fill(30_000.0);
            query[5] = strange;
            let lanes = Lane::pack(&query);
            assert_eq!(Lookup::new(&lanes).table, Lookup::of(&lanes, fill).table);
        }
    }

    #[test]
    fn every_kernel_scans_alike() {
        for lanes in [1, 2, 3, 8, 49, 600] {
            let mut state = 99u64;
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 33) as u32
            };
            let query: Vec<f32> = (0..lanes * 16).map(|_| next() as f32 / 1e9 - 1.0).collect();
            let lookup = Lookup::new(&Lane::pack(&query));
            let plain = Lookup::of(&Lane::pack(&query), fill);
            assert_eq!(lookup.table, plain.table, "{lanes} lanes");
            let mut batch = vec![Line::ZERO; SIGNS / Line::BYTES + lanes];
            for line in &mut batch {
                line.0.fill_with(|| next() as u8);
            }
            let factors = SIGNS / 3..SIGNS;
            for at in factors.step_by(4) {
                let factor = (next() as f32 / 1e9).to_le_bytes();
                batch[at / Line::BYTES].0[at % Line::BYTES..][..4].copy_from_slice(&factor);
            }
            let (mut fast, mut slow) = ([0f32; BATCH], [0f32; BATCH]);
            // SAFETY: a whole batch of the query's dimensions.
            #[allow(unsafe_code)]
            let near = unsafe {
                let at = batch.as_ptr().cast();
                let near = lookup.scan(at, at, 1.0, 0.0, 0.5, &mut fast);
                scan_portable(at, at, &lookup, 1.0, 0.0, 0.5, &mut slow);
                near
            };
            for slot in 0..BATCH {
                let tolerance = 1e-3 * slow[slot].abs().max(1.0);
                assert!(
                    (fast[slot] - slow[slot]).abs() < tolerance,
                    "slot {slot}: {fast:?} {slow:?}"
                );
                assert_eq!(near >> slot & 1 == 1, fast[slot] < 0.5);
            }
            let bytes: Vec<u8> = (0..lanes * 16).map(|_| next() as u8).collect();
            let expected: f64 = bytes
                .iter()
                .zip(&query)
                .map(|(b, q)| f64::from(*b) * f64::from(*q))
                .sum();
            let mut aligned = vec![Line::ZERO; lanes.div_ceil(4)];
            for (i, byte) in bytes.iter().enumerate() {
                aligned[i / Line::BYTES].0[i % Line::BYTES] = *byte;
            }
            // SAFETY: as many bytes as the query has dimensions.
            #[allow(unsafe_code)]
            let got = unsafe { lookup.dot8(aligned.as_ptr().cast()) };
            let size: f64 = bytes
                .iter()
                .zip(&query)
                .map(|(b, q)| f64::from(*b) * f64::from(q.abs()))
                .sum();
            assert!(
                (f64::from(got) - expected).abs() < 1e-3 * size,
                "{got} for {expected}"
            );
        }
    }
}
