//! What a server's history file says of the timelines that it has been on, and whether
//! a slot that survived a switch goes on with the history that replicas hold.

use crate::wal_position::Lsn;

/// A timeline of the past, and where the server left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftTimeline {
    pub timeline: u32,
    pub left_at: Lsn,
}

/// Reads what TIMELINE_HISTORY answers: a line for each timeline, `1\t0/3000000\treason`.
/// `None`: it is no such file.
pub fn parse_history(text: &str) -> Option<Vec<LeftTimeline>> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parse = |line: &str| {
        let mut fields = line.split('\t');
        let timeline = fields.next()?.trim().parse().ok()?;
        let left_at = fields.next()?.trim().parse().ok()?;
        Some(LeftTimeline { timeline, left_at })
    };
    lines.map(parse).collect()
}

/// Whether everything up to `highest`, the highest position that anybody has of the
/// known timeline, is in the server's history as well: nothing was applied that the
/// switch undid.
pub fn goes_on(history: &[LeftTimeline], known: u32, highest: Lsn) -> bool {
    let mut left = history.iter().filter(|left| left.timeline == known);
    left.next().is_some_and(|left| highest <= left.left_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_file_is_read_and_anything_else_is_none() {
        let text =
            "1\t0/3000148\tno recovery target specified\n\n2\t0/4000000\tbefore 2000-01-01\n";
        let history = parse_history(text).expect("a history");
        assert_eq!(history.len(), 2);
        let first = LeftTimeline {
            timeline: 1,
            left_at: Lsn(0x0300_0148),
        };
        assert_eq!(history[0], first);
        assert_eq!(parse_history("# nothing\n"), Some(Vec::new()));
        assert_eq!(parse_history("one\t0/3\n"), None);
        assert_eq!(parse_history("1\n"), None);
    }

    #[test]
    fn p3_what_was_applied_beyond_the_switch_is_another_history() {
        let left = |timeline, at| LeftTimeline {
            timeline,
            left_at: Lsn(at),
        };
        let history = [left(1, 100), left(2, 300)];
        assert!(goes_on(&history, 1, Lsn(100)));
        assert!(!goes_on(&history, 1, Lsn(101)));
        assert!(goes_on(&history, 2, Lsn(250)));
        assert!(!goes_on(&history, 4, Lsn(1)), "never was on it");
    }
}
