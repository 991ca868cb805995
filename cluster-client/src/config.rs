//! What a client of the cluster can be told.

use crate::transport::Transport;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// `host:port` of the coordinators to start from; the map names the rest.
    pub coordinators: Vec<String>,
    pub transport: Transport,
    /// One search attempt on one node.
    pub attempt_timeout: Duration,
    /// One attempt at one coordinator; a change there costs a quorum and fsyncs.
    pub coordinator_attempt_timeout: Duration,
    /// A whole call to the leader, or a whole refresh of the map, with retries.
    pub call_timeout: Duration,
    /// How long a node may take before a second replica is asked as well.
    pub hedge_after: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            coordinators: vec!["127.0.0.1:7401".to_owned()],
            transport: Transport::default(),
            attempt_timeout: Duration::from_secs(1),
            coordinator_attempt_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(10),
            hedge_after: Duration::from_millis(200),
        }
    }
}
