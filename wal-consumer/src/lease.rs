//! Joins the cluster, renews the lease, and follows the sources that it
//! assigns. The lease counts from the sending of its renewal; when it ends,
//! every replication connection is closed before anything else.

use crate::clock::boot_ms;
use crate::config::Config;
use crate::feed::progress::Promotions;
use crate::metrics::Metrics;
use crate::retry::Backoff;
use crate::source::{self, SourceContext, Standing};
use anyhow::Context;
use cluster_client::ClusterClient;
use cluster_core::ids::{ConsumerEpoch, ConsumerId, LeaseEpoch, MapVersion, SourceId};
use cluster_core::lease::HeldLease;
use cluster_core::map::PartitionMap;
use proto::v1;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How often the lease is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(50);
/// Until the first answer names another interval.
const RENEW_EVERY_FIRST: Duration = Duration::from_secs(1);
/// A lease is worth nothing if its renewal takes longer.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);
/// A consumer that ends says so, if somebody hears it soon.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

struct Assigned {
    token: ConsumerEpoch,
    cancel: CancellationToken,
    task: JoinHandle<()>,
    standing: Arc<Standing>,
}

pub struct Consumer {
    config: Arc<Config>,
    client: ClusterClient,
    metrics: Metrics,
    process_uuid: String,
    lease: HeldLease,
    assigned: BTreeMap<SourceId, Assigned>,
    /// What was asked of the coordinators under a token, and may still come about:
    /// a lease that lapsed and came back with the same token has not undone it.
    promotions: BTreeMap<SourceId, (ConsumerEpoch, Promotions)>,
    /// What was let go of because a renewal left it out, and is followed never again
    /// under that token: others need not wait for the lease.
    released: BTreeMap<SourceId, ConsumerEpoch>,
    /// What the map has given since, and was asked for.
    seen_given: BTreeMap<SourceId, ConsumerEpoch>,
}

struct Renewal {
    sent_at: u64,
    answer: v1::RenewConsumerLeaseResponse,
}

