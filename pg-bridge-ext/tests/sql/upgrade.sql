-- What 0.1.0 made is brought to the present version.
DROP EXTENSION ruvector;
CREATE EXTENSION ruvector VERSION '0.1.0';
CREATE TABLE items (id bigint PRIMARY KEY, embedding vector(3));
INSERT INTO items VALUES (1, '[1,2,3]');
SELECT ruvector_session_token();
ALTER EXTENSION ruvector UPDATE;
SELECT extversion FROM pg_extension WHERE extname = 'ruvector';
SELECT ruvector_session_token() LIKE 'rv1:%' AS has_token;
SELECT count(*) AS sources FROM ruvector_replication_status;
SELECT to_regclass('ruvector.slot_advances') AS slot_advances;
SELECT embedding FROM items;
DROP TABLE items;
