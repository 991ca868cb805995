#!/usr/bin/env bash
# The tests that need a real Postgres and real processes. Those that kill nothing
# share one cluster, started here; the others start their own. Arguments go to
# cargo test instead of all of them, as in
#   scripts/integration.sh --test rows -- --test-threads=1 toast
# HISTORY_SECONDS (240) is how long random histories are played, SEEDS which.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

cd "$ROOT"
"$SCRIPTS/build.sh"
# Always the whole workspace: another selection has other features, and cargo
# would compile half of the dependencies again.
cargo_test() { cargo test --release --locked --workspace "$@"; }
TESTS=(--test definitions --test schema --test schema_under_load --test keys --test partitioned --test databases --test queries --test rows --test snapshots --test prepared --test freshness --test synchronous --test backfill --test transactions --test slot_health --test slot_waits --test verify --test breaks --test gaps --test lost_wal --test mid_backfill --test mid_fold --test sources --test greedy --test faults --test failover --test quorum --test moves_under_load --test killed_moves --test undecodable --test histories --test postgres)
with_progress "Building the tests" "$RUN_DIR/logs/build-tests.log" cargo_test "${TESTS[@]}" --no-run

export PREBUILT=$RUN_DIR/bin/ruvector
export SHARED_CLUSTER_RUN_DIR=/var/tmp/ruvector-test-shared-$$
# The tests' run folders are not this clone's.
RUN_LINK=

shared() { RUN_DIR=$SHARED_CLUSTER_RUN_DIR make -s --no-print-directory "$@"; }

finish() {
  local status=$?
  if [ "$status" = 0 ]; then
    shared clean >/dev/null
  else
    shared down >/dev/null || true
    say "The shared cluster's logs stay in $SHARED_CLUSTER_RUN_DIR" >&2
  fi
  exit "$status"
}
trap finish EXIT

PG_SETTINGS='max_prepared_transactions = 10' shared up NODES=2 COORDINATORS=1 REPLICAS=2
TEST_DSN=$(shared dsn)
export TEST_DSN
[ $# -gt 0 ] || set -- "${TESTS[@]}" -- --test-threads=1 --include-ignored
cargo_test "$@"
