//! The running stream: one task reads it, one writes status updates. The writer
//! waits for nothing but its timers and the socket, so that however long apply
//! takes, keepalives are answered.
//!
//! Only the confirmed position is ever reported, as written, flushed and
//! applied alike. Positions of the server arrive in order with the
//! changes: a keepalive says that everything up to it has been sent.

use super::connection::{FrameReader, FrameWriter, server_error};
use super::pgoutput::excerpt;
use super::tuple::{Malformed, Reader};
use crate::backfill::pace::Pace;
use crate::tasks::Tasks;
use anyhow::anyhow;
use bytes::{BufMut, Bytes, BytesMut};
use cluster_core::wal_position::Lsn;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Messages in the receive queue, besides its limit in bytes.
const RECEIVE_QUEUE_MESSAGES: usize = 16_384;
/// What a queued message costs beyond its payload.
const MESSAGE_OVERHEAD_BYTES: usize = 64;
/// How long the server is asked on behalf of one waiting search.
const WANTED_FOR: Duration = Duration::from_secs(60);
/// At most one status update in so long because something new is confirmed.
const CONFIRMED_EVERY: Duration = Duration::from_millis(10);
/// From 1970 to 2000, where Postgres's clock starts.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

#[derive(Debug)]
pub enum WalEvent {
    Data {
        at: Lsn,
        payload: Bytes,
    },
    /// Everything that ends at or before `wal_end` has been sent.
    Keepalive {
        wal_end: Lsn,
    },
}

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// What came behind this position is no message of the replication protocol.
    #[error("{problem} behind {after}; bytes: {bytes}")]
    Undecodable {
        after: Lsn,
        problem: String,
        bytes: String,
    },
    /// The server or the network ended it.
    #[error(transparent)]
    Ended(#[from] anyhow::Error),
}

/// An event and its share of the receive queue's bytes.
pub struct Received {
    pub event: WalEvent,
    _share: OwnedSemaphorePermit,
}

/// What the writer tells the server; set by whoever knows.
#[derive(Default)]
pub struct Feedback {
    confirmed: AtomicU64,
    reached: AtomicU64,
    wanted: Mutex<Option<(Lsn, Instant)>>,
    reply: Notify,
    confirmed_changed: Notify,
    wanted_changed: Notify,
}

impl Feedback {
    pub fn new(confirmed: Lsn) -> Self {
        Self {
            confirmed: AtomicU64::new(confirmed.0),
            ..Self::default()
        }
    }

    pub fn confirm(&self, confirmed: Lsn) {
        if self.confirmed.fetch_max(confirmed.0, Ordering::AcqRel) < confirmed.0 {
            self.confirmed_changed.notify_one();
        }
    }

    pub fn confirmed(&self) -> Lsn {
        Lsn(self.confirmed.load(Ordering::Acquire))
    }

    /// Nodes have been told about everything up to here.
    pub fn reach(&self, reached: Lsn) {
        self.reached.fetch_max(reached.0, Ordering::AcqRel);
    }

    pub fn reached(&self) -> Lsn {
        Lsn(self.reached.load(Ordering::Acquire))
    }

    /// Somebody waits for this position: ask the server until it is reached.
    pub fn want(&self, position: Lsn) {
        let mut wanted = self.wanted.lock();
        let highest = wanted.map_or(position, |(before, _)| before.max(position));
        *wanted = Some((highest, Instant::now() + WANTED_FOR));
        drop(wanted);
        self.wanted_changed.notify_one();
    }

    fn is_wanted(&self) -> bool {
        let mut wanted = self.wanted.lock();
        let reached = self.reached.load(Ordering::Acquire);
        if wanted.is_some_and(|(lsn, until)| lsn.0 <= reached || Instant::now() >= until) {
            *wanted = None;
        }
        wanted.is_some()
    }
}

pub struct StreamTimes {
    pub status_every: Duration,
    pub wanted_every: Duration,
}

#[derive(Clone, Copy)]
pub struct StreamLimits {
    /// Received and not yet taken.
    pub buffer_bytes: usize,
    /// 0: as fast as it comes.
    pub bytes_per_second_max: u64,
}

pub struct WalStream {
    pub events: mpsc::Receiver<Received>,
    /// Why the stream ended.
    pub ended: mpsc::Receiver<StreamError>,
    cancel: CancellationToken,
    tasks: Tasks,
}

