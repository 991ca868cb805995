//! What monitoring asks a process over HTTP: `/metrics` in Prometheus's text
//! format, and `/healthz`, which says that the process serves.

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cluster_client::transport::Transport;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::future::Future;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bound before the process starts, so that a port in use is said at once. Metrics
/// tell of tables and load, and nobody has to log in: they stay as close as gRPC.
pub async fn bind(transport: &Transport, listen: &str) -> anyhow::Result<TcpListener> {
    transport
        .check_listen(listen)
        .with_context(|| format!("metrics_listen = {listen}"))?;
    TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on metrics_listen = {listen}"))
}

pub fn serve(
    listener: TcpListener,
    registry: Registry,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> {
    let registry = Arc::new(registry);
    let routes = Router::new()
        .route("/metrics", get(move || metrics(registry.clone())))
        .route("/healthz", get(|| async { "ok\n" }));
    async move {
        let serving = axum::serve(listener, routes)
            .with_graceful_shutdown(async move { shutdown.cancelled().await });
        if let Err(error) = serving.await {
            tracing::error!(%error, "the metrics server ended");
        }
    }
}

async fn metrics(registry: Arc<Registry>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn metrics_stay_on_loopback_unless_allowed() {
        let closed = Transport::default();
        assert!(bind(&closed, "127.0.0.1:0").await.is_ok());
        let refused = bind(&closed, "0.0.0.0:0").await.expect_err("off loopback");
        let text = format!("{refused:#}");
        assert!(text.contains("metrics_listen = 0.0.0.0:0"), "{text}");
        assert!(text.contains("allow_plaintext_off_loopback"), "{text}");
        let open = Transport {
            allow_plaintext_off_loopback: true,
            tls: None,
        };
        assert!(bind(&open, "0.0.0.0:0").await.is_ok());
    }
}
