#!/usr/bin/env bash
# Builds the Postgres extension and installs it for the server that PG_CONFIG
# belongs to. Needs root for the server's folders, by itself or through sudo.
#
#   SKIP_BUILD=1       installs what is built already
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

extension=$ROOT/pg-bridge-ext
[ -x "$PG_CONFIG" ] || die "no pg_config at $PG_CONFIG (Debian: postgresql-server-dev-15)"
if [ -z "${SKIP_BUILD:-}" ]; then
  (cd "$extension" && CARGO_TARGET_DIR=$EXTENSION_TARGET_DIR cargo build --release --locked)
fi
built=$EXTENSION_TARGET_DIR/release/libruvector.so
[ -f "$built" ] || die "$built is not there: run this without SKIP_BUILD"
library=$("$PG_CONFIG" --pkglibdir)
share=$("$PG_CONFIG" --sharedir)/extension

# place FROM TO MODE: by rename, for a server maps the old file, and one that
# changed under it crashes.
place() {
  if cmp -s "$1" "$2"; then return; fi
  as_root install -m "$3" "$1" "$2.new.$$"
  as_root mv -f "$2.new.$$" "$2"
  say "  installed $2"
}

place "$built" "$library/ruvector.so" 755
place "$extension/ruvector.control" "$share/ruvector.control" 644
for script in "$extension"/sql/ruvector--*.sql; do
  place "$script" "$share/$(basename "$script")" 644
done
