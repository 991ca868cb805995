#!/usr/bin/env bash
# How fast rows come through, and what that takes, in a cluster of one node beside a
# second Postgres that subscribes to the first. Arguments: quick (default) or full, then
# parts if not all of them: bench-replication.sh full copy single small memory tail bounded tps.
# The last line printed is one JSON object.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"
# shellcheck source=scripts/bench-env.sh
. "$SCRIPTS/bench-env.sh"

[ $# -gt 0 ] || set -- quick
build_bench
build_path_bench

own_run_dir replication
# Folding is measured where it is said; elsewhere it shall not hold the stream back.
export NODE_SETTINGS=${NODE_SETTINGS:-apply.tail_rows_max = 2000000}
PGBENCH=$(command -v pgbench || echo "$PG_BIN/pgbench")
export PGBENCH

# subscriber COMMAND…: of the second Postgres, where nothing of ours is preloaded.
subscriber() {
  PG_HOME=$RUN_DIR/subscriber PG_PID_FILE=$RUN_DIR/pids/subscriber.pid PG_PRELOAD= \
    "$SCRIPTS/postgres.sh" "$@"
}

trap 'status=$?; subscriber stop immediate || true; finish "$status"' EXIT

quietly up NODES=1 COORDINATORS=1 REPLICAS=1
subscriber create 127.0.0.1:1
subscriber start
subscriber create-database
dsn=$(subscriber dsn)
"$PG_BIN/psql" -qAtX -v ON_ERROR_STOP=1 -d "$dsn" -c "CREATE EXTENSION ruvector"
scale=$1
shift
path_bench replication "$scale" "$RUN_DIR" "$dsn" "$@"
