#!/usr/bin/env bash
# The processes of this clone: starts, stops and finds them again. Each has a
# configuration file, a log, and a pid file that it writes once it serves.
#
#   cluster.sh dev                        one process that holds everything
#   cluster.sh up NODES COORDINATORS REPLICAS
#   cluster.sh check dev | check up NODES COORDINATORS REPLICAS
#                                         whether that would be refused, before a build
#   cluster.sh add node | add consumer    one more, beside those of `up`
#   cluster.sh remove node-2              empties it, forgets it, puts its data aside
#   cluster.sh start PROC | stop PROC | down | status | logs | coordinators | ctl ARGS…
#
# TOML lines in COORDINATOR_SETTINGS, NODE_SETTINGS and CONSUMER_SETTINGS go into
# the configuration files of `up` and `add` when those are written.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

PIDS=$RUN_DIR/pids
LOGS=$RUN_DIR/logs
BINARY=$RUN_DIR/bin/ruvector
START_SECONDS_MAX=60
STOP_SECONDS_MAX=30

mode() { cat "$RUN_DIR/mode" 2>/dev/null || true; }
home() { printf '%s/%s' "$RUN_DIR" "$(mode)"; }

# check_turn MODE: dev and cluster have data of their own and take turns.
check_turn() {
  local other
  other=$(mode)
  if [ -n "$other" ] && [ "$other" != "$1" ] && any_alive; then
    case $other in
      dev) die "quickstart's processes are running; 'make down' first (their data stays)" ;;
      *) die "the processes of 'make up' are running; 'make down' first (their data stays)" ;;
    esac
  fi
}

enter_mode() {
  prepare_run_dir
  printf '%s\n' "$1" >"$RUN_DIR/mode"
  mkdir -p "$(home)"/{config,data}
  # The coordinators keep the databases' passwords.
  chmod 700 "$(home)/data"
}

