use super::*;
use cluster_core::ids::{LeaseEpoch, MapVersion};

fn client(configured: &[&str]) -> ClusterClient {
    ClusterClient::new(ClientConfig {
        coordinators: configured.iter().map(|a| (*a).to_owned()).collect(),
        ..ClientConfig::default()
    })
}

fn map(version: u64, coordinators: &[&str]) -> PartitionMap {
    PartitionMap {
        epoch: LeaseEpoch(1),
        version: MapVersion(version),
        coordinators: coordinators.iter().map(|a| (*a).to_owned()).collect(),
        ..PartitionMap::default()
    }
}

#[tokio::test]
async fn coordinators_are_those_of_the_map_and_those_of_the_configuration() {
    let client = client(&["127.0.0.1:1"]);
    client.offer_map(map(1, &["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]));
    for address in client.coordinator_addresses() {
        client.coordinator(&address).expect("a channel");
    }
    // 1 and 2 are removed, 4 is added; 1 is still configured.
    client.offer_map(map(2, &["127.0.0.1:3", "127.0.0.1:4"]));
    let known = client.coordinator_addresses();
    assert_eq!(known, ["127.0.0.1:1", "127.0.0.1:3", "127.0.0.1:4"]);
    let channels = client.inner.channels.lock();
    assert!(
        !channels.contains_key("127.0.0.1:2"),
        "its channel is closed"
    );
    assert!(channels.contains_key("127.0.0.1:1"));
}
