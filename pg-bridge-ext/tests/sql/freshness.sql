-- Settings, tokens and views where no cluster is.
LOAD 'ruvector';
SET ruvector.read_consistency = bounded;
SHOW ruvector.max_lag_ms;
SET ruvector.max_lag_ms = '2s';
SHOW ruvector.max_lag_ms;
SET ruvector.max_lag_ms = -1;
SET ruvector.max_lag_ms = '11min';
SET ruvector.read_consistency = recent;
RESET ruvector.read_consistency;
SHOW ruvector.read_consistency;

-- A token names this server, its timeline and a position; later ones do not go back.
SELECT ruvector_session_token() ~ '^rv1:\d+:1:[0-9A-F]+/[0-9A-F]+$' AS has_its_form,
	split_part(ruvector_session_token(), ':', 2) = (SELECT system_identifier::text FROM pg_control_system()) AS is_of_this_server;
CREATE TABLE kept (token text);
INSERT INTO kept SELECT ruvector_session_token();
SELECT split_part(ruvector_session_token(), ':', 4)::pg_lsn > split_part(token, ':', 4)::pg_lsn AS rises,
	pg_current_wal_flush_lsn() >= split_part(ruvector_session_token(), ':', 4)::pg_lsn AS is_on_disk FROM kept;

-- Set, it is the session's; nonsense is refused and changes nothing.
SELECT set_config('ruvector.session_token', token, false) = token AS is_set FROM kept;
SET ruvector.session_token = 'tomorrow';
SET ruvector.session_token = '0/16B3740';
SET ruvector.session_token = 'rv1:1:1:0/16b3740';
SET ruvector.session_token = 'rv2:1:1:0/16B3740';
\set VERBOSITY terse
DO $$
DECLARE
	problem text;
BEGIN
	PERFORM set_config('ruvector.session_token', 'rv1:1:1:0/16B3740', false);
EXCEPTION WHEN invalid_parameter_value THEN
	GET STACKED DIAGNOSTICS problem = PG_EXCEPTION_DETAIL;
	RAISE NOTICE '%', replace(problem, (SELECT system_identifier::text FROM pg_control_system()), 'ours');
END $$;
\set VERBOSITY default
SELECT current_setting('ruvector.session_token') = token AS is_kept FROM kept;
BEGIN;
SET LOCAL ruvector.session_token = '';
SHOW ruvector.session_token;
ROLLBACK;
SELECT current_setting('ruvector.session_token') = token AS is_kept FROM kept;
RESET ruvector.session_token;
SHOW ruvector.session_token;

-- An exact scan has everything, whatever is asked for.
SET client_min_messages = error;
CREATE TABLE fresh (id int PRIMARY KEY, embedding vector(2));
CREATE INDEX fresh_idx ON fresh USING ruhnsw (embedding vector_l2_ops);
RESET client_min_messages;
SET enable_seqscan = off;
INSERT INTO fresh VALUES (1, '[1,1]');
SET ruvector.read_consistency = bounded;
SET ruvector.max_lag_ms = 0;
SELECT id FROM fresh ORDER BY embedding <-> '[1,1]';

-- Without the library preloaded there is nothing to tell, and nothing fails.
SELECT * FROM ruvector_visibility_stats;
SELECT * FROM ruvector_replication_status;
CREATE ROLE ruvector_fresh_user;
SET ROLE ruvector_fresh_user;
SELECT count(*) FROM ruvector_visibility_stats;
SELECT count(*) FROM ruvector_replication_status;
SELECT ruvector_session_token() IS NOT NULL AS has_token;
RESET ROLE;
DROP ROLE ruvector_fresh_user;
DROP TABLE kept, fresh;
