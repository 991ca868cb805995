#!/usr/bin/env bash
# Stops this clone's processes and deletes their data. Build caches stay.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

"$SCRIPTS/cluster.sh" down >/dev/null
if [ -d "$RUN_DIR" ]; then
  [ -O "$RUN_DIR" ] || die "$RUN_DIR belongs to another user, who has to remove it"
  rm -rf "$RUN_DIR"
  say "Removed $RUN_DIR"
fi
if [ -n "$RUN_LINK" ] && [ -L "$RUN_LINK" ]; then rm -f "$RUN_LINK"; fi
