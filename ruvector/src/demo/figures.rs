//! What the tour measured. Loading and indexing happen once, so their figures are
//! kept for later runs.

use super::fashion_mnist::DIMENSIONS;
use super::measure::{Latency, Recall};
use crate::ctl::table::count;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    pub load_seconds: Option<f64>,
    /// From CREATE INDEX until searches are answered.
    pub ready_seconds: Option<f64>,
    /// From CREATE INDEX until no row is left in the tail.
    pub folded_seconds: Option<f64>,
}

impl Figures {
    /// Those of an earlier run, if there was one.
    pub fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        match std::fs::read_to_string(path) {
            // A file that does not parse costs figures of the past, nothing else.
            Ok(text) => Ok(serde_json::from_str(&text).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub fn write(&self, path: Option<&Path>) -> anyhow::Result<()> {
        let Some(path) = path else { return Ok(()) };
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn table(&self, rows: u64, recall: &Recall, latency: &Latency) -> String {
        let seconds = |seconds: Option<f64>| match seconds {
            Some(seconds) => format!("{seconds:.1} s"),
            None => "not measured".to_owned(),
        };
        let lines = [
            (
                "rows".to_owned(),
                format!("{} × {DIMENSIONS} dimensions", count(rows)),
            ),
            ("load (COPY)".to_owned(), seconds(self.load_seconds)),
            (
                "CREATE INDEX until ready".to_owned(),
                seconds(self.ready_seconds),
            ),
            (
                "CREATE INDEX until folded".to_owned(),
                seconds(self.folded_seconds),
            ),
            (
                format!("recall@10, {} queries", count(recall.queries as u64)),
                format!("{:.4}", recall.mean),
            ),
            (
                format!("SQL latency, {} queries", count(latency.queries as u64)),
                format!("p50 {}   p99 {}", millis(latency.p50), millis(latency.p99)),
            ),
        ];
        let mut table = lines
            .map(|(name, value)| format!("  {name:<28} {value}\n"))
            .concat();
        table += self.gaps().unwrap_or_default();
        table
    }

    /// Why figures are missing that no later run can measure.
    fn gaps(&self) -> Option<&'static str> {
        let all = [self.load_seconds, self.ready_seconds, self.folded_seconds];
        all.contains(&None).then_some(
            "  (not measured: an earlier run began this and ended before it was done, or kept\n   \
             no figures; 'make clean' and then 'make quickstart' measures from the start)\n",
        )
    }
}

fn millis(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_first_run_outlive_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("figures.json");
        assert_eq!(
            Figures::read(Some(&path)).expect("absent is fine"),
            Figures::default()
        );
        let figures = Figures {
            load_seconds: Some(1.5),
            ..Figures::default()
        };
        figures.write(Some(&path)).expect("writes");
        assert_eq!(Figures::read(Some(&path)).expect("reads"), figures);
        assert!(figures.gaps().is_some(), "two were never measured");
        let whole = Figures {
            load_seconds: Some(1.5),
            ready_seconds: Some(2.0),
            folded_seconds: Some(3.0),
        };
        assert_eq!(whole.gaps(), None);
    }
}
