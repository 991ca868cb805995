#!/usr/bin/env bash
# Everything that must hold before a change is merged. Names of suites as
# arguments run only those: test.sh style unit extension integration
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

"$SCRIPTS/setup.sh"
# shellcheck source=scripts/env.sh
. "$SCRIPTS/env.sh" # setup may just have made the RocksDB archive
prepare_run_dir
claim_caches
cd "$ROOT"

in_extension() { (cd "$ROOT/pg-bridge-ext" && CARGO_TARGET_DIR=$EXTENSION_TARGET_DIR "$@"); }

# Other flags, and so a folder of their own: nothing else is compiled anew for them.
under_loom() {
  CARGO_TARGET_DIR=$CARGO_TARGET_DIR/loom RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" "$@"
}

style() {
  say "== Format and lints"
  if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    die "rustfmt or clippy is not there: rustup component add rustfmt clippy"
  fi
  cargo fmt --all --check
  in_extension cargo fmt --all --check
  cargo clippy --release --locked --workspace --all-targets --quiet -- -D warnings
  under_loom cargo clippy --profile test --locked -p index-engine --lib --quiet -- -D warnings
  in_extension cargo clippy --release --locked --all-targets --quiet -- -D warnings
}

unit() {
  say "== Unit and golden tests"
  cargo test --release --locked --workspace --exclude integration-tests --quiet
  say "== The index engine's threads in many orders"
  under_loom cargo test --release --locked -p index-engine --lib --quiet interleavings
  PYTHONDONTWRITEBYTECODE=1 python3 -m unittest discover -q -s bench/peers
}

extension() {
  say "== Extension: regression tests in a private Postgres"
  "$SCRIPTS/install-extension.sh"
  "$ROOT/pg-bridge-ext/tests/run.sh"
}

integration() {
  say "== Integration tests: real processes, real Postgres"
  "$SCRIPTS/integration.sh"
}

[ $# -gt 0 ] || set -- style unit extension integration
for suite in "$@"; do
  case $suite in
    style | unit | extension | integration) "$suite" ;;
    *) die "no suite '$suite'; there are style, unit, extension, integration" ;;
  esac
done
say "All of it passed: $*"
