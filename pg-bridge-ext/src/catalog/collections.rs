//! The table `ruvector.collections`: one row for each index that the cluster
//! keeps, written in the transaction that creates or drops the index, under the
//! identity of the table's owner and with a search path that nobody else sets.

use crate::access_method::definition::{Definition, RowKeyIndex};
use crate::catalog::hooks;
use crate::worker::{self, ViewState};
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::{Spi, SpiClient};
use std::ffi::c_int;

pub enum Registered {
    /// The cluster's copy still stands for this definition.
    Unchanged(u64),
    New(u64),
}

/// Upserts the row of an index. The generation is a new one if there is no row,
/// or if the index's contents may have changed without any row change.
///
/// # Safety
/// In a transaction that may write.
pub unsafe fn register(definition: &Definition, key: &RowKeyIndex) -> Registered {
    let owner = owner_of_table().unwrap_or_else(|| {
        pgrx::error!("table ruvector.collections is missing");
    });
    let fingerprint = format!(
        "{} m {} ef_construction {}",
        definition.fingerprint(),
        definition.m,
        definition.ef_construction
    );
    as_role(owner, || {
        Spi::connect_mut(|client| {
            sweep(client);
            let known = known_generation(client, definition.index_oid, &fingerprint);
            let may_stay = |generation: &u64| {
                !hooks::in_alter_table() && !wants_building(definition.index_oid, *generation)
            };
            match known.filter(may_stay) {
                Some(generation) => {
                    upsert(client, definition, key, &fingerprint, generation);
                    Registered::Unchanged(generation)
                }
                None => {
                    let generation = next_generation(client);
                    upsert(client, definition, key, &fingerprint, generation);
                    Registered::New(generation)
                }
            }
        })
    })
}

/// Deletes the row of an index. True if there was one.
///
/// # Safety
/// In a transaction that may write.
pub unsafe fn remove(index_oid: pg_sys::Oid) -> bool {
    // Absent while the extension itself is being dropped.
    let Some(owner) = owner_of_table() else {
        return false;
    };
    as_role(owner, || {
        Spi::connect_mut(|client| {
            let args = [DatumWithOid::from(index_oid)];
            run(
                client,
                "DELETE FROM ruvector.index_fingerprints WHERE index_oid OPERATOR(pg_catalog.=) $1",
                &args,
            );
            run(
                client,
                "DELETE FROM ruvector.collections WHERE index_oid OPERATOR(pg_catalog.=) $1",
                &args,
            ) > 0
        })
    })
}

/// Whether the row of an index stands, as far as anybody has committed: an index
/// whose table lost its key and got it back has missed what came between.
///
/// # Safety
/// In a transaction.
pub unsafe fn is_registered(index_oid: pg_sys::Oid, generation: u64) -> bool {
    /// How a row begins.
    #[repr(C)]
    struct Head {
        index_oid: pg_sys::Oid,
        definition_generation: i64,
    }
    let Some(table_oid) = table() else {
        return false;
    };
    let table = pg_sys::table_open(table_oid, pg_sys::AccessShareLock as c_int);
    let mut key = pg_sys::ScanKeyData::default();
    pg_sys::ScanKeyInit(
        &mut key,
        1,
        pg_sys::BTEqualStrategyNumber as u16,
        pg_sys::Oid::from_u32(pg_sys::F_OIDEQ),
        pg_sys::Datum::from(index_oid),
    );
    let index = pg_sys::RelationGetPrimaryKeyIndex(table);
    let scan = pg_sys::systable_beginscan(table, index, true, std::ptr::null_mut(), 1, &mut key);
    let tuple = pg_sys::systable_getnext(scan);
    let is_registered = !tuple.is_null() && {
        let head = pg_sys::GETSTRUCT(tuple).cast::<Head>();
        (*head).definition_generation as u64 == generation
    };
    pg_sys::systable_endscan(scan);
    pg_sys::table_close(table, pg_sys::AccessShareLock as c_int);
    is_registered
}

/// Lets go of a table that the cluster can no longer follow: deletes the rows of
/// its indexes, and takes it out of the publications that tell the cluster of
/// them. Postgres refuses UPDATE and DELETE of a published table without a key.
///
/// # Safety
/// In a transaction that may write.
pub unsafe fn release_table(table_oid: pg_sys::Oid) {
    let Some(owner) = owner_of_table() else {
        return;
    };
    as_role(owner, || {
        Spi::connect_mut(|client| {
            let args = [DatumWithOid::from(table_oid)];
            run(
                client,
                "DELETE FROM ruvector.index_fingerprints f USING ruvector.collections c \
                 WHERE f.index_oid OPERATOR(pg_catalog.=) c.index_oid \
                 AND c.table_oid OPERATOR(pg_catalog.=) $1",
                &args,
            );
            run(
                client,
                "DELETE FROM ruvector.collections WHERE table_oid OPERATOR(pg_catalog.=) $1",
                &args,
            );
            for (publisher, statement) in statements(client, LEAVE_PUBLICATIONS, &args) {
                as_role(publisher, || run(client, &statement, &[]));
            }
        })
    })
}

