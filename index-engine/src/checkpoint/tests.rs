//! Bytes whose checksums are right and that say what cannot be.

use super::format::{Checksum, Layout, PAGE_BYTES};
use super::{CheckpointError, Loading};
use crate::{CodeBits, IndexParams, Metric, PartitionIndex, Representation, VectorId};

const ROWS: u32 = 60;
const LINKED: u32 = 50;

/// Vectors of which the first ten have copies.
fn index(representation: Representation) -> PartitionIndex {
    let params = IndexParams {
        metric: Metric::L2,
        dimensions: 20,
        m: 3,
        ef_construction: 10,
        representation,
        ..IndexParams::default()
    };
    let index = PartitionIndex::new(params).expect("good parameters");
    for row in 0..ROWS {
        let seed = if row % 4 == 3 { row % 10 } else { row };
        let vector: Vec<f32> = (0..20)
            .map(|i| ((seed * 37 + i * i) % 101) as f32)
            .collect();
        index
            .insert(&vector, u64::from(row))
            .expect("a good vector");
    }
    assert_eq!(index.fold(LINKED as usize), LINKED as usize);
    index.remove(VectorId(5));
    index
}

pub(super) struct Bytes {
    bytes: Vec<u8>,
    layout: Layout,
}

impl Bytes {
    pub(super) fn of(index: &PartitionIndex) -> Self {
        let mut bytes = Vec::new();
        let checkpoint = index.checkpoint();
        let layout = Layout::of(&checkpoint.sections(index));
        checkpoint
            .write(index, &mut bytes)
            .expect("memory takes it");
        Self { bytes, layout }
    }

    /// Where a word of a section is.
    pub(super) fn at(&self, section: &str, word: usize) -> usize {
        let mut at = PAGE_BYTES;
        for span in &self.layout.spans {
            if span.name == section {
                assert!(word * 4 < span.bytes as usize);
                return at + word * 4;
            }
            at += (span.bytes as usize).next_multiple_of(PAGE_BYTES);
        }
        panic!("no section {section}");
    }

    pub(super) fn word(&self, at: usize) -> u32 {
        let bytes = self.bytes[at..].first_chunk().expect("a word");
        u32::from_ne_bytes(*bytes)
    }

