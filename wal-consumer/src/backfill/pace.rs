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
        if self.bytes_per_second_max == 0 {
            return;
        }
        let cost = bytes as f64 / self.bytes_per_second_max as f64;
        let turn = {
            let mut free_at = self.free_at.lock();
            let turn = (*free_at).max(Instant::now());
            *free_at = turn + Duration::from_secs_f64(cost);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn p11_collections_share_the_pace_of_their_source() {
        let pace = Arc::new(Pace::new(1_000));
        let began = Instant::now();
        let copy = |pace: Arc<Pace>| async move {
            for _ in 0..10 {
                pace.take(500).await;
            }
        };
        tokio::join!(copy(pace.clone()), copy(pace.clone()));
        // 20 chunks of half a second; the first of them goes at once.
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(9_400), "{took:?}");
        assert!(took <= Duration::from_millis(9_700), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let began = Instant::now();
        Pace::new(0).take(usize::MAX).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
