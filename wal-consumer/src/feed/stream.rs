//! One node's Apply stream: opened, fed from the queue, opened again when it
//! breaks.

use super::node::NodeFeed;
use super::queue::Report;
use crate::config::Config;
use crate::retry::Backoff;
use cluster_client::ClusterClient;
use cluster_core::wal_position::WalPosition;
use proto::v1;
use proto::v1::apply_request::Kind as Request;
use proto::v1::apply_response::Kind as Response;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Messages handed to the transport and not yet taken by it.
const TRANSPORT_QUEUE: usize = 16;

impl NodeFeed {
    /// Runs until cancelled, or until the node holds nothing more of the source.
    pub async fn run(
        self: Arc<Self>,
        client: ClusterClient,
        config: Arc<Config>,
        cancel: CancellationToken,
    ) {
        let running = self.follow_always(&client, &config, &cancel);
        self.ended.run_until_cancelled(running).await;
    }

    async fn follow_always(
        &self,
        client: &ClusterClient,
        config: &Config,
        cancel: &CancellationToken,
    ) {
        let mut backoff = Backoff::new(config);
        loop {
            let attempt = self.follow(client, config);
            let Some(Err(problem)) = cancel.run_until_cancelled(attempt).await else {
                return;
            };
            let was_up = {
                let mut state = self.state.lock();
                std::mem::replace(&mut state.is_up, false)
            };
            self.progress.wake();
            if was_up {
                backoff.reset();
            }
            tracing::info!(node = %self.node, source = %self.progress.following.source, problem, "apply stream ended");
            if cancel.run_until_cancelled(backoff.pause()).await.is_none() {
                return;
            }
        }
    }

    async fn follow(
        &self,
        client: &ClusterClient,
        config: &Config,
    ) -> Result<std::convert::Infallible, String> {
        let (send, outgoing) = mpsc::channel(TRANSPORT_QUEUE);
        let map = client.map();
        let open = v1::ApplyOpen {
            source_id: self.progress.following.source.0,
            incarnation: self.progress.following.incarnation.0,
            consumer_epoch: self.progress.following.token.0,
            epoch: map.epoch.0,
            map_version: map.version.0,
        };
        let first = v1::ApplyRequest {
            kind: Some(Request::Open(open)),
        };
        send.send(first).await.map_err(|e| e.to_string())?;
        let call_timeout = Duration::from_millis(config.call_timeout_ms);
        let mut node = client.node(self.node).map_err(|e| e.to_string())?;
        let opening = async {
            let mut incoming = node
                .apply(ReceiverStream::new(outgoing))
                .await?
                .into_inner();
            let first = incoming.message().await?;
            Ok::<_, tonic::Status>((incoming, first))
        };
        let opened = timeout(call_timeout, opening)
            .await
            .map_err(|_| "did not open in time")?;
        let (mut incoming, first) = match opened {
            Ok(opened) => opened,
            Err(status) => return Err(refused(client, &status).await),
        };
        let Some(Response::Opened(opened)) = first.and_then(|m| m.kind) else {
            return Err("did not answer the opening".to_owned());
        };
        self.take_opened(opened)?;
        let sending = self.send_all(send);
        let receiving = async {
            loop {
                match incoming.message().await {
                    Ok(Some(message)) => self.take(message)?,
                    Ok(None) => return Err("ended the stream".to_owned()),
                    Err(status) => return Err(refused(client, &status).await),
                }
            }
        };
        tokio::select! {
            problem = sending => problem,
            problem = receiving => problem,
        }
    }

    async fn send_all(
        &self,
        send: mpsc::Sender<v1::ApplyRequest>,
    ) -> Result<std::convert::Infallible, String> {
        loop {
            let next = self.state.lock().queue.next_to_send();
            match next {
                Some(message) => {
                    if send.send(message).await.is_err() {
                        // The receiving half knows why the transport let go.
                        std::future::pending::<()>().await;
                    }
                }
                None => self.has_more.notified().await,
            }
        }
    }

    fn take(&self, message: v1::ApplyResponse) -> Result<(), String> {
        match message.kind {
            Some(Response::Watermarks(watermarks)) => {
                for wire in &watermarks.partitions {
                    self.report(Report::from_wire(wire)?);
                }
                Ok(())
            }
            Some(Response::Wanted(position)) => {
                let position = WalPosition::from(position);
                if position.incarnation == self.progress.following.incarnation {
                    self.progress.feedback.want(position.commit_end);
                }
                Ok(())
            }
            Some(Response::Gap(gap)) => self.take_gap(gap),
            Some(Response::Opened(_)) => Err("opened twice".to_owned()),
            None => Err("answered something unknown".to_owned()),
        }
    }
}

/// Fetches a newer map when that is what the node asks for.
async fn refused(client: &ClusterClient, status: &tonic::Status) -> String {
    if let Some(hint) = proto::error::estale_hint(status)
        && let Err(problem) = client.refresh_map(hint).await
    {
        tracing::debug!(%problem, "no newer map");
    }
    format!("{:?}: {}", status.code(), status.message())
}
