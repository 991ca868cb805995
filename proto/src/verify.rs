//! Who asks, and what a replica holds, on the wire.

use crate::convert::{BadMessage, required};
use crate::v1;
use crate::v1::digest_request::Of;
use bytes::Bytes;
use cluster_core::ids::ServerStart;
use cluster_core::row_key::RowKey;
use cluster_core::server::AskedBy;
use cluster_core::verify::{Piece, RangeDigest, ReplicaRow, RowDigest, RunDigest, Wanted};

/// Keys that one request may name.
pub const KEYS_MAX: usize = 4_096;

impl From<AskedBy> for v1::AskedBy {
    fn from(asked: AskedBy) -> Self {
        Self {
            server_start: asked.start.0,
            database_oid: asked.database_oid,
        }
    }
}

impl From<v1::AskedBy> for AskedBy {
    fn from(wire: v1::AskedBy) -> Self {
        Self {
            start: ServerStart(wire.server_start),
            database_oid: wire.database_oid,
        }
    }
}

fn bytes(key: &RowKey) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

fn bytes_or_none(key: Option<&RowKey>) -> Bytes {
    key.map_or_else(Bytes::new, bytes)
}

fn key(wire: &Bytes) -> Result<RowKey, BadMessage> {
    Ok(RowKey::from_bytes(&wire[..])?)
}

fn key_or_none(wire: &Bytes) -> Result<Option<RowKey>, BadMessage> {
    match wire.is_empty() {
        true => Ok(None),
        false => key(wire).map(Some),
    }
}

fn digest(wire: &[u8]) -> Result<[u8; 16], BadMessage> {
    let length = wire.len().to_string();
    wire.try_into()
        .map_err(|_| BadMessage::OutOfRange("bytes of a digest", length))
}

impl From<&Wanted> for Of {
    fn from(wanted: &Wanted) -> Self {
        match wanted {
            Wanted::Runs { after } => Self::Runs(v1::RunsBehind {
                after_key: bytes_or_none(after.as_ref()),
            }),
            Wanted::Rows { after, through } => Self::Rows(v1::RowsBehind {
                after_key: bytes_or_none(after.as_ref()),
                through_key: bytes_or_none(through.as_ref()),
            }),
            Wanted::Keys(keys) => Self::Keys(v1::RowsOfKeys {
                keys: keys.iter().map(bytes).collect(),
            }),
        }
    }
}

impl TryFrom<Of> for Wanted {
    type Error = BadMessage;

    fn try_from(wire: Of) -> Result<Self, BadMessage> {
        Ok(match wire {
            Of::Runs(runs) => Self::Runs {
                after: key_or_none(&runs.after_key)?,
            },
            Of::Rows(rows) => Self::Rows {
                after: key_or_none(&rows.after_key)?,
                through: key_or_none(&rows.through_key)?,
            },
            Of::Keys(keys) if keys.keys.len() > KEYS_MAX => {
                let count = keys.keys.len().to_string();
                return Err(BadMessage::OutOfRange("count of keys", count));
            }
            Of::Keys(keys) => Self::Keys(keys.keys.iter().map(key).collect::<Result<_, _>>()?),
        })
    }
}

impl From<Piece> for v1::DigestResponse {
    fn from(piece: Piece) -> Self {
        let run = |run: RunDigest| v1::RunDigest {
            through_key: bytes(&run.through),
            rows: run.digest.rows,
            sum: Bytes::copy_from_slice(&run.digest.sum.to_le_bytes()),
            unsearchable_rows: run.unsearchable,
        };
        let row = |(key, row): (RowKey, ReplicaRow)| v1::RowDigest {
            key: bytes(&key),
            position: Some(row.position.into()),
            digest: Bytes::copy_from_slice(&row.digest.to_bytes()),
            is_searchable: row.is_searchable,
        };
        Self {
            at: piece.at.map(Into::into),
            runs: piece.runs.into_iter().map(run).collect(),
            rows: piece.rows.into_iter().map(row).collect(),
            is_complete: piece.is_complete,
        }
    }
}

impl TryFrom<v1::DigestResponse> for Piece {
    type Error = BadMessage;

    fn try_from(wire: v1::DigestResponse) -> Result<Self, BadMessage> {
        let run = |run: v1::RunDigest| {
            Ok(RunDigest {
                through: key(&run.through_key)?,
                digest: RangeDigest {
                    rows: run.rows,
                    sum: u128::from_le_bytes(digest(&run.sum)?),
                },
                unsearchable: run.unsearchable_rows,
            })
        };
        let row = |row: v1::RowDigest| {
            let replica_row = ReplicaRow {
                position: required(row.position, "position of a row")?.into(),
                digest: RowDigest::from_bytes(digest(&row.digest)?),
                is_searchable: row.is_searchable,
            };
            Ok((key(&row.key)?, replica_row))
        };
        Ok(Self {
            at: wire.at.map(Into::into),
            runs: wire
                .runs
                .into_iter()
                .map(run)
                .collect::<Result<_, BadMessage>>()?,
            rows: wire
                .rows
                .into_iter()
                .map(row)
                .collect::<Result<_, BadMessage>>()?,
            is_complete: wire.is_complete,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cluster_core::ids::Incarnation;
    use cluster_core::wal_position::{Lsn, WalPosition};

    fn row_key(n: u8) -> RowKey {
        RowKey::from_columns([[n].as_slice()]).unwrap()
    }

    #[test]
    fn requests_and_answers_come_back_as_they_were() {
        for wanted in [
            Wanted::Runs { after: None },
            Wanted::Rows {
                after: Some(row_key(1)),
                through: Some(row_key(2)),
            },
            Wanted::Keys(vec![row_key(1), row_key(9)]),
        ] {
            let wire = Of::from(&wanted);
            assert_eq!(Wanted::try_from(wire).unwrap(), wanted);
        }
        let position = WalPosition::new(Incarnation(2), Lsn(77), 3);
        let piece = Piece {
            at: Some(position),
            runs: vec![RunDigest {
                through: row_key(4),
                digest: RangeDigest {
                    rows: 3,
                    sum: 1 << 100,
                },
                unsearchable: 1,
            }],
            rows: vec![(
                row_key(5),
                ReplicaRow {
                    position,
                    digest: RowDigest(1 << 90),
                    is_searchable: true,
                },
            )],
            is_complete: true,
        };
        let wire = v1::DigestResponse::from(piece.clone());
        assert_eq!(Piece::try_from(wire).unwrap(), piece);
    }

    #[test]
    fn garbage_is_refused() {
        let many = v1::RowsOfKeys {
            keys: vec![Bytes::from_static(b"x"); KEYS_MAX + 1],
        };
        assert!(Wanted::try_from(Of::Keys(many)).is_err());
        let cut = v1::DigestResponse {
            runs: vec![v1::RunDigest {
                through_key: bytes(&row_key(1)),
                sum: Bytes::from_static(b"short"),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert!(Piece::try_from(cut).is_err());
    }
}
