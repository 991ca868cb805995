//! Between wire and core types. What comes from the wire is checked here, once:
//! a core value is a valid one.

use crate::v1;
use bytes::Bytes;
use cluster_core::backfill::{BackfillMark, BlockNumber, TableFile};
use cluster_core::change::{BackfillRow, Batch, Change, PositionedChange, VectorColumn, is_finite};
use cluster_core::collection::{DIMENSIONS_MAX, Metric};
use cluster_core::ids::*;
use cluster_core::row_key::{BadRowKey, RowKey};
use cluster_core::wal_position::{Lsn, WalPosition};

/// A message that does not say what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    #[error("message lacks {0}")]
    Missing(&'static str),
    #[error("message has an unknown {0}")]
    Unknown(&'static str),
    #[error("{0} is out of range: {1}")]
    OutOfRange(&'static str, String),
    #[error("bad row key: {0}")]
    Key(#[from] BadRowKey),
    #[error("vector of {0} bytes is no array of 1 to {DIMENSIONS_MAX} f32")]
    VectorLength(usize),
    #[error("vector has a component that is not finite")]
    VectorNotFinite,
}

impl From<BadMessage> for tonic::Status {
    fn from(bad: BadMessage) -> Self {
        tonic::Status::invalid_argument(bad.to_string())
    }
}

/// Takes a field that the protocol requires.
pub fn required<T>(field: Option<T>, name: &'static str) -> Result<T, BadMessage> {
    field.ok_or(BadMessage::Missing(name))
}

/// Little-endian f32s.
pub fn vector_to_bytes(vector: &[f32]) -> Bytes {
    let components: Vec<[u8; 4]> = vector.iter().map(|x| x.to_le_bytes()).collect();
    components.into_flattened().into()
}

/// The inverse of [`vector_to_bytes`]; refuses lengths and components that no
/// stored vector has.
pub fn vector_from_bytes(bytes: &[u8]) -> Result<Box<[f32]>, BadMessage> {
    let (components, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || components.is_empty() || components.len() > DIMENSIONS_MAX as usize {
        return Err(BadMessage::VectorLength(bytes.len()));
    }
    let vector: Box<[f32]> = components.iter().map(|c| f32::from_le_bytes(*c)).collect();
    if is_finite(&vector) {
        Ok(vector)
    } else {
        Err(BadMessage::VectorNotFinite)
    }
}

impl From<WalPosition> for v1::WalPosition {
    fn from(position: WalPosition) -> Self {
        Self {
            incarnation: position.incarnation.0,
            commit_end_lsn: position.commit_end.0,
            ordinal: position.ordinal,
        }
    }
}

impl From<v1::WalPosition> for WalPosition {
    fn from(wire: v1::WalPosition) -> Self {
        WalPosition::new(
            Incarnation(wire.incarnation),
            Lsn(wire.commit_end_lsn),
            wire.ordinal,
        )
    }
}

impl From<Metric> for v1::Metric {
    fn from(metric: Metric) -> Self {
        match metric {
            Metric::L2 => v1::Metric::L2,
            Metric::Cosine => v1::Metric::Cosine,
            Metric::InnerProduct => v1::Metric::InnerProduct,
        }
    }
}

impl TryFrom<v1::Metric> for Metric {
    type Error = BadMessage;

    fn try_from(wire: v1::Metric) -> Result<Self, BadMessage> {
        match wire {
            v1::Metric::L2 => Ok(Metric::L2),
            v1::Metric::Cosine => Ok(Metric::Cosine),
            v1::Metric::InnerProduct => Ok(Metric::InnerProduct),
            v1::Metric::Unspecified => Err(BadMessage::Unknown("metric")),
        }
    }
}

impl From<PositionedChange> for v1::RowChange {
    fn from(change: PositionedChange) -> Self {
        use v1::row_change::Change as Wire;
        Self {
            position: Some(change.position.into()),
            xid: change.xid,
            change: Some(match change.change {
                Change::Upsert { key, vector } => Wire::Upsert(upsert_to_wire(key, &vector)),
                Change::Delete { key } => Wire::DeleteKey(key.into_bytes().into()),
                Change::Truncate => Wire::Truncate(true),
            }),
        }
    }
}

fn upsert_to_wire(key: RowKey, vector: &VectorColumn) -> v1::RowUpsert {
    use v1::row_upsert::Column;
    let (column, vector) = match vector {
        VectorColumn::Value(vector) => (Column::Value, vector_to_bytes(vector)),
        VectorColumn::Null => (Column::Null, Bytes::new()),
        VectorColumn::Unchanged => (Column::Unchanged, Bytes::new()),
    };
    v1::RowUpsert {
        key: key.into_bytes().into(),
        column: column.into(),
        vector,
    }
}

impl TryFrom<v1::RowChange> for PositionedChange {
    type Error = BadMessage;

    fn try_from(wire: v1::RowChange) -> Result<Self, BadMessage> {
        use v1::row_change::Change as Wire;
        let change = match required(wire.change, "change")? {
            Wire::Upsert(upsert) => Change::Upsert {
                vector: column_from_wire(&upsert)?,
                key: RowKey::from_bytes(upsert.key.to_vec())?,
            },
            Wire::DeleteKey(key) => Change::Delete {
                key: RowKey::from_bytes(key.to_vec())?,
            },
            Wire::Truncate(true) => Change::Truncate,
            Wire::Truncate(false) => return Err(BadMessage::Missing("change")),
        };
        Ok(PositionedChange {
            position: required(wire.position, "position")?.into(),
            xid: wire.xid,
            change,
        })
    }
}

fn column_from_wire(upsert: &v1::RowUpsert) -> Result<VectorColumn, BadMessage> {
    use v1::row_upsert::Column;
    match upsert.column() {
        Column::Value => Ok(VectorColumn::Value(vector_from_bytes(&upsert.vector)?)),
        Column::Null => Ok(VectorColumn::Null),
        Column::Unchanged => Ok(VectorColumn::Unchanged),
        Column::Unspecified => Err(BadMessage::Unknown("column kind")),
    }
}

impl From<&Batch> for v1::ApplyBatch {
    fn from(batch: &Batch) -> Self {
        Self {
            partition_id: batch.partition.0,
            generation: batch.generation.0,
            previous: Some(batch.previous.into()),
            to: Some(batch.to.into()),
            changes: batch.changes.iter().cloned().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::ApplyBatch> for Batch {
    type Error = BadMessage;

    fn try_from(wire: v1::ApplyBatch) -> Result<Self, BadMessage> {
        let previous: WalPosition = required(wire.previous, "previous")?.into();
        let to: WalPosition = required(wire.to, "to")?.into();
        if to < previous {
            return Err(BadMessage::OutOfRange(
                "to",
                format!("{to} is before previous {previous}"),
            ));
        }
        let changes = wire
            .changes
            .into_iter()
            .map(PositionedChange::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(bad) = changes
            .iter()
            .find(|c| c.position <= previous || c.position > to)
        {
            return Err(BadMessage::OutOfRange(
                "change",
                format!("{} is not in ({previous}, {to}]", bad.position),
            ));
        }
        if !changes.is_sorted_by_key(|c| c.position) {
            return Err(BadMessage::OutOfRange(
                "change",
                "positions do not ascend".into(),
            ));
        }
        Ok(Batch {
            partition: PartitionId(wire.partition_id),
            generation: Generation(wire.generation),
            previous,
            to,
            changes,
        })
    }
}

impl From<&BackfillRow> for v1::BackfillRow {
    fn from(row: &BackfillRow) -> Self {
        Self {
            key: Bytes::copy_from_slice(row.key.as_bytes()),
            vector: vector_to_bytes(&row.vector),
        }
    }
}

impl TryFrom<v1::BackfillRow> for BackfillRow {
    type Error = BadMessage;

    fn try_from(wire: v1::BackfillRow) -> Result<Self, BadMessage> {
        Ok(BackfillRow {
            key: RowKey::from_bytes(wire.key.to_vec())?,
            vector: vector_from_bytes(&wire.vector)?,
        })
    }
}

impl From<&BackfillMark> for v1::BackfillMark {
    fn from(mark: &BackfillMark) -> Self {
        Self {
            relfilenode: mark.file.relfilenode,
            membership: mark.file.membership,
            next_block: mark.next_block.0,
            first_stamp: Some(mark.first_stamp.into()),
            last_stamp: Some(mark.last_stamp.into()),
            rows: mark.rows,
            snapshots: mark.snapshots,
        }
    }
}

impl TryFrom<v1::BackfillMark> for BackfillMark {
    type Error = BadMessage;

    fn try_from(wire: v1::BackfillMark) -> Result<Self, BadMessage> {
        Ok(BackfillMark {
            file: TableFile {
                relfilenode: wire.relfilenode,
                membership: wire.membership,
            },
            next_block: BlockNumber(wire.next_block),
            first_stamp: required(wire.first_stamp, "first_stamp")?.into(),
            last_stamp: required(wire.last_stamp, "last_stamp")?.into(),
            rows: wire.rows,
            snapshots: wire.snapshots,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn change(ordinal: u32, change: Change) -> PositionedChange {
        PositionedChange {
            position: WalPosition::new(Incarnation(1), Lsn(20), ordinal),
            xid: 7,
            change,
        }
    }

    fn batch() -> Batch {
        let key = || RowKey::from_columns([b"k".as_slice()]).unwrap();
        let upsert = |vector| Change::Upsert { key: key(), vector };
        Batch {
            partition: PartitionId(3),
            generation: Generation(4),
            previous: WalPosition::end_of(Incarnation(1), Lsn(10)),
            to: WalPosition::end_of(Incarnation(1), Lsn(20)),
            changes: vec![
                change(1, upsert(VectorColumn::Value(vec![1.0, -2.5].into()))),
                change(2, upsert(VectorColumn::Unchanged)),
                change(3, upsert(VectorColumn::Null)),
                change(4, Change::Delete { key: key() }),
                change(5, Change::Truncate),
            ],
        }
    }

    #[test]
    fn a_batch_survives_the_wire() {
        let wire = v1::ApplyBatch::from(&batch());
        assert_eq!(Batch::try_from(wire).unwrap(), batch());
    }

    #[test]
    fn a_batch_with_a_change_outside_its_range_or_out_of_order_is_refused() {
        let mut outside = v1::ApplyBatch::from(&batch());
        outside.previous = outside.to;
        assert!(matches!(
            Batch::try_from(outside),
            Err(BadMessage::OutOfRange(..))
        ));
        let mut disordered = v1::ApplyBatch::from(&batch());
        disordered.changes.swap(0, 1);
        assert!(matches!(
            Batch::try_from(disordered),
            Err(BadMessage::OutOfRange(..))
        ));
    }

    #[test]
    fn vectors_that_cannot_be_stored_are_refused() {
        assert_eq!(vector_from_bytes(&[0; 5]), Err(BadMessage::VectorLength(5)));
        assert_eq!(vector_from_bytes(&[]), Err(BadMessage::VectorLength(0)));
        let nan = vector_to_bytes(&[f32::NAN]);
        assert_eq!(vector_from_bytes(&nan), Err(BadMessage::VectorNotFinite));
        let long = vec![0; (DIMENSIONS_MAX as usize + 1) * 4];
        assert_eq!(
            vector_from_bytes(&long),
            Err(BadMessage::VectorLength(long.len()))
        );
    }

    #[test]
    fn a_mark_survives_the_wire_and_one_without_its_stamps_is_refused() {
        let stamp = |lsn| WalPosition::end_of(Incarnation(1), Lsn(lsn));
        let mark = BackfillMark {
            file: TableFile {
                relfilenode: 1,
                membership: 2,
            },
            next_block: BlockNumber(3),
            first_stamp: stamp(4),
            last_stamp: stamp(5),
            rows: 6,
            snapshots: 7,
        };
        let wire = v1::BackfillMark::from(&mark);
        assert_eq!(BackfillMark::try_from(wire).unwrap(), mark);
        let bare = v1::BackfillMark {
            last_stamp: None,
            ..wire
        };
        assert!(BackfillMark::try_from(bare).is_err());
    }
}
