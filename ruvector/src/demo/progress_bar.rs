//! One line that shows how far a step is; several lines where nobody watches.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const WIDTH: usize = 30;
const REDRAW_EVERY: Duration = Duration::from_millis(100);
/// Without a terminal a line is due after this much of the whole.
const QUIET_STEPS: u64 = 4;

pub struct ProgressBar {
    label: &'static str,
    unit: &'static str,
    started: Instant,
    drawn: Option<Instant>,
    steps: u64,
    is_terminal: bool,
}

impl ProgressBar {
    pub fn new(label: &'static str, unit: &'static str) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        Self {
            label,
            unit,
            started: Instant::now(),
            drawn: None,
            steps: 0,
            is_terminal,
        }
    }

    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub fn set(&mut self, done: u64, total: u64) {
        let total = total.max(1);
        let done = done.min(total);
        if self.is_terminal {
            if self
                .drawn
                .is_none_or(|drawn| drawn.elapsed() >= REDRAW_EVERY)
            {
                self.drawn = Some(Instant::now());
                print!("\r\x1b[K{}", self.line(done, total));
                let _ = std::io::stdout().flush();
            }
        } else if done * QUIET_STEPS / total > self.steps && done < total {
            self.steps = done * QUIET_STEPS / total;
            println!("{}", self.line(done, total));
        }
    }

    /// Ends the line; answers the seconds that the step took.
    pub fn finish(self, total: u64) -> f64 {
        let start = if self.is_terminal { "\r\x1b[K" } else { "" };
        println!("{start}{}", self.line(total.max(1), total.max(1)));
        self.seconds()
    }

    fn line(&self, done: u64, total: u64) -> String {
        use crate::ctl::table::count;
        let filled = usize::try_from(done * WIDTH as u64 / total).unwrap_or(WIDTH);
        format!(
            "  {:<10} [{}{}] {:>3} %  {} of {} {}  {:.0} s",
            self.label,
            "#".repeat(filled),
            "·".repeat(WIDTH - filled),
            done * 100 / total,
            count(done),
            count(total),
            self.unit,
            self.seconds()
        )
    }
}
