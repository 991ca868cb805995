#!/usr/bin/env bash
# How fast rows come through, and what that takes, in a cluster of one node beside a
# second Postgres that subscribes to the first. Arguments: quick (default) or full, then
# parts if not all of them: bench-replication.sh full copy single small memory tps.
# The last line printed is one JSON object.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

[ $# -gt 0 ] || set -- quick
"$SCRIPTS/setup.sh"
# shellcheck source=scripts/env.sh
. "$SCRIPTS/env.sh" # setup may just have made the RocksDB archive
cd "$ROOT"
"$SCRIPTS/build.sh"
with_progress "Building path-bench" "$RUN_DIR/logs/build-bench.log" \
  cargo build --release --locked --workspace --bin path-bench

export PREBUILT=$RUN_DIR/bin/ruvector
export RUN_DIR=/var/tmp/ruvector-bench-replication-$$
# Folding is measured where it is said; elsewhere it shall not hold the stream back.
export NODE_SETTINGS="apply.tail_rows_max = 2000000"
# The run folder is not this clone's.
RUN_LINK=
PGBENCH=$(command -v pgbench || echo "$PG_BIN/pgbench")
export PGBENCH

# subscriber COMMAND…: of the second Postgres, where nothing of ours is preloaded.
subscriber() {
  PG_HOME=$RUN_DIR/subscriber PG_PID_FILE=$RUN_DIR/pids/subscriber.pid PG_PRELOAD= \
    "$SCRIPTS/postgres.sh" "$@"
}

finish() {
  local status=$?
  subscriber stop immediate || true
  if [ "$status" = 0 ]; then
    make -s --no-print-directory clean >/dev/null
  else
    make -s --no-print-directory down >/dev/null || true
    say "The cluster's logs stay in $RUN_DIR" >&2
  fi
  exit "$status"
}
trap finish EXIT

make -s --no-print-directory up NODES=1 COORDINATORS=1 REPLICAS=1 >/dev/null
subscriber create 127.0.0.1:1
subscriber start
subscriber create-database
dsn=$(subscriber dsn)
"$PG_BIN/psql" -qAtX -v ON_ERROR_STOP=1 -d "$dsn" -c "CREATE EXTENSION ruvector"
scale=$1
shift
"$CARGO_TARGET_DIR/release/path-bench" replication "$scale" "$RUN_DIR" "$dsn" "$@"
