#!/usr/bin/env bash
# Captures what a real Postgres sends in each protocol version, for round trips, golden
# decodes and as the fuzzers' corpus: wal-consumer/fixtures/streams. A server of its own
# is made and thrown away; Debian's Postgres 15 with the extension installed is needed
# (make build). Afterwards: UPDATE_GOLDEN=1 cargo test -p fuzz, and read the difference.
#
#   v2-binary            protocol 2 in binary, unstreamed: what the consumer asks for
#   v1-binary, v1-text   protocol 1, in binary and as text
#   v2-streaming         a transaction that is sent before its commit
#   v3-two-phase         prepared transactions
#   copy-binary          COPY … TO STDOUT (FORMAT binary), in hex
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

OUT=$ROOT/wal-consumer/fixtures/streams
HOME_DIR=$(mktemp -d /var/tmp/ruvector-capture-XXXXXX)
chmod 755 "$HOME_DIR"
export PG_HOME=$HOME_DIR/postgres PG_PID_FILE=$HOME_DIR/postgres.pid PG_PORT=5633
# Streaming begins at 64 kB instead of 64 MB.
export PG_SETTINGS=$'logical_decoding_work_mem = 64kB\nmax_prepared_transactions = 4\nautovacuum = off'
finish() {
  "$SCRIPTS/postgres.sh" stop immediate || true
  rm -rf "$HOME_DIR"
}
trap finish EXIT

"$SCRIPTS/postgres.sh" create 127.0.0.1:1 >/dev/null
"$SCRIPTS/postgres.sh" start
"$SCRIPTS/postgres.sh" create-database
DSN=$("$SCRIPTS/postgres.sh" dsn)
sql() { "$PG_BIN/psql" -XAtq -v ON_ERROR_STOP=1 "$DSN" "$@"; }

sql <<'SQL'
SET client_min_messages = warning;
CREATE EXTENSION ruvector;
CREATE TYPE mood AS ENUM ('calm', 'busy');
CREATE TABLE items(id bigint PRIMARY KEY, label int, embedding vector(6), note text, feeling mood);
CREATE TABLE large(id uuid PRIMARY KEY, embedding vector(768), label int);
CREATE TABLE pairs(b text, a int, v vector(3), at timestamptz, PRIMARY KEY (a, b));
CREATE TABLE fulls(id int PRIMARY KEY, v vector(3));
ALTER TABLE fulls REPLICA IDENTITY FULL;
CREATE TABLE others(id int PRIMARY KEY, other bigint NOT NULL, v vector(3));
CREATE UNIQUE INDEX others_other ON others(other);
ALTER TABLE others REPLICA IDENTITY USING INDEX others_other;
CREATE PUBLICATION captured FOR ALL TABLES;
SELECT pg_create_logical_replication_slot('plain', 'pgoutput') \g /dev/null
SELECT pg_create_logical_replication_slot('streaming', 'pgoutput') \g /dev/null
SELECT pg_create_logical_replication_slot('two_phase', 'pgoutput', false, true) \g /dev/null
SQL

sql <<'SQL'
INSERT INTO items VALUES (1, 7, '[1,2,3,4,5,6]', 'Größe', 'calm'), (2, NULL, NULL, NULL, NULL);
INSERT INTO large SELECT md5('1')::uuid, array_fill(0.5, ARRAY[768])::real[]::vector, 1;
UPDATE large SET label = 2;
UPDATE large SET id = md5('2')::uuid;
UPDATE items SET embedding = '[6,5,4,3,2,1]' WHERE id = 1;
UPDATE items SET id = 3 WHERE id = 1;
BEGIN; INSERT INTO pairs VALUES ('x', 1, '[1,2,3]', '2026-01-01 00:00+00'); UPDATE pairs SET a = 2; DELETE FROM pairs; COMMIT;
INSERT INTO fulls VALUES (1, '[1,1,1]'); UPDATE fulls SET v = '[2,2,2]'; DELETE FROM fulls;
INSERT INTO others VALUES (1, 10, '[1,1,1]'); UPDATE others SET other = 11; DELETE FROM others;
BEGIN; INSERT INTO items VALUES (4, 0, NULL, '', 'busy'); SAVEPOINT s; INSERT INTO items VALUES (5); ROLLBACK TO s;
DELETE FROM items WHERE id = 4; INSERT INTO items VALUES (4, 1, '[0,0,0,0,0,1]', 'again', 'busy'); COMMIT;
TRUNCATE items, pairs;
TRUNCATE fulls RESTART IDENTITY CASCADE;
ALTER TABLE items ADD COLUMN extra numeric; INSERT INTO items VALUES (9, 9, '[9,9,9,9,9,9]', 'wider', 'calm', 1.50);
SELECT pg_logical_emit_message(true, 'ruvector', 'within a transaction') \g /dev/null
SELECT pg_logical_emit_message(false, 'ruvector', 'outside of one') \g /dev/null
BEGIN; INSERT INTO items VALUES (20, 1); PREPARE TRANSACTION 'kept'; COMMIT PREPARED 'kept';
BEGIN; INSERT INTO items VALUES (21, 1); PREPARE TRANSACTION 'given up'; ROLLBACK PREPARED 'given up';
BEGIN; INSERT INTO items SELECT n, n FROM generate_series(1000, 1400) n; ROLLBACK;
BEGIN; INSERT INTO items SELECT n, n, NULL, repeat('x', 150) FROM generate_series(2000, 2250) n; DELETE FROM items WHERE id > 2000; COMMIT;
SQL

mkdir -p "$OUT"
# The last transactions are there for streaming only: ROWS_MAX of each stream are kept.
capture() {
  local name=$1 slot=$2 rows=$3
  shift 3
  local options
  options=$(printf ", '%s'" "$@")
  sql -F ' ' -c "SELECT lsn, encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('$slot', NULL, NULL, \
    'publication_names', 'captured'$options) LIMIT $rows" >"$OUT/$name.txt"
}
capture v2-binary plain 100 proto_version 2 binary true messages true
capture v1-binary plain 100 proto_version 1 binary true messages true
capture v1-text plain 100 proto_version 1 messages true
# Whatever is below 64 kB is sent as ever; of the streamed rows a few will do.
capture v2-streaming streaming 10000 proto_version 2 binary true streaming on
grep -n -m 1 ' 53' "$OUT/v2-streaming.txt" >/dev/null || die "nothing was streamed"
awk '{tag = substr($2, 1, 2); if (tag != "49" && tag != "44" || ++rows < 20) print}' \
  "$OUT/v2-streaming.txt" >"$OUT/v2.new"
mv "$OUT/v2.new" "$OUT/v2-streaming.txt"
capture v3-two-phase two_phase 100 proto_version 3 two_phase on
sql -c "COPY (SELECT id, embedding FROM large UNION ALL SELECT md5(n::text)::uuid, NULL FROM generate_series(1, 3) n) \
  TO STDOUT (FORMAT binary)" | od -An -v -tx1 >"$OUT/copy-binary.txt"
chmod 644 "$OUT"/*
du -cb "$OUT"/*
