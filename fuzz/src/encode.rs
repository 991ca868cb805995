//! pgoutput backwards: the bytes of a message. What the decoder does not look into (a
//! Begin's time, flags, type modifiers) is taken from the original at its place.

use wal_consumer::replication::pgoutput::{Message, OldTuple, Relation};
use wal_consumer::replication::tuple::{Cell, Tuple};

struct Encoder<'a> {
    out: Vec<u8>,
    original: &'a [u8],
}

/// None for messages that are dropped unread.
pub fn encode(message: &Message, original: &[u8]) -> Option<Vec<u8>> {
    let mut e = Encoder {
        out: Vec::new(),
        original,
    };
    match message {
        Message::Begin { final_lsn, xid } => {
            e.u8(b'B').u64(final_lsn.0).unread(8).u32(*xid);
        }
        Message::Commit {
            commit_lsn,
            end_lsn,
            committed_at_us,
        } => {
            e.u8(b'C').unread(1).u64(commit_lsn.0).u64(end_lsn.0);
            e.u64(committed_at_us.cast_unsigned());
        }
        Message::Relation(relation) => {
            e.relation(relation);
        }
        Message::Insert { relation, new } => {
            e.u8(b'I').u32(*relation).u8(b'N').tuple(new);
        }
        Message::Update { relation, old, new } => {
            e.u8(b'U').u32(*relation);
            if let Some(old) = old {
                e.old(old);
            }
            e.u8(b'N').tuple(new);
        }
        Message::Delete { relation, old } => {
            e.u8(b'D').u32(*relation).old(old);
        }
        Message::Truncate { relations } => {
            e.u8(b'T').u32(relations.len() as u32).unread(1);
            for relation in relations {
                e.u32(*relation);
            }
        }
        Message::Type | Message::Origin | Message::Logical => return None,
    }
    Some(e.out)
}

impl Encoder<'_> {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.out.push(value);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    fn unread(&mut self, count: usize) -> &mut Self {
        let at = self.out.len();
        let same = self.original.get(at..at + count).unwrap_or_default();
        self.out.extend_from_slice(same);
        self
    }

    fn cstr(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes()).u8(0)
    }

    fn relation(&mut self, relation: &Relation) {
        // pg_catalog travels as the empty name, and nobody sends it otherwise.
        let schema = match relation.schema.as_str() {
            "pg_catalog" if self.original.get(5) == Some(&0) => "",
            schema => schema,
        };
        self.u8(b'R')
            .u32(relation.oid)
            .cstr(schema)
            .cstr(&relation.name);
        self.u8(relation.replica_identity)
            .u16(relation.columns.len() as u16);
        for column in &relation.columns {
            // One flag has a meaning; the others are the sender's.
            self.unread(1);
            if let Some(flags) = self.out.last_mut() {
                *flags = *flags & !1 | u8::from(column.is_key);
            }
            self.cstr(&column.name).u32(column.type_oid).unread(4);
        }
    }

    fn old(&mut self, old: &OldTuple) -> &mut Self {
        let kind = match old {
            OldTuple::Key(_) => b'K',
            OldTuple::Full(_) => b'O',
        };
        self.u8(kind).tuple(old.tuple())
    }

    fn tuple(&mut self, tuple: &Tuple) -> &mut Self {
        self.u16(tuple.len() as u16);
        for cell in tuple {
            match cell {
                Cell::Null => self.u8(b'n'),
                Cell::Unchanged => self.u8(b'u'),
                Cell::Binary(value) => self.u8(b'b').u32(value.len() as u32).bytes(value),
                Cell::Text(value) => self.u8(b't').u32(value.len() as u32).bytes(value),
            };
        }
        self
    }
}
