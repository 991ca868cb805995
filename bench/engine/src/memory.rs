//! Memory of a row by part, as the index tells it. One JSON line, in bytes a row; `links_and_lives`
//! leaves out links that lie between codes of neighbours, which are part of `codes`, and
//! `resident` is what the system says of the whole.
//!
//! Options: `rows=20000`, `threads=2`, `m`, `ef_construction`, `representation`.

use std::path::Path;

use anyhow::{Result, ensure};
use index_engine::IndexParams;
use serde_json::{Value, json};

use crate::clock::resident_bytes;
use crate::data::DataSet;
use crate::index;
use crate::npy::Matrix;
use crate::options::Options;

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
    let before = resident_bytes()?;
    let (index, _) = index::build(params.clone(), base, threads)?;
    let resident = resident_bytes()?.saturating_sub(before);
    let parts = index.footprint();
    let of_a_row = |bytes: usize| bytes as f64 / base.len() as f64;
    Ok(json!({
        "rows": base.len(),
        "m": params.m,
        "bytes_a_row": {
            "vector": of_a_row(parts.vectors),
            "sketches": of_a_row(parts.sketches),
            "codes": of_a_row(parts.codes),
            "links_and_lives": of_a_row(parts.links + parts.lives),
            "other": of_a_row(parts.attributes + parts.other),
            "accounted": of_a_row(parts.total()),
            "resident": resident as f64 / base.len() as f64,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::{scattered, small};
    use index_engine::{CodeBits, Representation};

    #[test]
    fn parts_add_up_and_codes_are_there_only_where_wanted() {
        let base = scattered(300, 16, 8);
        for (representation, sketches, codes) in [
            (Representation::Plain, false, false),
            (Representation::Coded, true, true),
            (Representation::Compact(CodeBits::Four), false, true),
        ] {
            let params = IndexParams {
                representation,
                ..small(16)
            };
            let parts = &by_part(&params, &base, 1).unwrap()["bytes_a_row"];
            let bytes = |part: &str| parts[part].as_f64().unwrap();
            let all = ["vector", "sketches", "codes", "links_and_lives", "other"];
            let sum: f64 = all.iter().map(|part| bytes(part)).sum();
            assert!((sum - bytes("accounted")).abs() < 1e-6, "{parts}");
            assert!(bytes("links_and_lives") > 0.0, "{parts}");
            assert_eq!(bytes("sketches") > 0.0, sketches, "{parts}");
            assert_eq!(bytes("codes") > 0.0, codes, "{parts}");
        }
    }
}
