#!/usr/bin/env bash
# What the death of the leader, the death of a node and a move cost searches, in
# a cluster of its own, with default settings. Names of parts as arguments run
# only those: bench-failover.sh leader node move
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"
# shellcheck source=scripts/bench-env.sh
. "$SCRIPTS/bench-env.sh"

[ $# -gt 0 ] || set -- leader node move
build_bench
build_path_bench
own_run_dir failover

# One partition cannot be had otherwise in a cluster of three nodes.
allow_one_partition() {
  local name
  for name in coordinator-1 coordinator-2 coordinator-3; do
    scripts/cluster.sh stop "$name"
    RUVECTOR_PARTITIONS_PER_COLLECTION_MAX=1 scripts/cluster.sh start "$name"
  done
}

quietly up NODES=3 COORDINATORS=3 REPLICAS=2
for part in "$@"; do
  if [ "$part" = move ]; then allow_one_partition; fi
  path_bench failover "$part" "$RUN_DIR"
done
