# shellcheck shell=bash
# What the benchmarks share. Sourced behind env.sh, never run.

# build_bench: what is measured; before own_run_dir, for it is built into the clone's.
build_bench() {
  "$SCRIPTS/setup.sh"
  # shellcheck source=scripts/env.sh
  . "$SCRIPTS/env.sh" # setup may just have made the RocksDB archive
  cd "$ROOT"
  "$SCRIPTS/build.sh"
  export PREBUILT=$RUN_DIR/bin/ruvector
}

# build_path_bench: what measures it.
build_path_bench() {
  with_progress "Building path-bench" "$RUN_DIR/logs/build-bench.log" \
    cargo build --release --locked --workspace --bin path-bench
}

path_bench() { "$CARGO_TARGET_DIR/release/path-bench" "$@"; }

quietly() { make -s --no-print-directory "$@" >/dev/null; }

# own_run_dir NAME: what is started from here on lives in a run folder that is not this
# clone's, and goes with the script.
own_run_dir() {
  export RUN_DIR=/var/tmp/ruvector-bench-$1-$$
  RUN_LINK=
  trap 'finish $?' EXIT
}

# finish STATUS: leaves nothing behind but the logs of what failed.
finish() {
  trap - EXIT
  if [ "$1" = 0 ]; then
    quietly clean
  else
    quietly down || true
    say "The cluster's logs stay in $RUN_DIR" >&2
  fi
  exit "$1"
}
