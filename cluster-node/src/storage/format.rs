//! Records, version 1; a partition's meta record, version 2 or 3. A stored format,
//! pinned by golden bytes.
//!
//! Every record is: version byte, fixed fields (little-endian), variable part,
//! CRC-32C of the key and of all bytes before the checksum. The key is under the
//! checksum so that a record in the wrong place does not pass for another.

use cluster_core::apply::{StoredRow, StoredVector, Tombstone};
use cluster_core::backfill::{BackfillMark, BlockNumber, TableFile};
use cluster_core::collection::{DIMENSIONS_MAX, Metric};
use cluster_core::ids::*;
use cluster_core::wal_position::{Lsn, WalPosition};
use cluster_core::xid::FullXid;
use std::ops::RangeInclusive;

const VERSION: u8 = 1;
/// Version 1, of release 0.1.0, had no mark; it is read, and written as version 2.
const META_VERSION: u8 = 2;
/// That of a replica that does not trust all of its rows bears one position more.
const META_VERSION_DISTRUSTING: u8 = 3;
const CHECKSUM_BYTES: usize = 4;
/// The most bytes of a name in a record.
const TEXT_BYTES_MAX: usize = 1024;

/// A record that does not say what a record must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {key} is corrupt: {why}")]
pub struct Corrupt {
    key: String,
    why: String,
}

impl Corrupt {
    pub fn new(key: &[u8], why: impl Into<String>) -> Self {
        let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            key,
            why: why.into(),
        }
    }
}

/// What a replica of a partition is, and how far its backfill has come.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionMeta {
    pub source: SourceId,
    pub collection: CollectionId,
    pub generation: Generation,
    pub metric: Metric,
    pub dimensions: u32,
    pub m: u32,
    pub ef_construction: u32,
    /// The last TRUNCATE.
    pub truncated: WalPosition,
    /// The highest stamp of a backfill chunk: rows may stand above the watermark
    /// up to here.
    pub stamp_high: WalPosition,
    /// The newest backfill that was ever opened; 0 for none.
    pub last_backfill: BackfillId,
    /// Set while that backfill is open.
    pub open_backfill: Option<OpenBackfill>,
    /// How far the collection's backfills have come here. It outlives them: a
    /// later one goes on where the earlier one broke off.
    pub backfill_mark: Option<BackfillMark>,
    /// Set while a backfill may be open: rows that stand below this are not to be trusted,
    /// for changes of them may have gone by unseen (`cluster_core::reconcile`).
    pub trusted_from: Option<WalPosition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenBackfill {
    pub last_chunk: u64,
}

/// Who the node is. The disk's id is drawn before the coordinators are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub disk_uuid: String,
    /// `None` until the node has joined.
    pub member: Option<(NodeId, String)>,
}

pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    pub(super) fn new() -> Self {
        Self::of_version(VERSION)
    }

    fn of_version(version: u8) -> Self {
        Self(vec![version])
    }

    pub(super) fn u8(mut self, n: u8) -> Self {
        self.0.push(n);
        self
    }

    pub(super) fn u32(mut self, n: u32) -> Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, n: u64) -> Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }

    pub(super) fn position(self, p: WalPosition) -> Self {
        self.u64(p.incarnation.0).u64(p.commit_end.0).u32(p.ordinal)
    }

    fn mark(self, mark: Option<BackfillMark>) -> Self {
        let Some(mark) = mark else { return self.u8(0) };
        self.u8(1)
            .u32(mark.file.relfilenode)
            .u32(mark.file.membership)
            .u32(mark.next_block.0)
            .position(mark.first_stamp)
            .position(mark.last_stamp)
            .u64(mark.rows)
            .u32(mark.snapshots)
    }

    pub(super) fn vector(mut self, vector: &[f32]) -> Self {
        self.0.reserve(4 + vector.len() * 4 + CHECKSUM_BYTES);
        self = self.u32(vector.len() as u32);
        let start = self.0.len();
        self.0.resize(start + vector.len() * 4, 0);
        let (components, _) = self.0[start..].as_chunks_mut::<4>();
        for (component, x) in components.iter_mut().zip(vector) {
            *component = x.to_le_bytes();
        }
        self
    }

    fn text(self, text: &str) -> Self {
        assert!(
            text.len() <= TEXT_BYTES_MAX,
            "text of {} bytes exceeds the record's limit of {TEXT_BYTES_MAX}",
            text.len()
        );
        self.bytes(text.as_bytes())
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self = self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn finish(mut self, key: &[u8]) -> Vec<u8> {
        let checksum = checksum(key, &self.0);
        self.0.extend_from_slice(&checksum.to_le_bytes());
        self.0
    }
}

