#!/usr/bin/env bash
# The index engine's kernels, and the model and the pages of its index, on 64-bit ARM, under
# emulation where the machine is another: what is computed is tested, how fast it is cannot be
# told. Names of tests as arguments run only those of the library:
#   test-aarch64.sh [TEST…]
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"
# shellcheck source=scripts/packages.sh
. "$SCRIPTS/packages.sh"

TARGET=aarch64-unknown-linux-gnu
KERNELS=(codes:: distance:: half::)
INDEX=(--test model --test pages)

install_target() {
  [ -d "$(rustc --print target-libdir --target "$TARGET")" ] && return
  command -v rustup >/dev/null || die "Rust's library for $TARGET is not there, nor is rustup, which would fetch it"
  rustup target add "$TARGET"
}

emulate() {
  install_packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
  export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
}

on_arm() { cargo test --release --locked --quiet -p index-engine --target "$TARGET" "$@"; }

check_rust
# For what is built to run here, and simsimd, which results are compared with.
command -v cc >/dev/null || install_packages g++
cd "$ROOT"
install_target
[ "$(uname -m)" = aarch64 ] || emulate
claim_caches
if [ $# -gt 0 ]; then
  on_arm --lib -- "$@"
  exit
fi
say "== Kernels on 64-bit ARM"
on_arm --lib -- "${KERNELS[@]}"
say "== The index on 64-bit ARM"
on_arm "${INDEX[@]}"
say "All of it passed"
