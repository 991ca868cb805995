//! How fast all backfills of a source together may read it.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

pub struct Pace {
    /// 0: as fast as it goes.
    bytes_per_second_max: u64,
    /// When what was let through so far is paid for.
    free_at: Mutex<Instant>,
}

impl Pace {
    pub fn new(bytes_per_second_max: u64) -> Self {
        Self {
            bytes_per_second_max,
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Waits for the turn of so many bytes. Who comes later waits for them.
    pub async fn take(&self, bytes: usize) {
        let now = Instant::now();
        let turn = self.turn(bytes, now);
        // A sleep until now lasts until the timer's next tick, a millisecond a message.
        if turn > now {
            tokio::time::sleep_until(turn).await;
        }
    }

    fn turn(&self, bytes: usize, now: Instant) -> Instant {
        if self.bytes_per_second_max == 0 {
            return now;
        }
        let cost = bytes as f64 / self.bytes_per_second_max as f64;
        let mut free_at = self.free_at.lock();
        let turn = (*free_at).max(now);
        *free_at = turn + Duration::from_secs_f64(cost);
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_collections_share_the_pace_of_their_source() {
        let pace = Pace::new(1_000);
        let now = Instant::now();
        // Whoever asks: the first goes at once, each further one half a second later.
        for n in 0..20 {
            let wait = pace.turn(500, now) - now;
            assert_eq!(wait.as_millis(), 500 * n);
        }
        let rested = now + Duration::from_secs(60);
        assert_eq!(pace.turn(500, rested), rested, "idle time is not saved up");
        let wait = pace.turn(500, rested) - rested;
        assert_eq!(wait.as_millis(), 500);
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let (pace, now) = (Pace::new(0), Instant::now());
        assert_eq!(pace.turn(usize::MAX, now), now);
        assert_eq!(pace.turn(usize::MAX, now), now);
    }
}