/// Whether a record's checksum holds, without looking further.
pub fn is_intact(key: &[u8], record: &[u8]) -> bool {
    record
        .split_last_chunk::<CHECKSUM_BYTES>()
        .is_some_and(|(body, sum)| checksum(key, body) == u32::from_le_bytes(*sum))
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), body)
}

pub(super) struct Decoder<'a> {
    key: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(key: &'a [u8], record: &'a [u8]) -> Result<Self, Corrupt> {
        Self::of_version(VERSION..=VERSION, key, record).map(|(decoder, _)| decoder)
    }

    /// Checks checksum and version before any field is believed.
    fn of_version(
        versions: RangeInclusive<u8>,
        key: &'a [u8],
        record: &'a [u8],
    ) -> Result<(Self, u8), Corrupt> {
        let (body, sum) = record
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or_else(|| Corrupt::new(key, "too short for a checksum"))?;
        if checksum(key, body) != u32::from_le_bytes(*sum) {
            return Err(Corrupt::new(key, "checksum does not match"));
        }
        let mut decoder = Self { key, rest: body };
        let found = decoder.u8()?;
        if versions.contains(&found) {
            return Ok((decoder, found));
        }
        Err(decoder.corrupt(format!(
            "unknown record version {found}, this release reads up to {}: \
             the data folder is another release's",
            versions.end()
        )))
    }

    pub(super) fn corrupt(&self, why: impl Into<String>) -> Corrupt {
        Corrupt::new(self.key, why)
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Corrupt> {
        if bytes > self.rest.len() {
            return Err(self.corrupt(format!("cut off: {bytes} bytes wanted")));
        }
        let (head, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Corrupt> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Corrupt> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Corrupt> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn flag(&mut self) -> Result<bool, Corrupt> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.corrupt(format!("flag is {other}"))),
        }
    }

    pub(super) fn position(&mut self) -> Result<WalPosition, Corrupt> {
        let incarnation = Incarnation(self.u64()?);
        let commit_end = Lsn(self.u64()?);
        Ok(WalPosition::new(incarnation, commit_end, self.u32()?))
    }

    fn mark(&mut self) -> Result<Option<BackfillMark>, Corrupt> {
        if !self.flag()? {
            return Ok(None);
        }
        let file = TableFile {
            relfilenode: self.u32()?,
            membership: self.u32()?,
        };
        Ok(Some(BackfillMark {
            file,
            next_block: BlockNumber(self.u32()?),
            first_stamp: self.position()?,
            last_stamp: self.position()?,
            rows: self.u64()?,
            snapshots: self.u32()?,
        }))
    }

    pub(super) fn vector(&mut self) -> Result<Box<[f32]>, Corrupt> {
        let dimensions = self.u32()?;
        if dimensions == 0 || dimensions > DIMENSIONS_MAX {
            return Err(self.corrupt(format!("vector of {dimensions} dimensions")));
        }
        let (components, _) = self.take(dimensions as usize * 4)?.as_chunks::<4>();
        Ok(components.iter().map(|c| f32::from_le_bytes(*c)).collect())
    }

    pub(super) fn bytes(&mut self, bytes_max: usize) -> Result<&'a [u8], Corrupt> {
        let bytes = self.u32()? as usize;
        if bytes > bytes_max {
            return Err(self.corrupt(format!("field of {bytes} bytes")));
        }
        self.take(bytes)
    }

    fn text(&mut self) -> Result<String, Corrupt> {
        let text = self.bytes(TEXT_BYTES_MAX)?.to_vec();
        String::from_utf8(text).map_err(|_| self.corrupt("text is not UTF-8"))
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, Corrupt> {
        if self.rest.is_empty() {
            Ok(value)
        } else {
            Err(self.corrupt(format!("{} bytes too many", self.rest.len())))
        }
    }
}

