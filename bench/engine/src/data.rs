//! A data set: a folder that `bench/peers/prepare.py` made.
//!
//! - `base.npy`, `query.npy`: vectors (f32);
//! - `gt_ids.npy`: the row numbers of each query's exact nearest hundred;
//! - `meta.json`: among others `metric`, `"l2"` or `"cos"`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use index_engine::Metric;

use crate::npy::{self, Matrix};

pub struct DataSet {
    folder: PathBuf,
    pub metric: Metric,
    pub queries: Matrix<f32>,
    /// Of each query; to all rows, whatever part of them is built.
    pub nearest: Matrix<u32>,
}

impl DataSet {
    pub fn open(folder: &Path, queries_max: usize) -> Result<Self> {
        let path = folder.join("meta.json");
        let meta = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let meta: serde_json::Value = serde_json::from_str(&meta)?;
        let metric = match meta["metric"].as_str() {
            Some("l2") => Metric::L2,
            Some("cos") => Metric::Cosine,
            other => bail!("{}: the metric is {other:?}", path.display()),
        };
        let data = Self {
            folder: folder.to_owned(),
            metric,
            queries: npy::floats(&folder.join("query.npy"), queries_max)?,
            nearest: npy::ids(&folder.join("gt_ids.npy"), queries_max)?,
        };
        if data.queries.len() != data.nearest.len() || data.queries.len() == 0 {
            let (queries, nearest) = (data.queries.len(), data.nearest.len());
            bail!("{queries} queries, the nearest of {nearest}");
        }
        Ok(data)
    }

    /// The first rows. Large: whoever builds lets go of them afterwards.
    pub fn base(&self, rows_max: usize) -> Result<Matrix<f32>> {
        let base = npy::floats(&self.folder.join("base.npy"), rows_max)?;
        if base.columns() != self.queries.columns() {
            let (rows, queries) = (base.columns(), self.queries.columns());
            bail!("rows of {rows} dimensions, queries of {queries}");
        }
        Ok(base)
    }
}