impl WalStream {
    /// Ends when `parent` does, or on [`WalStream::close`].
    pub fn spawn(
        (reader, writer): (FrameReader, FrameWriter),
        feedback: Arc<Feedback>,
        times: StreamTimes,
        limits: StreamLimits,
        parent: &CancellationToken,
    ) -> Self {
        let cancel = parent.child_token();
        let tasks = Tasks::default();
        let (send, events) = mpsc::channel(RECEIVE_QUEUE_MESSAGES);
        let (send_end, ended) = mpsc::channel(2);
        let reading = read_events(reader, send, feedback.clone(), limits);
        tasks.spawn(until_cancelled(cancel.clone(), send_end.clone(), reading));
        let writing = async { Ok(write_status(writer, feedback, times).await?) };
        tasks.spawn(until_cancelled(cancel.clone(), send_end, writing));
        Self {
            events,
            ended,
            cancel,
            tasks,
        }
    }

    /// Returns when the socket is closed.
    pub async fn close(self) {
        self.cancel.cancel();
        drop(self.events);
        self.tasks.wait().await;
    }
}

async fn until_cancelled(
    cancel: CancellationToken,
    ended: mpsc::Sender<StreamError>,
    work: impl Future<Output = Result<(), StreamError>>,
) {
    if let Some(Err(error)) = cancel.run_until_cancelled(work).await {
        // Two tasks, two places: never full.
        let _ = ended.try_send(error);
    }
}

async fn read_events(
    mut reader: FrameReader,
    events: mpsc::Sender<Received>,
    feedback: Arc<Feedback>,
    limits: StreamLimits,
) -> Result<(), StreamError> {
    let mut last = feedback.confirmed();
    let pace = Pace::new(limits.bytes_per_second_max);
    let permits_max = u32::try_from(limits.buffer_bytes)
        .unwrap_or(u32::MAX)
        .max(1);
    let budget = Arc::new(Semaphore::new(permits_max as usize));
    loop {
        let frame = reader.next().await?;
        let event = match frame.tag {
            b'd' => {
                let bytes = frame.body.clone();
                read_copy_data(frame.body, &feedback).map_err(|problem| {
                    StreamError::Undecodable {
                        after: last,
                        problem: problem.to_string(),
                        bytes: excerpt(&bytes),
                    }
                })?
            }
            b'E' => {
                let error = server_error(&frame.body).context("the server ended the stream");
                return Err(error.into());
            }
            b'c' => return Err(anyhow!("the server ended the stream").into()),
            b'N' | b'S' => continue,
            tag => {
                let tag = char::from(tag);
                return Err(anyhow!("unexpected message {tag:?} in the stream").into());
            }
        };
        last = last.max(match &event {
            WalEvent::Data { at, .. } => *at,
            WalEvent::Keepalive { wal_end } => *wal_end,
        });
        let payload_len = match &event {
            WalEvent::Data { payload, .. } => payload.len(),
            WalEvent::Keepalive { .. } => 0,
        };
        // The writer answers the server meanwhile; what is not read stays there.
        pace.take(payload_len).await;
        let cost = u32::try_from(payload_len + MESSAGE_OVERHEAD_BYTES).unwrap_or(u32::MAX);
        let share = budget
            .clone()
            .acquire_many_owned(cost.min(permits_max))
            .await
            .map_err(anyhow::Error::new)?;
        if events
            .send(Received {
                event,
                _share: share,
            })
            .await
            .is_err()
        {
            return Ok(());
        }
    }
}

fn read_copy_data(body: Bytes, feedback: &Feedback) -> Result<WalEvent, Malformed> {
    let mut r = Reader::new(body);
    match r.u8("empty CopyData")? {
        b'w' => {
            let at = Lsn(r.u64("XLogData cut off")?);
            r.u64("XLogData cut off")?;
            r.u64("XLogData cut off")?;
            let payload = r.bytes(r.remaining(), "XLogData cut off")?;
            Ok(WalEvent::Data { at, payload })
        }
        b'k' => {
            let wal_end = Lsn(r.u64("keepalive cut off")?);
            r.u64("keepalive cut off")?;
            if r.u8("keepalive cut off")? == 1 {
                feedback.reply.notify_one();
            }
            Ok(WalEvent::Keepalive { wal_end })
        }
        _ => Err(r.malformed("unknown replication message")),
    }
}

