//! The running stream: one task reads it, one writes status updates. The writer
//! waits for nothing but its timers and the socket, so that however long apply
//! takes, keepalives are answered.
//!
//! Only the confirmed position is ever reported, as written, flushed and
//! applied alike. Positions of the server arrive in order with the
//! changes: a keepalive says that everything up to it has been sent.

use super::connection::{FrameReader, FrameWriter, server_error};
use super::tuple::Reader;
use crate::backfill::pace::Pace;
use crate::tasks::Tasks;
use anyhow::bail;
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
    pub ended: mpsc::Receiver<anyhow::Error>,
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
        let writing = write_status(writer, feedback, times);
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
    ended: mpsc::Sender<anyhow::Error>,
    work: impl Future<Output = anyhow::Result<()>>,
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
) -> anyhow::Result<()> {
    let pace = Pace::new(limits.bytes_per_second_max);
    let permits_max = u32::try_from(limits.buffer_bytes)
        .unwrap_or(u32::MAX)
        .max(1);
    let budget = Arc::new(Semaphore::new(permits_max as usize));
    loop {
        let frame = reader.next().await?;
        let event = match frame.tag {
            b'd' => read_copy_data(frame.body, &feedback)?,
            b'E' => return Err(server_error(&frame.body).context("the server ended the stream")),
            b'c' => bail!("the server ended the stream"),
            b'N' | b'S' => continue,
            tag => bail!("unexpected message {:?} in the stream", char::from(tag)),
        };
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
            .await?;
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

fn read_copy_data(body: Bytes, feedback: &Feedback) -> anyhow::Result<WalEvent> {
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
        kind => bail!("unknown replication message {:?}", char::from(kind)),
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

    #[test]
    fn a_cut_off_stream_message_is_an_error() {
        let feedback = Feedback::default();
        for bytes in [&b""[..], b"w\0\0", b"k\0", b"?"] {
            assert!(read_copy_data(Bytes::copy_from_slice(bytes), &feedback).is_err());
        }
    }
}
