//! Takes a peer's records for a learner that is here. Every part is checked whole,
//! every record as if it came from the disk, before the writer gets them; without
//! the peer's End the copy is not taken for whole.

use super::{checkpoint, convert};
use crate::node::Node;
use crate::partition::job::{CopyStep, Job};
use crate::partition::replica::Replica;
use crate::storage::copied::decode_meta;
use cluster_core::ids::*;
use cluster_core::learner::{CopyRun, CopyWanted};
use cluster_core::map::HashRange;
use proto::convert::{BadMessage, required};
use proto::v1::node_client::NodeClient;
use proto::v1::{self, checkpoint_part::Kind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::{Status, Streaming};

/// How long a peer may be silent: it reaches a position first, and sends several parts
/// a second after that.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How often a copy looks whether the tail has room again.
const TAIL_POLL: Duration = Duration::from_millis(5);

/// Whom to copy from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub node: NodeId,
    pub address: String,
    /// The learner's own, or the one that is being split.
    pub partition: PartitionId,
    pub generation: Generation,
    /// What of it is wanted; `None`: all.
    pub range: Option<HashRange>,
}

/// Why a copy broke off. All that was taken stays; the next attempt goes on.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the peer's address cannot be used: {0}")]
    Address(#[from] cluster_client::transport::TransportError),
    #[error("the peer answered: {0}")]
    Peer(#[from] Status),
    #[error("the peer was silent for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("the peer's stream is cut short")]
    CutShort,
    #[error("the peer sent what it must not: {0}")]
    Bad(#[from] BadMessage),
    #[error("a copied record is refused: {0}")]
    Corrupt(#[from] crate::storage::Corrupt),
    #[error(
        "the peer's format is version {0}, this node reads version {known}: \
         bring both to the same release",
        known = checkpoint::FORMAT_VERSION
    )]
    Format(u32),
    #[error("{got} records came, the peer counts {sent}: copying once more")]
    Hole { got: u64, sent: u64 },
    #[error("the replica refused: {0}")]
    Refused(String),
    #[error("the copy panicked; see the log")]
    Panicked,
}

struct Fetch<'a> {
    node: &'a Node,
    replica: &'a Arc<Replica>,
    run: CopyRun,
    /// Whose keys the records bear.
    of: PartitionId,
    parts: Streaming<v1::CheckpointPart>,
}

/// Copies what is wanted, to its end.
pub async fn fetch(
    node: &Node,
    replica: &Arc<Replica>,
    wanted: CopyWanted,
    peer: &Peer,
) -> Result<(), FetchError> {
    let channel = node.config.transport.channel(&peer.address)?;
    let mut client = NodeClient::new(channel).max_decoding_message_size(proto::MESSAGE_BYTES_MAX);
    let request = v1::FetchCheckpointRequest {
        epoch: node.map().epoch.0,
        partition_id: peer.partition.0,
        generation: peer.generation.0,
        at_least: Some(wanted.at_least.into()),
        after_key: wanted.after.0.into_vec().into(),
        bytes_per_second_max: node.config.copy_bytes_per_second_max,
        range: peer.range.map(Into::into),
    };
    let answer = timeout(SILENCE_MAX, client.fetch_checkpoint(request)).await;
    let parts = answer.map_err(|_| FetchError::Silent)??.into_inner();
    let fetch = Fetch {
        node,
        replica,
        run: wanted.run,
        of: peer.partition,
        parts,
    };
    fetch.take_all().await
}

impl Fetch<'_> {
    async fn take_all(mut self) -> Result<(), FetchError> {
        match self.next().await? {
            Kind::Header(header) => self.begin(header).await?,
            _ => return Err(BadMessage::Missing("header of a checkpoint").into()),
        }
        let mut got = 0;
        loop {
            match self.next().await? {
                Kind::Records(records) => got += self.take(records).await?,
                Kind::End(end) if end.records == got => return self.step(CopyStep::End).await,
                Kind::End(end) => {
                    self.step(CopyStep::OnceMore).await?;
                    let sent = end.records;
                    return Err(FetchError::Hole { got, sent });
                }
                Kind::Header(_) => return Err(BadMessage::Unknown("second header").into()),
            }
        }
    }

    async fn next(&mut self) -> Result<Kind, FetchError> {
        let message = timeout(SILENCE_MAX, self.parts.message()).await;
        let part = message.map_err(|_| FetchError::Silent)??;
        let part = part.ok_or(FetchError::CutShort)?;
        Ok(required(part.kind, "part of a checkpoint")?)
    }

    async fn begin(&self, header: v1::CheckpointHeader) -> Result<(), FetchError> {
        if header.format_version != checkpoint::FORMAT_VERSION {
            return Err(FetchError::Format(header.format_version));
        }
        let watermark = required(header.watermark, "watermark of a checkpoint")?.into();
        let meta = decode_meta(self.of, &header.meta)?;
        self.step(CopyStep::Begin {
            watermark,
            meta,
            rows_total: header.rows_estimated,
        })
        .await
    }

    /// Returns how many records came.
    async fn take(&self, wire: v1::CheckpointRecords) -> Result<u64, FetchError> {
        let (raw, high) = convert::records_from_wire(wire)?;
        let (Some(first), Some(last)) = (raw.first(), raw.last()) else {
            return Err(BadMessage::Missing("records").into());
        };
        if !raw.is_sorted_by(|a, b| a.key < b.key) {
            let what = "keys of records";
            return Err(BadMessage::OutOfRange(what, "they do not ascend".to_owned()).into());
        }
        let (first, last) = (first.key.clone(), last.key.clone());
        let dimensions = self.replica.id.dimensions;
        let decoded = raw.iter().map(|r| r.decode(self.of, dimensions));
        let records = decoded.collect::<Result<Vec<_>, _>>()?;
        let bytes = raw.iter().map(|r| r.bytes() as u64).sum();
        self.wait_for_folding().await;
        self.step(CopyStep::Records {
            records,
            first,
            last,
            high,
            bytes,
        })
        .await?;
        Ok(raw.len() as u64)
    }

    /// A full tail holds the copy back here, not in the writer's queue: the
    /// stream must go on into the log.
    async fn wait_for_folding(&self) {
        let rows_max = self.node.config.apply.tail_rows_max;
        let is_over = || self.replica.is_quarantined() || self.replica.is_stopping();
        while self.replica.live().index().tail_len() > rows_max && !is_over() {
            tokio::time::sleep(TAIL_POLL).await;
        }
    }

    async fn step(&self, step: CopyStep) -> Result<(), FetchError> {
        let (reply, answer) = oneshot::channel();
        let run = self.run;
        let job = Job::Copy { run, step, reply };
        let stopped = || FetchError::Refused("it has stopped".to_owned());
        self.replica.send(job).await.map_err(|_| stopped())?;
        let answered = answer.await.map_err(|_| stopped())?;
        answered.map_err(FetchError::Refused)
    }
}
