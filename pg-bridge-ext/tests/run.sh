#!/usr/bin/env bash
# Runs tests/sql/*.sql against a private Postgres 15 without a cluster, and
# compares with tests/expected. The extension must be installed
# (scripts/install-extension.sh). With UPDATE=1 the output becomes the expected.
#
#   PG_CONFIG   /usr/bin/pg_config
#   PORT        55443
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
bin="$("${PG_CONFIG:-/usr/bin/pg_config}" --bindir)"
port="${PORT:-55443}"
work="$(mktemp -d /tmp/ruvector-regress.XXXXXX)"

# Postgres does not run as root.
as_server=()
if [[ $EUID -eq 0 ]]; then
    chown postgres:postgres "$work"
    as_server=(setpriv --reuid=postgres --regid=postgres --clear-groups)
fi
stop() {
    "${as_server[@]}" "$bin/pg_ctl" -D "$work/data" -m immediate -w stop >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap stop EXIT

cd "$work"
"${as_server[@]}" "$bin/initdb" -D "$work/data" -U postgres -A trust --no-locale -E UTF8 >/dev/null
"${as_server[@]}" "$bin/pg_ctl" -D "$work/data" -l "$work/log" -w \
    -o "-p $port -k $work -c listen_addresses='' -c fsync=off ${SERVER_OPTIONS:-}" start >/dev/null

failed=0
for script in "$here"/sql/*.sql; do
    name="$(basename "$script" .sql)"
    database="test_$name"
    "$bin/createdb" -h "$work" -p "$port" -U postgres "$database"
    "$bin/psql" -X -q -h "$work" -p "$port" -U postgres -d "$database" -c 'CREATE EXTENSION ruvector'
    "$bin/psql" -X -a -q -h "$work" -p "$port" -U postgres -d "$database" -f "$script" 2>&1 |
        sed -E 's/^psql:[^ ]*: //' >"$work/$name.out"
    if [[ -n "${UPDATE:-}" ]]; then
        cp "$work/$name.out" "$here/expected/$name.out"
    elif diff -u "$here/expected/$name.out" "$work/$name.out"; then
        echo "ok     $name"
    else
        echo "FAILED $name"
        failed=1
    fi
    "$bin/psql" -X -q -h "$work" -p "$port" -U postgres -d "$database" -c 'DROP EXTENSION ruvector CASCADE' >/dev/null 2>&1 ||
        { echo "FAILED $name: DROP EXTENSION"; failed=1; }
done
if grep -q "PANIC\|terminated by signal" "$work/log"; then
    cat "$work/log"
    failed=1
fi
exit $failed
