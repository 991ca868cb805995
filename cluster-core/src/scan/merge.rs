//! The k-way merge of partitions' hits.

use std::cmp::Ordering;
use std::collections::VecDeque;

/// A row that a partition found, at the distance that its index computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit<K> {
    pub key: K,
    pub distance: f64,
}

/// One partition's hits that the merge has not given yet.
#[derive(Debug)]
pub(super) struct Stream<K> {
    hits: VecDeque<Hit<K>>,
    /// What is still to come is not nearer; unknown before the first page.
    floor: Option<f64>,
    exhausted: bool,
}

impl<K> Default for Stream<K> {
    fn default() -> Self {
        Self {
            hits: VecDeque::new(),
            floor: None,
            exhausted: false,
        }
    }
}

impl<K: Ord> Stream<K> {
    /// Takes a page: hits in ascending order, none nearer than the page before.
    pub fn push(&mut self, hits: impl IntoIterator<Item = Hit<K>>, bound: f64, exhausted: bool) {
        let mut floor = no_sign_of_nan(bound);
        for mut hit in hits {
            hit.distance = no_sign_of_nan(hit.distance);
            // The bound is what the index believes; the last hit is a fact.
            floor = max(floor, hit.distance);
            self.hits.push_back(hit);
        }
        // A nearer straggler of an approximate index is put where it belongs.
        let is_sorted = |a: &Hit<K>, b: &Hit<K>| order(a, b) != Ordering::Greater;
        let hits = self.hits.make_contiguous();
        if !hits.is_sorted_by(is_sorted) {
            hits.sort_by(order);
        }
        self.floor = Some(floor);
        self.exhausted = exhausted;
    }

    pub fn has_answered(&self) -> bool {
        self.floor.is_some()
    }

    pub fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Whether the stream could still bring something nearer than `distance`.
    pub fn holds_up(&self, distance: Option<f64>) -> bool {
        match (self.floor, distance) {
            _ if self.exhausted => false,
            (None, _) | (_, None) => true,
            (Some(floor), Some(distance)) => floor.total_cmp(&distance) == Ordering::Less,
        }
    }
}

/// The nearest hit that is buffered anywhere.
pub(super) fn nearest<'a, K: Ord + 'a>(
    streams: impl IntoIterator<Item = &'a Stream<K>>,
) -> Option<f64> {
    let heads = streams
        .into_iter()
        .filter_map(|s| s.hits.front())
        .map(|hit| hit.distance);
    heads.min_by(f64::total_cmp)
}

/// Takes up to `rows_max` hits that no stream can undercut any more.
pub(super) fn take_settled<'a, K: Ord + 'a>(
    mut streams: Vec<&'a mut Stream<K>>,
    rows_max: usize,
) -> Vec<Hit<K>> {
    let mut settled = Vec::new();
    let Some(horizon) = horizon(streams.iter().map(|s| &**s)) else {
        return settled;
    };
    while settled.len() < rows_max {
        let heads = streams.iter_mut().filter(|s| !s.hits.is_empty());
        let nearest = heads.min_by(|a, b| order(&a.hits[0], &b.hits[0]));
        let Some(stream) = nearest else { break };
        if stream.hits[0].distance.total_cmp(&horizon) == Ordering::Greater {
            break;
        }
        settled.extend(stream.hits.pop_front());
    }
    settled
}

/// What has not been given yet is not nearer than this; infinite when there is
/// nothing more.
pub(super) fn remaining_bound<'a, K: Ord + 'a>(
    streams: impl IntoIterator<Item = &'a Stream<K>> + Clone,
) -> f64 {
    let horizon = horizon(streams.clone()).unwrap_or(f64::NEG_INFINITY);
    min(nearest(streams).unwrap_or(f64::INFINITY), horizon)
}

/// `None` while some stream has not answered.
fn horizon<'a, K: Ord + 'a>(streams: impl IntoIterator<Item = &'a Stream<K>>) -> Option<f64> {
    // The last distance in total order: behind infinity and every NaN of ours.
    let mut horizon = f64::from_bits(0x7FFF_FFFF_FFFF_FFFF);
    let mut is_open = false;
    for stream in streams {
        let floor = stream.floor?;
        if !stream.exhausted {
            horizon = min(horizon, floor);
            is_open = true;
        }
    }
    Some(if is_open {
        horizon
    } else {
        f64::from_bits(0x7FFF_FFFF_FFFF_FFFF)
    })
}

fn order<K: Ord>(a: &Hit<K>, b: &Hit<K>) -> Ordering {
    a.distance
        .total_cmp(&b.distance)
        .then_with(|| a.key.cmp(&b.key))
}

/// NaN sorts last, as in SQL, whatever its sign; -0 is 0.
fn no_sign_of_nan(distance: f64) -> f64 {
    if distance.is_nan() {
        f64::NAN.abs()
    } else {
        distance + 0.0
    }
}

fn min(a: f64, b: f64) -> f64 {
    if a.total_cmp(&b) == Ordering::Less {
        a
    } else {
        b
    }
}

fn max(a: f64, b: f64) -> f64 {
    if a.total_cmp(&b) == Ordering::Greater {
        a
    } else {
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(distances: &[f64], bound: f64, exhausted: bool) -> Stream<u32> {
        let mut stream = Stream::default();
        let hits = distances.iter().enumerate();
        stream.push(
            hits.map(|(i, d)| Hit {
                key: i as u32,
                distance: *d,
            }),
            bound,
            exhausted,
        );
        stream
    }

    fn distances(streams: &mut [Stream<u32>], rows: usize) -> Vec<f64> {
        let hits = take_settled(streams.iter_mut().collect(), rows);
        hits.into_iter().map(|hit| hit.distance).collect()
    }

    #[test]
    fn a_hit_waits_for_every_stream_that_could_undercut_it() {
        let mut streams = [
            stream(&[1.0, 5.0], 5.0, false),
            stream(&[2.0, 3.0], 3.5, false),
        ];
        assert_eq!(distances(&mut streams, 10), [1.0, 2.0, 3.0]);
        assert_eq!(remaining_bound(&streams), 3.5);
        assert!(streams[1].holds_up(nearest(&streams)) && !streams[0].holds_up(nearest(&streams)));
        streams[1].push([], f64::INFINITY, true);
        assert_eq!(distances(&mut streams, 10), [5.0]);
        assert_eq!(remaining_bound(&streams), 5.0);
    }

    #[test]
    fn p7_nothing_settles_before_everyone_has_answered() {
        let mut streams = [stream(&[1.0], 1.0, true), Stream::default()];
        assert_eq!(distances(&mut streams, 10), [0.0; 0]);
        assert_eq!(remaining_bound(&streams), f64::NEG_INFINITY);
    }

    #[test]
    fn nan_distances_come_last_and_do_come() {
        let mut streams = [
            stream(&[1.0, -f64::NAN], 0.0, true),
            stream(&[f64::INFINITY], 0.0, true),
        ];
        let got = distances(&mut streams, 10);
        assert_eq!(got[..2], [1.0, f64::INFINITY]);
        assert!(got[2].is_nan());
        assert_eq!(remaining_bound(&streams), f64::INFINITY);
    }

    #[test]
    fn rows_left_behind_bound_what_is_to_come() {
        let mut streams = [stream(&[1.0, 2.0, 3.0], 9.0, true)];
        assert_eq!(distances(&mut streams, 2), [1.0, 2.0]);
        assert_eq!(remaining_bound(&streams), 3.0);
    }
}
