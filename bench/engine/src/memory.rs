//! Memory of a row by part: the vector, links and metadata, codes and sketches.
//!
//! Two indexes of the same rows: one of vectors only, which beside them has links and
//! metadata, and one in the wanted representation, which beside that has codes and
//! sketches. One JSON line, in bytes a row; `resident` is what the system says of the
//! whole of the second.
//!
//! Options: `rows=20000`, `threads=2`, `m`, `ef_construction`, `representation`.

use std::path::Path;

use anyhow::{Result, ensure};
use index_engine::{IndexParams, Representation};
use serde_json::{Value, json};

use crate::clock::resident_bytes;
use crate::data::DataSet;
use crate::index;
use crate::npy::Matrix;
use crate::options::Options;

/// Vectors are padded to whole lanes of so many floats.
const LANE_FLOATS: usize = 16;

pub fn run(folder: &Path, options: &mut Options) -> Result<()> {
    let data = DataSet::open(folder, 1)?;
    let rows = options.take("rows", 20_000)?;
    let threads = options.take("threads", 2)?;
    let params = index::params(data.metric, data.queries.columns(), options)?;
    options.finish()?;
    let base = data.base(rows)?;
    ensure!(base.len() == rows, "the data set has {} rows", base.len());
    println!("{}", by_part(&params, &base, threads)?);
    Ok(())
}

fn by_part(params: &IndexParams, base: &Matrix<f32>, threads: usize) -> Result<Value> {
    let plain = IndexParams {
        representation: Representation::Plain,
        ..params.clone()
    };
    let plain = index::build(plain, base, threads)?.0.memory_bytes();
    let before = resident_bytes()?;
    let (index, _) = index::build(params.clone(), base, threads)?;
    let resident = resident_bytes()?.saturating_sub(before);
    let accounted = index.memory_bytes();

    let rows = base.len() as f64;
    let vector = params.dimensions.next_multiple_of(LANE_FLOATS) * size_of::<f32>();
    Ok(json!({
        "rows": base.len(),
        "m": params.m,
        "bytes_a_row": {
            "vector": vector,
            "links_and_metadata": plain as f64 / rows - vector as f64,
            "codes_and_sketches": (accounted as f64 - plain as f64) / rows,
            "accounted": accounted as f64 / rows,
            "resident": resident as f64 / rows,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::{scattered, small};

    #[test]
    fn parts_add_up_and_codes_are_there_only_where_wanted() {
        let base = scattered(300, 16, 8);
        for representation in [Representation::Plain, Representation::Coded] {
            let params = IndexParams {
                representation,
                ..small(16)
            };
            let parts = &by_part(&params, &base, 1).unwrap()["bytes_a_row"];
            let bytes = |part: &str| parts[part].as_f64().unwrap();
            let sum = bytes("vector") + bytes("links_and_metadata") + bytes("codes_and_sketches");
            assert!((sum - bytes("accounted")).abs() < 1e-6, "{parts}");
            assert!(bytes("links_and_metadata") > 0.0, "{parts}");
            let has_codes = representation == Representation::Coded;
            assert_eq!(bytes("codes_and_sketches") > 0.0, has_codes, "{parts}");
        }
    }
}
