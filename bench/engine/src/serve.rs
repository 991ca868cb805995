//! Commands on stdin, one JSON line on stdout for each; an error is a line too.
//!
//! Options of the process: `queries` (2,000 at most), `m`, `ef_construction`,
//! `representation`. It builds nothing of its own accord. Then, where options have the
//! values shown unless told:
//!
//! - `build threads=1`: instead of what was built before. Reading the file is no part
//!   of `seconds`.
//! - `search ef=100 k=10 threads=1`: every query once. Recall at 1, 10 and 100, as far
//!   as `k` goes.
//! - `concurrent ef=100 k=10 clients=1 seconds=2`: so many at a time, with latencies.
//! - `memory`: resident bytes, now and beyond what was there before the build.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use index_engine::{IndexParams, PartitionIndex};
use serde_json::{Map, Value, json};

use crate::clock::resident_bytes;
use crate::data::DataSet;
use crate::index;
use crate::options::Options;
use crate::search::{self, Asked};
use crate::statistics::recall;

const QUERIES_MAX: usize = 2_000;

struct Server {
    data: DataSet,
    params: IndexParams,
    index: Option<PartitionIndex>,
    resident_before: u64,
}

pub fn run(folder: &Path, options: &mut Options) -> Result<()> {
    let data = DataSet::open(folder, options.take("queries", QUERIES_MAX)?)?;
    let params = index::params(data.metric, data.queries.columns(), options)?;
    options.finish()?;
    let mut server = Server {
        data,
        params,
        index: None,
        resident_before: 0,
    };
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let answer = match server.answer(&line?) {
            Ok(answer) => answer,
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

impl Server {
    fn answer(&mut self, line: &str) -> Result<Value> {
        let (command, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let mut options = Options::parse(rest.split_whitespace())?;
        let options = &mut options;
        match command {
            "build" => self.build(options),
            "search" => self.search(options),
            "concurrent" => self.concurrent(options),
            "memory" => self.memory(options),
            _ => bail!("no command '{command}'"),
        }
    }

    fn build(&mut self, options: &mut Options) -> Result<Value> {
        let threads = options.take("threads", 1)?;
        options.finish()?;
        self.index = None;
        self.resident_before = resident_bytes()?;
        let base = self.data.base(usize::MAX)?;
        let (index, elapsed) = index::build(self.params.clone(), &base, threads)?;
        self.index = Some(index);
        Ok(json!({
            "rows": base.len(),
            "threads": threads,
            "seconds": elapsed.wall_s,
            "cpu_seconds": elapsed.cpu_s,
        }))
    }

    fn built(&self) -> Result<&PartitionIndex> {
        self.index.as_ref().context("nothing is built yet")
    }

    fn search(&self, options: &mut Options) -> Result<Value> {
        let asked = asked(options)?;
        let threads = options.take("threads", 1)?;
        options.finish()?;
        let queries = &self.data.queries;
        let pass = search::pass(self.built()?, queries, asked, threads)?;
        let mut recalls = Map::new();
        for at in [1, 10, 100].into_iter().filter(|at| *at <= asked.rows) {
            let found = pass.found.iter().map(Vec::as_slice);
            let recall = recall(found, self.data.nearest.rows(), at);
            recalls.insert(at.to_string(), serde_json::to_value(recall)?);
        }
        let count = queries.len() as f64;
        Ok(json!({
            "qps": count / pass.elapsed.wall_s,
            "qps_cpu": count / pass.elapsed.cpu_s,
            "recall": recalls,
            "distances": pass.distances as f64 / count,
        }))
    }

    fn concurrent(&self, options: &mut Options) -> Result<Value> {
        let asked = asked(options)?;
        let clients = options.take("clients", 1)?;
        let seconds: f64 = options.take("seconds", 2.0)?;
        options.finish()?;
        let duration = Duration::try_from_secs_f64(seconds)?;
        let queries = &self.data.queries;
        let latency = search::concurrently(self.built()?, queries, asked, clients, duration)?;
        Ok(serde_json::to_value(latency)?)
    }

    fn memory(&self, options: &mut Options) -> Result<Value> {
        options.finish()?;
        let resident = resident_bytes()?;
        let index = self.built()?;
        Ok(json!({
            "rows": index.total_len(),
            "resident_bytes": resident,
            "index_bytes": resident.saturating_sub(self.resident_before),
            "accounted_bytes": index.memory_bytes(),
        }))
    }
}

fn asked(options: &mut Options) -> Result<Asked> {
    let asked = Asked {
        ef: options.take("ef", 100)?,
        rows: options.take("k", 10)?,
    };
    ensure!(asked.rows > 0, "a search for no rows");
    Ok(asked)
}
