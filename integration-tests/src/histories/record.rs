//! What was done in a history, in the order in which it was done, for whoever has to
//! understand why one failed.

use super::script::Script;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// Of a statement; a bulk insert is told by its beginning.
const TEXT_CHARS_MAX: usize = 600;

pub struct Record {
    file: Mutex<File>,
    began: Instant,
}

impl Record {
    pub fn create(path: &Path, script: &Script) -> Result<Self> {
        let mut file = File::create(path).with_context(|| format!("{}", path.display()))?;
        writeln!(file, "seed {}\n", script.seed)?;
        for table in &script.tables {
            writeln!(file, "{table:?}")?;
        }
        for sql in &script.setup {
            writeln!(file, "{sql};")?;
        }
        for crash in &script.crashes {
            writeln!(file, "{crash:?}")?;
        }
        for one in &script.moves {
            writeln!(file, "{one:?}")?;
        }
        writeln!(file, "\nseconds  who  what, and how it ended")?;
        Ok(Self {
            file: Mutex::new(file),
            began: Instant::now(),
        })
    }

    pub fn tell(&self, who: &str, what: &str, end: &str) {
        let what: String = what.chars().take(TEXT_CHARS_MAX).collect();
        let seconds = self.began.elapsed().as_secs_f64();
        let mut file = self.file.lock().expect("no panic while held");
        // A record that cannot be written fails no history.
        let _ = writeln!(file, "{seconds:8.3} {who:12} {what} -- {end}");
    }
}
