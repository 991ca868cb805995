//! When a source's slot is in danger, and when that is said.
//!
//! Three things may go wrong before WAL is lost or replicas are passed: the slot
//! nears its limit (`slot_hold_limit`), the server calls its WAL more than it meant
//! to keep (`wal_status`), or little is left of what it keeps at most
//! (`safe_wal_size`, under `max_slot_wal_keep_size`). Each is a *danger* that stands
//! from a threshold on until it is well below: a slot that sways around the
//! threshold is told of once.

/// Of a limit: from here on it is a danger, in per cent.
const DANGER_PERCENT: u64 = 80;
/// And one no longer below here.
const CALM_PERCENT: u64 = 50;

/// What the server says of the slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotReading {
    pub retained_bytes: u64,
    /// Until WAL that the slot needs is dropped; `None`: nothing limits it.
    pub safe_bytes: Option<u64>,
    pub wal_status: WalStatus,
    /// `slot_hold_limit` of the source; 0: none.
    pub limit_bytes: u64,
}

/// `pg_replication_slots.wal_status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WalStatus {
    /// Within `max_wal_size`; or something that is not known.
    #[default]
    Reserved,
    /// More than `max_wal_size`, and kept.
    Extended,
    /// To be dropped at the next checkpoint.
    Unreserved,
    Lost,
}

impl WalStatus {
    pub fn of(text: &str) -> Self {
        match text {
            "extended" => Self::Extended,
            "unreserved" => Self::Unreserved,
            "lost" => Self::Lost,
            _ => Self::Reserved,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Danger {
    /// Near `slot_hold_limit`: replicas that hold the slot will be passed.
    Limit,
    /// The server retains more than `max_wal_size` for the slot.
    Extended,
    /// The server drops what the slot needs at its next checkpoint.
    Unreserved,
    Lost,
    /// Near `max_slot_wal_keep_size`.
    SafeWal,
}

impl Danger {
    pub const ALL: [Danger; 5] = [
        Danger::Limit,
        Danger::Extended,
        Danger::Unreserved,
        Danger::Lost,
        Danger::SafeWal,
    ];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Danger::Limit => "slot_hold_limit",
            Danger::Extended => "wal_extended",
            Danger::Unreserved => "wal_unreserved",
            Danger::Lost => "wal_lost",
            Danger::SafeWal => "safe_wal_size",
        }
    }
}

/// The dangers that stand, and those that have come up just now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub standing: Vec<Danger>,
    pub new: Vec<Danger>,
}

#[derive(Debug, Default)]
pub struct SlotHealth {
    standing: Vec<Danger>,
}

impl SlotHealth {
    pub fn look(&mut self, reading: &SlotReading) -> Verdict {
        let stands = |danger: &Danger| {
            let percent = match self.standing.contains(danger) {
                true => CALM_PERCENT,
                false => DANGER_PERCENT,
            };
            is_in(*danger, reading, percent)
        };
        let standing: Vec<Danger> = Danger::ALL.into_iter().filter(stands).collect();
        let is_new = |danger: &&Danger| !self.standing.contains(danger);
        let new = standing.iter().filter(is_new).copied().collect();
        self.standing.clone_from(&standing);
        Verdict { standing, new }
    }
}

fn is_in(danger: Danger, reading: &SlotReading, percent: u64) -> bool {
    let SlotReading {
        retained_bytes,
        safe_bytes,
        wal_status,
        limit_bytes,
    } = *reading;
    match danger {
        Danger::Limit => limit_bytes > 0 && is_past(retained_bytes, limit_bytes, percent),
        Danger::Extended => wal_status == WalStatus::Extended,
        Danger::Unreserved => wal_status == WalStatus::Unreserved,
        Danger::Lost => wal_status == WalStatus::Lost,
        // What is retained and what may still be make up what is kept at most.
        Danger::SafeWal => safe_bytes.is_some_and(|safe_bytes| {
            is_past(
                retained_bytes,
                retained_bytes.saturating_add(safe_bytes),
                percent,
            )
        }),
    }
}

fn is_past(bytes: u64, of_bytes: u64, percent: u64) -> bool {
    u128::from(bytes) * 100 >= u128::from(of_bytes) * u128::from(percent) && bytes > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(retained_bytes: u64, safe_bytes: Option<u64>, wal_status: &str) -> SlotReading {
        SlotReading {
            retained_bytes,
            safe_bytes,
            wal_status: WalStatus::of(wal_status),
            limit_bytes: 1_000,
        }
    }

    /// What was retained in turn, and what comes up each time.
    fn told(readings: &[SlotReading]) -> Vec<Vec<Danger>> {
        let mut health = SlotHealth::default();
        readings.iter().map(|now| health.look(now).new).collect()
    }

    #[test]
    fn p11_the_limit_is_told_of_once_until_it_is_far_again() {
        let swaying =
            [790, 800, 790, 900, 510, 810, 499, 800].map(|r| reading(r, None, "reserved"));
        let limit = || vec![Danger::Limit];
        assert_eq!(
            told(&swaying),
            [
                vec![],
                limit(),
                vec![],
                vec![],
                vec![],
                vec![],
                vec![],
                limit()
            ]
        );
        let mut health = SlotHealth::default();
        health.look(&swaying[1]);
        assert_eq!(health.look(&swaying[4]).standing, limit(), "it stands");
        assert_eq!(
            health.look(&swaying[6]).standing,
            vec![],
            "until it is calm"
        );
    }

    #[test]
    fn p11_what_the_server_keeps_at_most_is_a_limit_too_and_none_is_none() {
        let slot = |retained, safe| reading(retained, safe, "reserved");
        let near = [slot(100, None), slot(399, Some(101)), slot(400, Some(100))];
        assert_eq!(told(&near), [vec![], vec![], vec![Danger::SafeWal]]);
        assert_eq!(told(&[slot(0, Some(0))]), [vec![]], "an unused slot");
        let mut unlimited = slot(5_000, None);
        unlimited.limit_bytes = 0;
        assert_eq!(told(&[unlimited]), [vec![]]);
    }

    #[test]
    fn p11_each_word_of_the_server_is_a_danger_of_its_own() {
        let words = [
            "reserved",
            "extended",
            "extended",
            "unreserved",
            "lost",
            "other",
        ];
        let readings = words.map(|word| reading(1, None, word));
        assert_eq!(
            told(&readings),
            [
                vec![],
                vec![Danger::Extended],
                vec![],
                vec![Danger::Unreserved],
                vec![Danger::Lost],
                vec![]
            ]
        );
    }
}
