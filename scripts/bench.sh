#!/usr/bin/env bash
# Figures of the whole path at the running quickstart: how soon a committed row
# is found, and what SQL adds to a search.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"
# shellcheck source=scripts/bench-env.sh
. "$SCRIPTS/bench-env.sh"

if [ "$(cat "$RUN_DIR/mode" 2>/dev/null)" != dev ] ||
  ! is_alive "$RUN_DIR/pids/postgres.pid" || ! is_alive "$RUN_DIR/pids/dev.pid"; then
  die "the quickstart does not run here: make quickstart, then make bench"
fi
"$SCRIPTS/setup.sh"
# shellcheck source=scripts/env.sh
. "$SCRIPTS/env.sh" # setup may just have made the RocksDB archive
cd "$ROOT"
build_path_bench
dsn=$("$SCRIPTS/postgres.sh" dsn)
path_bench freshness "$dsn" 20
path_bench overhead "$dsn"
