//! One step of Lloyd's algorithm, and what becomes of empty clusters.
//!
//! In spherical geometry members count by their direction and the mean is brought to
//! length one (spherical k-means, Dhillon & Modha 2001), as in pgvector.

use super::centroids::Geometry;
use crate::distance::Lane;
use crate::seeded::below;

/// The middles of the members of each cluster, `width` lanes each. `cluster_of` says
/// for each vector whose member it is. A cluster without members (or whose members'
/// directions cancel out) starts anew from a member of the largest one.
pub(super) fn middles(
    geometry: Geometry,
    width: usize,
    vectors: &[&[Lane]],
    cluster_of: &[u32],
    clusters: usize,
    seed: &mut u64,
) -> Box<[Lane]> {
    let mut sums = vec![[0f64; Lane::WIDTH]; clusters * width];
    let mut counts = vec![0usize; clusters];
    for (vector, cluster) in vectors.iter().zip(cluster_of) {
        let cluster = *cluster as usize;
        let scale = match geometry {
            Geometry::Euclidean => 1.0,
            Geometry::Spherical => inverse(length(vector)),
        };
        counts[cluster] += 1;
        for (sum, lane) in sums[cluster * width..].iter_mut().zip(*vector) {
            for (sum, x) in sum.iter_mut().zip(&lane.0) {
                *sum += f64::from(*x) * scale;
            }
        }
    }
    let mut points = Vec::with_capacity(clusters * width);
    let mut empty = Vec::new();
    for (cluster, sums) in sums.chunks_exact(width).enumerate() {
        let scale = match geometry {
            Geometry::Euclidean => inverse(counts[cluster] as f64),
            Geometry::Spherical => {
                let squares: f64 = sums.iter().flatten().map(|x| x * x).sum();
                inverse(squares.sqrt())
            }
        };
        if scale == 0.0 {
            empty.push(cluster);
        }
        points.extend(sums.iter().map(|sum| Lane(sum.map(|x| (x * scale) as f32))));
    }
    reseed(
        &mut points,
        geometry,
        vectors,
        cluster_of,
        (&empty, counts),
        seed,
    );
    points.into()
}

/// Puts each empty cluster on a member of the largest, which then counts as halved.
fn reseed(
    points: &mut [Lane],
    geometry: Geometry,
    vectors: &[&[Lane]],
    cluster_of: &[u32],
    (empty, mut counts): (&[usize], Vec<usize>),
    seed: &mut u64,
) {
    if empty.is_empty() {
        return;
    }
    let mut members = vec![Vec::new(); counts.len()];
    for (at, cluster) in cluster_of.iter().enumerate() {
        members[*cluster as usize].push(at);
    }
    for cluster in empty {
        let largest = (0..counts.len()).max_by_key(|c| counts[*c]).unwrap_or(0);
        if counts[largest] <= 1 {
            // Fewer rows than clusters: the rest stays as it is.
            return;
        }
        let chosen = members[largest][below(seed, members[largest].len())];
        put(geometry, points, *cluster, vectors[chosen]);
        counts[largest] = counts[largest].div_ceil(2);
    }
}

/// The vector as a cluster's point.
pub(super) fn put(geometry: Geometry, points: &mut [Lane], cluster: usize, vector: &[Lane]) {
    let scale = match geometry {
        Geometry::Euclidean => 1.0,
        Geometry::Spherical => inverse(length(vector)),
    };
    for (point, lane) in points[cluster * vector.len()..].iter_mut().zip(vector) {
        *point = Lane(lane.0.map(|x| (f64::from(x) * scale) as f32));
    }
}

fn length(vector: &[Lane]) -> f64 {
    let squares = |lane: &Lane| {
        lane.0
            .iter()
            .map(|x| f64::from(*x) * f64::from(*x))
            .sum::<f64>()
    };
    vector.iter().map(squares).sum::<f64>().sqrt()
}

/// Zero of zero.
fn inverse(x: f64) -> f64 {
    if x > 0.0 { 1.0 / x } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(x: f32, y: f32) -> [Lane; 1] {
        let mut values = [0.0; 16];
        (values[0], values[1]) = (x, y);
        [Lane(values)]
    }

    #[test]
    fn middles_are_means_or_mean_directions() {
        let vectors = [lane(1.0, 0.0), lane(0.0, 3.0), lane(8.0, 8.0)];
        let vectors: Vec<&[Lane]> = vectors.iter().map(|v| &v[..]).collect();
        let of = |geometry| {
            let points = middles(geometry, 1, &vectors, &[0, 0, 1], 2, &mut 1);
            [
                points[0].0[0],
                points[0].0[1],
                points[1].0[0],
                points[1].0[1],
            ]
        };
        assert_eq!(of(Geometry::Euclidean), [0.5, 1.5, 8.0, 8.0]);
        let half = 0.5f32.sqrt();
        let spherical = of(Geometry::Spherical);
        assert!(
            spherical.iter().all(|x| (x - half).abs() < 1e-6),
            "{spherical:?}"
        );
    }

    #[test]
    fn an_empty_cluster_starts_anew_in_the_largest() {
        let all: Vec<[Lane; 1]> = (0..10).map(|i| lane(i as f32, 1.0)).collect();
        let vectors: Vec<&[Lane]> = all.iter().map(|v| &v[..]).collect();
        // Cluster 0 has eight members, 1 none, 2 has two, 3 none.
        let cluster_of = [0, 0, 0, 0, 0, 0, 0, 0, 2, 2];
        let points = middles(Geometry::Euclidean, 1, &vectors, &cluster_of, 4, &mut 5);
        for empty in [1, 3] {
            assert!(all[..8].contains(&[points[empty]]), "{:?}", points[empty]);
        }
        // Nobody to start from: no panic, and nothing invented.
        let points = middles(Geometry::Euclidean, 1, &[], &[], 2, &mut 5);
        assert!(points.iter().all(|p| p.0 == [0.0; 16]));
    }
}
