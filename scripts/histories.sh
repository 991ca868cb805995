#!/usr/bin/env bash
# Random histories of statements and crashes, in a cluster of their own:
#   SEED=7 scripts/histories.sh          one seed again
#   SEEDS=1..300 scripts/histories.sh    all of these, however long it takes
#   SECONDS_MAX=600 scripts/histories.sh fresh seeds for so long
# A failing seed is printed with the file that tells what was done.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

"$SCRIPTS/setup.sh"
# shellcheck source=scripts/env.sh
. "$SCRIPTS/env.sh" # setup may just have made the RocksDB archive
cd "$ROOT"
"$SCRIPTS/build.sh"
cargo_test() { cargo test --release --locked --workspace --test histories "$@"; }
with_progress "Building the histories" "$RUN_DIR/logs/build-histories.log" cargo_test --no-run

SEEDS=${SEEDS:-${SEED:-}}
if [ -n "$SEEDS" ]; then export SEEDS; else unset SEEDS; fi
export HISTORY_SECONDS=${SECONDS_MAX:-240}
export PREBUILT=$RUN_DIR/bin/ruvector
# The cluster's run folder is not this clone's.
export RUN_LINK=
cargo_test -- --nocapture --include-ignored