impl Consumer {
    pub fn new(
        config: Arc<Config>,
        client: ClusterClient,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let process_uuid = process_uuid(&config.data_dir)?;
        Ok(Self {
            config,
            client,
            metrics,
            process_uuid,
            lease: HeldLease::default(),
            assigned: BTreeMap::new(),
            promotions: BTreeMap::new(),
            released: BTreeMap::new(),
            seen_given: BTreeMap::new(),
        })
    }

    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        while let Some(id) = shutdown.run_until_cancelled(self.join()).await {
            if self.hold(id, &shutdown).await {
                self.leave(id).await;
                return Ok(());
            }
        }
        self.stop_all().await;
        Ok(())
    }

    /// Lets go of everything and says so: others go on at once.
    async fn leave(&mut self, id: ConsumerId) {
        let held = self.assigned.iter();
        let held: Vec<_> = held.map(|(source, a)| (*source, a.token)).collect();
        self.stop_all().await;
        self.released.extend(held);
        let request = v1::RenewConsumerLeaseRequest {
            is_leaving: true,
            ..self.request(id)
        };
        let saying = renew(self.client.clone(), request);
        if let Ok(Err(problem)) = tokio::time::timeout(LEAVE_TIMEOUT, saying).await {
            tracing::debug!(problem, "nobody heard that this consumer ends");
        }
    }

    async fn join(&self) -> ConsumerId {
        let request = v1::JoinConsumerRequest {
            process_uuid: self.process_uuid.clone(),
            address: self.config.advertised(),
        };
        let mut backoff = Backoff::new(&self.config);
        loop {
            let joining = self.client.leader(|mut c| {
                let request = request.clone();
                async move { c.join_consumer(request).await }
            });
            match joining.await {
                Ok(answer) => {
                    tracing::info!(
                        consumer = answer.consumer_id,
                        cluster = answer.cluster_id,
                        "joined"
                    );
                    return ConsumerId(answer.consumer_id);
                }
                Err(problem) => tracing::warn!(%problem, "cannot join yet"),
            }
            backoff.pause().await;
        }
    }

    /// Whether the end is a shutdown; otherwise the cluster forgot us.
    async fn hold(&mut self, id: ConsumerId, shutdown: &CancellationToken) -> bool {
        let mut renew_at = tokio::time::Instant::now();
        let mut renew_every = RENEW_EVERY_FIRST;
        let mut renewing: Option<JoinHandle<Result<Renewal, String>>> = None;
        let mut map = self.client.watch_map();
        // The newest epoch for which a renewal was hastened.
        let mut hastened = LeaseEpoch(0);
        loop {
            let known = hastened.max(self.lease.epoch());
            tokio::select! {
                // A new leader knows nothing of this holder until it renews; what was
                // given to it is in the answer.
                news = news_after(&mut map, known, id, &self.seen_given), if renewing.is_none() => {
                    (hastened, self.seen_given) = news;
                    renew_at = tokio::time::Instant::now();
                }
                () = shutdown.cancelled() => return true,
                () = tokio::time::sleep(WATCH_EVERY) => {}
                () = tokio::time::sleep_until(renew_at), if renewing.is_none() => {
                    renewing = Some(tokio::spawn(renew(self.client.clone(), self.request(id))));
                    renew_at = tokio::time::Instant::now() + renew_every;
                }
                renewed = wait(&mut renewing) => {
                    renewing = None;
                    match renewed {
                        Ok(renewal) => {
                            let answer = renewal.answer;
                            if answer.renew_every_ms > 0 {
                                renew_every = Duration::from_millis(answer.renew_every_ms);
                            }
                            let epoch = LeaseEpoch(answer.epoch);
                            self.lease.granted(epoch, renewal.sent_at, answer.ttl_ms, boot_ms());
                            if self.lease.is_held(boot_ms()) {
                                let map_floor = (epoch, MapVersion(answer.map_version));
                                self.catch_up(map_floor);
                                let reads_released = answer.reads_released;
                                if self.assign(&answer.assignments, map_floor, reads_released).await {
                                    // Somebody waits to hear it.
                                    renew_at = tokio::time::Instant::now();
                                }
                            }
                        }
                        Err(problem) if problem.is_empty() => return false,
                        Err(problem) => {
                            tracing::warn!(problem, "lease not renewed");
                            renew_at = tokio::time::Instant::now() + RENEW_EVERY_FIRST.min(renew_every);
                        }
                    }
                }
            }
            if !self.lease.is_held(boot_ms()) && !self.assigned.is_empty() {
                tracing::error!("the lease has ended: no source is followed until it is renewed");
                self.stop_all().await;
            }
        }
    }

    fn request(&self, id: ConsumerId) -> v1::RenewConsumerLeaseRequest {
        let progress = self
            .assigned
            .iter()
            .map(|(source, a)| a.standing.report(*source));
        v1::RenewConsumerLeaseRequest {
            consumer_id: id.0,
            progress: progress.collect(),
            allows_plaintext_off_loopback: self.config.transport.allow_plaintext_off_loopback,
            released: self.released.iter().map(given).collect(),
            can_release: true,
            is_leaving: false,
        }
    }

    /// Follows what is assigned and nothing else. Whether a source was let go of.
    async fn assign(
        &mut self,
        assignments: &[v1::ConsumerAssignment],
        map_floor: (LeaseEpoch, MapVersion),
        reads_released: bool,
    ) -> bool {
        let assignments: BTreeMap<SourceId, ConsumerEpoch> = assignments
            .iter()
            .map(|a| (SourceId(a.source_id), ConsumerEpoch(a.consumer_epoch)))
            .collect();
        let ended: Vec<SourceId> = self
            .assigned
            .iter()
            .filter(|(source, a)| assignments.get(source) != Some(&a.token) || a.task.is_finished())
            .map(|(source, _)| *source)
            .collect();
        let mut lets_go = false;
        for source in ended {
            let token = self.assigned.get(&source).map(|a| a.token);
            self.stop(source).await;
            // A leader of an older version hands it back under the same token.
            if let Some(token) = token.filter(|_| reads_released)
                && assignments.get(&source) != Some(&token)
            {
                self.released.insert(source, token);
                lets_go = true;
            }
        }
        for (source, token) in assignments {
            let is_released = self.released.get(&source).is_some_and(|t| *t >= token);
            if is_released || self.assigned.contains_key(&source) {
                continue;
            }
            let cancel = CancellationToken::new();
            let standing = Arc::new(Standing::default());
            let context = SourceContext {
                config: self.config.clone(),
                client: self.client.clone(),
                source,
                token,
                map_floor,
                metrics: self.metrics.clone(),
                standing: standing.clone(),
                promotions: self.promotions_under(source, token),
                cancel: cancel.clone(),
            };
            tracing::info!(%source, token = token.0, "assigned");
            let task = tokio::spawn(source::follow(context));
            self.assigned.insert(
                source,
                Assigned {
                    token,
                    cancel,
                    task,
                    standing,
                },
            );
        }
        let map = self.client.map();
        if map.stamp() >= map_floor {
            self.released
                .retain(|source, _| map.sources.contains_key(source));
        }
        lets_go
    }

    /// The leader knows a newer map: a stream of maps from a coordinator that is cut
    /// off from the others stays open and brings nothing.
    fn catch_up(&self, map: (LeaseEpoch, MapVersion)) {
        let known = self.client.map();
        if known.stamp() >= map {
            return;
        }
        let client = self.client.clone();
        tokio::spawn(async move {
            if let Err(problem) = client.refresh_map(map).await {
                tracing::warn!(%problem, "the leader's map could not be fetched");
            }
        });
    }

    fn promotions_under(&mut self, source: SourceId, token: ConsumerEpoch) -> Promotions {
        let known = self.promotions.entry(source).or_default();
        if known.0 != token {
            *known = (token, Promotions::default());
        }
        known.1.clone()
    }

    async fn stop(&mut self, source: SourceId) {
        if let Some(assigned) = self.assigned.remove(&source) {
            assigned.cancel.cancel();
            if let Err(problem) = assigned.task.await {
                tracing::error!(%source, %problem, "source's task failed");
            }
        }
    }

    /// All are cancelled before the first is waited for.
    async fn stop_all(&mut self) {
        for assigned in self.assigned.values() {
            assigned.cancel.cancel();
        }
        for source in self.assigned.keys().copied().collect::<Vec<_>>() {
            self.stop(source).await;
        }
    }
}

