//! Which keys two ordered lists of rows differ in.

use super::digest::RowDigest;
use super::judge::ReplicaRow;
use crate::row_key::RowKey;
use std::cmp::Ordering;

/// Keys that only one side has, that the two have otherwise, or that a search of the
/// replica would not find. Both lists ascend by key.
pub fn differing_keys(
    heap: &[(RowKey, RowDigest)],
    replica: &[(RowKey, ReplicaRow)],
) -> Vec<RowKey> {
    let (mut ours, mut theirs) = (heap.iter().peekable(), replica.iter().peekable());
    let mut differing = Vec::new();
    loop {
        let order = match (ours.peek(), theirs.peek()) {
            (None, None) => return differing,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let in_heap = ours.next_if(|_| order != Ordering::Greater);
        let in_replica = theirs.next_if(|_| order != Ordering::Less);
        let is_same = match (in_heap, in_replica) {
            (Some((_, digest)), Some((_, row))) => row.digest == *digest && row.is_searchable,
            _ => false,
        };
        if !is_same {
            differing.extend(
                in_heap
                    .map(|(key, _)| key)
                    .or(in_replica.map(|(key, _)| key))
                    .cloned(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal_position::WalPosition;

    fn key(n: u8) -> RowKey {
        RowKey::from_columns([[n].as_slice()]).expect("valid")
    }

    fn heap(rows: &[(u8, f32)]) -> Vec<(RowKey, RowDigest)> {
        let row = |(n, x): &(u8, f32)| (key(*n), RowDigest::of(&key(*n), Some(&[*x])));
        rows.iter().map(row).collect()
    }

    fn replica(rows: &[(u8, f32)]) -> Vec<(RowKey, ReplicaRow)> {
        let row = |(key, digest)| {
            let row = ReplicaRow {
                position: WalPosition::ZERO,
                digest,
                is_searchable: true,
            };
            (key, row)
        };
        heap(rows).into_iter().map(row).collect()
    }

    #[test]
    fn missing_extra_other_and_unsearchable_keys_are_named_and_no_others() {
        let ours = heap(&[(1, 1.0), (2, 1.0), (4, 1.0), (5, 1.0), (9, 1.0)]);
        let mut theirs = replica(&[(2, 1.0), (3, 1.0), (4, 2.0), (5, 1.0), (9, 1.0), (10, 1.0)]);
        theirs[4].1.is_searchable = false;
        let named = differing_keys(&ours, &theirs);
        assert_eq!(named, [1, 3, 4, 9, 10].map(key));
        assert_eq!(
            differing_keys(
                &ours,
                &replica(&[(1, 1.0), (2, 1.0), (4, 1.0), (5, 1.0), (9, 1.0)])
            ),
            []
        );
        assert_eq!(differing_keys(&[], &[]), []);
    }
}