/// The indexes whose rows are named by a column of the given type.
///
/// # Safety
/// In a transaction.
pub unsafe fn with_key_of(kind: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let Some(owner) = owner_of_table() else {
        return Vec::new();
    };
    let sql = "SELECT c.index_oid FROM ruvector.collections c WHERE EXISTS (\
               SELECT FROM pg_catalog.pg_attribute a \
               WHERE a.attrelid OPERATOR(pg_catalog.=) c.table_oid \
               AND a.attnum OPERATOR(pg_catalog.=) ANY (c.key_attnums) \
               AND a.atttypid OPERATOR(pg_catalog.=) $1)";
    as_role(owner, || {
        Spi::connect(|client| match client.select(sql, None, &[kind.into()]) {
            Ok(rows) => rows.filter_map(|row| row.get(1).ok().flatten()).collect(),
            Err(error) => pgrx::error!("ruvector.collections: {error}"),
        })
    })
}

/// Tells the cluster what indexes, tables and schemas are called now.
///
/// # Safety
/// In a transaction that may write.
pub unsafe fn refresh_names() {
    let Some(owner) = owner_of_table() else {
        return;
    };
    as_role(owner, || {
        Spi::connect_mut(|client| run(client, REFRESH_NAMES, &[]));
    })
}

const REFRESH_NAMES: &str = "
UPDATE ruvector.collections c
   SET schema_name = n.nspname, table_name = t.relname, index_name = i.relname
  FROM pg_catalog.pg_class i, pg_catalog.pg_class t, pg_catalog.pg_namespace n
 WHERE i.oid OPERATOR(pg_catalog.=) c.index_oid AND t.oid OPERATOR(pg_catalog.=) c.table_oid
   AND n.oid OPERATOR(pg_catalog.=) t.relnamespace
   AND (c.schema_name, c.table_name, c.index_name)
       IS DISTINCT FROM (n.nspname::text, t.relname::text, i.relname::text)";

const LEAVE_PUBLICATIONS: &str = "
SELECT p.pubowner, pg_catalog.format('ALTER PUBLICATION %I DROP TABLE ONLY %I.%I', p.pubname, n.nspname, t.relname)
  FROM pg_catalog.pg_publication p
  JOIN pg_catalog.pg_publication_rel ours ON ours.prpubid OPERATOR(pg_catalog.=) p.oid
  JOIN pg_catalog.pg_publication_rel theirs ON theirs.prpubid OPERATOR(pg_catalog.=) p.oid
  JOIN pg_catalog.pg_class t ON t.oid OPERATOR(pg_catalog.=) theirs.prrelid
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.relnamespace
 WHERE ours.prrelid OPERATOR(pg_catalog.=) 'ruvector.collections'::pg_catalog.regclass
   AND t.oid OPERATOR(pg_catalog.=) $1";

/// Roles, and what is to be run as each.
fn statements(
    client: &mut SpiClient<'_>,
    sql: &str,
    args: &[DatumWithOid<'_>],
) -> Vec<(pg_sys::Oid, String)> {
    match client.update(sql, None, args) {
        Ok(rows) => rows
            .filter_map(|row| Some((row.get(1).ok()??, row.get(2).ok()??)))
            .collect(),
        Err(error) => pgrx::error!("ruvector.collections: {error}"),
    }
}

/// Runs SQL of ours and answers how many rows it touched.
fn run(client: &mut SpiClient<'_>, sql: &str, args: &[DatumWithOid<'_>]) -> usize {
    match client.update(sql, None, args) {
        Ok(rows) => rows.len(),
        Err(error) => pgrx::error!("ruvector.collections: {error}"),
    }
}

fn number(client: &mut SpiClient<'_>, sql: &str, args: &[DatumWithOid<'_>]) -> Option<i64> {
    let rows = match client.update(sql, Some(1), args) {
        Ok(rows) => rows,
        Err(error) => pgrx::error!("ruvector.collections: {error}"),
    };
    if rows.is_empty() {
        None
    } else {
        rows.first().get_one::<i64>().unwrap_or(None)
    }
}

/// Rows of indexes that were dropped while this library was not loaded.
fn sweep(client: &mut SpiClient<'_>) {
    for table in ["ruvector.index_fingerprints", "ruvector.collections"] {
        let sql = format!(
            "DELETE FROM {table} x WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c \
             WHERE c.oid OPERATOR(pg_catalog.=) x.index_oid)"
        );
        run(client, &sql, &[]);
    }
}

/// Whether the cluster has given the collection up, or lacks rows of it for good:
/// building the index again is how the user asks for a new one.
fn wants_building(index_oid: pg_sys::Oid, generation: u64) -> bool {
    // SAFETY: set once when the backend starts.
    let database_oid = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let view = worker::index_view(database_oid, index_oid.to_u32(), generation);
    view.state == ViewState::Failed || view.stale_partitions > 0
}

