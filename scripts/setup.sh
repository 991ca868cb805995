#!/usr/bin/env bash
# Makes a fresh Debian 12 with Rust ready to build and run: system packages, and
# the RocksDB archive that all builds link. Does nothing where all is there.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

[ -z "${PREBUILT:-}" ] || exit 0

PACKAGES=(
  make g++                                  # RocksDB, simsimd
  clang libclang-dev                        # bindgen, for RocksDB and pgrx
  postgresql-15 postgresql-server-dev-15    # the server, its headers
  dataset-fashion-mnist                     # what quickstart loads
)

install_packages() {
  local missing=() package
  for package in "${PACKAGES[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || die "missing: ${missing[*]}; install them with your system's package manager"
  say "Installing Debian packages: ${missing[*]}"
  as_root apt-get update -qq
  if [[ " ${missing[*]} " == *" postgresql-15 "* ]]; then
    without_main_cluster install "${missing[@]}"
  else
    install "${missing[@]}"
  fi
}

install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# without_main_cluster COMMAND…: Debian's package creates a server of its own on
# port 5432 and starts it at every boot. Nobody asked for that one; the setting
# goes away again, for it would bind later versions too.
without_main_cluster() {
  local folder=/etc/postgresql-common/createcluster.d
  local file=$folder/ruvector-setup.conf
  say "  without Debian's default server on port 5432 ('pg_createcluster 15 main' makes one)"
  # shellcheck disable=SC2064 # the name is known here only
  trap "as_root rm -f '$file'" EXIT
  as_root mkdir -p "$folder"
  as_root tee "$file" >/dev/null <<<"create_main_cluster = false"
  "$@"
  as_root rm -f "$file"
  trap - EXIT
}

check_rust() {
  command -v cargo >/dev/null ||
    die "cargo is not there; install Rust 1.95 or newer from https://rustup.rs, then open a new shell"
  local want have
  want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)
  have=$(rustc --version | cut -d' ' -f2)
  [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
    die "Rust $want or newer is needed, this is $have: rustup update stable"
}

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
install_packages
[ -x "$PG_CONFIG" ] || die "$PG_CONFIG is not there: is postgresql-server-dev-15 installed, or should PG_CONFIG name another?"
prepare_rocksdb
