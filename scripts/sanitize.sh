#!/usr/bin/env bash
# The index engine's tests under AddressSanitizer, with LeakSanitizer; arguments go to cargo test.
#
# Left out is `footprint`: what the sanitizer keeps beside the program's memory is anonymous
# memory too, and would be counted. Only what comes from the allocator has forbidden bytes around
# it: arrays of 4 MiB and more are mapped, and have none.
#
# There is no run under ThreadSanitizer, though the toolchain can make one without the sources
# of the standard library (-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer). It told of
# what that library synchronizes by means it is not built to show (the fence of an Arc's last
# holder, the end of a scope, results of tests), which two suppressions and joined threads end. But
# then it was silent with links read and written relaxed, and with slots used again under
# open cursors: it does not look at accesses of more than 16 bytes, and so at none of what the
# AVX kernels read. First the kernels without instruction sets have to be chosen for it.
#
# The option is an unstable one; the toolchain is the one of every other build.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"
# shellcheck source=scripts/packages.sh
. "$SCRIPTS/packages.sh"

check_rust
# simsimd, which results are compared with, is written in C.
command -v cc >/dev/null || install_packages g++
cd "$ROOT"

HOST=$(rustc -vV | sed -n 's/^host: //p')
mapfile -t FILES < <(basename -s .rs index-engine/tests/*.rs | grep -vx footprint | sed 's/^/--test=/')
export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1
# Flags of its own, and so a folder. With a target named, build scripts run without them.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address"
claim_caches
export CARGO_TARGET_DIR=$CARGO_TARGET_DIR/asan
say "== The index engine under AddressSanitizer"
exec cargo test --release --locked --target "$HOST" -p index-engine --lib "${FILES[@]}" "$@"
