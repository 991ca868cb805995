-- What 0.2.0 has beyond 0.1.0. CREATE EXTENSION runs both scripts, one after the
-- other; a released script is never changed.
\echo Use "ALTER EXTENSION ruvector UPDATE" to load this file. \quit

-- --------------------------------------------------------------------- status

-- Their rows have more columns than before.
DROP FUNCTION ruvector_index_status();
DROP FUNCTION ruvector_index_status(regclass);

CREATE FUNCTION ruvector_index_status(
	index regclass,
	OUT index_name text,
	OUT table_name text,
	OUT state text,
	OUT reason text,
	OUT partitions integer,
	OUT replicas integer,
	OUT rows bigint,
	OUT tail_rows bigint,
	OUT pending_rows bigint,
	OUT applied_lsn pg_lsn,
	OUT durable_lsn pg_lsn,
	OUT backfill_rows_copied bigint,
	OUT backfill_rows_estimated bigint,
	OUT backfill_blocks_copied bigint,
	OUT backfill_blocks_total bigint,
	OUT backfill_snapshots bigint,
	OUT last_fallback_reason text
) RETURNS record
	AS 'MODULE_PATHNAME', 'ruvector_index_status' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION ruvector_index_status(regclass) IS 'what the cluster knows about an index, and why a scan would be exact';

CREATE FUNCTION ruvector_index_status() RETURNS TABLE (
	index_name text,
	table_name text,
	state text,
	reason text,
	partitions integer,
	replicas integer,
	rows bigint,
	tail_rows bigint,
	pending_rows bigint,
	applied_lsn pg_lsn,
	durable_lsn pg_lsn,
	backfill_rows_copied bigint,
	backfill_rows_estimated bigint,
	backfill_blocks_copied bigint,
	backfill_blocks_total bigint,
	backfill_snapshots bigint,
	last_fallback_reason text
) LANGUAGE sql VOLATILE PARALLEL RESTRICTED AS $$
	SELECT s.*
	FROM pg_catalog.pg_class c
	JOIN pg_catalog.pg_am a ON a.oid OPERATOR(pg_catalog.=) c.relam
	CROSS JOIN LATERAL @extschema@.ruvector_index_status(c.oid::pg_catalog.regclass) s
	WHERE c.relkind OPERATOR(pg_catalog.=) 'i' AND a.amname OPERATOR(pg_catalog.=) 'ruhnsw'
	-- What cannot be opened here: other sessions' temporary indexes, and on a
	-- standby unlogged ones.
	AND NOT pg_catalog.pg_is_other_temp_schema(c.relnamespace)
	AND NOT (c.relpersistence OPERATOR(pg_catalog.=) 'u' AND pg_catalog.pg_is_in_recovery())
	ORDER BY c.oid
$$;

-- ------------------------------------------------------------------ freshness

CREATE FUNCTION ruvector_session_token() RETURNS text
	AS 'MODULE_PATHNAME', 'ruvector_session_token' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION ruvector_session_token() IS 'what SET ruvector.session_token takes so that a search on another connection sees what was committed before this call';

CREATE FUNCTION ruvector_visibility_counters(
	OUT counter text,
	OUT label text,
	OUT value bigint
) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'ruvector_visibility_counters' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

CREATE VIEW ruvector_visibility_stats AS
	SELECT counter, label, value FROM ruvector_visibility_counters();
COMMENT ON VIEW ruvector_visibility_stats IS 'counters of this server since it started: searches by consistency, waits, exact scans by reason, rows';

-- A row for each collection of the source that follows this database, and one
-- without a collection while it has none.
CREATE FUNCTION ruvector_replication_progress(
	OUT source_id bigint,
	OUT source_name text,
	OUT index_oid oid,
	OUT state text,
	OUT reason text,
	OUT slot_name text,
	OUT received_lsn pg_lsn,
	OUT confirmed_lsn pg_lsn,
	OUT source_applied_lsn pg_lsn,
	OUT applied_lsn pg_lsn,
	OUT durable_lsn pg_lsn,
	OUT lag_bytes bigint,
	OUT lag_ms bigint,
	OUT source_reported_ms_ago bigint,
	OUT reported_ms_ago bigint
) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'ruvector_replication_progress' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