impl PartitionMeta {
    /// As it was before anything was told.
    pub fn emptied(&self) -> Self {
        Self {
            truncated: WalPosition::ZERO,
            stamp_high: WalPosition::ZERO,
            last_backfill: BackfillId(0),
            open_backfill: None,
            backfill_mark: None,
            trusted_from: None,
            ..self.clone()
        }
    }
}

pub fn encode_row(key: &[u8], row: &StoredRow) -> Vec<u8> {
    let head = Encoder::new().position(row.position).u64(row.xid_high);
    match &row.vector {
        StoredVector::Pending => head.u8(0),
        StoredVector::Value(vector) => head.u8(1).vector(vector),
    }
    .finish(key)
}

pub fn decode_row(key: &[u8], record: &[u8]) -> Result<StoredRow, Corrupt> {
    let mut decoder = Decoder::new(key, record)?;
    let position = decoder.position()?;
    let xid_high = decoder.u64()?;
    let vector = match decoder.flag()? {
        false => StoredVector::Pending,
        true => StoredVector::Value(decoder.vector()?),
    };
    decoder.finish(StoredRow {
        position,
        xid_high,
        vector,
    })
}

pub fn encode_tombstone(key: &[u8], tombstone: Tombstone) -> Vec<u8> {
    Encoder::new()
        .position(tombstone.position)
        .u64(tombstone.xid_high)
        .finish(key)
}

pub fn decode_tombstone(key: &[u8], record: &[u8]) -> Result<Tombstone, Corrupt> {
    let mut decoder = Decoder::new(key, record)?;
    let position = decoder.position()?;
    let xid_high = decoder.u64()?;
    decoder.finish(Tombstone { position, xid_high })
}

/// The position that ended it stands in the key.
pub fn encode_former(key: &[u8], ended_xid: FullXid, vector: &[f32]) -> Vec<u8> {
    Encoder::new().u64(ended_xid).vector(vector).finish(key)
}

pub fn decode_former(key: &[u8], record: &[u8]) -> Result<(FullXid, Box<[f32]>), Corrupt> {
    let mut decoder = Decoder::new(key, record)?;
    let ended_xid = decoder.u64()?;
    let vector = decoder.vector()?;
    decoder.finish((ended_xid, vector))
}

pub fn encode_watermark(key: &[u8], watermark: WalPosition) -> Vec<u8> {
    Encoder::new().position(watermark).finish(key)
}

pub fn decode_watermark(key: &[u8], record: &[u8]) -> Result<WalPosition, Corrupt> {
    let mut decoder = Decoder::new(key, record)?;
    let watermark = decoder.position()?;
    decoder.finish(watermark)
}

pub fn encode_meta(key: &[u8], meta: &PartitionMeta) -> Vec<u8> {
    let metric = match meta.metric {
        Metric::L2 => 1,
        Metric::Cosine => 2,
        Metric::InnerProduct => 3,
    };
    let version = match meta.trusted_from {
        None => META_VERSION,
        Some(_) => META_VERSION_DISTRUSTING,
    };
    let head = Encoder::of_version(version)
        .u64(meta.source.0)
        .u64(meta.collection.0)
        .u64(meta.generation.0)
        .u8(metric)
        .u32(meta.dimensions)
        .u32(meta.m)
        .u32(meta.ef_construction)
        .position(meta.truncated)
        .position(meta.stamp_high)
        .u64(meta.last_backfill.0)
        .u8(u8::from(meta.open_backfill.is_some()))
        .u64(meta.open_backfill.map_or(0, |open| open.last_chunk))
        .mark(meta.backfill_mark);
    match meta.trusted_from {
        None => head,
        Some(from) => head.position(from),
    }
    .finish(key)
}

