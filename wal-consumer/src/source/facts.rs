//! One look at a server, for the checklist that `cluster_core::checklist` makes of
//! it. Whatever a server lacks is a fact; only one that cannot be reached is an
//! error.

use super::postgres::Postgres;
use super::rights::FUNCTIONS;
use super::sql;
use crate::replication::connection::Connection;
use crate::replication::slot;
use anyhow::Context;
use cluster_core::checklist::{RoleFacts, ServerFacts};
use tokio_postgres::{Client, Row};

const SERVER: &str = "
SELECT current_setting('server_version_num')::int AS version_num,
       pg_is_in_recovery() AS standby,
       current_setting('wal_level') AS wal_level,
       current_setting('ruvector.server_start', true) IS NOT NULL AS preloaded,
       d.datname::text AS database, d.oid AS database_oid,
       (SELECT extversion FROM pg_extension WHERE extname = 'ruvector') AS extension,
       (SELECT count(*) FROM pg_replication_slots)::int AS slots_used,
       current_setting('max_replication_slots')::int AS slots_max,
       (SELECT count(*) FROM pg_stat_replication)::int AS walsenders_used,
       current_setting('max_wal_senders')::int AS walsenders_max,
       EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1) AS has_slot,
       (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_mb,
       r.rolname::text AS role, r.rolsuper AS superuser, r.rolreplication AS replicates,
       r.rolsuper OR pg_has_role(r.oid, 'pg_read_all_stats', 'usage') AS stats
  FROM pg_database d, pg_roles r
 WHERE d.datname = current_database() AND r.rolname = current_user";

/// Only where the schema is there and may be used.
const DEFINITIONS: &str = "
SELECT has_schema_privilege(n.oid, 'usage')
       AND bool_and(has_table_privilege(c.oid, 'select'))
  FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid
 WHERE n.nspname = 'ruvector' AND c.relname IN ('collections', 'detachments', 'slot_advances')
 GROUP BY n.oid";

/// Null where there is no such function. By the catalog: looking a name up needs
/// USAGE on its schema.
const FUNCTION: &str = "
SELECT bool_and(has_function_privilege(p.oid, 'execute'))
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname || '.' || p.proname || '(' || oidvectortypes(p.proargtypes) || ')' = $1";

const TABLES: &str = "
SELECT format('%I.%I', n.nspname, t.relname) AS name,
       has_schema_privilege(n.oid, 'usage') AND has_table_privilege(t.oid, 'select') AS readable,
       row_security_active(t.oid) AS shielded
  FROM (SELECT DISTINCT table_oid FROM ruvector.collections) c
  JOIN pg_class t ON t.oid = c.table_oid JOIN pg_namespace n ON n.oid = t.relnamespace
 ORDER BY 1";

/// `slot_name` is the source's own slot, if the cluster knows the source.
pub async fn look(server: &Postgres, slot_name: &str) -> anyhow::Result<ServerFacts> {
    let client = sql::connect(server).await?;
    let row = client
        .query_one(SERVER, &[&slot_name])
        .await
        .context("looking at the server")?;
    let mut facts = server_facts(&row)?;
    if facts.extension.is_some() {
        look_at_rights(&client, &mut facts.role).await?;
    }
    match identify(server).await {
        Ok(system_identifier) => facts.system_identifier = Some(system_identifier),
        Err(error) => facts.replication_problem = format!("{error:#}"),
    }
    Ok(facts)
}

fn server_facts(row: &Row) -> anyhow::Result<ServerFacts> {
    let number = |name: &str| -> anyhow::Result<u32> {
        Ok(u32::try_from(row.try_get::<_, i32>(name)?).unwrap_or(0))
    };
    // -1: no limit.
    let keep_mb: Option<i64> = row.try_get("keep_mb")?;
    let keep_mb = keep_mb.and_then(|megabytes| u64::try_from(megabytes).ok());
    Ok(ServerFacts {
        version_num: number("version_num")?,
        is_in_recovery: row.try_get("standby")?,
        wal_level: row.try_get("wal_level")?,
        is_preloaded: row.try_get("preloaded")?,
        database: row.try_get("database")?,
        database_oid: row.try_get("database_oid")?,
        extension: row.try_get("extension")?,
        slots_used: number("slots_used")?,
        slots_max: number("slots_max")?,
        walsenders_used: number("walsenders_used")?,
        walsenders_max: number("walsenders_max")?,
        has_slot: row.try_get("has_slot")?,
        max_slot_wal_keep_bytes: keep_mb.map(|megabytes| megabytes << 20),
        system_identifier: None,
        replication_problem: String::new(),
        role: RoleFacts {
            name: row.try_get("role")?,
            is_superuser: row.try_get("superuser")?,
            can_replicate: row.try_get("replicates")?,
            reads_all_stats: row.try_get("stats")?,
            ..RoleFacts::default()
        },
    })
}

async fn look_at_rights(client: &Client, role: &mut RoleFacts) -> anyhow::Result<()> {
    let read = client.query_opt(DEFINITIONS, &[]).await;
    let read = read.context("looking at the rights on ruvector.collections")?;
    role.reads_definitions = match read {
        Some(row) => row.try_get::<_, Option<bool>>(0)?.unwrap_or(false),
        None => false,
    };
    for function in FUNCTIONS {
        let row = client.query_one(FUNCTION, &[&function]).await;
        let row = row.context("looking at the rights on functions")?;
        match row.try_get::<_, Option<bool>>(0)? {
            Some(true) => {}
            Some(false) => role.missing_functions.push(function.to_owned()),
            None => role.has_no_functions = true,
        }
    }
    if !role.reads_definitions {
        return Ok(());
    }
    let tables = client.query(TABLES, &[]).await;
    for row in tables.context("looking at the rights on tables")? {
        let name: String = row.try_get("name")?;
        if !row.try_get::<_, bool>("readable")? {
            role.unreadable_tables.push(name);
        } else if row.try_get::<_, bool>("shielded")? {
            role.shielded_tables.push(name);
        }
    }
    Ok(())
}

async fn identify(server: &Postgres) -> anyhow::Result<u64> {
    let mut connection = Connection::connect(server, "").await?;
    let system = slot::identify_system(&mut connection).await?;
    Ok(system.system_identifier)
}