-- Shows a role the indexes of the tables that it may read, and members of
-- pg_read_all_stats all of them.
CREATE VIEW ruvector_replication_status AS
	SELECT
		p.source_id,
		p.source_name,
		p.index_oid::pg_catalog.regclass AS index,
		x.indrelid::pg_catalog.regclass AS "table",
		p.state,
		p.reason,
		p.received_lsn,
		p.confirmed_lsn,
		p.source_applied_lsn,
		p.applied_lsn,
		p.durable_lsn,
		p.lag_bytes,
		p.lag_ms,
		p.source_reported_ms_ago,
		p.reported_ms_ago,
		p.slot_name,
		r.active AS slot_active,
		r.wal_status,
		r.safe_wal_size,
		CASE WHEN NOT pg_catalog.pg_is_in_recovery()
			THEN pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), r.restart_lsn)::bigint
		END AS retained_bytes
	FROM ruvector_replication_progress() p
	LEFT JOIN pg_catalog.pg_index x ON x.indexrelid = p.index_oid
	LEFT JOIN pg_catalog.pg_replication_slots r ON r.slot_name = p.slot_name::name;
COMMENT ON VIEW ruvector_replication_status IS 'how far the cluster has followed this database, by index, and what the slot retains';

GRANT SELECT ON ruvector_visibility_stats, ruvector_replication_status TO PUBLIC;

-- ---------------------------------------------------------------------- slots

-- How much WAL each slot of the cluster in this database may retain, as its consumer
-- noted; 0 for any amount. In force while no consumer streams.
CREATE TABLE ruvector.slots (
	slot_name        name PRIMARY KEY,
	hold_limit_bytes bigint NOT NULL CHECK (hold_limit_bytes >= 0),
	noted_at         timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE ruvector.slots IS 'limits of the cluster''s replication slots, written by the consumer';

-- What the server did itself, with no consumer there: the newest hundred.
CREATE TABLE ruvector.slot_advances (
	id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	slot_name      name NOT NULL,
	began_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
	from_lsn       pg_lsn NOT NULL,
	to_lsn         pg_lsn NOT NULL,
	retained_bytes bigint NOT NULL,
	limit_bytes    bigint NOT NULL
);
COMMENT ON TABLE ruvector.slot_advances IS 'slots that were advanced past their limit while nobody streamed: indexes lack what lies between';

CREATE FUNCTION ruvector.note_slot(slot name, limit_bytes bigint) RETURNS void
	LANGUAGE sql VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	DELETE FROM ruvector.slots s WHERE NOT EXISTS (
		SELECT FROM pg_replication_slots r WHERE r.slot_name = s.slot_name AND r.database = current_database());
	INSERT INTO ruvector.slots (slot_name, hold_limit_bytes)
	SELECT r.slot_name, limit_bytes FROM pg_replication_slots r
	WHERE r.slot_name = slot AND r.database = current_database()
	ON CONFLICT (slot_name) DO UPDATE SET hold_limit_bytes = excluded.hold_limit_bytes, noted_at = now()
	WHERE slots.hold_limit_bytes <> excluded.hold_limit_bytes;
$$;
REVOKE ALL ON FUNCTION ruvector.note_slot(name, bigint) FROM PUBLIC;
COMMENT ON FUNCTION ruvector.note_slot(name, bigint) IS 'for the consumer: notes how much WAL its slot may retain';

-- --------------------------------------------------------------------- verify

CREATE FUNCTION ruvector_verify(
	index regclass,
	OUT index_name text,
	OUT partition bigint,
	OUT node bigint,
	OUT state text,
	OUT heap_rows bigint,
	OUT replica_rows bigint,
	OUT differences bigint,
	OUT undetermined bigint,
	OUT verified_lsn pg_lsn,
	OUT problem text
) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'ruvector_verify' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	COST 1000000 ROWS 16;
COMMENT ON FUNCTION ruvector_verify(regclass) IS 'compares every replica of the index with the table: in how many keys it differs';

CREATE FUNCTION ruvector_verify_differences(
	index regclass,
	row_limit integer DEFAULT 100,
	OUT index_name text,
	OUT partition bigint,
	OUT node bigint,
	OUT key text,
	OUT kind text
) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'ruvector_verify_differences' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	COST 1000000 ROWS 100;
COMMENT ON FUNCTION ruvector_verify_differences(regclass, integer) IS 'the keys in which replicas of the index differ from the table: missing, extra, different, unsearchable or undetermined';

-- ------------------------------------------------------- who follows, and how

-- The slots that ruvector_detach_source() has dropped: what was followed through one
-- of them is not followed again through it. Not dumped.
CREATE TABLE ruvector.detachments (
	slot_name   name PRIMARY KEY,
	detached_by name NOT NULL,
	detached_at timestamptz NOT NULL
);
COMMENT ON TABLE ruvector.detachments IS 'slots that were let go on purpose; the cluster does not make them again';

CREATE FUNCTION ruvector_detach_source() RETURNS integer
	AS 'MODULE_PATHNAME', 'ruvector_detach_source' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION ruvector_detach_source() IS 'ends the cluster''s following of this database: drops its slots and its publication';

-- What Postgres lets nobody do but the owner of a table or of a publication, for a
-- role that follows the database without being either. Each does one thing, to
-- publications, tables and slots of ours only. Nobody may call them unless granted.

CREATE FUNCTION ruvector.is_our_publication(publication name) RETURNS boolean
	LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
		WHERE p.pubname = $1 AND r.prrelid = 'ruvector.collections'::regclass)