fn given((source, token): (&SourceId, &ConsumerEpoch)) -> v1::ConsumerAssignment {
    v1::ConsumerAssignment {
        source_id: source.0,
        consumer_epoch: token.0,
    }
}

/// The sources that the map gives to a consumer.
fn given_to(map: &PartitionMap, id: ConsumerId) -> BTreeMap<SourceId, ConsumerEpoch> {
    let given = map.sources.values().filter(|s| s.consumer == Some(id));
    given.map(|s| (s.id, s.consumer_epoch)).collect()
}

/// The map's epoch and what it gives, once the epoch is newer than `known` or
/// something else than `seen` is given.
async fn news_after(
    map: &mut tokio::sync::watch::Receiver<Arc<PartitionMap>>,
    known: LeaseEpoch,
    id: ConsumerId,
    seen: &BTreeMap<SourceId, ConsumerEpoch>,
) -> (LeaseEpoch, BTreeMap<SourceId, ConsumerEpoch>) {
    let is_news = |map: &Arc<PartitionMap>| map.epoch > known || given_to(map, id) != *seen;
    let newer = map.wait_for(is_news).await;
    let news = newer
        .ok()
        .map(|map| (map.epoch.max(known), given_to(&map, id)));
    match news {
        Some(news) => news,
        None => std::future::pending().await,
    }
}

