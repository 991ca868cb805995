#!/usr/bin/env bash
# Runs the simulator over a range of seeds: sim.sh 1..2000
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

"$SCRIPTS/setup.sh"
# shellcheck source=scripts/env.sh
. "$SCRIPTS/env.sh" # setup may just have made the RocksDB archive
prepare_run_dir
claim_caches
cd "$ROOT"
with_progress "Building the simulator" "$RUN_DIR/logs/build-sim.log" \
  cargo build --release --locked --workspace --bin sim
exec "$CARGO_TARGET_DIR/release/sim" --seeds "${1:?sim.sh FIRST..END}"
