//! How long a kernel takes beside SimSIMD's of the same sum.
#![allow(clippy::print_stdout)]
//!
//! `cargo test --release -p index-engine --lib -- --ignored --nocapture beside_simsimd`
//! prints nanoseconds of the thread's CPU time for a pair: hot, the vectors in the
//! nearest cache; and random, vectors of an array of 192 MiB in no order, each asked for
//! three ahead, as a search does.

use std::hint::black_box;

use simsimd::{BinarySimilarity, SpatialSimilarity, f16};

use super::kernels::Kernel;
use super::{Lane, lanes_of};
use crate::half::Half;
use crate::params::{Element, Metric};

const COLD_BYTES: usize = 192 << 20;
const ROUNDS: usize = 15;

fn cpu_ns() -> f64 {
    // The system adds up a thread's time when it is scheduled, or at ticks.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split(' ').next().and_then(|ns| ns.parse().ok());
    ns.expect("Linux counts a thread's time")
}

/// Nanoseconds a pair of what `rank` does to all rows, in the order given.
fn round(order: &[u32], mut rank: impl FnMut(usize, Option<usize>) -> f64) -> (f64, f64) {
    const AHEAD: usize = 3;
    let began = cpu_ns();
    let mut sum = 0.0;
    for (i, row) in order.iter().enumerate() {
        let next = order.get(i + AHEAD).map(|row| *row as usize);
        sum += black_box(rank(*row as usize, next));
    }
    ((cpu_ns() - began) / order.len() as f64, sum)
}

/// Ours and theirs in turn: medians, and both sums.
fn beside(order: &[u32], lanes: (&[Lane], usize), kernel: Kernel, theirs: &Theirs<'_>) -> [f64; 4] {
    let (all, stride) = lanes;
    let row = |row: usize| &all[row * stride..][..stride];
    let query = row(0).to_vec();
    let ask = |next: Option<usize>| next.map_or((), |next| crate::arena::prefetch_row(row(next)));
    let (mut times, mut sums) = ([Vec::new(), Vec::new()], [0.0; 2]);
    for number in 0..ROUNDS {
        // Who comes second finds more in the caches.
        for which in [number % 2, (number + 1) % 2] {
            let (ns, sum) = round(order, |at, next| {
                ask(next);
                match which {
                    0 => f64::from(kernel.rank(&query, row(at))),
                    _ => theirs(&query, row(at)),
                }
            });
            times[which].push(ns);
            sums[which] = sum;
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    };
    let [ours, others] = &mut times;
    [median(ours), median(others), sums[0], sums[1]]
}

type Theirs<'a> = dyn Fn(&[Lane], &[Lane]) -> f64 + 'a;

/// Rows of random numbers, small ones.
fn rows(element: Element, bytes: usize) -> Vec<Lane> {
    let mut state = 3u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 32
    };
    let mut lanes = vec![Lane::ZERO; bytes / size_of::<Lane>()];
    let unit = |bits: u64| bits as f32 / (1u64 << 31) as f32 - 1.0;
    match element {
        Element::F32 => Lane::view_mut(&mut lanes).fill_with(|| unit(next())),
        Element::F16 => Lane::view_mut(&mut lanes).fill_with(|| Half::from_f32(unit(next()))),
        _ => Lane::view_mut(&mut lanes).fill_with(|| next() as u32),
    }
    lanes
}

fn f32s(lanes: &[Lane]) -> &[f32] {
    Lane::view(lanes)
}

fn f16s(lanes: &[Lane]) -> &[f16] {
    Lane::view(lanes)
}

fn bytes(lanes: &[Lane]) -> &[u8] {
    Lane::view(lanes)
}

#[test]
#[ignore = "takes a minute, and tells something on a quiet machine only"]
fn kernels_beside_simsimd() {
    use Element::{Bit, F16, F32};
    let some = |distance: Option<f64>| distance.expect("of one length");
    let theirs: [(Element, Metric, usize, &Theirs<'_>); 9] = [
        (F32, Metric::L2, 768, &|a, b| {
            some(f32::l2sq(f32s(a), f32s(b)))
        }),
        (F32, Metric::InnerProduct, 768, &|a, b| {
            -some(f32::dot(f32s(a), f32s(b)))
        }),
        (F16, Metric::L2, 768, &|a, b| {
            some(f16::l2sq(f16s(a), f16s(b)))
        }),
        (F16, Metric::InnerProduct, 768, &|a, b| {
            -some(f16::dot(f16s(a), f16s(b)))
        }),
        (F16, Metric::Cosine, 768, &|a, b| {
            some(f16::cos(f16s(a), f16s(b))) - 1.0
        }),
        (Bit, Metric::Hamming, 1024, &|a, b| {
            some(u8::hamming(bytes(a), bytes(b)))
        }),
        (Bit, Metric::Jaccard, 1024, &|a, b| {
            some(u8::jaccard(bytes(a), bytes(b)))
        }),
        (Bit, Metric::Jaccard, 64_000, &|a, b| {
            some(u8::jaccard(bytes(a), bytes(b)))
        }),
        (Bit, Metric::Hamming, 64_000, &|a, b| {
            some(u8::hamming(bytes(a), bytes(b)))
        }),
    ];
    for (element, metric, dimensions, theirs) in theirs {
        let stride = lanes_of(element, dimensions).expect("not sparse");
        for (place, bytes) in [("hot", 8 * 64 * stride), ("random", COLD_BYTES)] {
            let all = rows(element, bytes);
            let count = all.len() / stride;
            let step = (0x9E37_79B1usize % count) | 1;
            let pairs = count.clamp(20_000, 1 << 20);
            let order: Vec<u32> = (0..pairs).map(|i| (i * step % count) as u32).collect();
            for kernel in Kernel::available(metric, element) {
                let [ours, others, sum, their_sum] = beside(&order, (&all, stride), kernel, theirs);
                println!(
                    "{element} {metric:?} x {dimensions} {place}: {} {ours:.1} ns, SimSIMD {others:.1} ns, {:.2} times as fast",
                    kernel.name,
                    others / ours
                );
                let error = (sum - their_sum).abs();
                assert!(error <= 2e-3 * sum.abs().max(1.0), "{sum} {their_sum}");
            }
        }
    }
}