async fn write_status(
    mut writer: FrameWriter,
    feedback: Arc<Feedback>,
    times: StreamTimes,
) -> anyhow::Result<()> {
    let mut status = tokio::time::interval(times.status_every);
    status.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sent_at = tokio::time::Instant::now();
    let mut asked_at = sent_at;
    loop {
        let is_wanted = feedback.is_wanted();
        // A commit may wait for it, where the consumer is a synchronous standby. An
        // update that another reason sends meanwhile says the same.
        let confirmed_more = async {
            feedback.confirmed_changed.notified().await;
            tokio::time::sleep_until(sent_at + CONFIRMED_EVERY).await;
        };
        let ask = tokio::select! {
            _ = status.tick() => false,
            () = feedback.reply.notified() => false,
            () = confirmed_more => false,
            () = feedback.wanted_changed.notified(), if !is_wanted => feedback.is_wanted(),
            () = tokio::time::sleep_until(asked_at + times.wanted_every), if is_wanted => {
                feedback.is_wanted()
            }
        };
        writer
            .send(&status_update(feedback.confirmed(), ask))
            .await?;
        sent_at = tokio::time::Instant::now();
        if ask {
            asked_at = sent_at;
        }
    }
}

fn status_update(confirmed: Lsn, ask: bool) -> BytesMut {
    let since_2000 = SystemTime::now()
        .duration_since(UNIX_EPOCH + POSTGRES_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
    let mut out = BytesMut::with_capacity(39);
    out.put_u8(b'd');
    out.put_u32(4 + 34);
    out.put_u8(b'r');
    for _written_flushed_applied in 0..3 {
        out.put_u64(confirmed.0);
    }
    out.put_u64(since_2000);
    out.put_u8(u8::from(ask));
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_confirmed_position_is_reported() {
        let update = status_update(Lsn(0x0102), true);
        assert_eq!(update.len(), 39);
        assert_eq!(&update[..6], [b'd', 0, 0, 0, 38, b'r']);
        for position in update[6..30].chunks(8) {
            assert_eq!(position, 0x0102u64.to_be_bytes());
        }
        assert_eq!(update[38], 1);
    }

    #[test]
    fn confirmed_never_goes_back_and_a_reached_position_is_wanted_no_more() {
        let feedback = Feedback::new(Lsn(10));
        feedback.confirm(Lsn(20));
        feedback.confirm(Lsn(15));
        assert_eq!(feedback.confirmed(), Lsn(20));
        feedback.want(Lsn(30));
        assert!(feedback.is_wanted());
        feedback.reach(Lsn(30));
        assert!(!feedback.is_wanted());
    }

    /// Frames as the server sends them; the line stays open behind them.
    async fn first_end(frames: &[&[u8]]) -> StreamError {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (read, write) = tokio::io::split(ours);
        for body in frames {
            let mut frame = vec![b'd'];
            frame.extend((body.len() as u32 + 4).to_be_bytes());
            frame.extend_from_slice(body);
            tokio::io::AsyncWriteExt::write_all(&mut theirs, &frame)
                .await
                .unwrap();
        }
        let halves = (FrameReader::of(read), FrameWriter::of(write));
        let feedback = Arc::new(Feedback::new(Lsn(0x10)));
        let times = StreamTimes {
            status_every: Duration::from_secs(60),
            wanted_every: Duration::from_secs(60),
        };
        let limits = StreamLimits {
            buffer_bytes: 1 << 16,
            bytes_per_second_max: 0,
        };
        let cancel = CancellationToken::new();
        let mut wal = WalStream::spawn(halves, feedback, times, limits, &cancel);
        let end = wal.ended.recv().await.unwrap();
        wal.close().await;
        end
    }

    #[tokio::test]
    async fn p2_what_is_no_message_ends_the_stream_with_the_position_before_it_and_its_bytes() {
        let mut keepalive = vec![b'k'];
        keepalive.extend(0x2000u64.to_be_bytes());
        keepalive.extend([0; 9]);
        for (bad, problem) in [
            (&b"x\x01\x02"[..], "unknown replication message"),
            (b"w\0", "XLogData cut off"),
        ] {
            let end = first_end(&[&keepalive, bad]).await;
            assert!(
                matches!(
                    end,
                    StreamError::Undecodable {
                        after: Lsn(0x2000),
                        ..
                    }
                ),
                "{end}"
            );
            let text = end.to_string();
            let hex: String = bad.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(
                text.contains(problem) && text.contains("behind 0/2000"),
                "{text}"
            );
            assert!(text.ends_with(&format!("bytes: {hex}")), "{text}");
        }
        let end = first_end(&[&keepalive, &[b'x'; 1000]]).await;
        assert!(end.to_string().chars().count() < 400, "{end}");
    }

    #[test]
    fn a_cut_off_stream_message_is_an_error() {
        let feedback = Feedback::default();
        for bytes in [&b""[..], b"w\0\0", b"k\0", b"?"] {
            assert!(read_copy_data(Bytes::copy_from_slice(bytes), &feedback).is_err());
        }
    }
}
