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

-- ------------------------------------------------------------------ reconcile

CREATE FUNCTION ruvector_reconcile(index regclass) RETURNS void
	AS 'MODULE_PATHNAME', 'ruvector_reconcile' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION ruvector_reconcile(regclass) IS 'has the cluster compare the index with its table and mend what differs; for the owner of the index';
