#!/usr/bin/env bash
# The engine beside its peers, see bench/README.md. Without an argument the full run, or the
# quick one with QUICK=1; otherwise one of:
#   long           1,000,000 × 768, one peer at a time beside ours
#   inserts        search p99 beside 1,000 inserts and 100 deletions a second, with repair, against idle
#   growth         distances, build time and memory from 10,000 to 1,000,000 rows
#   memory         memory of a row by part
#   kernels        what part of a search its kernels are
# Options of inserts, growth, memory and kernels follow: inserts repair=0. The last line printed is
# one JSON object (of kernels: one a data set, the last line of each).
#
#   QUICK          1: Fashion-MNIST and 100,000 word vectors, few queries and rounds
#   DATASETS, PEERS  names, in place of the run's own
#   CLOCK          cpu: processor time, on a machine that has other work
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"
PEERS=${PEERS:-}
CLOCK=${CLOCK:-wall}
export PEERS_ROOT=${PEERS_ROOT:-$RUVECTOR_CACHE/peers} PYTHONDONTWRITEBYTECODE=1
DIR=$ROOT/bench/peers
RESULTS=$ROOT/bench/results

build() {
  prepare_run_dir
  claim_caches
  cd "$ROOT"
  with_progress "Building engine-bench" "$RUN_DIR/logs/build-engine-bench.log" \
    cargo build --release --locked -p engine-bench
}

engine_bench() { "$CARGO_TARGET_DIR/release/engine-bench" "$@"; }

# side_by_side PLOTS OPTION…: the data sets in NAMES.
side_by_side() {
  local plots=$1 name files=() peers=()
  shift
  [ -z "$PEERS" ] || peers=(--peers "$PEERS")
  for name in $NAMES; do files+=("$RESULTS/$name.json"); done
  mkdir -p "$RESULTS"
  # shellcheck disable=SC2086 # several names
  "$PEERS_ROOT/venv/bin/python" "$DIR/side_by_side.py" --clock "$CLOCK" \
    --program "$CARGO_TARGET_DIR/release/engine-bench" --results "$RESULTS" \
    "${peers[@]}" "$@" $NAMES | tee "$RESULTS/last.txt"
  # The ratios stay the last line on stdout.
  "$PEERS_ROOT/venv/bin/python" "$DIR/plot.py" "$plots" "${files[@]}" >&2
}

# with_pgvector COMMAND…: with a server for it, where one can be had.
with_pgvector() {
  if "$DIR/pgvector.sh" start; then
    trap '"$DIR/pgvector.sh" stop' EXIT
    trap 'exit 130' INT TERM
    PEERS_PGVECTOR_DSN=$("$DIR/pgvector.sh" dsn)
    export PEERS_PGVECTOR_DSN
  else
    say "pgvector: left out: its server does not start here"
  fi
  "$@"
}

part=${1:-}
[ -z "$part" ] || [ -z "${QUICK:-}" ] || die "QUICK is for the run beside peers alone, not for '$part'"
[ "$part" != long ] || [ $# -eq 1 ] || die "'long' takes no options: ${*:2}"
case $part in
  '') names="fashion wink synth200000 synth200000x1536" ;;
  long | growth) names=synth1000000 ;;
  inserts | memory) names=fashion ;;
  kernels) names="fashion wink100000" ;;
  *) die "no part '$part'; there are long, inserts, growth, memory, kernels, or nothing for the full run" ;;
esac
[ -z "${QUICK:-}" ] || names="fashion wink100000"
NAMES=${DATASETS:-$names}

build
# shellcheck disable=SC2086 # several names
"$DIR/setup.sh" $NAMES
case $part in
  inserts | growth | memory | kernels)
    for name in $NAMES; do engine_bench "$part" "$PEERS_ROOT/data/$name" "${@:2}"; done
    ;;
  long) side_by_side "$ROOT/bench/plots" --together 1 --rounds 3 ;;
  *)
    if [ -n "${QUICK:-}" ]; then
      side_by_side "$RESULTS" --quick
    else
      with_pgvector side_by_side "$ROOT/bench/plots"
    fi
    ;;
esac
