//! A query's table, and the scan of 32 codes against it.
//!
//! For each group of four dimensions the table holds what its sixteen possible
//! signs add to the inner product with the query, as bytes. The scan looks the
//! bytes up by shuffles within registers and adds them, without a branch
//! (FastScan: Andre et al., VLDB 2015).
//!
//! The same functions for several instruction sets: [`avx512`], [`avx2`], [`neon`], and the
//! portable ones here.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use super::block::{GROUP, SIGNS};
use super::{BATCH, Line};
use crate::distance::Lane;

pub(crate) struct Lookup {
    /// Sixteen bytes a group.
    table: Box<[Line]>,
    /// `<sign, q> = step * sum of bytes + offset`
    step: f32,
    offset: f32,
    kernels: &'static Kernels,
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

/// The functions of one instruction set, which may be called only on a processor that has
/// it. Found by [`Kernels::available`] only.
struct Kernels {
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "names kernels in test failures")
    )]
    name: &'static str,
    make: unsafe fn(&[Lane]) -> Lookup,
    scan: Scan,
    dot8: unsafe fn(*const u8, &[Fine]) -> i32,
}

/// See [`Lookup::scan`].
#[allow(unsafe_code)]
type Scan = unsafe fn(
    batch: *const u8,
    ahead: *const u8,
    lookup: &Lookup,
    rank: f32,
    margin: f32,
    threshold: f32,
    &mut [f32; BATCH],
) -> u32;

static PORTABLE: Kernels = Kernels {
    name: "portable",
    make: |query| Lookup::of(query, &PORTABLE, fill),
    scan: scan_portable,
    dot8: dot8_portable,
};

