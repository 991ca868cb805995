//! A session token: a place in one server's history that a later search, on
//! whichever connection, must have seen.
//!
//! Its text is `rv1:<system identifier>:<timeline>:<LSN>`. `rv1` names the form;
//! the rest is for us to read, and for nobody to compute with.

use crate::wal_position::Lsn;
use std::fmt;
use std::str::FromStr;

const FORM: &str = "rv1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionToken {
    pub system_identifier: u64,
    pub timeline: u32,
    /// Where the last commit that counts ends.
    pub commit_end: Lsn,
}

/// Why a text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    #[error("its form is not {FORM}:<system identifier>:<timeline>:<LSN>")]
    Form,
    #[error("its form {0:?} is one that this version does not read")]
    Version(String),
}

/// Why a position is not to be waited for on this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    #[error("it was made on timeline {made_on}, which is not in the history of timeline {here}")]
    OtherTimeline { made_on: u32, here: u32 },
    #[error(
        "timeline {made_on} was left at {left_at}, before the token's commit at {commit_end}: \
         the commit was lost when the server changed over"
    )]
    Lost {
        made_on: u32,
        left_at: Lsn,
        commit_end: Lsn,
    },
    #[error("the log of this server ends at {end}, before the token's commit at {commit_end}")]
    Ahead { end: Lsn, commit_end: Lsn },
}

/// The server that is asked to honour a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Here {
    pub timeline: u32,
    /// Where this server's history left the token's timeline; `None` where it never
    /// was on it, or still is.
    pub left_at: Option<Lsn>,
    /// The end of its log.
    pub end: Lsn,
}

impl SessionToken {
    /// The position to wait for. Timelines of one history count bytes on from each
    /// other, so that a position at or below the switch is the same place on both
    /// sides of it.
    pub fn position(&self, here: Here) -> Result<Lsn, Unreachable> {
        let (made_on, commit_end) = (self.timeline, self.commit_end);
        if made_on != here.timeline {
            let left_at = here.left_at.ok_or(Unreachable::OtherTimeline {
                made_on,
                here: here.timeline,
            })?;
            if commit_end > left_at {
                return Err(Unreachable::Lost {
                    made_on,
                    left_at,
                    commit_end,
                });
            }
        }
        if commit_end > here.end {
            let end = here.end;
            return Err(Unreachable::Ahead { end, commit_end });
        }
        Ok(commit_end)
    }
}

impl fmt::Display for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            system_identifier,
            timeline,
            commit_end,
        } = self;
        write!(f, "{FORM}:{system_identifier}:{timeline}:{commit_end}")
    }
}

impl FromStr for SessionToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let (form, rest) = text.split_once(':').ok_or(BadToken::Form)?;
        if form != FORM {
            let digits = form.strip_prefix("rv").unwrap_or_default();
            let is_ours = !digits.is_empty()
                && digits.len() <= 4
                && digits.bytes().all(|byte| byte.is_ascii_digit());
            return Err(match is_ours {
                true => BadToken::Version(form.to_owned()),
                false => BadToken::Form,
            });
        }
        let mut fields = rest.split(':');
        let mut field = || fields.next().ok_or(BadToken::Form);
        let token = Self {
            system_identifier: field()?.parse().map_err(|_| BadToken::Form)?,
            timeline: field()?.parse().map_err(|_| BadToken::Form)?,
            commit_end: field()?.parse().map_err(|_| BadToken::Form)?,
        };
        let is_whole = fields.next().is_none();
        // One text for one token: no signs, no leading zeros.
        let is_ours = is_whole && token.timeline > 0 && token.to_string() == text;
        is_ours.then_some(token).ok_or(BadToken::Form)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TOKEN: SessionToken = SessionToken {
        system_identifier: 7_412_345_678_901_234_567,
        timeline: 3,
        commit_end: Lsn(0x16_B374_D848),
    };

    fn here(timeline: u32, left_at: Option<u64>, end: u64) -> Here {
        Here {
            timeline,
            left_at: left_at.map(Lsn),
            end: Lsn(end),
        }
    }

    #[test]
    fn the_text_is_pinned_and_read_back() {
        let text = "rv1:7412345678901234567:3:16/B374D848";
        assert_eq!(TOKEN.to_string(), text);
        assert_eq!(text.parse(), Ok(TOKEN));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in [
            "",
            "rv1",
            "16/B374D848",
            "rv1:1:3",
            "rv1:1:3:16",
            "rv1:1:3:16/B3:",
            "rv1:1:3:16/B3 ",
            " rv1:1:3:16/B3",
            "rv1:+1:3:16/B3",
            "rv1:01:3:16/B3",
            "rv1:1:0:16/B3",
            "rv1:1:3:16/b3",
            "rv1:18446744073709551616:3:16/B3",
            "rvx:1:3:16/B3",
        ] {
            assert_eq!(
                text.parse::<SessionToken>(),
                Err(BadToken::Form),
                "{text:?}"
            );
        }
        let newer = "rv2:whatever".parse::<SessionToken>();
        assert_eq!(newer, Err(BadToken::Version("rv2".to_owned())));
    }

    #[test]
    fn p8_a_position_of_this_timeline_or_of_the_history_that_led_here_is_waited_for() {
        let at = TOKEN.commit_end.0;
        assert_eq!(TOKEN.position(here(3, None, at)), Ok(TOKEN.commit_end));
        assert_eq!(
            TOKEN.position(here(5, Some(at), at + 9)),
            Ok(TOKEN.commit_end)
        );
    }

    #[test]
    fn p8_a_commit_that_this_server_does_not_have_is_refused_and_never_taken_for_seen() {
        let at = TOKEN.commit_end.0;
        assert!(matches!(
            TOKEN.position(here(5, Some(at - 1), at + 9)),
            Err(Unreachable::Lost { .. })
        ));
        assert!(matches!(
            TOKEN.position(here(5, None, at + 9)),
            Err(Unreachable::OtherTimeline {
                made_on: 3,
                here: 5
            })
        ));
        assert!(matches!(
            TOKEN.position(here(2, None, at + 9)),
            Err(Unreachable::OtherTimeline { .. })
        ));
        assert!(matches!(
            TOKEN.position(here(3, None, at - 1)),
            Err(Unreachable::Ahead { .. })
        ));
    }
}
