#!/usr/bin/env bash
# Runs tests/sql/*.sql against a private Postgres 15 without a cluster, and
# compares with tests/expected. The extension must be installed
# (scripts/install-extension.sh). With UPDATE=1 the output becomes the expected.
#
#   PORT               55443, the name of the socket; there is no TCP
#   SERVER_OPTIONS     further options of the server
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/../../scripts/env.sh"

here=$ROOT/pg-bridge-ext/tests
port=${PORT:-55443}
# Nobody but the server's user looks into it, so the server may trust who comes.
work=$(mktemp -d /tmp/ruvector-regress.XXXXXX)
if [ "$(id -u)" = 0 ]; then chown postgres:postgres "$work"; fi

# shellcheck disable=SC2317 # called by the trap
stop() {
  as_server "$PG_BIN/pg_ctl" -D "$work/data" -m immediate -w stop >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap stop EXIT

sql() { "$PG_BIN/psql" -X -q -h "$work" -p "$port" -U postgres "$@"; }

as_server "$PG_BIN/initdb" -D "$work/data" -U postgres -A trust --no-locale -E UTF8 >/dev/null
as_server "$PG_BIN/pg_ctl" -D "$work/data" -l "$work/log" -w \
  -o "-p $port -k $work -c listen_addresses='' -c fsync=off ${SERVER_OPTIONS:-}" start >/dev/null

# Files that a script writes with \copy go away with the rest.
cd "$work"
failed=0
for script in "$here"/sql/*.sql; do
  name=$(basename "$script" .sql)
  database=test_$name
  "$PG_BIN/createdb" -h "$work" -p "$port" -U postgres "$database"
  sql -d "$database" -c 'CREATE EXTENSION ruvector'
  sql -a -d "$database" -f "$script" 2>&1 | sed -E 's/^psql:[^ ]*: //' >"$work/$name.out"
  if [ -n "${UPDATE:-}" ]; then
    cp "$work/$name.out" "$here/expected/$name.out"
  elif diff -u "$here/expected/$name.out" "$work/$name.out"; then
    say "ok     $name"
  else
    say "FAILED $name"
    failed=1
  fi
  if ! sql -d "$database" -c 'DROP EXTENSION ruvector CASCADE' >/dev/null 2>&1; then
    say "FAILED $name: DROP EXTENSION"
    failed=1
  fi
done
if grep -q "PANIC\|terminated by signal" "$work/log"; then
  cat "$work/log"
  failed=1
fi
exit $failed
