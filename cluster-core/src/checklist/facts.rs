//! What was seen of a server, in one look.

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// As `server_version_num`: 150020 is 15.20.
    pub version_num: u32,
    pub is_in_recovery: bool,
    pub wal_level: String,
    /// The extension's library runs in the server.
    pub is_preloaded: bool,
    pub database: String,
    pub database_oid: u32,
    /// The version that the database has; `None` without the extension.
    pub extension: Option<String>,
    pub slots_used: u32,
    pub slots_max: u32,
    pub walsenders_used: u32,
    pub walsenders_max: u32,
    /// The source's own slot is among those in use.
    pub has_slot: bool,
    /// `None`: no limit.
    pub max_slot_wal_keep_bytes: Option<u64>,
    /// `None` where no replication connection could be opened, for that reason.
    pub system_identifier: Option<u64>,
    pub replication_problem: String,
    pub role: RoleFacts,
}

/// What the role may do that the server is followed with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleFacts {
    pub name: String,
    pub is_superuser: bool,
    pub can_replicate: bool,
    pub reads_all_stats: bool,
    /// USAGE on the schema `ruvector` and SELECT on what the cluster reads there.
    pub reads_definitions: bool,
    /// Functions of the extension that it may not call.
    pub missing_functions: Vec<String>,
    /// The extension has no such functions: it is of 0.1.0.
    pub has_no_functions: bool,
    /// Tables with an index of ours that it cannot read.
    pub unreadable_tables: Vec<String>,
    /// Tables with an index of ours and row-level security that binds it.
    pub shielded_tables: Vec<String>,
}
