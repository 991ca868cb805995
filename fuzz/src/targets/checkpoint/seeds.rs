//! Checkpoints of small indexes, one for each thing that a section may hold: every element,
//! every representation, codes of one width and of several, columns.

use index_engine::{
    CodeBits, ColumnType, Element, Half, IndexParams, Metric, PartitionIndex, Representation,
    Value, Vector, VectorId, accesses::BLOCK_VECTORS,
};

const TYPES: [ColumnType; 4] = [
    ColumnType::Int,
    ColumnType::Float,
    ColumnType::Bool,
    ColumnType::Bytes,
];

#[derive(Clone, Copy)]
struct Seed {
    metric: Metric,
    element: Element,
    representation: Representation,
    rows: u32,
    dimensions: usize,
    columns: &'static [ColumnType],
    /// Widths that blocks of rows get, from the first on.
    widths: &'static [CodeBits],
}

/// Written with what differs from it.
const PLAIN: Seed = Seed {
    metric: Metric::L2,
    element: Element::F32,
    representation: Representation::Plain,
    rows: 30,
    dimensions: 2,
    columns: &[],
    widths: &[],
};

pub(super) fn corpus() -> Vec<Vec<u8>> {
    let groups: [Vec<Seed>; 5] = [of_floats(), compact(), mixed(), elements(), columns()];
    groups.iter().flatten().map(written).collect()
}

fn of_floats() -> Vec<Seed> {
    let kinds = [
        (Metric::L2, Representation::Plain, 60, 16),
        (Metric::Cosine, Representation::Plain, 30, 3),
        (Metric::InnerProduct, Representation::Coded, 24, 20),
        (Metric::L2, Representation::Coded, 20, 33),
        (Metric::L2, Representation::Plain, 0, 2),
        (Metric::L1, Representation::Plain, 30, 5),
    ];
    let seed = |(metric, representation, rows, dimensions)| Seed {
        metric,
        representation,
        rows,
        dimensions,
        ..PLAIN
    };
    kinds.map(seed).to_vec()
}

fn compact() -> Vec<Seed> {
    let metrics = [Metric::L2, Metric::Cosine, Metric::InnerProduct, Metric::L2];
    let seed = |(bits, metric)| Seed {
        metric,
        representation: Representation::Compact(bits),
        rows: 25,
        dimensions: 20,
        ..PLAIN
    };
    CodeBits::ALL.into_iter().zip(metrics).map(seed).collect()
}

/// One block with codes of another width than the index's own, and two that differ.
fn mixed() -> Vec<Seed> {
    let one = Seed {
        representation: Representation::Compact(CodeBits::Eight),
        dimensions: 20,
        widths: &[CodeBits::One],
        ..PLAIN
    };
    let two = Seed {
        representation: Representation::Compact(CodeBits::Two),
        rows: BLOCK_VECTORS + 9,
        dimensions: 5,
        widths: &[CodeBits::Four, CodeBits::Eight],
        ..PLAIN
    };
    let with_columns = Seed {
        columns: &[ColumnType::Int],
        ..one
    };
    vec![one, two, with_columns]
}

fn elements() -> Vec<Seed> {
    let plain = [
        (Element::F16, Metric::Cosine, 40),
        (Element::F16, Metric::L1, 7),
        (Element::Sparse, Metric::L2, 90),
        (Element::Sparse, Metric::InnerProduct, 1_000_000),
        (Element::Bit, Metric::Hamming, 100),
        (Element::Bit, Metric::Jaccard, 9),
    ];
    let held = [
        (Representation::Coded, Metric::L2, 34),
        (Representation::Compact(CodeBits::Four), Metric::Cosine, 20),
    ];
    let plain = plain.map(|(element, metric, dimensions)| Seed {
        metric,
        element,
        dimensions,
        ..PLAIN
    });
    let held = held.map(|(representation, metric, dimensions)| Seed {
        metric,
        element: Element::F16,
        representation,
        dimensions,
        ..PLAIN
    });
    plain.into_iter().chain(held).collect()
}

