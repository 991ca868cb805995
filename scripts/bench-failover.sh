#!/usr/bin/env bash
# What the death of the leader, the death of a node and a move cost searches, in
# a cluster of its own, with default settings. Names of parts as arguments run
# only those: bench-failover.sh leader node move
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

[ $# -gt 0 ] || set -- leader node move
"$SCRIPTS/setup.sh"
# shellcheck source=scripts/env.sh
. "$SCRIPTS/env.sh" # setup may just have made the RocksDB archive
cd "$ROOT"
"$SCRIPTS/build.sh"
with_progress "Building path-bench" "$RUN_DIR/logs/build-bench.log" \
  cargo build --release --locked --workspace --bin path-bench

export PREBUILT=$RUN_DIR/bin/ruvector
export RUN_DIR=/var/tmp/ruvector-bench-failover-$$
# The run folder is not this clone's.
RUN_LINK=

finish() {
  local status=$?
  if [ "$status" = 0 ]; then
    make -s --no-print-directory clean >/dev/null
  else
    make -s --no-print-directory down >/dev/null || true
    say "The cluster's logs stay in $RUN_DIR" >&2
  fi
  exit "$status"
}
trap finish EXIT

# One partition cannot be had otherwise in a cluster of three nodes.
allow_one_partition() {
  local name
  for name in coordinator-1 coordinator-2 coordinator-3; do
    scripts/cluster.sh stop "$name"
    RUVECTOR_PARTITIONS_PER_COLLECTION_MAX=1 scripts/cluster.sh start "$name"
  done
}

make -s --no-print-directory up NODES=3 COORDINATORS=3 REPLICAS=2
for part in "$@"; do
  if [ "$part" = move ]; then allow_one_partition; fi
  "$CARGO_TARGET_DIR/release/path-bench" failover "$part" "$RUN_DIR"
done