fn known_generation(
    client: &mut SpiClient<'_>,
    index_oid: pg_sys::Oid,
    fingerprint: &str,
) -> Option<u64> {
    let sql = "SELECT c.definition_generation FROM ruvector.collections c \
               JOIN ruvector.index_fingerprints f ON f.index_oid OPERATOR(pg_catalog.=) c.index_oid \
               WHERE c.index_oid OPERATOR(pg_catalog.=) $1 AND f.fingerprint OPERATOR(pg_catalog.=) $2";
    number(client, sql, &[index_oid.into(), fingerprint.into()])
        .and_then(|generation| u64::try_from(generation).ok())
}

fn next_generation(client: &mut SpiClient<'_>) -> u64 {
    let sql = "SELECT pg_catalog.nextval('ruvector.definition_generation_seq')";
    let generation = number(client, sql, &[]).unwrap_or_default();
    u64::try_from(generation).unwrap_or_default()
}

fn upsert(
    client: &mut SpiClient<'_>,
    definition: &Definition,
    key: &RowKeyIndex,
    fingerprint: &str,
    generation: u64,
) {
    let attnums: Vec<i16> = key.columns.iter().map(|column| column.attnum).collect();
    let sql = "INSERT INTO ruvector.collections AS c VALUES \
               ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
               ON CONFLICT (index_oid) DO UPDATE SET \
               definition_generation = excluded.definition_generation, \
               table_oid = excluded.table_oid, schema_name = excluded.schema_name, \
               table_name = excluded.table_name, index_name = excluded.index_name, \
               column_name = excluded.column_name, column_attnum = excluded.column_attnum, \
               key_attnums = excluded.key_attnums, metric = excluded.metric, \
               dimensions = excluded.dimensions, m = excluded.m, \
               ef_construction = excluded.ef_construction \
               WHERE c IS DISTINCT FROM excluded";
    run(
        client,
        sql,
        &[
            definition.index_oid.into(),
            (generation as i64).into(),
            definition.table_oid.into(),
            definition.schema_name.as_str().into(),
            definition.table_name.as_str().into(),
            definition.index_name.as_str().into(),
            definition.column_name.as_str().into(),
            definition.column_attnum.into(),
            attnums.into(),
            definition.metric.name().into(),
            (definition.dimensions() as i32).into(),
            (definition.m as i32).into(),
            (definition.ef_construction as i32).into(),
        ],
    );
    let sql = "INSERT INTO ruvector.index_fingerprints AS f VALUES ($1, $2) \
               ON CONFLICT (index_oid) DO UPDATE SET fingerprint = excluded.fingerprint \
               WHERE f.fingerprint OPERATOR(pg_catalog.<>) excluded.fingerprint";
    run(
        client,
        sql,
        &[definition.index_oid.into(), fingerprint.into()],
    );
}

/// `ruvector.collections` itself.
unsafe fn table() -> Option<pg_sys::Oid> {
    let schema = pg_sys::get_namespace_oid(c"ruvector".as_ptr(), true);
    if schema == pg_sys::InvalidOid {
        return None;
    }
    let table = pg_sys::get_relname_relid(c"collections".as_ptr(), schema);
    (table != pg_sys::InvalidOid).then_some(table)
}

/// The owner of `ruvector.collections`, the extension's.
unsafe fn owner_of_table() -> Option<pg_sys::Oid> {
    let table = table()?;
    let tuple = pg_sys::SearchSysCache1(
        pg_sys::SysCacheIdentifier::RELOID as c_int,
        pg_sys::Datum::from(table),
    );
    if tuple.is_null() {
        return None;
    }
    let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relowner;
    pg_sys::ReleaseSysCache(tuple);
    Some(owner)
}

/// Runs as the given role, with a search path of the system's only, and may
/// write: REINDEX, VACUUM FULL and CLUSTER are allowed where a transaction is
/// read-only. An error leaves all three to the end of the (sub)transaction, which
/// restores them.
pub(super) unsafe fn as_role<R>(role: pg_sys::Oid, body: impl FnOnce() -> R) -> R {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
    pg_sys::SetUserIdAndSecContext(
        role,
        context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as c_int,
    );
    let level = pg_sys::NewGUCNestLevel();
    pg_sys::set_config_option(
        c"search_path".as_ptr(),
        c"pg_catalog, pg_temp".as_ptr(),
        pg_sys::GucContext::PGC_USERSET,
        pg_sys::GucSource::PGC_S_SESSION,
        pg_sys::GucAction::GUC_ACTION_SAVE,
        true,
        0,
        false,
    );
    let is_read_only = pg_sys::XactReadOnly;
    pg_sys::XactReadOnly = false;
    let result = body();
    pg_sys::XactReadOnly = is_read_only;
    pg_sys::AtEOXact_GUC(false, level);
    pg_sys::SetUserIdAndSecContext(user, context);
    result
}
