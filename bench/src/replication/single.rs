//! Rows committed one by one at a thousand a second, and how soon each is found.

use super::Scale;
use crate::freshness::{Load, measure};
use crate::percentile::percentile;
use anyhow::Result;
use integration_tests::Cluster;
use serde_json::{Value, json};

const LOAD: Load = Load {
    inserts_per_second: 1_000,
    writers: 4,
};

pub fn run(cluster: &Cluster, scale: Scale) -> Result<Value> {
    let mut found = measure(cluster.dsn(), scale.of(10, 30), LOAD)?;
    let mut ms = |percent| percentile(&mut found.lags, percent).as_secs_f64() * 1e3;
    let (p50, p99, max) = (ms(50), ms(99), ms(100));
    println!(
        "commit to searchable at {:.0} rows/s, {} samples: p50 {p50:.1} ms, p99 {p99:.1} ms (goal <= 100), maximum {max:.1} ms",
        found.inserted_per_second,
        found.lags.len()
    );
    Ok(json!({
        "rows_per_s": found.inserted_per_second.round(),
        "samples": found.lags.len(),
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": max,
        "goal_p99_ms": 100,
    }))
}