/// An empty error: the cluster does not know this consumer (any more).
async fn renew(
    client: ClusterClient,
    request: v1::RenewConsumerLeaseRequest,
) -> Result<Renewal, String> {
    let sent_at = boot_ms();
    let calling = client.leader(|mut c| {
        let request = request.clone();
        async move { c.renew_consumer_lease(request).await }
    });
    match tokio::time::timeout(RENEW_TIMEOUT, calling).await {
        Ok(Ok(answer)) => Ok(Renewal { sent_at, answer }),
        Ok(Err(cluster_client::ClientError::Refused(status)))
            if status.code() == tonic::Code::NotFound =>
        {
            Err(String::new())
        }
        Ok(Err(problem)) => Err(problem.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn wait(
    renewing: &mut Option<JoinHandle<Result<Renewal, String>>>,
) -> Result<Renewal, String> {
    match renewing {
        Some(task) => task.await.unwrap_or_else(|e| Err(e.to_string())),
        None => std::future::pending().await,
    }
}

/// Drawn once, kept with the data: a restarted process is the same consumer.
fn process_uuid(data_dir: &Path) -> anyhow::Result<String> {
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("creating {}", data_dir.display()))?;
    let path = data_dir.join("process_uuid");
    if let Ok(uuid) = std::fs::read_to_string(&path) {
        let uuid = uuid.trim();
        anyhow::ensure!(!uuid.is_empty(), "{} is empty", path.display());
        return Ok(uuid.to_owned());
    }
    let bits: u128 = rand::random();
    let hex = format!("{bits:032x}");
    let uuid = format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    );
    let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
    std::io::Write::write_all(&mut file, uuid.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(&path)
        .with_context(|| format!("writing {}", path.display()))?;
    std::fs::File::open(data_dir)?.sync_all()?;
    Ok(uuid)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn p2_a_lease_that_comes_back_with_its_token_remembers_what_it_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: dir.path().to_owned(),
            ..Config::default()
        };
        let client = ClusterClient::new(config.client());
        let metrics = Metrics::register(&mut Default::default());
        let mut consumer = Consumer::new(Arc::new(config), client, metrics).unwrap();
        let mut under = |token| consumer.promotions_under(SourceId(1), ConsumerEpoch(token));
        let asked = under(7);
        assert!(Arc::ptr_eq(&asked, &under(7)));
        assert!(
            !Arc::ptr_eq(&asked, &under(8)),
            "fenced: nothing of it can come about"
        );
    }

    /// A consumer without coordinators, and what the leader's answer would give it.
    fn consumer(dir: &Path) -> Consumer {
        let config = Config {
            data_dir: dir.to_owned(),
            ..Config::default()
        };
        let client = ClusterClient::new(config.client());
        let metrics = Metrics::register(&mut Default::default());
        Consumer::new(Arc::new(config), client, metrics).unwrap()
    }

    #[tokio::test]
    async fn p5_what_was_let_go_of_is_never_followed_again_under_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let mut consumer = consumer(dir.path());
        // The map lists nothing: what is released must stay while it is older.
        let floor = (LeaseEpoch(1), MapVersion(1));
        let source = SourceId(1);
        let assign = |token| given((&source, &ConsumerEpoch(token)));
        assert!(!consumer.assign(&[assign(7)], floor, true).await);
        assert!(consumer.assigned.contains_key(&source));
        assert!(consumer.assign(&[], floor, true).await);
        assert!(consumer.assigned.is_empty());
        assert_eq!(consumer.request(ConsumerId(1)).released, [assign(7)]);
        assert!(!consumer.assign(&[assign(7)], floor, true).await);
        assert!(consumer.assigned.is_empty(), "another may follow it by now");
        consumer.assign(&[assign(8)], floor, true).await;
        assert_eq!(consumer.assigned[&source].token, ConsumerEpoch(8));
        consumer.stop_all().await;
    }

    #[tokio::test]
    async fn a_leader_that_does_not_ask_back_gets_no_word_of_letting_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut consumer = consumer(dir.path());
        let floor = (LeaseEpoch(1), MapVersion(1));
        let seven = [given((&SourceId(1), &ConsumerEpoch(7)))];
        consumer.assign(&seven, floor, false).await;
        assert!(!consumer.assign(&[], floor, false).await);
        consumer.assign(&seven, floor, false).await;
        assert_eq!(consumer.assigned.len(), 1, "it hands it back as it was");
        consumer.stop_all().await;
    }

    #[test]
    fn a_restarted_process_is_the_same_consumer() {
        let dir = tempfile::tempdir().unwrap();
        let first = process_uuid(&dir.path().join("new")).unwrap();
        assert_eq!(process_uuid(&dir.path().join("new")).unwrap(), first);
        assert_ne!(process_uuid(dir.path()).unwrap(), first);
    }
}
