//! The deciding half of RuVector Cluster. Nothing here does I/O, reads a clock,
//! draws randomness or starts a thread: every rule is a function of what it is
//! handed, so that a simulator can own the world.
//!
//! In reading order: the vocabulary ([`ids`], [`wal_position`], [`row_key`],
//! [`collection`], [`map`]), what flows from Postgres to a replica ([`change`],
//! [`apply`], [`backfill`], [`reconcile`], [`learner`], [`confirm`], [`demotion`], [`slot_hold`], [`slot_health`],
//! [`heartbeat`], [`history`], [`publication`]), who may speak ([`lease`]), which server is followed ([`server_copy`]) by whom
//! ([`assignment`], [`checklist`]), where partitions live ([`ring`], [`placement`], [`rebalance`],
//! [`control`]), how a search is put together ([`scan`]) and gets its turn ([`fair_queue`]), when folding waits ([`folding`])
//! and when a node takes on no more ([`memory`]), how much of the log it must include ([`freshness`]), for whom it is answered ([`server`]), and whether a
//! replica holds what the heap holds ([`verify`]).

pub mod apply;
pub mod assignment;
pub mod backfill;
pub mod change;
pub mod checklist;
pub mod collection;
pub mod confirm;
pub mod control;
pub mod demotion;
pub mod fair_queue;
pub mod folding;
pub mod freshness;
pub mod heartbeat;
pub mod history;
pub mod ids;
pub mod invariants;
mod layout;
pub mod learner;
pub mod lease;
pub mod map;
pub mod memory;
pub mod placement;
pub mod publication;
pub mod rebalance;
pub mod reconcile;
pub mod ring;
pub mod row_key;
pub mod scan;
pub mod server;
pub mod server_copy;
pub mod slot_health;
pub mod slot_hold;
pub mod verify;
pub mod wal_position;
pub mod xid;