$$;

CREATE FUNCTION ruvector.create_publication(publication name) RETURNS void
	LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF publication !~ '^ruvector[a-z0-9_]*$' THEN
		RAISE EXCEPTION 'a publication of the cluster has a name that begins with ruvector, not %', publication
			USING ERRCODE = 'invalid_parameter_value';
	END IF;
	IF ruvector.is_our_publication(publication) THEN
		RETURN;
	END IF;
	-- One that a dump brought along lists the tables that have indexes of ours, and not yet
	-- the list of these.
	IF EXISTS (SELECT FROM pg_publication p WHERE p.pubname = publication) THEN
		IF EXISTS (SELECT FROM pg_publication p WHERE p.pubname = publication
				AND (p.puballtables
					OR EXISTS (SELECT FROM pg_publication_namespace n WHERE n.pnpubid = p.oid)
					OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND NOT EXISTS (
						SELECT FROM ruvector.collections k WHERE k.table_oid = r.prrelid)))) THEN
			RAISE EXCEPTION 'publication % exists already, and is not the cluster''s', publication
				USING ERRCODE = 'duplicate_object', HINT = 'Drop it, or rename it.';
		END IF;
		EXECUTE format('ALTER PUBLICATION %I ADD TABLE ruvector.collections', publication);
	ELSE
		EXECUTE format('CREATE PUBLICATION %I FOR TABLE ruvector.collections', publication);
	END IF;
END
$$;

-- Only a table that has an index of ours, by its owner's CREATE INDEX.
CREATE FUNCTION ruvector.publish_table(publication name, relation oid) RETURNS void
	LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	name_of text;
BEGIN
	IF NOT ruvector.is_our_publication(publication) THEN
		RAISE EXCEPTION 'publication % is not the cluster''s', publication
			USING ERRCODE = 'insufficient_privilege';
	END IF;
	SELECT format('%I.%I', n.nspname, c.relname) INTO name_of
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = relation AND c.relkind = 'r'
		AND EXISTS (SELECT FROM ruvector.collections k WHERE k.table_oid = relation);
	IF name_of IS NULL THEN
		RAISE EXCEPTION 'table % has no index that the cluster keeps', relation::regclass
			USING ERRCODE = 'insufficient_privilege';
	END IF;
	EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY %s', publication, name_of);
END
$$;

CREATE FUNCTION ruvector.unpublish_table(publication name, relation oid) RETURNS void
	LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	name_of text;
BEGIN
	IF NOT ruvector.is_our_publication(publication) OR relation = 'ruvector.collections'::regclass THEN
		RAISE EXCEPTION 'table % is not taken out of publication %', relation::regclass, publication
			USING ERRCODE = 'insufficient_privilege';
	END IF;
	SELECT format('%I.%I', n.nspname, c.relname) INTO name_of
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
	IF name_of IS NOT NULL THEN
		EXECUTE format('ALTER PUBLICATION %I DROP TABLE ONLY %s', publication, name_of);
	END IF;
END
$$;

CREATE FUNCTION ruvector.drop_publication(publication name) RETURNS void
	LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF publication ~ '^ruvector' AND ruvector.is_our_publication(publication) THEN
		EXECUTE format('DROP PUBLICATION %I', publication);
	END IF;
END
$$;

-- A former consumer may have followed with another role.
CREATE FUNCTION ruvector.end_walsender(slot name) RETURNS boolean
	LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(bool_or(pg_terminate_backend(r.active_pid)), false)
	FROM pg_replication_slots r
	WHERE r.slot_name = $1 AND r.slot_name LIKE 'ruvector\_%' AND r.plugin = 'pgoutput'
	AND r.database = current_database() AND r.active_pid IS NOT NULL
$$;

REVOKE ALL ON FUNCTION ruvector.is_our_publication(name), ruvector.create_publication(name),
	ruvector.publish_table(name, oid), ruvector.unpublish_table(name, oid),
	ruvector.drop_publication(name), ruvector.end_walsender(name) FROM PUBLIC;

-- ------------------------------------------------------------------ reconcile

CREATE FUNCTION ruvector_reconcile(index regclass) RETURNS void
	AS 'MODULE_PATHNAME', 'ruvector_reconcile' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION ruvector_reconcile(regclass) IS 'has the cluster compare the index with its table and mend what differs; for the owner of the index';
