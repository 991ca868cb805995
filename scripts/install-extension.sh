#!/usr/bin/env bash
# Builds the Postgres extension and installs it for the server that pg_config
# belongs to. Needs root for the server's folders, by itself or through sudo.
#
#   PG_CONFIG          /usr/bin/pg_config
#   CARGO_TARGET_DIR   pg-bridge-ext/target
#   SKIP_BUILD=1       installs what is built already
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extension="$root/pg-bridge-ext"
pg_config="${PG_CONFIG:-/usr/bin/pg_config}"
target="${CARGO_TARGET_DIR:-$extension/target}"

if [[ ! -x "$pg_config" ]]; then
    echo "install-extension: no pg_config at $pg_config (Debian: postgresql-server-dev-15)" >&2
    exit 1
fi
if [[ -z "${SKIP_BUILD:-}" ]]; then
    (cd "$extension" && CARGO_TARGET_DIR="$target" PGRX_PG_CONFIG_PATH="$pg_config" cargo build --release --locked)
fi

as_root=()
if [[ $EUID -ne 0 ]]; then
    as_root=(sudo)
fi
library="$("$pg_config" --pkglibdir)"
share="$("$pg_config" --sharedir)/extension"

# By rename: a server maps the old file, and one that changed under it crashes.
place() {
    local from="$1" to="$2" mode="$3"
    if cmp -s "$from" "$to"; then
        return
    fi
    "${as_root[@]}" install -m "$mode" "$from" "$to.new.$$"
    "${as_root[@]}" mv -f "$to.new.$$" "$to"
    echo "installed $to"
}

place "$target/release/libruvector.so" "$library/ruvector.so" 755
place "$extension/ruvector.control" "$share/ruvector.control" 644
for script in "$extension"/sql/ruvector--*.sql; do
    place "$script" "$share/$(basename "$script")" 644
done
