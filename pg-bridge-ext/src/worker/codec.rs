//! What backends and worker write into a slot: little-endian, read with checks,
//! though both ends are the same library.

use super::progress::SourceProgress;
use super::replicas::{DigestCall, ReplicaPlace, read_piece, write_piece};
use super::{IndexStatus, PageStats, ScanFailure, ScanPage};
use cluster_core::verify::Piece;

#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Open(Open),
    Next { scan: u64, timeout_ms: u64 },
    Close { scan: u64 },
    Status { index: IndexName, timeout_ms: u64 },
    Progress { database_oid: u32, timeout_ms: u64 },
    Replicas { index: IndexName },
    Digest(DigestCall),
    Reconcile { index: IndexName, timeout_ms: u64 },
}

/// How a backend names an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexName {
    pub database_oid: u32,
    pub index_oid: u32,
    pub definition_generation: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    pub index: IndexName,
    pub ef_search: u32,
    pub page_rows: u32,
    pub min_lsn: u64,
    pub snapshot_xmin: u64,
    pub timeout_ms: u64,
    pub exact: bool,
    pub query: Box<[f32]>,
}

#[derive(Debug)]
pub enum Response {
    Page {
        scan: u64,
        page: ScanPage,
    },
    Status(IndexStatus),
    /// None: no source follows the database.
    Progress(Option<SourceProgress>),
    Replicas(Vec<ReplicaPlace>),
    Piece(Piece),
    /// The coordinators have taken what was asked for.
    Reconcile,
    Failure(ScanFailure),
}

/// The bytes are not what the other side writes.
#[derive(Debug)]
pub struct Garbled;

/// Bytes of a page before its rows, and of a row before its key.
pub const PAGE_BYTES: usize = 1 + 8 + 8 + 1 + 4 + 8 + 8 + 4 + 4 + 4 + 8 + 4;
pub const ROW_BYTES: usize = 8 + 4;
/// Marks a request to reconcile an index, and its answer.
const RECONCILE: u8 = 16;
const FAILURE_TEXT_BYTES_MAX: usize = 4096;

impl Request {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Request::Open(open) => {
                out.u8(1);
                out.index(open.index);
                out.u32(open.ef_search);
                out.u32(open.page_rows);
                out.u64(open.min_lsn);
                out.u64(open.snapshot_xmin);
                out.u64(open.timeout_ms);
                out.u8(open.exact.into());
                out.u32(open.query.len() as u32);
                for element in &open.query {
                    out.0.extend_from_slice(&element.to_le_bytes());
                }
            }
            Request::Next { scan, timeout_ms } => {
                out.u8(2);
                out.u64(*scan);
                out.u64(*timeout_ms);
            }
            Request::Close { scan } => {
                out.u8(3);
                out.u64(*scan);
            }
            Request::Status { index, timeout_ms } => {
                out.u8(4);
                out.index(*index);
                out.u64(*timeout_ms);
            }
            Request::Progress {
                database_oid,
                timeout_ms,
            } => {
                out.u8(5);
                out.u32(*database_oid);
                out.u64(*timeout_ms);
            }
            Request::Replicas { index } => {
                out.u8(6);
                out.index(*index);
            }
            Request::Digest(call) => {
                out.u8(7);
                call.write(&mut out);
            }
            Request::Reconcile { index, timeout_ms } => {
                out.u8(RECONCILE);
                out.index(*index);
                out.u64(*timeout_ms);
            }
        }
        out.0
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Garbled> {
        let mut bytes = Reader(bytes);
        Ok(match bytes.u8()? {
            1 => Request::Open(Open {
                index: bytes.index()?,
                ef_search: bytes.u32()?,
                page_rows: bytes.u32()?,
                min_lsn: bytes.u64()?,
                snapshot_xmin: bytes.u64()?,
                timeout_ms: bytes.u64()?,
                exact: bytes.u8()? != 0,
                query: {
                    let len = bytes.u32()? as usize;
                    let raw = bytes.take(len.checked_mul(4).ok_or(Garbled)?)?;
                    raw.chunks_exact(4)
                        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                        .collect()
                },
            }),
            2 => Request::Next {
                scan: bytes.u64()?,
                timeout_ms: bytes.u64()?,
            },
            3 => Request::Close { scan: bytes.u64()? },
            4 => Request::Status {
                index: bytes.index()?,
                timeout_ms: bytes.u64()?,
            },
            5 => Request::Progress {
                database_oid: bytes.u32()?,
                timeout_ms: bytes.u64()?,
            },
            6 => Request::Replicas {
                index: bytes.index()?,
            },
            7 => Request::Digest(DigestCall::read(&mut bytes)?),
            RECONCILE => Request::Reconcile {
                index: bytes.index()?,
                timeout_ms: bytes.u64()?,
            },
            _ => return Err(Garbled),
        })
    }
}

