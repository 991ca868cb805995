#!/usr/bin/env bash
# From nothing to measured SQL searches: see 'make help'. What exists is used
# again, so a second run only repeats the measurement.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

"$SCRIPTS/cluster.sh" check dev
say "1/4 Packages and caches"
"$SCRIPTS/setup.sh"
say "2/4 Build"
"$SCRIPTS/build.sh"
say "3/4 Postgres and the cluster"
"$SCRIPTS/cluster.sh" dev
say "4/4 Fashion-MNIST: load, index, search"
dsn=$("$SCRIPTS/postgres.sh" dsn)
"$RUN_DIR/bin/ruvector" demo --dsn "$dsn" --figures "$RUN_DIR/dev/figures.json"

cat <<TXT

It keeps running.
  make psql      a SQL prompt (table items); any client: psql "\$(make -s dsn)"
  make status    the processes and the cluster's view of itself
  make logs      follow the logs in $RUN_DIR/logs
  make down      stop everything, keep the data; make quickstart goes on from there
  make clean     stop everything and delete the data
TXT
