#![allow(clippy::unwrap_used)]
//! In whose name a search is answered.

use super::search::{PageError, Search, SearchError};
use crate::testing::*;
use cluster_core::ids::*;
use cluster_core::map::{PartitionMap, Slot};
use cluster_core::server::{AskedBy, Stranger};
use cluster_core::wal_position::Lsn;
use std::path::Path;
use std::sync::Arc;

const DATABASE: u32 = 5;

/// The map in which the source is known by its server's start.
fn named(version: u64, start: u64) -> PartitionMap {
    let mut map = map();
    map.version = MapVersion(version);
    let source = map.sources.get_mut(&SourceId(1)).unwrap();
    source.server_start = Some(ServerStart(start));
    source.slot = Some(Slot {
        system_identifier: 9,
        database_oid: DATABASE,
        timeline: 1,
        consistent_point: Lsn(1),
        publication: None,
    });
    map
}

fn by(version: u64, start: u64, database_oid: u32) -> Search {
    Search {
        map_version: MapVersion(version),
        asked_by: Some(AskedBy {
            start: ServerStart(start),
            database_oid,
        }),
        ..search()
    }
}

async fn filled(dir: &Path) -> TestNode {
    let t = TestNode::start(dir).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    // A server that draws no number, and a worker that sends none: release 0.1.0.
    assert_eq!(t.page(search()).await.unwrap().hits.len(), 1);
    t.maps.send_replace(Arc::new(named(2, 81)));
    t
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_request_of_another_server_or_database_is_refused_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let t = filled(dir.path()).await;
    let page = t.page(by(2, 81, DATABASE)).await.unwrap();
    assert_eq!(page.hits.len(), 1);
    let strangers = [
        (by(2, 82, DATABASE), Stranger::OtherServer),
        (
            by(2, 81, 6),
            Stranger::OtherDatabase {
                asked: 6,
                followed: DATABASE,
            },
        ),
        (search(), Stranger::Nameless),
    ];
    for (search, expected) in strangers {
        match t.node.search(search).await {
            Err(SearchError::Stranger(stranger)) => assert_eq!(stranger, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_where_one_map_is_outdated_the_answer_is_estale() {
    let dir = tempfile::tempdir().unwrap();
    let t = filled(dir.path()).await;
    // The server started anew, and the caller's map knows it before the node's does.
    let early = t.node.clone();
    let early = tokio::spawn(async move { early.search(by(3, 82, DATABASE)).await });
    t.maps.send_replace(Arc::new(named(3, 82)));
    let pages = early.await.unwrap().unwrap();
    assert_eq!(pages[0].1.as_ref().unwrap().hits.len(), 1);
    let refused = t.page(by(4, 83, DATABASE)).await.unwrap_err();
    assert!(matches!(refused, PageError::Stale(_)), "{refused}");
    // And the other way round: the caller has not heard of the start.
    let refused = t.page(by(2, 81, DATABASE)).await.unwrap_err();
    assert!(matches!(refused, PageError::Stale(_)), "{refused}");
}
