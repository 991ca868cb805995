//! The resource's side of a consumer's lease: the highest token that it was
//! offered. Whatever a process that has slept through its lease still sends, it
//! is refused once its successor has spoken (P5).
//!
//! A new token counts only once it is on disk: a resource that forgot it would
//! take the old one again after a restart.

use crate::ids::ConsumerEpoch;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TokenFence {
    installed: ConsumerEpoch,
}

/// What to do with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// A higher one was seen: refuse.
    Old { installed: ConsumerEpoch },
    /// The one that is installed: go on.
    Known,
    /// Write it durably, then [`TokenFence::install`] it, then go on.
    New,
}

impl TokenFence {
    /// `stored` is what the disk remembers.
    pub fn new(stored: ConsumerEpoch) -> Self {
        Self { installed: stored }
    }

    pub fn installed(&self) -> ConsumerEpoch {
        self.installed
    }

    pub fn offer(&self, token: ConsumerEpoch) -> Offer {
        match token.cmp(&self.installed) {
            std::cmp::Ordering::Less => Offer::Old {
                installed: self.installed,
            },
            std::cmp::Ordering::Equal => Offer::Known,
            std::cmp::Ordering::Greater => Offer::New,
        }
    }

    /// The token is on disk. Tokens only rise.
    pub fn install(&mut self, token: ConsumerEpoch) {
        assert!(
            token >= self.installed,
            "token {token} would replace {}",
            self.installed
        );
        self.installed = token;
    }
}
