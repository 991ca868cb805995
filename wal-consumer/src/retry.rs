//! Pauses between attempts: doubling, jittered, bounded.

use crate::config::Config;
use std::time::Duration;

pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(config: &Config) -> Self {
        let min = Duration::from_millis(config.retry_min_ms.max(1));
        let max = Duration::from_millis(config.retry_max_ms).max(min);
        Self {
            min,
            max,
            next: min,
        }
    }

    /// The same pauses, up to another maximum.
    pub fn up_to_ms(self, max_ms: u64) -> Self {
        let max = Duration::from_millis(max_ms).max(self.min);
        Self { max, ..self }
    }

    /// Pauses of another order.
    pub fn between_ms(self, min_ms: u64, max_ms: u64) -> Self {
        let min = Duration::from_millis(min_ms.max(1));
        Self {
            min,
            max: Duration::from_millis(max_ms).max(min),
            next: min,
        }
    }

    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// Sleeps between half and the whole of the present pause.
    pub async fn pause(&mut self) {
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        tokio::time::sleep(rand::random_range(whole / 2..=whole)).await;
    }
}