impl Response {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Response::Page { scan, page } => {
                out.u8(1);
                out.u64(*scan);
                out.u64(page.bound.to_bits());
                out.u8(page.exhausted.into());
                out.u32(page.stats.partitions);
                out.u64(page.stats.tail_rows);
                out.u64(page.stats.distances);
                out.u32(page.stats.retries);
                out.u32(page.stats.hedges);
                out.u32(page.stats.stale_partitions);
                out.u64(page.stats.waited_ms);
                out.u32(page.rows.len() as u32);
                for (key, distance) in &page.rows {
                    out.u64(distance.to_bits());
                    out.u32(key.len() as u32);
                    out.0.extend_from_slice(key);
                }
            }
            Response::Status(status) => {
                out.u8(2);
                out.u32(status.partitions);
                out.u32(status.replicas);
                out.u64(status.rows);
                out.u64(status.tail_rows);
                out.u64(status.pending_rows);
                out.u64(status.applied_lsn);
                out.u64(status.durable_lsn);
                out.u64(status.backfill_rows_copied);
                out.u64(status.backfill_rows_estimated);
                out.u64(status.backfill_blocks_copied);
                out.u64(status.backfill_blocks_total);
                out.u64(status.backfill_snapshots);
                out.text(&status.problem);
                out.text(&status.waits);
            }
            Response::Failure(failure) => {
                out.u8(3);
                let (kind, text) = failure.parts();
                out.u8(kind);
                out.text(text);
            }
            Response::Reconcile => out.u8(RECONCILE),
            Response::Progress(progress) => {
                out.u8(4);
                out.u8(progress.is_some().into());
                if let Some(progress) = progress {
                    progress.write(&mut out);
                }
            }
            Response::Replicas(places) => {
                out.u8(5);
                out.u32(places.len() as u32);
                places.iter().for_each(|place| place.write(&mut out));
            }
            Response::Piece(piece) => {
                out.u8(6);
                write_piece(piece, &mut out);
            }
        }
        out.0
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Garbled> {
        let mut bytes = Reader(bytes);
        Ok(match bytes.u8()? {
            1 => {
                let scan = bytes.u64()?;
                let bound = f64::from_bits(bytes.u64()?);
                let exhausted = bytes.u8()? != 0;
                let stats = PageStats {
                    partitions: bytes.u32()?,
                    tail_rows: bytes.u64()?,
                    distances: bytes.u64()?,
                    retries: bytes.u32()?,
                    hedges: bytes.u32()?,
                    stale_partitions: bytes.u32()?,
                    waited_ms: bytes.u64()?,
                };
                let count = bytes.u32()? as usize;
                let mut rows = Vec::with_capacity(count.min(bytes.0.len() / ROW_BYTES));
                for _ in 0..count {
                    let distance = f64::from_bits(bytes.u64()?);
                    let len = bytes.u32()? as usize;
                    rows.push((bytes.take(len)?.to_vec(), distance));
                }
                Response::Page {
                    scan,
                    page: ScanPage {
                        rows,
                        bound,
                        exhausted,
                        stats,
                    },
                }
            }
            2 => Response::Status(IndexStatus {
                partitions: bytes.u32()?,
                replicas: bytes.u32()?,
                rows: bytes.u64()?,
                tail_rows: bytes.u64()?,
                pending_rows: bytes.u64()?,
                applied_lsn: bytes.u64()?,
                durable_lsn: bytes.u64()?,
                backfill_rows_copied: bytes.u64()?,
                backfill_rows_estimated: bytes.u64()?,
                backfill_blocks_copied: bytes.u64()?,
                backfill_blocks_total: bytes.u64()?,
                backfill_snapshots: bytes.u64()?,
                problem: bytes.text()?,
                waits: bytes.text()?,
            }),
            3 => {
                let kind = bytes.u8()?;
                Response::Failure(ScanFailure::from_parts(kind, bytes.text()?).ok_or(Garbled)?)
            }
            4 => Response::Progress(match bytes.u8()? {
                0 => None,
                _ => Some(SourceProgress::read(&mut bytes)?),
            }),
            5 => {
                let count = bytes.u32()?;
                let places = (0..count).map(|_| ReplicaPlace::read(&mut bytes));
                Response::Replicas(places.collect::<Result<_, _>>()?)
            }
            6 => Response::Piece(read_piece(&mut bytes)?),
            RECONCILE => Response::Reconcile,
            _ => return Err(Garbled),
        })
    }
}

#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn text(&mut self, text: &str) {
        let mut len = text.len().min(FAILURE_TEXT_BYTES_MAX);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        self.u32(len as u32);
        self.0.extend_from_slice(&text.as_bytes()[..len]);
    }

    pub(super) fn u128(&mut self, value: u128) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn index(&mut self, index: IndexName) {
        self.u32(index.database_oid);
        self.u32(index.index_oid);
        self.u64(index.definition_generation);
    }
}

pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Garbled> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Garbled)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Garbled> {
        self.take(N)?.try_into().map_err(|_| Garbled)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Garbled> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Garbled> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Garbled> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn text(&mut self) -> Result<String, Garbled> {
        let len = self.u32()? as usize;
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    pub(super) fn u128(&mut self) -> Result<u128, Garbled> {
        self.array().map(u128::from_le_bytes)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Garbled> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    pub(super) fn index(&mut self) -> Result<IndexName, Garbled> {
        Ok(IndexName {
            database_oid: self.u32()?,
            index_oid: self.u32()?,
            definition_generation: self.u64()?,
        })
    }
}
