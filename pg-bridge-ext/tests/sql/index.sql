-- The access method where no cluster is: everything works, scanned exactly.
SET client_min_messages = warning;
CREATE TABLE items (id bigint PRIMARY KEY, embedding vector(3));
INSERT INTO items SELECT n, ARRAY[n, n % 7, -n] FROM generate_series(1, 500) n;
INSERT INTO items VALUES (1000, NULL);
CREATE INDEX items_embedding_idx ON items USING ruhnsw (embedding vector_l2_ops);
SELECT index_name, table_name, state, reason FROM ruvector_index_status('items_embedding_idx');
SELECT metric, dimensions, m, ef_construction, column_name, column_attnum, key_attnums FROM ruvector.collections;

-- The planner leaves it alone; forced, it answers exactly.
EXPLAIN (COSTS OFF) SELECT id FROM items ORDER BY embedding <-> '[3,3,3]' LIMIT 3;
SET enable_seqscan = off;
SET enable_sort = off;
EXPLAIN (COSTS OFF) SELECT id FROM items ORDER BY embedding <-> '[3,3,3]' LIMIT 3;
SELECT id FROM items ORDER BY embedding <-> '[3,3,3]' LIMIT 3;
SELECT count(*) FROM (SELECT id FROM items ORDER BY embedding <-> '[3,3,3]') x;
SELECT count(*) FROM (SELECT id FROM items ORDER BY embedding <-> NULL) x;
SELECT id FROM items WHERE id > 100 ORDER BY embedding <-> '[3,3,3]' LIMIT 2;
SELECT id FROM items ORDER BY embedding <-> '[3,3]' LIMIT 3;
SELECT q.id, n.id FROM (VALUES (10), (20)) q(id)
	CROSS JOIN LATERAL (SELECT i.id FROM items i ORDER BY i.embedding <-> ARRAY[q.id, q.id % 7, -q.id]::vector LIMIT 2) n;

-- Updates, HOT and not, own writes, savepoints, cursors.
BEGIN;
INSERT INTO items VALUES (1001, '[3,3,3]');
UPDATE items SET embedding = '[3,3,3.5]' WHERE id = 400;
DELETE FROM items WHERE id = 1;
SAVEPOINT a;
INSERT INTO items VALUES (1002, '[3,3,3]');
ROLLBACK TO a;
SELECT id FROM items ORDER BY embedding <-> '[3,3,3]' LIMIT 3;
DECLARE c CURSOR FOR SELECT id FROM items ORDER BY embedding <-> '[3,3,3]';
FETCH 2 FROM c;
DELETE FROM items WHERE id = 2;
FETCH 1 FROM c;
ROLLBACK;
PREPARE near(vector) AS SELECT id FROM items ORDER BY embedding <-> $1 LIMIT 1;
EXECUTE near('[5,5,-5]');
EXECUTE near('[9,2,-9]');
VACUUM items;
RESET enable_seqscan;
RESET enable_sort;

-- A rebuild keeps the generation, a rewrite that may change rows does not.
CREATE TEMP TABLE generations AS SELECT definition_generation AS g FROM ruvector.collections;
REINDEX INDEX items_embedding_idx;
VACUUM FULL items;
SELECT definition_generation = (SELECT max(g) FROM generations) AS kept FROM ruvector.collections;
ALTER TABLE items ALTER COLUMN id TYPE bigint USING id + 0;
SELECT definition_generation > (SELECT max(g) FROM generations) AS renewed FROM ruvector.collections;
DELETE FROM generations;
INSERT INTO generations SELECT definition_generation FROM ruvector.collections;
REINDEX INDEX CONCURRENTLY items_embedding_idx;
SELECT count(*), bool_and(definition_generation > (SELECT max(g) FROM generations)) AS renewed FROM ruvector.collections;

