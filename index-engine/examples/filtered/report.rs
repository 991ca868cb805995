//! What was measured, as a table on stdout and as a file of one JSON object a line.
//! Names of data, filters and ways are plain ASCII, which is written as JSON as it stands.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::{Measured, Outcome};

/// The searches without a filter, and what they were of.
pub struct Whole<'a> {
    pub data: &'a str,
    pub rows: usize,
    pub dimensions: usize,
    pub queries: usize,
    pub ef: usize,
    pub unfiltered: Measured,
}

/// The searches for a part of the rows, and those that rank all of that part.
pub struct Filtered<'a> {
    pub filter: &'a str,
    pub percent: f64,
    pub matching: usize,
    pub ours: Measured,
    pub all: Measured,
}

pub struct Report<'a> {
    whole: Whole<'a>,
    file: Option<File>,
}

impl<'a> Report<'a> {
    /// Begins the table, and the file if one is wanted.
    pub fn begin(whole: Whole<'a>, path: Option<&Path>) -> Outcome<Self> {
        let file = path.map(File::create).transpose()?;
        let mut report = Self { whole, file };
        let whole = &report.whole;
        let (recall, per_second) = (whole.unfiltered.recall, report.rate(&whole.unfiltered));
        println!(
            "without a filter: recall@10 {recall:.4}, {per_second:.0} queries a CPU second\n\
             | filter | matching | recall@10 | queries a CPU s | to no filter | to ranking all | rows looked at | found by |\n\
             |---|---|---|---|---|---|---|---|"
        );
        let Whole {
            data,
            rows,
            dimensions,
            queries,
            ef,
            ..
        } = whole;
        let line = format!(
            r#"{{"data":{data:?},"rows":{rows},"dimensions":{dimensions},"queries":{queries},"ef":{ef},"recall":{recall:.4},"qps_cpu":{per_second:.1}}}"#
        );
        report.write(&line)?;
        Ok(report)
    }

    pub fn add(&mut self, row: &Filtered<'_>) -> Outcome<()> {
        let (ours, all) = (&row.ours, &row.all);
        let ways: Vec<String> = ours
            .ways
            .iter()
            .map(|(way, n)| format!("{way} {n}"))
            .collect();
        println!(
            "| {} | {} % | {:.3} | {:.0} | {:.3} | {:.2} | {} | {} |",
            row.filter,
            row.percent,
            ours.recall,
            self.rate(ours),
            self.whole.unfiltered.seconds / ours.seconds,
            all.seconds / ours.seconds,
            ours.considered,
            ways.join(", ")
        );
        let ways: Vec<String> = ours
            .ways
            .iter()
            .map(|(way, n)| format!("{way:?}:{n}"))
            .collect();
        let line = format!(
            r#"{{"filter":{:?},"percent":{},"matching":{},"recall":{:.4},"qps_cpu":{:.1},"qps_cpu_ranking_all":{:.1},"considered":{},"found_by":{{{}}}}}"#,
            row.filter,
            row.percent,
            row.matching,
            ours.recall,
            self.rate(ours),
            self.rate(all),
            ours.considered,
            ways.join(",")
        );
        self.write(&line)
    }

    fn rate(&self, measured: &Measured) -> f64 {
        self.whole.queries as f64 / measured.seconds
    }

    /// A line at a time: what was measured is kept if the rest is not waited for.
    fn write(&mut self, line: &str) -> Outcome<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{line}")?;
        }
        Ok(())
    }
}