pub fn decode_meta(key: &[u8], record: &[u8]) -> Result<PartitionMeta, Corrupt> {
    let (mut decoder, version) = Decoder::of_version(1..=META_VERSION_DISTRUSTING, key, record)?;
    let source = SourceId(decoder.u64()?);
    let collection = CollectionId(decoder.u64()?);
    let generation = Generation(decoder.u64()?);
    let metric = match decoder.u8()? {
        1 => Metric::L2,
        2 => Metric::Cosine,
        3 => Metric::InnerProduct,
        other => return Err(decoder.corrupt(format!("unknown metric {other}"))),
    };
    let dimensions = decoder.u32()?;
    if dimensions == 0 || dimensions > DIMENSIONS_MAX {
        return Err(decoder.corrupt(format!("{dimensions} dimensions")));
    }
    let (m, ef_construction) = (decoder.u32()?, decoder.u32()?);
    let truncated = decoder.position()?;
    let stamp_high = decoder.position()?;
    let last_backfill = BackfillId(decoder.u64()?);
    let is_open = decoder.flag()?;
    let last_chunk = decoder.u64()?;
    let backfill_mark = match version {
        1 => None,
        _ => decoder.mark()?,
    };
    let trusted_from = match version {
        META_VERSION_DISTRUSTING => Some(decoder.position()?),
        _ => None,
    };
    decoder.finish(PartitionMeta {
        source,
        collection,
        generation,
        metric,
        dimensions,
        m,
        ef_construction,
        truncated,
        stamp_high,
        last_backfill,
        open_backfill: is_open.then_some(OpenBackfill { last_chunk }),
        backfill_mark,
        trusted_from,
    })
}

pub fn encode_identity(key: &[u8], identity: &Identity) -> Vec<u8> {
    let head = Encoder::new().text(&identity.disk_uuid);
    match &identity.member {
        None => head.u8(0),
        Some((node, cluster_id)) => head.u8(1).u64(node.0).text(cluster_id),
    }
    .finish(key)
}

pub fn decode_identity(key: &[u8], record: &[u8]) -> Result<Identity, Corrupt> {
    let mut decoder = Decoder::new(key, record)?;
    let disk_uuid = decoder.text()?;
    let member = match decoder.flag()? {
        false => None,
        true => Some((NodeId(decoder.u64()?), decoder.text()?)),
    };
    decoder.finish(Identity { disk_uuid, member })
}

pub fn encode_token(key: &[u8], token: ConsumerEpoch) -> Vec<u8> {
    Encoder::new().u64(token.0).finish(key)
}

pub fn decode_token(key: &[u8], record: &[u8]) -> Result<ConsumerEpoch, Corrupt> {
    let mut decoder = Decoder::new(key, record)?;
    let token = ConsumerEpoch(decoder.u64()?);
    decoder.finish(token)
}

/// The checkpoint of its index that a partition may be loaded from.
pub fn encode_checkpoint(key: &[u8], number: u64) -> Vec<u8> {
    Encoder::new().u64(number).finish(key)
}

pub fn decode_checkpoint(key: &[u8], record: &[u8]) -> Result<u64, Corrupt> {
    let mut decoder = Decoder::new(key, record)?;
    let number = decoder.u64()?;
    decoder.finish(number)
}

/// The key says it all.
pub fn encode_changed(key: &[u8]) -> Vec<u8> {
    Encoder::new().finish(key)
}

pub fn decode_changed(key: &[u8], record: &[u8]) -> Result<(), Corrupt> {
    Decoder::new(key, record)?.finish(())
}
