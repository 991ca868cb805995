//! How processes reach each other: plaintext on loopback, elsewhere only when
//! the operator says so. The TLS configuration type exists, mTLS does not yet:
//! a configuration that asks for it is refused rather than served in plaintext.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle or hung connection is noticed within interval + timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Flow-control windows; gRPC's default of 64 KB stalls batches and checkpoints.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transport {
    /// Without it only loopback addresses are listened on and connected to.
    pub allow_plaintext_off_loopback: bool,
    pub tls: Option<TlsConfig>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    pub ca_file: PathBuf,
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    #[error("{0:?} is not an address: write host:port, as in 127.0.0.1:7401")]
    BadAddress(String),
    #[error(
        "{0} is not a loopback address, and the transport is plaintext: \
         set transport.allow_plaintext_off_loopback to accept that"
    )]
    PlaintextOffLoopback(String),
    #[error("transport.tls is set, but TLS is not available in this version: remove it")]
    TlsUnavailable,
}

impl Transport {
    /// Whether this process may listen on `addr` (`host:port`).
    pub fn check_listen(&self, addr: &str) -> Result<(), TransportError> {
        self.check(addr)
    }

    /// A channel that connects at its first call and reconnects by itself. Needs
    /// a tokio runtime around it.
    pub fn channel(&self, addr: &str) -> Result<Channel, TransportError> {
        self.check(addr)?;
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|_| TransportError::BadAddress(addr.to_owned()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(KEEPALIVE_INTERVAL))
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Ok(endpoint.connect_lazy())
    }

    pub fn is_plaintext(&self) -> bool {
        self.tls.is_none()
    }

    fn check(&self, addr: &str) -> Result<(), TransportError> {
        if self.tls.is_some() {
            return Err(TransportError::TlsUnavailable);
        }
        let host = host_of(addr).ok_or_else(|| TransportError::BadAddress(addr.to_owned()))?;
        if self.allow_plaintext_off_loopback || is_loopback(host) {
            Ok(())
        } else {
            Err(TransportError::PlaintextOffLoopback(addr.to_owned()))
        }
    }
}

fn host_of(addr: &str) -> Option<&str> {
    let (host, port) = addr.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    if let Some(inner) = host.strip_prefix('[') {
        return inner.strip_suffix(']').filter(|h| !h.is_empty());
    }
    let is_host = !host.is_empty() && !host.contains([':', '/', '@', ' ']);
    is_host.then_some(host)
}

/// A name other than `localhost` could resolve to anything.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The socket address of a numeric `host:port`, or of `localhost`.
pub fn listen_address(addr: &str) -> Result<SocketAddr, TransportError> {
    let numeric = match addr.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => addr.to_owned(),
    };
    numeric
        .parse()
        .map_err(|_| TransportError::BadAddress(addr.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_stays_on_loopback_unless_allowed() {
        let closed = Transport::default();
        for loopback in [
            "127.0.0.1:1",
            "127.8.9.1:7401",
            "localhost:7401",
            "[::1]:7401",
        ] {
            assert_eq!(closed.check_listen(loopback), Ok(()), "{loopback}");
        }
        for far in [
            "10.0.0.1:7401",
            "0.0.0.0:7401",
            "[::]:7401",
            "example.com:7401",
        ] {
            let refused = Err(TransportError::PlaintextOffLoopback(far.to_owned()));
            assert_eq!(closed.check_listen(far), refused);
        }
        let open = Transport {
            allow_plaintext_off_loopback: true,
            tls: None,
        };
        assert_eq!(open.check_listen("10.0.0.1:7401"), Ok(()));
    }

    #[test]
    fn nonsense_addresses_are_named() {
        for bad in [
            "",
            "7401",
            "localhost",
            "localhost:http",
            "localhost:99999",
            ":7401",
            "a:b:1",
        ] {
            let refused = Err(TransportError::BadAddress(bad.to_owned()));
            assert_eq!(Transport::default().check_listen(bad), refused);
        }
    }

    #[test]
    fn tls_is_refused_rather_than_ignored() {
        let tls = Transport {
            allow_plaintext_off_loopback: true,
            tls: Some(TlsConfig::default()),
        };
        assert_eq!(
            tls.check_listen("127.0.0.1:1"),
            Err(TransportError::TlsUnavailable)
        );
    }
}