-- Nothing is left behind.
BEGIN;
CREATE INDEX second ON items USING ruhnsw (embedding vector_cosine_ops) WITH (m = 8, ef_construction = 32);
SELECT count(*) FROM ruvector.collections;
ROLLBACK;
SELECT count(*) FROM ruvector.collections;
CREATE INDEX CONCURRENTLY third ON items USING ruhnsw (embedding vector_ip_ops);
SELECT metric FROM ruvector.collections ORDER BY index_oid;
DROP INDEX CONCURRENTLY third;
SELECT count(*) FROM ruvector.collections;
DROP TABLE items;
SELECT count(*) FROM ruvector.collections;

-- What cannot be kept in the cluster says so.
RESET client_min_messages;
CREATE TABLE keyless (embedding vector(2));
CREATE INDEX keyless_idx ON keyless USING ruhnsw (embedding vector_l2_ops);
SELECT state, reason FROM ruvector_index_status('keyless_idx');
SELECT ruvector_wait_for_index('keyless_idx', 1);
INSERT INTO keyless VALUES ('[1,2]'), ('[3,4]');
SET enable_seqscan = off;
SELECT * FROM keyless ORDER BY embedding <-> '[3,3]';
RESET enable_seqscan;
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, embedding vector(2));
CREATE INDEX unlogged_idx ON unlogged USING ruhnsw (embedding vector_l2_ops);
CREATE TABLE wide (id int PRIMARY KEY, loose vector, embedding vector(2));
CREATE INDEX ON wide USING ruhnsw (loose vector_l2_ops);
CREATE INDEX ON wide USING ruhnsw (embedding vector_l2_ops) WHERE id > 3;
CREATE INDEX ON wide USING ruhnsw ((embedding + embedding) vector_l2_ops);
CREATE INDEX ON wide USING ruhnsw (embedding vector_l2_ops, id);
CREATE INDEX ON wide USING ruhnsw (embedding vector_l2_ops) WITH (m = 1);
CREATE INDEX ON wide USING ruhnsw (embedding vector_l2_ops) WITH (m = 16, ef_construction = 31);
CREATE UNIQUE INDEX ON wide USING ruhnsw (embedding vector_l2_ops);
SELECT ruvector_index_status('wide_pkey');
SELECT count(*) FROM ruvector.collections;
CREATE INDEX wide_idx ON wide USING ruhnsw (embedding vector_l2_ops);
SELECT count(*) FROM ruvector.collections;
ALTER TABLE wide DROP CONSTRAINT wide_pkey;
SELECT count(*) FROM ruvector.collections;
SELECT state, reason FROM ruvector_index_status('wide_idx');
ALTER TABLE wide ADD PRIMARY KEY (id);
SELECT state, reason FROM ruvector_index_status('wide_idx');
SET client_min_messages = error;
REINDEX INDEX wide_idx;
SELECT count(*) FROM ruvector.collections;
SELECT amvalidate(oid) FROM pg_opclass WHERE opcmethod = (SELECT oid FROM pg_am WHERE amname = 'ruhnsw');
CREATE TABLE parted (id int, embedding vector(2), PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE INDEX parted_idx ON parted USING ruhnsw (embedding vector_l2_ops);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20);
SELECT table_name FROM ruvector.collections ORDER BY 1;
DROP TABLE parted;
SELECT table_name FROM ruvector.collections ORDER BY 1;
DROP TABLE keyless, unlogged, wide;
SELECT count(*) FROM ruvector.collections;

-- An ordinary user's index, by the extension owner's hand.
CREATE ROLE ruvector_test_user;
GRANT CREATE ON SCHEMA public TO ruvector_test_user;
SET ROLE ruvector_test_user;
CREATE TABLE theirs (id int PRIMARY KEY, embedding vector(2));
CREATE INDEX theirs_idx ON theirs USING ruhnsw (embedding vector_l2_ops);
SELECT count(*) FROM ruvector.collections;
DROP TABLE theirs;
RESET ROLE;
SELECT count(*) FROM ruvector.collections;
REVOKE CREATE ON SCHEMA public FROM ruvector_test_user;
DROP ROLE ruvector_test_user;
