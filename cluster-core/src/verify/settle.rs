//! Keys that are read again until each is judged, or the rounds are over. A key
//! that is still in flux then is *undetermined*: it counts as neither.

use super::judge::{Difference, Verdict};
use crate::row_key::RowKey;

/// How often a key is read.
pub const ROUNDS_MAX: u32 = 10;
const FIRST_PAUSE_MS: u64 = 20;
const PAUSE_MS_MAX: u64 = 640;

#[derive(Debug)]
pub struct Settling {
    undecided: Vec<RowKey>,
    round: u32,
    differences: Vec<(RowKey, Difference)>,
}

/// What came of a batch of keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settled {
    pub differences: Vec<(RowKey, Difference)>,
    pub undetermined: Vec<RowKey>,
}

impl Settling {
    pub fn new(keys: Vec<RowKey>) -> Self {
        Self {
            undecided: keys,
            round: 0,
            differences: Vec::new(),
        }
    }

    /// The keys to read next; none once all is said.
    pub fn wanted(&self) -> &[RowKey] {
        if self.round < ROUNDS_MAX {
            &self.undecided
        } else {
            &[]
        }
    }

    /// How long to let the keys rest before they are read.
    pub fn pause_ms(&self) -> u64 {
        match self.round {
            0 => 0,
            round => (FIRST_PAUSE_MS << (round - 1).min(16)).min(PAUSE_MS_MAX),
        }
    }

    /// Takes a verdict for each wanted key, in that order.
    pub fn judged(&mut self, verdicts: &[Verdict]) {
        assert_eq!(
            verdicts.len(),
            self.undecided.len(),
            "a round answers for every key"
        );
        self.round += 1;
        let keys = std::mem::take(&mut self.undecided);
        for (key, verdict) in keys.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Equal => {}
                Verdict::Differs(difference) => self.differences.push((key, *difference)),
                Verdict::InFlux => self.undecided.push(key),
            }
        }
    }

    pub fn finish(self) -> Settled {
        Settled {
            differences: self.differences,
            undetermined: self.undecided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_flux_is_read_again_and_in_the_end_undetermined_never_equal() {
        let key = |n: u8| RowKey::from_columns([[n].as_slice()]).expect("valid");
        let mut settling = Settling::new(vec![key(1), key(2), key(3)]);
        let missing = Verdict::Differs(Difference::Missing);
        assert_eq!(settling.pause_ms(), 0);
        settling.judged(&[Verdict::Equal, Verdict::InFlux, missing]);
        let mut rounds = 1;
        while !settling.wanted().is_empty() {
            assert_eq!(settling.wanted(), [key(2)]);
            assert!((20..=PAUSE_MS_MAX).contains(&settling.pause_ms()));
            settling.judged(&[Verdict::InFlux]);
            rounds += 1;
        }
        assert_eq!(rounds, ROUNDS_MAX);
        let settled = settling.finish();
        assert_eq!(settled.differences, [(key(3), Difference::Missing)]);
        assert_eq!(settled.undetermined, [key(2)]);
    }
}
