//! The source's slot and the server's WAL, as the server tells of them.

use crate::sql::Session;
use anyhow::Result;

impl Session {
    /// WAL that the server keeps for the cluster's slot.
    pub fn retained_wal_bytes(&mut self) -> Result<u64> {
        let retained = self.value(
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 \
             FROM pg_replication_slots WHERE slot_name LIKE 'ruvector%' AND NOT temporary",
        )?;
        Ok(retained.parse()?)
    }

    /// All of the server's WAL that is on disk.
    pub fn wal_bytes_on_disk(&mut self) -> Result<u64> {
        Ok(self
            .value("SELECT sum(size)::int8 FROM pg_ls_waldir()")?
            .parse()?)
    }

    /// The same by one transaction, which decoding has to pass as a whole.
    pub fn write_wal_at_once(&mut self, mib: u32) -> Result<()> {
        self.batch_execute("BEGIN; CREATE TEMP TABLE filling(x int) ON COMMIT DROP")?;
        self.write_wal(mib)?;
        Ok(self.batch_execute("COMMIT")?)
    }

    /// Writes so much WAL that says nothing to anybody.
    pub fn write_wal(&mut self, mib: u32) -> Result<()> {
        for _ in 0..mib {
            self.batch_execute(
                "SELECT pg_logical_emit_message(false, 'filling', repeat('x', 1048576))",
            )?;
        }
        Ok(())
    }
}