any_alive() {
  local file
  for file in "$PIDS"/*.pid; do
    if is_alive "$file"; then return 0; fi
  done
  return 1
}

# processes: the names of all that this mode has, in the order of starting.
processes() {
  local kind file
  if [ -d "$(home)/postgres" ]; then echo postgres; fi
  for kind in dev coordinator node consumer; do
    for file in "$(home)/config/$kind".toml "$(home)/config/$kind"-*.toml; do
      if [ -f "$file" ]; then basename "$file" .toml; fi
    done | sort -V
  done
}

check_process() {
  processes | grep -xF -e "$1" >/dev/null ||
    die "there is no process '$1'; there are: $(processes | paste -sd' ' | sed 's/^$/none yet (make quickstart, or make up)/')"
}

setting() { sed -n "s/^$2 = \"\(.*\)\"/\1/p" "$(home)/config/$1.toml" | head -n 1; }

coordinators() {
  local name list=
  if [ -f "$(home)/config/dev.toml" ]; then
    sed -n '/^\[coordinator\]/,/^\[/s/^listen = "\(.*\)"/\1/p' "$(home)/config/dev.toml" | head -n 1
    return
  fi
  for name in $(processes | grep '^coordinator-'); do
    list=$list,$(setting "$name" listen)
  done
  [ -n "$list" ] || die "nothing has been started here yet: make quickstart, or make up"
  printf '%s\n' "${list#,}"
}

write_dev() {
  local file name
  file=$(home)/config/dev.toml
  [ -f "$file" ] && return
  local ports=()
  for name in 7401 7402 7501 7601; do free_port $name; ports+=("$FREE_PORT"); done
  cat >"$file" <<CONF
data_dir = "$(home)/data/dev"
metrics_listen = "127.0.0.1:${ports[1]}"
[coordinator]
listen = "127.0.0.1:${ports[0]}"
[node]
listen = "127.0.0.1:${ports[2]}"
[consumer]
listen = "127.0.0.1:${ports[3]}"
CONF
}

# write_process NAME LISTEN EXTRA: a configuration file, unless it is there.
# Without LISTEN a free port is taken.
write_process() {
  local name=$1 listen=$2 file
  file=$(home)/config/$name.toml
  [ -f "$file" ] && return
  if [ -z "$listen" ]; then
    free_port 7501
    listen=127.0.0.1:$FREE_PORT
  fi
  free_port 7601
  cat >"$file" <<CONF
listen = "$listen"
metrics_listen = "127.0.0.1:$FREE_PORT"
data_dir = "$(home)/data/$name"
$3
CONF
}

# Ports in the files that exist are taken, running or not.
reserve_ports() {
  local port
  while read -r port; do
    PORTS_TAKEN="$PORTS_TAKEN$port "
  done < <(cat "$(home)"/config/*.toml 2>/dev/null | sed -n 's/^.*listen = "127.0.0.1:\([0-9]*\)"/\1/p')
}

check_number() {
  if ! [[ $2 =~ ^[1-9][0-9]{0,2}$ ]] || [ "$2" -gt "$3" ]; then
    die "$1=$2 is not a number from 1 to $3"
  fi
}

# The coordinators' addresses are settled before the first file is written, for
# each file names them all.
write_cluster() {
  local nodes=$1 coordinators=$2 replicas=$3 i addresses=() peers=
  reserve_ports
  if [ -f "$(home)/config/coordinator-1.toml" ]; then
    IFS=, read -ra addresses <<<"$(coordinators)"
  else
    for ((i = 1; i <= coordinators; i++)); do
      free_port 7401
      addresses+=("127.0.0.1:$FREE_PORT")
    done
  fi
  for ((i = 1; i <= coordinators; i++)); do
    peers="$peers{ id = $i, address = \"${addresses[i - 1]}\" }, "
  done
  for ((i = 1; i <= coordinators; i++)); do
    write_process "coordinator-$i" "${addresses[i - 1]}" "id = $i
peers = [${peers%, }]
replication_factor = $replicas
${COORDINATOR_SETTINGS-}"
  done
  while [ "$(node_count)" -lt "$nodes" ]; do write_node "$(next_node)"; done
  write_consumer consumer-1
}

write_consumer() {
  write_process "$1" "" "coordinators = [$(quoted_coordinators)]
${CONSUMER_SETTINGS-}"
}

# add_consumer: the sources are shared anew, by themselves.
add_consumer() {
  local name
  [ "$(mode)" = cluster ] || die "consumers are added to the processes of 'make up'; there are none here"
  name=consumer-$(($(processes | grep -c '^consumer-') + 1))
  reserve_ports
  write_consumer "$name"
  start "$name"
}

write_node() {
  write_process "$1" "" "coordinators = [$(quoted_coordinators)]
${NODE_SETTINGS-}"
}

quoted_coordinators() { coordinators | sed 's/[^,]*/"&"/g'; }

# node_files FOLDER…: of those that are there.
node_files() { find "$@" -maxdepth 1 -name 'node-*.toml' 2>/dev/null || true; }

node_count() { node_files "$RUN_DIR/cluster/config" | wc -l; }

# next_node: the number after the highest so far; a node that was removed keeps its.
next_node() {
  local last
  last=$(node_files "$(home)/config" "$(home)/removed" |
    sed 's/.*node-\([0-9]*\)\.toml/\1/' | sort -n | tail -n 1)
  printf 'node-%d\n' $((${last:-0} + 1))
}

add_node() {
  local name
  [ "$(mode)" = cluster ] || die "nodes are added to the processes of 'make up'; there are none here"
  name=$(next_node)
  reserve_ports
  write_node "$name"
  start "$name"
}

# node_at ADDRESS: the id by which the cluster knows the node there, if it does.
node_at() {
  local nodes
  nodes=$("$BINARY" ctl --coordinators "$(coordinators)" node list --json)
  awk -v address="\"$1\"" '
    $1 == "\"id\":" { id = $2; sub(/,/, "", id) }
    $1 == "\"address\":" { at = $2; sub(/,/, "", at); if (at == address) print id }' <<<"$nodes"
}

# remove_node NAME: may be repeated after any failure. What it had is put aside
# and not deleted; `make clean` does that.
remove_node() {
  local name=$1 id
  [[ $name =~ ^node-[0-9]+$ ]] || die "'$name' is no node: make remove PROC=node-2"
  [ "$(mode)" = cluster ] || die "nodes are removed from the processes of 'make up'; there are none here"
  check_process "$name"
  id=$(node_at "$(setting "$name" listen)")
  if [ -n "$id" ]; then
    "$BINARY" ctl --coordinators "$(coordinators)" node drain "$id" --wait
    "$BINARY" ctl --coordinators "$(coordinators)" node remove "$id"
  else
    say "  the cluster knows no node at $(setting "$name" listen)"
  fi
  stop "$name"
  mkdir -p "$(home)/removed"
  if [ -d "$(home)/data/$name" ]; then mv "$(home)/data/$name" "$(home)/removed/$name"; fi
  mv "$(home)/config/$name.toml" "$(home)/removed/$name.toml"
  say "  $name is stopped; its configuration and data are in $(home)/removed"
  say "  from now on: make up NODES=$(node_count)"
}

# check_topology NODES COORDINATORS REPLICAS: of `make up`, whatever runs now.
check_topology() {
  local nodes=$1 coordinators=$2 replicas=$3 had existing
  check_number NODES "$nodes" 16
  [ "$coordinators" = 1 ] || [ "$coordinators" = 3 ] ||
    die "COORDINATORS=$coordinators: use 1, or 3 to survive the loss of one"
  check_number REPLICAS "$replicas" 5
  [ "$replicas" -le "$nodes" ] ||
    die "REPLICAS=$replicas needs as many nodes at least; NODES=$nodes"
  had=$(cat "$RUN_DIR/cluster/topology" 2>/dev/null || true)
  if [ -n "$had" ] && [ "$had" != "$coordinators $replicas" ]; then
    die "this cluster was made with COORDINATORS=${had% *} REPLICAS=${had#* }; 'make clean' starts a new one (and deletes this one's data)"
  fi
  existing=$(node_count)
  [ "$existing" -le "$nodes" ] ||
    die "NODES=$nodes is fewer than the $existing nodes that exist: make up NODES=$existing"
}

start() {
  local name=$1 pid_file=$PIDS/$1.pid config deadline pid
  if is_alive "$pid_file"; then
    say "  $name runs already (pid $(cat "$pid_file"))"
    return
  fi
  if [ "$name" = postgres ]; then
    "$SCRIPTS/postgres.sh" start
    say "  postgres on 127.0.0.1:$("$SCRIPTS/postgres.sh" port) (pid $(cat "$pid_file"))"
    return
  fi
  config=$(home)/config/$name.toml
  [ -x "$BINARY" ] || die "$BINARY is not there: make build"
  rm -f "$pid_file"
  setsid "$BINARY" "${name%%-*}" --config "$config" --pid-file "$pid_file" >>"$LOGS/$name.log" 2>&1 </dev/null &
  pid=$!
  deadline=$((SECONDS + START_SECONDS_MAX))
  until [ "$(head -n 1 "$pid_file" 2>/dev/null)" = "$pid" ]; do
    if ! kill -0 "$pid" 2>/dev/null; then
      tail -n 15 "$LOGS/$name.log" >&2
      die "$name does not start; its log is $LOGS/$name.log"
    fi
    [ $SECONDS -lt $deadline ] || die "$name does not serve after $START_SECONDS_MAX s; its log is $LOGS/$name.log"
    sleep 0.1
  done
  say "  $name on $(grep -m 1 '^listen' "$config" | cut -d'"' -f2), metrics http://$(setting "$name" metrics_listen)/metrics (pid $pid)"
}

stop() {
  local name=$1 pid_file=$PIDS/$1.pid pid deadline
  if [ "$name" = postgres ]; then
    "$SCRIPTS/postgres.sh" stop
    return
  fi
  is_alive "$pid_file" || { rm -f "$pid_file"; return; }
  pid=$(head -n 1 "$pid_file")
  kill -TERM "$pid" 2>/dev/null || true
  deadline=$((SECONDS + STOP_SECONDS_MAX))
  while is_alive "$pid_file"; do
    if [ $SECONDS -ge $deadline ]; then
      say "  $name does not stop within $STOP_SECONDS_MAX s: killed"
      kill -KILL "$pid" 2>/dev/null || true
      break
    fi
    sleep 0.1
  done
  rm -f "$pid_file"
}

# Consumers first, for a stopping Postgres waits until they have its last WAL;
# coordinators last.
down() {
  local name stopped=0
  for name in $(processes | tac | grep -v -e '^postgres$' -e '^coordinator-' -e '^node-') postgres \
    $(processes | grep -e '^node-') $(processes | grep -e '^coordinator-'); do
    if is_alive "$PIDS/$name.pid"; then
      stop "$name"
      stopped=$((stopped + 1))
    else
      rm -f "$PIDS/$name.pid"
    fi
  done
  say "Stopped $stopped processes; their data stays in $RUN_DIR ('make clean' removes it)"
}

status() {
  local name
  [ -n "$(processes)" ] || die "nothing has been started here yet: make quickstart, or make up"
  for name in $(processes); do
    if is_alive "$PIDS/$name.pid"; then
      printf '  %-16s runs, pid %s\n' "$name" "$(head -n 1 "$PIDS/$name.pid")"
    else
      printf '  %-16s stopped\n' "$name"
    fi
  done
  printf '\n'
  "$BINARY" ctl --coordinators "$(coordinators)" status
}

# connect_postgres: the extension, and the cluster's knowledge of this database.
connect_postgres() {
  local dsn sources
  "$SCRIPTS/postgres.sh" create-database
  dsn=$("$SCRIPTS/postgres.sh" dsn)
  "$PG_BIN/psql" -XAtq -v ON_ERROR_STOP=1 "$dsn" \
    -c 'SET client_min_messages = warning' -c 'CREATE EXTENSION IF NOT EXISTS ruvector'
  sources=$("$BINARY" ctl --coordinators "$(coordinators)" --timeout 30 source list --json)
  if [[ $sources != *'"name": "local"'* ]]; then
    # By standard input: the process list shows arguments to everybody.
    # What the checks would ask for has just been set up.
    "$BINARY" ctl --coordinators "$(coordinators)" --timeout 30 source add - --name local --skip-checks <<<"$dsn"
  fi
}

case ${1:-} in
  check)
    case ${2:-} in
      dev) check_turn dev ;;
      up)
        check_topology "${3:-}" "${4:-}" "${5:-}"
        check_turn cluster
        ;;
      *) die "usage: cluster.sh check dev | check up NODES COORDINATORS REPLICAS" ;;
    esac
    ;;
  dev)
    check_turn dev
    enter_mode dev
    write_dev
    start dev
    "$SCRIPTS/postgres.sh" create "$(coordinators)"
    start postgres
    connect_postgres
    ;;
  up)
    check_topology "${2:-}" "${3:-}" "${4:-}"
    check_turn cluster
    enter_mode cluster
    printf '%s %s\n' "$3" "$4" >"$(home)/topology"
    write_cluster "$2" "$3" "$4"
    for name in $(processes | grep '^coordinator-'); do start "$name"; done
    members=$(coordinators | tr ',' '\n' | awk '{printf "%s%d=%s", (NR > 1 ? "," : ""), NR, $1}')
    "$BINARY" ctl --coordinators "$(coordinators)" init --members "$members" --if-needed
    for name in $(processes | grep -e '^node-' -e '^consumer-'); do start "$name"; done
    "$SCRIPTS/postgres.sh" create "$(coordinators)"
    start postgres
    connect_postgres
    ;;
  add)
    case ${2:-} in
      node) add_node ;;
      consumer) add_consumer ;;
      *) die "usage: cluster.sh add node | add consumer" ;;
    esac
    ;;
  remove) remove_node "${2:?cluster.sh remove node-2}" ;;
  start)
    check_process "${2:?cluster.sh start PROC}"
    start "$2"
    ;;
  stop)
    check_process "${2:?cluster.sh stop PROC}"
    stop "$2"
    ;;
  down)
    if [ -z "$(mode)" ]; then say "Nothing runs"; else down; fi
    ;;
  status) status ;;
  logs) exec tail -n 20 -F "$LOGS"/*.log "$(home)/postgres/log/postgres.log" ;;
  coordinators) coordinators ;;
  ctl)
    shift
    exec "$BINARY" ctl --coordinators "$(coordinators)" "$@"
    ;;
  *) die "usage: cluster.sh check … | dev | up NODES COORDINATORS REPLICAS | add node | add consumer | remove node-2 | start PROC | stop PROC | down | status | logs | coordinators | ctl ARGS…" ;;
esac
