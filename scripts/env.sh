# shellcheck shell=bash disable=SC2034 # what is set here is used elsewhere
# The variables and the words that every script and every make target share.
# Sourced, never run. Anything set here may be set from outside instead.
#
#   RUVECTOR_CACHE        build caches that outlive a clone
#   CARGO_TARGET_DIR      build output of the main workspace
#   EXTENSION_TARGET_DIR  build output of the Postgres extension's workspace
#   RUN_DIR               run-time state of this clone: data, sockets, logs, pids

# Under root's umask of 077 the server's own user could not reach its folders;
# what is secret is closed by name.
umask 022

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
SCRIPTS=$ROOT/scripts

export RUVECTOR_CACHE=${RUVECTOR_CACHE:-$HOME/.cache/ruvector}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$RUVECTOR_CACHE/target}
export EXTENSION_TARGET_DIR=${EXTENSION_TARGET_DIR:-$RUVECTOR_CACHE/target-pg}

# RocksDB takes ten minutes to compile: setup.sh does it once, everything else
# links the archive.
ROCKSDB_CACHE=${ROCKSDB_LIB_DIR:-$RUVECTOR_CACHE/rocksdb}
if [ -f "$ROCKSDB_CACHE/librocksdb.a" ]; then
  export ROCKSDB_LIB_DIR=$ROCKSDB_CACHE ROCKSDB_STATIC=1
fi

PG_BIN=${PG_BIN:-/usr/lib/postgresql/15/bin}
export PG_CONFIG=${PG_CONFIG:-$PG_BIN/pg_config}
export PGRX_PG_CONFIG_PATH=${PGRX_PG_CONFIG_PATH:-$PG_CONFIG}

# Postgres refuses to run as root, and the server's own user cannot look into a
# clone below /root: root's state lives where both can read, .run points there.
RUN_LINK=${RUN_LINK:-}
if [ -z "${RUN_DIR:-}" ]; then
  RUN_LINK=$ROOT/.run
  if [ "$(id -u)" = 0 ]; then
    RUN_DIR=/var/tmp/ruvector-run-$(printf %s "$ROOT" | sha256sum | cut -c1-10)
  else
    RUN_DIR=$ROOT/.run
  fi
fi
export RUN_DIR RUN_LINK

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# as_root COMMAND…: sudo where needed, and said aloud.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; return; fi
  command -v sudo >/dev/null || die "'$*' needs root: install sudo, or run it as root, then try again"
  say "  sudo $*" >&2
  sudo "$@"
}

# as_server COMMAND…: as the user that Postgres runs as.
as_server() {
  if [ "$(id -u)" = 0 ]; then
    (cd / && setpriv --reuid=postgres --regid=postgres --clear-groups "$@")
  else
    "$@"
  fi
}

# claim_caches: several clones share the build caches, and cargo, which compares
# times only, would take another clone's build of an older source for this one's.
# Where another clone has built last, this one's sources are made new.
claim_caches() {
  local cache
  for cache in "$CARGO_TARGET_DIR" "$EXTENSION_TARGET_DIR"; do
    [ "$(cat "$cache/clone" 2>/dev/null)" != "$ROOT" ] || continue
    mkdir -p "$cache"
    find "$ROOT" -name .git -prune -o -type f \
      \( -name '*.rs' -o -name '*.proto' -o -name 'Cargo.toml' \) -exec touch {} +
    printf '%s\n' "$ROOT" >"$cache/clone"
  done
}

# with_progress LABEL LOG COMMAND…: runs quietly into LOG with one line that
# shows life; on failure prints the end of the log.
with_progress() {
  local label=$1 log=$2 started=$SECONDS shown=0 status=0 last
  shift 2
  "$@" >"$log" 2>&1 &
  local pid=$!
  # shellcheck disable=SC2064
  trap "kill $pid 2>/dev/null; exit 130" INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    if [ -t 1 ]; then
      last=$(tail -c 300 "$log" | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 | cut -c1-48 || true)
      printf '\r\033[K  %s… %ds  %s' "$label" $((SECONDS - started)) "$last"
    elif [ $((SECONDS - started - shown)) -ge 30 ]; then
      shown=$((SECONDS - started))
      printf '  %s… %ds\n' "$label" "$shown"
    fi
    sleep 0.5
  done
  wait "$pid" || status=$?
  trap - INT TERM
  [ -t 1 ] && printf '\r\033[K'
  if [ "$status" != 0 ]; then
    tail -n 40 "$log" >&2
    die "$label failed; the whole log is $log"
  fi
  printf '  %s: %ds\n' "$label" $((SECONDS - started))
}

# prepare_run_dir: the run-time folder, ours and nobody else's.
prepare_run_dir() {
  mkdir -p "$RUN_DIR"
  [ -O "$RUN_DIR" ] || die "$RUN_DIR belongs to another user; remove it, or set RUN_DIR"
  chmod 755 "$RUN_DIR"
  if [ -n "$RUN_LINK" ] && [ "$RUN_DIR" != "$RUN_LINK" ]; then
    if [ -d "$RUN_LINK" ] && [ ! -L "$RUN_LINK" ]; then
      die "$RUN_LINK is a folder of another user's run: 'make clean' as that user first"
    fi
    ln -sfn "$RUN_DIR" "$RUN_LINK"
  fi
  mkdir -p "$RUN_DIR"/{bin,logs,pids}
}

# is_alive PIDFILE: whether the process that wrote it still runs, and is ours: a
# number may have gone to another program since.
is_alive() {
  local pid state name
  [ -f "$1" ] && pid=$(head -n 1 "$1" 2>/dev/null) && [ -n "$pid" ] || return 1
  name=$(cat "/proc/$pid/comm" 2>/dev/null) || return 1
  state=$(awk '$1 == "State:" {print $2}' "/proc/$pid/status" 2>/dev/null) || return 1
  [ "$state" != Z ] && { [ "$name" = ruvector ] || [ "$name" = postgres ]; }
}

# is_port_free PORT, on loopback.
is_port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_port FIRST: the first port from FIRST on that nobody listens on and that
# this run has not handed out yet.
PORTS_TAKEN=" "
free_port() {
  local port=$1
  while [ "$port" -lt $(($1 + 1000)) ]; do
    if [[ $PORTS_TAKEN != *" $port "* ]] && is_port_free "$port"; then
      FREE_PORT=$port
      PORTS_TAKEN="$PORTS_TAKEN$port "
      return
    fi
    port=$((port + 1))
  done
  die "no free port between $1 and $((port - 1))"
}
