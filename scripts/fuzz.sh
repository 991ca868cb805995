#!/usr/bin/env bash
# Mangles captured streams, COPY, wire messages, records and checkpoints, so many minutes each:
#   fuzz.sh MINUTES [TARGET…]     targets: pgoutput transactions copy wire records checkpoint
# SEED chooses another run. An input that does what none may is written to a file:
#   fuzz TARGET --input FILE      tries it again
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

MINUTES=${1:?fuzz.sh MINUTES [TARGET…]}
shift
"$SCRIPTS/setup.sh"
# shellcheck source=scripts/env.sh
. "$SCRIPTS/env.sh" # setup may just have made the RocksDB archive
prepare_run_dir
claim_caches
cd "$ROOT"
with_progress "Building the fuzzer" "$RUN_DIR/logs/build-fuzz.log" \
  cargo build --release --locked --workspace --bin fuzz
# Inputs that failed are written where it runs.
cd "$RUN_DIR"
exec "$CARGO_TARGET_DIR/release/fuzz" "$@" --minutes "$MINUTES" --seed "${SEED:-1}"
