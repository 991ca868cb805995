//! Sums over two vectors' elements, in plain Rust: compiled by others, once per
//! instruction set.
//!
//! Vectors come as whole lanes, padded with zeros, which add nothing to a sum: there is
//! no remainder. Accumulators are independent, so that an addition need not wait for the
//! last one.

/// Elements that are taken at a time.
pub(super) const WIDTH: usize = 16;
/// Blocks of them summed side by side.
const UNROLL: usize = 4;

/// `sum + (x - y)^2`
#[inline(always)]
pub(super) fn square<const FUSED: bool>(sum: f32, x: f32, y: f32) -> f32 {
    product::<FUSED>(sum, x - y, x - y)
}

/// `sum + x y`
#[inline(always)]
pub(super) fn product<const FUSED: bool>(sum: f32, x: f32, y: f32) -> f32 {
    if FUSED {
        x.mul_add(y, sum)
    } else {
        x * y + sum
    }
}

/// `sum + |x - y|`
#[inline(always)]
pub(super) fn difference(sum: f32, x: f32, y: f32) -> f32 {
    sum + (x - y).abs()
}

/// Adds up all pairs of elements by `add`. `load` makes floats of what is stored.
#[inline(always)]
pub(super) fn sum<T>(
    a: &[T],
    b: &[T],
    load: impl Fn(&[T; WIDTH]) -> [f32; WIDTH],
    add: impl Fn(f32, f32, f32) -> f32,
) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of one index have one length");
    let mut sums = [[0f32; WIDTH]; UNROLL];
    let add = |sum: &mut [f32; WIDTH], x: &[T; WIDTH], y: &[T; WIDTH]| {
        let (x, y) = (load(x), load(y));
        for i in 0..WIDTH {
            sum[i] = add(sum[i], x[i], y[i]);
        }
    };
    let (a, b) = (a.as_chunks::<WIDTH>().0, b.as_chunks::<WIDTH>().0);
    let (a_blocks, a_rest) = a.as_chunks::<UNROLL>();
    let (b_blocks, b_rest) = b.as_chunks::<UNROLL>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for k in 0..UNROLL {
            add(&mut sums[k], &x[k], &y[k]);
        }
    }
    // Into one fixed sum: an index known only at run time would put all on the stack.
    for (x, y) in a_rest.iter().zip(b_rest) {
        add(&mut sums[0], x, y);
    }
    let mut all = [0f32; WIDTH];
    for i in 0..WIDTH {
        all[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
    }
    total(all)
}

/// `sum x y`, `sum x^2` and `sum y^2` at once.
#[inline(always)]
pub(super) fn products<T, const FUSED: bool>(
    a: &[T],
    b: &[T],
    load: impl Fn(&[T; WIDTH]) -> [f32; WIDTH],
) -> [f32; 3] {
    assert_eq!(a.len(), b.len(), "vectors of one index have one length");
    let (mut xy, mut xx, mut yy) = ([0f32; WIDTH], [0f32; WIDTH], [0f32; WIDTH]);
    let (a, b) = (a.as_chunks::<WIDTH>().0, b.as_chunks::<WIDTH>().0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (load(x), load(y));
        for i in 0..WIDTH {
            xy[i] = product::<FUSED>(xy[i], x[i], y[i]);
            xx[i] = product::<FUSED>(xx[i], x[i], x[i]);
            yy[i] = product::<FUSED>(yy[i], y[i], y[i]);
        }
    }
    [total(xy), total(xx), total(yy)]
}

/// By halves: sixteen additions in a row would each wait for the one before.
#[inline(always)]
fn total(mut sums: [f32; WIDTH]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}
