# shellcheck shell=bash
# What a script needs of the machine: Debian packages, and Rust. Sourced after env.sh, never run.

# install_packages PACKAGE…: those of them that are not there.
install_packages() {
  local missing=() package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || die "missing: ${missing[*]}; install them with your system's package manager"
  say "Installing Debian packages: ${missing[*]}"
  as_root apt-get update -qq
  if [[ " ${missing[*]} " == *" postgresql-15 "* ]]; then
    without_main_cluster apt_install "${missing[@]}"
  else
    apt_install "${missing[@]}"
  fi
}

apt_install() {
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

# check_rust: that the toolchain is there, and new enough.
check_rust() {
  command -v cargo >/dev/null ||
    die "cargo is not there; install Rust 1.95 or newer from https://rustup.rs, then open a new shell"
  local want have
  want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)
  have=$(rustc --version | cut -d' ' -f2)
  [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
    die "Rust $want or newer is needed, this is $have: rustup update stable"
}
