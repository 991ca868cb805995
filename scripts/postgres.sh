#!/usr/bin/env bash
# The private Postgres 15 of this clone: own data folder, own port, TCP on
# loopback only, a password that nobody else can read. A server that already
# runs on this machine is left alone.
#
#   postgres.sh create COORDINATORS   initdb and settings, once
#   postgres.sh start | stop | dsn | port | create-database
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

# PG_HOME holds the server's data and secrets; a mode of its own (dev, cluster,
# test) gets a server of its own.
PG_HOME=${PG_HOME:-$RUN_DIR/$(cat "$RUN_DIR/mode" 2>/dev/null || echo dev)/postgres}
DATA=$PG_HOME/data
PID_FILE=${PG_PID_FILE:-$RUN_DIR/pids/postgres.pid}
LOG=$PG_HOME/log/postgres.log
DATABASE=${PG_DATABASE:-ruvector}

port() { cat "$PG_HOME/port" 2>/dev/null || die "there is no Postgres here yet: make quickstart, or make up"; }

dsn() {
  local password
  port >/dev/null
  password=$(cat "$PG_HOME/password") || die "only the user that created $PG_HOME can read its password"
  printf 'postgresql://postgres:%s@127.0.0.1:%s/%s\n' "$password" "$(port)" "$DATABASE"
}

create() {
  local coordinators=$1
  if [ -f "$PG_HOME/created" ]; then
    write_settings "$coordinators"
    return
  fi
  [ -x "$PG_BIN/initdb" ] || die "$PG_BIN/initdb is not there: scripts/setup.sh installs Postgres 15"
  rm -rf "$PG_HOME"
  mkdir -p "$PG_HOME/log"
  free_port "${PG_PORT:-5433}"
  printf '%s\n' "$FREE_PORT" >"$PG_HOME/port"
  (umask 077 && head -c 18 /dev/urandom | base64 | tr '+/' '-_' >"$PG_HOME/password")
  mkdir "$DATA"
  chmod 700 "$DATA"
  if [ "$(id -u)" = 0 ]; then
    chown postgres:postgres "$DATA" "$PG_HOME/log"
  fi
  # initdb opens the password as the server's user, who may not open our file.
  local secret=$PG_HOME/log/initdb.password
  # shellcheck disable=SC2016
  as_server sh -c 'umask 077; cat >"$1"' sh "$secret" <"$PG_HOME/password"
  as_server "$PG_BIN/initdb" --pgdata "$DATA" --username postgres --auth scram-sha-256 \
    --encoding UTF8 --locale C.UTF-8 --pwfile "$secret" \
    >"$PG_HOME/initdb.log" 2>&1 || {
    cat "$PG_HOME/initdb.log" >&2
    die "initdb failed"
  }
  rm -f "$secret"
  as_server tee -a "$DATA/postgresql.conf" >/dev/null <<<"include 'ruvector.conf'"
  write_settings "$coordinators"
  touch "$PG_HOME/created"
}

write_settings() {
  as_server tee "$DATA/ruvector.conf" >/dev/null <<CONF
# Written by scripts/postgres.sh at each start; put your own settings into
# postgresql.auto.conf (ALTER SYSTEM).
listen_addresses = '127.0.0.1'
port = $(port)
unix_socket_directories = ''
wal_level = logical
shared_preload_libraries = '${PG_PRELOAD-ruvector}'
ruvector.coordinators = '$1'
shared_buffers = 256MB
max_wal_size = 4GB
maintenance_work_mem = 256MB
# The primary's disk outranks the index: at most this much WAL waits for it.
max_slot_wal_keep_size = 8GB
log_line_prefix = '%m [%p] %q%u@%d '
${PG_SETTINGS-}
CONF
}

start() {
  local started
  if is_alive "$PID_FILE"; then return; fi
  [ -f "$PG_HOME/created" ] || die "there is no Postgres here yet: make quickstart, or make up"
  is_port_free "$(port)" ||
    die "port $(port) is in use by another program; stop that, or 'make clean' to choose another port"
  mkdir -p "$(dirname "$PID_FILE")"
  # setsid: an interrupt at the terminal is for the script, not for the server.
  if ! as_server setsid "$PG_BIN/pg_ctl" --pgdata "$DATA" --log "$LOG" --timeout 120 --wait start \
    >"$PG_HOME/pg_ctl.log" 2>&1; then
    tail -n 20 "$LOG" >&2
    die "Postgres does not start; its log is $LOG"
  fi
  started=$(as_server head -n 1 "$DATA/postmaster.pid")
  printf '%s\n' "$started" >"$PID_FILE"
}

stop() {
  if is_alive "$PID_FILE"; then
    as_server "$PG_BIN/pg_ctl" --pgdata "$DATA" --mode "${1:-fast}" --timeout 60 --wait stop >/dev/null ||
      die "Postgres does not stop; its log is $LOG"
  fi
  rm -f "$PID_FILE"
}

create_database() {
  local admin found
  admin=$(DATABASE=postgres dsn)
  found=$("$PG_BIN/psql" -XAtq "$admin" -c "SELECT 1 FROM pg_database WHERE datname = '$DATABASE'")
  [ -n "$found" ] || "$PG_BIN/psql" -XAtq "$admin" -c "CREATE DATABASE \"$DATABASE\""
}

case ${1:-} in
  create) create "${2:?postgres.sh create COORDINATORS}" ;;
  start) start ;;
  stop) stop "${2:-fast}" ;;
  dsn) dsn ;;
  port) port ;;
  create-database) create_database ;;
  *) die "usage: postgres.sh create COORDINATORS | start | stop [MODE] | dsn | port | create-database" ;;
esac