impl Kernels {
    /// Those that run here, the best first.
    fn available() -> impl Iterator<Item = &'static Self> {
        #[cfg(target_arch = "x86_64")]
        let special = [
            avx512::is_here().then_some(&avx512::KERNELS),
            avx2::is_here().then_some(&avx2::KERNELS),
        ];
        #[cfg(target_arch = "aarch64")]
        let special = [neon::is_here().then_some(&neon::KERNELS)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let special: [Option<&'static Self>; 0] = [];
        special.into_iter().flatten().chain([&PORTABLE])
    }

    #[inline]
    fn best() -> &'static Self {
        Self::available().next().unwrap_or(&PORTABLE)
    }
}

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
        Self::by(Kernels::best(), query)
    }

    fn by(kernels: &'static Kernels, query: &[Lane]) -> Self {
        // SAFETY: kernels are of a processor that has what they need.
        #[allow(unsafe_code)]
        unsafe {
            (kernels.make)(query)
        }
    }

    #[inline(always)]
    fn of(query: &[Lane], kernels: &'static Kernels, fill: impl Fn(&[Fine], &mut [Line])) -> Self {
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
            kernels,
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
        // SAFETY: kernels are of a processor that has what they need; the rest is the caller's.
        unsafe { (self.kernels.scan)(batch, ahead, self, rank, margin, threshold, estimates) }
    }

    /// The inner product with a byte a dimension.
    ///
    /// # Safety
    /// `bytes` points to as many as the query has dimensions.
    #[inline]
    #[allow(unsafe_code)]
    pub(super) unsafe fn dot8(&self, bytes: *const u8) -> f32 {
        // SAFETY: kernels are of a processor that has what they need; the rest is the caller's.
        let sum = unsafe { (self.kernels.dot8)(bytes, &self.fine) };
        sum as f32 * self.fine_step
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.table)
    }
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
/// `bytes` points to sixteen for each of `fine`.
#[allow(unsafe_code)]
unsafe fn dot8_portable(bytes: *const u8, fine: &[Fine]) -> i32 {
    let mut sum = 0i32;
    for (i, lane) in fine.iter().enumerate() {
        for (j, q) in lane.0.iter().enumerate() {
            // SAFETY: within the bytes by the contract.
            sum += i32::from(*q) * i32::from(unsafe { *bytes.add(i * Lane::WIDTH + j) });
        }
    }
    sum
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
            for kernels in Kernels::available() {
                let table = Lookup::by(kernels, &lanes).table;
                assert_eq!(
                    table,
                    Lookup::by(&PORTABLE, &lanes).table,
                    "{}",
                    kernels.name
                );
            }
        }
    }

    /// Lanes of a query: whole rounds of every kernel and what is left, and more than their
    /// sums hold.
    const LANES: [usize; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 49, 600, 1_100];

    /// Scales are negative where there are codes, and margins are not: here it is the other
    /// way round.
    const MARGIN: f32 = -1.0;

    fn numbers() -> impl FnMut() -> u32 {
        let mut state = 99u64;
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as u32
        }
    }

    fn vector(lanes: usize, next: &mut impl FnMut() -> u32) -> Vec<f32> {
        let numbers = std::iter::repeat_with(next).take(lanes * Lane::WIDTH);
        numbers.map(|n| n as f32 / 1e9 - 1.0).collect()
    }

    #[test]
    fn every_kernel_scans_alike() {
        for lanes in LANES {
            let mut next = numbers();
            let query = Lane::pack(&vector(lanes, &mut next));
            let mut batch = vec![Line::ZERO; SIGNS / Line::BYTES + lanes];
            for line in &mut batch {
                line.0.fill_with(|| next() as u8);
            }
            for at in (SIGNS / 3..SIGNS).step_by(4) {
                let factor = (next() as f32 / 1e9).to_le_bytes();
                batch[at / Line::BYTES].0[at % Line::BYTES..][..4].copy_from_slice(&factor);
            }
            let scale = |slot: usize| {
                let at = SIGNS / 3 * 2 + 4 * slot;
                let bytes = &batch[at / Line::BYTES].0[at % Line::BYTES..];
                f32::from_le_bytes(*bytes.first_chunk().unwrap())
            };
            let scan = |lookup: &Lookup| {
                let mut estimates = [0f32; BATCH];
                let at = batch.as_ptr().cast();
                // SAFETY: a whole batch of the query's dimensions.
                #[allow(unsafe_code)]
                let near = unsafe { lookup.scan(at, at, 1.0, MARGIN, 0.5, &mut estimates) };
                (estimates, near)
            };
            let plain = Lookup::by(&PORTABLE, &query);
            let (expected, _) = scan(&plain);
            for kernels in Kernels::available() {
                let name = kernels.name;
                let lookup = Lookup::by(kernels, &query);
                assert_eq!(lookup.table, plain.table, "{name}, {lanes} lanes");
                let (estimates, near) = scan(&lookup);
                for (slot, (got, expected)) in estimates.iter().zip(expected).enumerate() {
                    let tolerance = 1e-3 * expected.abs().max(1.0);
                    assert!(
                        (got - expected).abs() < tolerance,
                        "{name}, {lanes} lanes, slot {slot}: {got} for {expected}"
                    );
                    let least = got + MARGIN * scale(slot);
                    let is_near = near >> slot & 1 == 1;
                    assert!(
                        is_near == (least < 0.5) || (least - 0.5).abs() < tolerance,
                        "{name}, {lanes} lanes, slot {slot}: {least}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        // Whole rounds that add as much as there is, up to beyond what sixteen bits hold.
        for lanes in [256, 257, 260, 261, 1_024, 1_025, 1_100] {
            let query = vec![Lane([1.0; Lane::WIDTH]); lanes];
            let mut batch = vec![Line([0xFF; Line::BYTES]); SIGNS / Line::BYTES + lanes];
            for at in (SIGNS / 3..SIGNS).step_by(4) {
                let one = 1f32.to_le_bytes();
                batch[at / Line::BYTES].0[at % Line::BYTES..][..4].copy_from_slice(&one);
            }
            let expected = 1.0 + (lanes * Lane::WIDTH) as f32;
            for kernels in Kernels::available() {
                let lookup = Lookup::by(kernels, &query);
                let mut estimates = [0f32; BATCH];
                let at = batch.as_ptr().cast();
                // SAFETY: a whole batch of the query's dimensions.
                #[allow(unsafe_code)]
                unsafe {
                    lookup.scan(at, at, 0.0, 0.0, 0.0, &mut estimates)
                };
                for got in estimates {
                    assert!(
                        (got - expected).abs() < 1e-3 * expected,
                        "{}, {lanes} lanes: {got}",
                        kernels.name
                    );
                }
            }
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[test]
    fn neon_is_the_best() {
        assert_eq!(Kernels::best().name, "neon");
    }

    #[test]
    fn every_kernel_multiplies_bytes_alike() {
        for lanes in LANES {
            let mut next = numbers();
            let query = vector(lanes, &mut next);
            // No more than there are, and where a sketch has them: behind its factors.
            let bytes: Vec<u8> = (0..lanes * Lane::WIDTH).map(|_| next() as u8).collect();
            let products = bytes.iter().zip(&query);
            let products = products.map(|(b, q)| f64::from(*b) * f64::from(*q));
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), product| {
                (sum + product, size + product.abs())
            });
            let dot8 = |kernels| {
                let lookup = Lookup::by(kernels, &Lane::pack(&query));
                // SAFETY: as many bytes as the query has dimensions.
                #[allow(unsafe_code)]
                unsafe {
                    lookup.dot8(bytes.as_ptr())
                }
            };
            let plain = dot8(&PORTABLE);
            for kernels in Kernels::available() {
                let got = dot8(kernels);
                assert_eq!(got, plain, "{}, {lanes} lanes", kernels.name);
                assert!(
                    (f64::from(got) - sum).abs() < 1e-3 * size,
                    "{}, {lanes} lanes: {got} for {sum}",
                    kernels.name
                );
            }
        }
    }
}
