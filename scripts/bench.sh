#!/usr/bin/env bash
# Figures of the whole path at the running quickstart: how soon a committed row
# is found, and what SQL adds to a search.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

if [ "$(cat "$RUN_DIR/mode" 2>/dev/null)" != dev ] ||
  ! is_alive "$RUN_DIR/pids/postgres.pid" || ! is_alive "$RUN_DIR/pids/dev.pid"; then
  die "the quickstart does not run here: make quickstart, then make bench"
fi
"$SCRIPTS/setup.sh"
# shellcheck source=scripts/env.sh
. "$SCRIPTS/env.sh" # setup may just have made the RocksDB archive
cd "$ROOT"
with_progress "Building path-bench" "$RUN_DIR/logs/build-bench.log" \
  cargo build --release --locked --workspace --bin path-bench
dsn=$("$SCRIPTS/postgres.sh" dsn)
"$CARGO_TARGET_DIR/release/path-bench" freshness "$dsn" 20
"$CARGO_TARGET_DIR/release/path-bench" overhead "$dsn"
