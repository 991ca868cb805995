//! The layers that DESIGN §9 draws, read from `cargo metadata`: the pure crates
//! depend on nothing that does I/O, and on no shell.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;

/// Direct dependencies (without dev-dependencies) of the workspace's crates.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().unwrap();
            let direct = all.iter().filter(|d| d["kind"] != "dev");
            let names = direct
                .map(|d| d["name"].as_str().unwrap().to_owned())
                .collect();
            (package["name"].as_str().unwrap().to_owned(), names)
        })
        .collect()
}

#[test]
fn the_pure_crates_know_no_io_no_async_and_no_shell() {
    let allowed = BTreeMap::from([
        (
            "cluster-core",
            vec!["hashring", "serde", "thiserror", "xxhash-rust"],
        ),
        (
            "index-engine",
            vec![
                "cluster-core",
                "parking_lot",
                "simsimd",
                "thiserror",
                "xxhash-rust",
            ],
        ),
    ]);
    let dependencies = dependencies();
    for (name, allowed) in allowed {
        for dependency in &dependencies[name] {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} depends on {dependency}"
            );
        }
    }
}

#[test]
fn shells_do_not_depend_on_each_other() {
    let shells = ["coordinator", "cluster-node", "wal-consumer"];
    let dependencies = dependencies();
    for shell in shells {
        for other in shells {
            assert!(
                !dependencies[shell].iter().any(|d| d == other),
                "{shell} depends on {other}"
            );
        }
        assert!(!dependencies["cluster-client"].iter().any(|d| d == shell));
    }
}

#[test]
fn protobuf_and_rocksdb_stay_in_their_crates() {
    let dependencies = dependencies();
    for (name, direct) in &dependencies {
        let has = |dependency: &str| direct.iter().any(|d| d == dependency);
        if has("rocksdb") {
            assert!(
                ["cluster-node", "coordinator"].contains(&name.as_str()),
                "{name} uses RocksDB"
            );
        }
        if has("openraft") {
            assert_eq!(name, "coordinator");
        }
    }
}
