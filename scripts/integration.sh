#!/usr/bin/env bash
# The integration tests. Those that kill nothing share one cluster, started here;
# the others start their own. Arguments go to cargo test, as in
#   scripts/integration.sh --test rows -- --test-threads=1 toast
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

cd "$ROOT"
"$SCRIPTS/build.sh"
with_progress "Building the tests" "$RUN_DIR/logs/build-tests.log" \
  cargo test --release --locked -p integration-tests --no-run

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

shared up NODES=2 COORDINATORS=1 REPLICAS=2
[ $# -gt 0 ] || set -- -- --test-threads=1
cargo test --release --locked -p integration-tests "$@"
