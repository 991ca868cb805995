-- What a role that follows may do, and what nobody may who was not granted it.
SET client_min_messages = warning;
CREATE TABLE items (id int PRIMARY KEY, embedding vector(2));
CREATE INDEX items_idx ON items USING ruhnsw (embedding vector_l2_ops);
CREATE TABLE secrets (id int PRIMARY KEY, word text);
RESET client_min_messages;
CREATE ROLE ruvector_test_follower;
CREATE ROLE ruvector_test_stranger;
GRANT USAGE ON SCHEMA ruvector TO ruvector_test_follower, ruvector_test_stranger;
GRANT EXECUTE ON FUNCTION ruvector.create_publication(name), ruvector.publish_table(name, oid),
	ruvector.unpublish_table(name, oid), ruvector.drop_publication(name), ruvector.end_walsender(name)
	TO ruvector_test_follower;
CREATE VIEW published AS
	SELECT tablename FROM pg_publication_tables WHERE pubname = 'ruvector' ORDER BY 1;

SET ROLE ruvector_test_stranger;
SELECT ruvector.create_publication('ruvector');
SELECT ruvector.publish_table('ruvector', 'items'::regclass);
SELECT ruvector.unpublish_table('ruvector', 'items'::regclass);
SELECT ruvector.drop_publication('ruvector');
SELECT ruvector.end_walsender('ruvector_1');
SELECT ruvector_detach_source();
RESET ROLE;

SET client_min_messages = error;
SET ROLE ruvector_test_follower;
SELECT ruvector.create_publication('mine');
SELECT ruvector.create_publication('ruvector; DROP TABLE secrets');
SELECT ruvector.publish_table('ruvector', 'items'::regclass);
SELECT ruvector.create_publication('ruvector');
SELECT ruvector.create_publication('ruvector');
SELECT ruvector.publish_table('ruvector', 'items'::regclass);
-- Only what has an index of ours.
SELECT ruvector.publish_table('ruvector', 'secrets'::regclass);
SELECT ruvector.publish_table('ruvector', 0);
SELECT ruvector.unpublish_table('ruvector', 'ruvector.collections'::regclass);
RESET ROLE;
SELECT * FROM published;
-- Somebody else's publication is left alone.
CREATE PUBLICATION ruvector_theirs FOR TABLE secrets;
RESET client_min_messages;
SET ROLE ruvector_test_follower;
SELECT ruvector.create_publication('ruvector_theirs');
SELECT ruvector.publish_table('ruvector_theirs', 'items'::regclass);
SELECT ruvector.drop_publication('ruvector_theirs');
SELECT ruvector.end_walsender('ruvector_1');
SELECT ruvector.unpublish_table('ruvector', 'items'::regclass);
RESET ROLE;
SELECT * FROM published;
SET ROLE ruvector_test_follower;
SELECT ruvector.drop_publication('ruvector');
RESET ROLE;
SELECT pubname FROM pg_publication;
DROP PUBLICATION ruvector_theirs;

-- Letting go: by the database's owner, not by anybody.
SELECT ruvector_detach_source();
SET client_min_messages = error;
SELECT ruvector.create_publication('ruvector');
RESET client_min_messages;
SET ROLE ruvector_test_follower;
SELECT ruvector_detach_source();
RESET ROLE;
BEGIN READ ONLY;
SELECT ruvector_detach_source();
ROLLBACK;
CREATE ROLE ruvector_test_owner;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO ruvector_test_owner', current_database()); END $$;
SET ROLE ruvector_test_owner;
SELECT ruvector_detach_source();
RESET ROLE;
SELECT count(*) FROM pg_publication;

DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO postgres', current_database()); END $$;
DROP VIEW published;
DROP TABLE items, secrets;
DROP OWNED BY ruvector_test_follower, ruvector_test_stranger, ruvector_test_owner;
DROP ROLE ruvector_test_follower, ruvector_test_stranger, ruvector_test_owner;
