#!/usr/bin/env bash
# Makes a fresh Debian 12 with Rust ready to build and run: system packages, and
# the RocksDB archive that all builds link. Does nothing where all is there.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"
# shellcheck source=scripts/packages.sh
. "$SCRIPTS/packages.sh"

[ -z "${PREBUILT:-}" ] || exit 0

PACKAGES=(
  make g++                                  # RocksDB, simsimd
  clang libclang-dev                        # bindgen, for RocksDB and pgrx
  postgresql-15 postgresql-server-dev-15    # the server, its headers
  dataset-fashion-mnist                     # what quickstart loads
)

# The archive is named by what it was compiled from and for.
rocksdb_version() {
  local version
  version=$(grep -A 1 '^name = "librocksdb-sys"$' "$ROOT/Cargo.lock" | sed -n 's/^version = "\(.*\)"/\1/p')
  printf 'librocksdb-sys %s %s stripped' "$version" "$(uname -m)"
}

prepare_rocksdb() {
  local folder=$ROCKSDB_CACHE version
  version=$(rocksdb_version)
  if [ -f "$folder/librocksdb.a" ] && [ "$(cat "$folder/VERSION" 2>/dev/null)" = "$version" ]; then
    return
  fi
  mkdir -p "$folder" "$CARGO_TARGET_DIR"
  say "Compiling RocksDB ($version), once: about ten minutes on two cores"
  # A lock, for two clones may share the cache.
  exec 9>"$folder/.lock"
  flock 9
  if [ "$(cat "$folder/VERSION" 2>/dev/null)" = "$version" ]; then return; fi
  rm -f "$folder/VERSION"
  (
    unset ROCKSDB_LIB_DIR ROCKSDB_STATIC
    cd "$ROOT"
    with_progress "RocksDB" "$folder/build.log" cargo build --release --locked -p librocksdb-sys
  )
  local archive
  archive=$(find "$CARGO_TARGET_DIR/release/build" -path '*/librocksdb-sys-*/out/librocksdb.a' -printf '%T@ %p\n' |
    sort -rn | head -n 1 | cut -d' ' -f2-)
  [ -n "$archive" ] || die "the RocksDB build left no librocksdb.a under $CARGO_TARGET_DIR/release/build"
  # Renamed into place, and stamped last: an interrupted run is not taken for done.
  # Its debug information is 1.4 GB, of which every test program would carry a third.
  strip --strip-debug -o "$folder/librocksdb.a.new" "$archive"
  mv "$folder/librocksdb.a.new" "$folder/librocksdb.a"
  printf '%s' "$version" >"$folder/VERSION"
  cargo clean --quiet --release --locked -p librocksdb-sys
}

check_rust
install_packages "${PACKAGES[@]}"
[ -x "$PG_CONFIG" ] || die "$PG_CONFIG is not there: is postgresql-server-dev-15 installed, or should PG_CONFIG name another?"
prepare_rocksdb
