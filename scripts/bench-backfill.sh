#!/usr/bin/env bash
# What a backfill takes of the consumer's memory: the peak (VmHWM) for tables of
# two sizes and 16 dimensions, each in a fresh cluster. Sizes as arguments
# replace the two.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"
# shellcheck source=scripts/bench-env.sh
. "$SCRIPTS/bench-env.sh"

[ $# -gt 0 ] || set -- 100000 3000000
build_bench
# Folding is not what is measured: it shall not hold the copy back.
export NODE_SETTINGS="apply.tail_rows_max = 10000000"

peak_mib() { awk '/VmHWM/ { printf "%.1f", $2 / 1024 }' "/proc/$(head -1 "$RUN_DIR/pids/$1.pid")/status"; }

for rows in "$@"; do
  own_run_dir "backfill-$rows"
  quietly up NODES=1 COORDINATORS=1 REPLICAS=1
  dsn=$(make -s --no-print-directory dsn)
  numbers=$(printf 'random(),%.0s' {1..16})
  sql() { "$PG_BIN/psql" -qAtX -v ON_ERROR_STOP=1 -d "$dsn" "$@"; }
  sql -c "CREATE TABLE filled(id bigint PRIMARY KEY, embedding vector(16))" \
    -c "INSERT INTO filled SELECT i, ARRAY[${numbers%,}]::real[]::vector FROM generate_series(1, $rows) i" \
    -c "ANALYZE filled" -c "CHECKPOINT"
  idle=$(peak_mib consumer-1)
  began=$(date +%s.%N)
  sql -c "CREATE INDEX filled_idx ON filled USING ruhnsw (embedding vector_l2_ops)" \
    -c "SELECT ruvector_wait_for_index('filled_idx', 3600)" >/dev/null
  took=$(awk -v a="$began" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
  echo "$rows rows: consumer $(peak_mib consumer-1) MiB (before: $idle MiB), node $(peak_mib node-1) MiB, ready after $took s"
  quietly clean
  trap - EXIT
done
