//! The layers that ARCHITECTURE.md draws, read from `cargo metadata` and the
//! sources: the pure crates depend on nothing that does I/O (so on no protobuf
//! either) and on no shell; RocksDB and Raft stay where they are kept.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's crates, as cargo tells of them.
fn packages() -> Vec<serde_json::Value> {
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
    metadata["packages"].as_array().unwrap().clone()
}

/// Direct dependencies (without dev-dependencies) of the workspace's crates.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    packages()
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
            vec!["libc", "parking_lot", "roaring", "thiserror", "xxhash-rust"],
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

/// It may ask the system for memory, for huge pages have to be asked for, and how much of it
/// is there.
#[test]
fn the_engine_asks_the_system_for_memory_only() {
    let mut sources = Vec::new();
    let engine = concat!(env!("CARGO_MANIFEST_DIR"), "/../index-engine/src");
    rust_files(Path::new(engine), &mut sources);
    let mut calls = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(&source).unwrap();
        for call in text.split("libc::").skip(1) {
            assert!(
                source.ends_with("region.rs"),
                "{} uses libc",
                source.display()
            );
            let name = call.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            calls.insert(name.take(1).collect::<String>());
        }
    }
    calls.retain(|call| call.starts_with(char::is_lowercase));
    assert_eq!(
        calls,
        BTreeSet::from(["madvise", "mincore", "mmap", "munmap"].map(String::from))
    );
}

#[test]
fn the_simulator_depends_on_the_pure_crates_only() {
    for dependency in &dependencies()["sim"] {
        let is_pure = ["cluster-core", "index-engine"].contains(&dependency.as_str());
        assert!(is_pure, "sim depends on {dependency}");
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
fn raft_stays_in_the_coordinator() {
    for (name, direct) in dependencies() {
        let has_raft = direct.iter().any(|d| d == "openraft");
        assert_eq!(has_raft, name == "coordinator", "{name}");
    }
}

#[test]
fn rocksdb_stays_in_the_nodes_storage_and_the_coordinators_raft() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let allowed = ["cluster-node/src/storage", "coordinator/src/raft"].map(|dir| root.join(dir));
    let mut users = BTreeSet::new();
    for package in packages() {
        let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent();
        let mut sources = Vec::new();
        rust_files(&folder.unwrap().join("src"), &mut sources);
        assert!(!sources.is_empty(), "no sources of {}", package["name"]);
        for source in sources {
            let text = std::fs::read_to_string(&source).unwrap();
            if !text.contains("rocksdb::") {
                continue;
            }
            let home = allowed.iter().find(|dir| source.starts_with(dir));
            users.insert(home.unwrap_or_else(|| panic!("{} uses RocksDB", source.display())));
        }
    }
    assert_eq!(users.len(), allowed.len(), "the search has found {users:?}");
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}
