#!/usr/bin/env bash
# Builds the binary and the extension, and puts both where this clone's
# processes take them from: a later build, or another clone's, does not replace
# a running program.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

prepare_run_dir
claim_caches
cd "$ROOT"
if [ -n "${PREBUILT:-}" ]; then
  # The tests build once and start many clusters.
  cp "$PREBUILT" "$RUN_DIR/bin/ruvector.new"
  mv "$RUN_DIR/bin/ruvector.new" "$RUN_DIR/bin/ruvector"
  exit 0
fi
with_progress "Building ruvector" "$RUN_DIR/logs/build.log" cargo build --release --locked --workspace --bin ruvector
cp "$CARGO_TARGET_DIR/release/ruvector" "$RUN_DIR/bin/ruvector.new"
mv "$RUN_DIR/bin/ruvector.new" "$RUN_DIR/bin/ruvector"
with_progress "Building the extension" "$RUN_DIR/logs/build-extension.log" \
  env CARGO_TARGET_DIR="$EXTENSION_TARGET_DIR" cargo build --release --locked --manifest-path pg-bridge-ext/Cargo.toml
# In the foreground, for sudo may ask for a password.
SKIP_BUILD=1 "$SCRIPTS/install-extension.sh"