fn columns() -> Vec<Seed> {
    let kinds: [(u32, &'static [ColumnType]); 4] = [
        (40, &TYPES),
        (25, &[ColumnType::Bytes, ColumnType::Bytes]),
        (30, &[ColumnType::Float]),
        (0, &TYPES),
    ];
    let seed = |(rows, columns)| Seed {
        rows,
        columns,
        ..PLAIN
    };
    let of_sparse = Seed {
        element: Element::Sparse,
        dimensions: 50,
        columns: &[ColumnType::Bytes],
        ..PLAIN
    };
    kinds.into_iter().map(seed).chain([of_sparse]).collect()
}

/// Every seventh is NULL, and strings have two rows each.
pub(super) fn value(kind: ColumnType, row: u32) -> Value {
    let floats = [0.0, -1.5, f64::NAN, f64::INFINITY];
    match kind {
        _ if row % 7 == 6 => Value::Null,
        ColumnType::Int => Value::Int(i64::from(row) - 10),
        ColumnType::Float => Value::Float(floats[row as usize % 4]),
        ColumnType::Bool => Value::Bool(row.is_multiple_of(2)),
        ColumnType::Bytes => Value::Bytes(format!("{}", row / 2).into_bytes().into()),
    }
}

fn written(seed: &Seed) -> Vec<u8> {
    let params = IndexParams {
        metric: seed.metric,
        element: seed.element,
        dimensions: seed.dimensions,
        m: 3,
        ef_construction: 8,
        representation: seed.representation,
    };
    let rows = seed.rows;
    let index = PartitionIndex::with_columns(params, seed.columns, None).expect("good parameters");
    for row in 0..rows {
        // Every fifth is a copy of one before.
        let number = if row % 5 == 4 { row / 8 } else { row } as usize;
        let vector = Owned::of(index.params(), |i| ((number * 37 + i * i) % 101) as f32);
        let attributes: Vec<Value> = seed.columns.iter().map(|kind| value(*kind, row)).collect();
        index
            .insert_with(vector.as_vector(), u64::from(row), &attributes, |_| {})
            .expect("a good row");
    }
    index.fold(rows as usize - rows as usize / 6);
    for row in 0..rows / 10 {
        index.remove(VectorId(row * 7));
        index.end(VectorId(row * 7 + 1), 9);
    }
    for (block, bits) in (0..).zip(seed.widths) {
        index.recode(block, *bits).expect("a block of codes");
    }
    let mut bytes = Vec::new();
    let checkpoint = index.checkpoint();
    checkpoint
        .write(&index, &mut bytes)
        .expect("memory takes it");
    bytes
}

/// A vector as an index takes it, whatever its header says.
pub(super) enum Owned {
    Floats(Vec<f32>),
    Halves(Vec<Half>),
    Sparse(usize, Vec<u32>, Vec<f32>),
    Bits(usize, Vec<u8>),
}

/// Of a sparse vector's dimensions only the first have values.
const SPARSE_VALUES: usize = 60;

impl Owned {
    /// A number up to a hundred for each dimension, of which a sparse vector has those
    /// above eighty and a bit says whether it is above fifty.
    fn of(params: &IndexParams, value: impl Fn(usize) -> f32) -> Self {
        let dimensions = params.dimensions;
        match params.element {
            Element::F32 => Self::Floats((0..dimensions).map(value).collect()),
            Element::F16 => {
                let halves = (0..dimensions).map(|i| Half::from_f32(value(i)));
                Self::Halves(halves.collect())
            }
            Element::Sparse => {
                let values = (0..dimensions.min(SPARSE_VALUES)).map(|i| (i as u32, value(i)));
                let (indices, values) = values.filter(|(_, value)| *value > 80.0).unzip();
                Self::Sparse(dimensions, indices, values)
            }
            Element::Bit => {
                let mut bytes = vec![0; dimensions.div_ceil(8)];
                for i in (0..dimensions).filter(|i| value(*i) > 50.0) {
                    bytes[i / 8] |= 0x80 >> (i % 8);
                }
                Self::Bits(dimensions, bytes)
            }
        }
    }

    /// One number everywhere, but of bits and of a sparse one in the first dimension.
    pub(super) fn filled(params: &IndexParams, value: f32) -> Self {
        match params.element {
            Element::F32 | Element::F16 => Self::of(params, |_| value),
            Element::Sparse => Self::Sparse(params.dimensions, vec![0], vec![value]),
            Element::Bit => Self::of(params, |i| if i == 0 { 100.0 } else { 0.0 }),
        }
    }

    pub(super) fn as_vector(&self) -> Vector<'_> {
        match self {
            Self::Floats(values) => values.into(),
            Self::Halves(values) => values.into(),
            Self::Sparse(dimensions, indices, values) => Vector::Sparse {
                dimensions: *dimensions,
                indices,
                values,
            },
            Self::Bits(len, bytes) => Vector::Bits { len: *len, bytes },
        }
    }
}