    pub(super) fn set(&mut self, at: usize, word: u32) {
        self.bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    /// Makes the checksums right, and loads.
    pub(super) fn load(mut self) -> Result<PartitionIndex, CheckpointError> {
        let sum = |bytes: &[u8]| {
            let mut sum = Checksum::default();
            sum.add(bytes);
            sum.value()
        };
        let of_header = sum(&self.bytes[..PAGE_BYTES - 8]);
        self.bytes[PAGE_BYTES - 8..PAGE_BYTES].copy_from_slice(&of_header.to_le_bytes());
        let chunk = |number| {
            let chunk = self.layout.chunk(number);
            let bytes = chunk.content.len() + chunk.zeros;
            sum(&self.bytes[chunk.offset as usize..][..bytes])
        };
        let sums: Vec<u64> = (0..self.layout.chunks).map(chunk).collect();
        let table = self.layout.encode_table(&sums, &self.bytes[..PAGE_BYTES]);
        let from = self.layout.table().start as usize;
        self.bytes[from..].copy_from_slice(&table);
        let loading = Loading::open(&self.bytes[..], None)?;
        loading.read(&self.bytes[..])?;
        loading.finish()
    }
}

/// What is said of bytes that were changed.
#[track_caller]
fn refused(representation: Representation, section: &str, change: impl Fn(&mut Bytes)) {
    let mut bytes = Bytes::of(&index(representation));
    change(&mut bytes);
    match bytes.load() {
        Err(CheckpointError::Corrupt { section: said, .. }) => assert_eq!(said, section),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("taken for good"),
    }
}

const BOTH: [Representation; 2] = [Representation::Plain, Representation::Coded];

#[test]
fn with_right_checksums_what_is_unchanged_is_taken() {
    for representation in BOTH {
        let index = Bytes::of(&index(representation))
            .load()
            .expect("as written");
        let counts = (index.total_len(), index.tail_len(), index.removed_len());
        assert_eq!(counts, (60, 10, 1));
    }
}

#[test]
fn links_to_what_is_not_linked_are_refused() {
    for (node, link) in [(0, LINKED + 1), (20, u32::MAX >> 1), (0, ROWS + 1)] {
        refused(Representation::Plain, "base lists", |bytes| {
            let at = bytes.at("base lists", node * 6);
            bytes.set(at, link);
        });
        refused(Representation::Coded, "code blocks", |bytes| {
            let block = 384 + 32 / 4 * 16;
            let at = bytes.at("code blocks", node * block / 4);
            bytes.set(at, link);
        });
    }
    // A node has six slots; a scan reads the whole batch. The mark of a held link is none.
    for (slot, link) in [(6, LINKED + 1), (31, u32::MAX), (2, 1 << 31 | (LINKED + 1))] {
        refused(Representation::Coded, "code blocks", |bytes| {
            let at = bytes.at("code blocks", slot);
            bytes.set(at, link);
        });
    }
}

#[test]
fn a_node_that_a_list_names_twice_is_refused() {
    refused(Representation::Plain, "base lists", |bytes| {
        let [first, second] = [0, 1].map(|slot| bytes.at("base lists", slot));
        bytes.set(second, bytes.word(first));
    });
    refused(Representation::Coded, "code blocks", |bytes| {
        let [first, second] = [0, 31].map(|slot| bytes.at("code blocks", slot));
        bytes.set(second, bytes.word(first));
    });
}

#[test]
fn links_behind_the_end_of_a_list_are_refused() {
    // Of a linked row, and of one of the tail.
    for node in [30, LINKED as usize + 3] {
        refused(Representation::Plain, "base lists", |bytes| {
            let links = (0..6).map(|slot| bytes.at("base lists", node * 6 + slot));
            for (slot, at) in links.enumerate().collect::<Vec<_>>() {
                bytes.set(at, if slot == 4 { 2 } else { 0 });
            }
        });
    }
    refused(Representation::Coded, "upper lists", |bytes| {
        let (_, list) = raised(bytes);
        for (slot, link) in [0, 0, 1].into_iter().enumerate() {
            let at = bytes.at("upper lists", list * 3 + slot);
            bytes.set(at, link);
        }
    });
    refused(Representation::Coded, "code blocks", |bytes| {
        let block = 384 + 32 / 4 * 16;
        let at = bytes.at("code blocks", (LINKED as usize + 3) * block / 4);
        bytes.set(at, 1);
    });
}

/// A node above level 0, and the first of its upper lists.
fn raised(bytes: &Bytes) -> (usize, usize) {
    let place = |node| bytes.word(bytes.at("places", node));
    let is_raised = |node: &usize| place(*node) >> 28 > 0;
    let node = (0..LINKED as usize)
        .rev()
        .find(is_raised)
        .expect("one in three is");
    (node, (place(node) & ((1 << 28) - 1)) as usize)
}

#[test]
fn levels_and_upper_links_that_are_not_there_are_refused() {
    for representation in BOTH {
        refused(representation, "places", |bytes| {
            let (node, _) = raised(bytes);
            let at = bytes.at("places", node);
            bytes.set(at, u32::MAX);
        });
        refused(representation, "places", |bytes| {
            let at = bytes.at("places", 0);
            bytes.set(at, (1 << 28) - 1);
        });
        refused(representation, "places", |bytes| {
            let (node, list) = raised(bytes);
            let other = (0..node).find(|node| bytes.word(bytes.at("places", *node)) >> 28 == 0);
            let at = bytes.at("places", other.expect("most are low"));
            bytes.set(at, 1 << 28 | list as u32);
        });
        refused(representation, "upper lists", |bytes| {
            let (_, list) = raised(bytes);
            let at = bytes.at("upper lists", list * 3);
            bytes.set(at, LINKED + 1);
        });
        refused(representation, "upper lists", |bytes| {
            let (_, list) = raised(bytes);
            let place = |node: &u32| bytes.word(bytes.at("places", *node as usize));
            let low = (0..LINKED)
                .find(|node| place(node) >> 28 == 0)
                .expect("most are");
            let at = bytes.at("upper lists", list * 3);
            bytes.set(at, low + 1);
        });
    }
}

#[test]
fn copies_in_circles_or_of_two_nodes_are_refused() {
    for representation in BOTH {
        for (node, copy) in [(0, LINKED), (12, ROWS + 5), (3, u32::MAX - 1)] {
            refused(representation, "copies", |bytes| {
                let at = bytes.at("copies", node);
                bytes.set(at, copy + 1);
            });
        }
        let circles: [&[u32]; 3] = [&[12], &[12, 13], &[14, 16, 17]];
        for circle in circles {
            refused(representation, "copies", |bytes| {
                for (from, to) in circle.iter().zip(circle.iter().cycle().skip(1)) {
                    let at = bytes.at("copies", *from as usize);
                    bytes.set(at, to + 1);
                }
            });
        }
        refused(representation, "copies", |bytes| {
            for node in [12, 14] {
                let at = bytes.at("copies", node);
                bytes.set(at, 17);
            }
        });
    }
}

#[test]
fn headers_that_name_no_index_are_refused() {
    let words = [
        (16, 7),        // metric
        (20, 3),        // representation
        (24, 0),        // dimensions
        (24, 16_001),   // dimensions
        (24, 33),       // dimensions, of other sections
        (28, 1),        // m
        (28, 101),      // m
        (32, 3),        // ef_construction
        (36, u32::MAX), // rows
        (36, 61),       // rows
        (40, u32::MAX), // upper lists
        (44, 99),       // sections
        (48, 61),       // entry
        (48, 0),        // entry, with a level
        (52, 15),       // its level
        (60, 1 << 30),  // rows ever linked
        (72, 4),        // element
        (72, 3),        // element, of other sections
        (76, 1),        // lanes
        (80, 99),       // the first section's kind
        (84, 1 << 30),  // its rows
        (88, 1),        // bytes of its rows
        (92, 1),        // nothing
        (96, 0),        // where it is
    ];
    for (at, word) in words {
        for representation in BOTH {
            refused(representation, "header", |bytes| bytes.set(at, word));
        }
    }
    let mut longer = Bytes::of(&index(Representation::Plain));
    longer.set(64, 1 << 20);
    assert!(matches!(
        longer.load(),
        Err(CheckpointError::Truncated { .. })
    ));
}

#[test]
fn widths_that_are_none_or_not_those_of_the_header_are_refused() {
    // Two blocks with 4 bits, one with 1.
    let made = || {
        let params = IndexParams {
            dimensions: 20,
            m: 3,
            ef_construction: 4,
            representation: Representation::Compact(CodeBits::Four),
            ..IndexParams::default()
        };
        let index = PartitionIndex::new(params).expect("good parameters");
        for row in 0..2_500u32 {
            let vector = [row as f32; 20];
            index.insert(&vector, 1).expect("a good vector");
        }
        let recoded = index.recode(1, CodeBits::One);
        assert_eq!(recoded, Ok(crate::Recoded::Done));
        Bytes::of(&index)
    };
    assert!(made().load().is_ok());
    for (widths, section) in [
        ([4, 1, 3, 0], "widths"),
        ([4, 4, 4, 0], "widths"),
        ([1, 4, 4, 0], ""),
        ([4, 4, 1, 0], "widths"),
    ] {
        let mut bytes = made();
        let at = bytes.at("widths", 0);
        bytes.set(at, u32::from_ne_bytes(widths));
        match bytes.load() {
            Err(CheckpointError::Corrupt { section: said, .. }) => assert_eq!(said, section),
            Err(error) => panic!("{error}"),
            // As many rows of each: such an index there may be.
            Ok(_) => assert_eq!(section, ""),
        }
    }
    // Rows of 1, 2, 4 and 8 bits behind the lanes.
    for (word, rows) in [(0, 1_023), (1, 1), (2, 0), (3, u32::MAX)] {
        let mut bytes = made();
        bytes.set(80 + 4 * word, rows);
        let refused = bytes.load().err();
        assert!(
            matches!(
                refused,
                Some(CheckpointError::Corrupt {
                    section: "header",
                    ..
                })
            ),
            "{refused:?}"
        );
    }
}
