//! What callers say to coordinators.

use super::status;
use cluster_client::ClusterClient;
use cluster_core::lease::LeaseTerms;
use cluster_core::map::PartitionMap;
use proto::v1;

pub fn short_leases() -> LeaseTerms {
    LeaseTerms {
        ttl_ms: 1_500,
        renew_every_ms: 300,
        ..LeaseTerms::default()
    }
}

pub async fn join_node(client: &ClusterClient, disk: &str) -> u64 {
    let request = v1::JoinNodeRequest {
        disk_uuid: disk.to_owned(),
        node_id: None,
        address: format!("{disk}:7501"),
        zone: String::new(),
    };
    lead!(client, join_node, request).unwrap().node_id
}

pub async fn join_consumer(client: &ClusterClient, process: &str) -> u64 {
    let request = v1::JoinConsumerRequest {
        process_uuid: process.to_owned(),
        address: String::new(),
    };
    lead!(client, join_consumer, request).unwrap().consumer_id
}

pub async fn add_source(client: &ClusterClient) -> u64 {
    let request = v1::AddSourceRequest {
        name: "main".to_owned(),
        dsn: "host=x".to_owned(),
    };
    lead!(client, add_source, request).unwrap().source_id
}

pub async fn map(client: &ClusterClient) -> PartitionMap {
    // From the leader, so that everything committed before is in it.
    let request = v1::GetStatusRequest {};
    let map = loop {
        let answer = lead!(client, get_status, request).unwrap();
        if answer.leader_id == answer.coordinator_id {
            break answer.map.unwrap();
        }
        for coordinator in answer.coordinators.iter().filter(|c| c.is_leader) {
            if let Ok(answer) = status(client, &coordinator.address).await {
                return answer.map.unwrap().try_into().unwrap();
            }
        }
    };
    map.try_into().unwrap()
}

pub fn renewal(node_id: u64, disk: &str) -> v1::RenewNodeLeaseRequest {
    v1::RenewNodeLeaseRequest {
        node_id,
        disk_uuid: disk.to_owned(),
        report: None,
    }
}

pub fn spec(source_id: u64) -> v1::CollectionSpec {
    v1::CollectionSpec {
        source_id,
        index_oid: 50,
        definition_generation: 1,
        table_oid: 40,
        column_attnum: 2,
        key_attnums: vec![1],
        metric: v1::Metric::L2.into(),
        dimensions: 4,
        m: 16,
        ef_construction: 64,
        ..v1::CollectionSpec::default()
    }
}
