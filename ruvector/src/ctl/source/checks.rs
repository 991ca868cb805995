//! The checklist of a database: looked at from here, decided in
//! `cluster_core::checklist`, printed line by line.

use super::dsn::{self, PasswordFile};
use crate::ctl::{Ctl, Observed, Report, print, show};
use crate::failure::{Failure, FailureKind};
use cluster_core::checklist::{Check, Verdict, checklist};
use cluster_core::ids::SourceId;
use serde::Serialize;
use wal_consumer::source::facts;
use wal_consumer::source::postgres::Postgres;

/// What a terminal is taken to hold.
const WIDTH_MAX: usize = 100;
/// What the consumer says of a source that it does not follow.
const FOLLOWING: &str = "following";

#[derive(Serialize)]
pub struct Checked {
    database: String,
    is_ok: bool,
    checks: Vec<Check>,
}

/// Looks at a database; `source` is the one that it is, if it is known.
pub async fn look(
    seen: &Observed,
    postgres: &Postgres,
    place: String,
    source: Option<SourceId>,
) -> Checked {
    let known = source.and_then(|id| seen.map.sources.get(&id));
    let slot_name = known.map(|s| s.slot_name.as_str()).unwrap_or_default();
    let mut checks = match facts::look(postgres, slot_name).await {
        Ok(facts) => {
            let mut checks = vec![Check::ok("reachable", place.clone())];
            checks.extend(checklist(&facts, &seen.map, source));
            checks
        }
        Err(problem) => vec![unreachable(&place, &problem)],
    };
    if let Some(problem) = known.map(|s| &s.problem).filter(|p| !p.is_empty()) {
        checks.push(Check::failed(FOLLOWING, problem, ""));
    }
    Checked {
        database: place,
        is_ok: !checks.iter().any(Check::is_failed),
        checks,
    }
}

fn unreachable(place: &str, problem: &anyhow::Error) -> Check {
    let cause = format!("{place}: {problem:#}");
    let remedy = if cause.contains("authentication failed") {
        "is it the role's password? pg_hba.conf says who may come from here"
    } else if cause.contains("password") {
        "give the password by --password-file, or in the connection string"
    } else {
        "is it running, and reachable from here? Where only the consumers reach it: --skip-checks"
    };
    Check::failed("reachable", cause, remedy)
}

impl Checked {
    /// Without what the source's consumer says of how it is reached now.
    pub fn without_following(mut self) -> Self {
        self.checks.retain(|check| check.name != FOLLOWING);
        self.is_ok = !self.checks.iter().any(Check::is_failed);
        self
    }

    /// Prints what does not let a command go on, and ends it.
    pub fn or_fail(self, json: bool, undone: &str) -> Result<Vec<Check>, Failure> {
        if self.is_ok {
            return Ok(self.checks);
        }
        print(&show(&self, json)?)?;
        let failed = self.checks.iter().filter(|check| check.is_failed());
        let failed: Vec<&str> = failed.map(|check| check.name).collect();
        Err(Failure::new(
            FailureKind::Failed,
            format!("{undone}: {} failed", failed.join(", ")),
        ))
    }
}

/// `ctl source check`.
pub async fn check_known(
    ctl: &Ctl,
    wanted: &str,
    password: &PasswordFile,
    json: bool,
) -> Result<Checked, Failure> {
    let seen = ctl.leader_status().await?;
    let source = super::find(&seen, wanted)?;
    let config = dsn::known(ctl, source.id.0).await?;
    let place = dsn::place(&config);
    let checked = look(&seen, &password.with(config)?, place, Some(source.id)).await;
    if checked.is_ok {
        return Ok(checked);
    }
    let undone = format!(
        "source {} ({}) is not as it should be",
        source.id.0, source.name
    );
    checked.or_fail(json, &undone).map(|checks| Checked {
        database: String::new(),
        is_ok: true,
        checks,
    })
}

impl Report for Checked {
    fn text(&self) -> String {
        lines(&self.checks)
    }
}

/// One line for each, with what to do below it.
pub fn lines(checks: &[Check]) -> String {
    let widest = checks.iter().map(|check| check.name.len()).max();
    let width = widest.unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
        };
        let head = format!("{verdict:<7}  {:<width$}  ", check.name);
        let indent = " ".repeat(head.len());
        text += &wrapped(&head, &indent, &check.finding);
        if !check.remedy.is_empty() {
            text += &wrapped(
                &format!("{indent}-> "),
                &format!("{indent}   "),
                &check.remedy,
            );
        }
    }
    text
}

fn wrapped(head: &str, indent: &str, sentence: &str) -> String {
    let mut text = String::new();
    let mut line = head.to_owned();
    let mut is_empty = true;
    for word in sentence.split_whitespace() {
        let is_full = line.chars().count() + 1 + word.chars().count() > WIDTH_MAX;
        if !is_empty && is_full {
            text += line.trim_end();
            text.push('\n');
            line = indent.to_owned();
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line += word;
        is_empty = false;
    }
    text += line.trim_end();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_says_what_is_so_and_below_it_what_to_do() {
        let checks = [
            Check::ok("version", "Postgres 15.20"),
            Check::failed(
                "wal_level",
                "wal_level is replica",
                "set wal_level = logical",
            ),
        ];
        assert_eq!(
            lines(&checks),
            "ok       version    Postgres 15.20\n\
             failed   wal_level  wal_level is replica\n\
             \u{20}                   -> set wal_level = logical\n"
        );
    }

    #[test]
    fn a_long_sentence_goes_on_below_its_own_beginning() {
        let checks = [Check::ok("version", "word ".repeat(60))];
        let text = lines(&checks);
        assert!(text.lines().count() > 1);
        for line in text.lines().skip(1) {
            assert!(line.starts_with(&" ".repeat(18)), "{line:?}");
            assert!(line.len() <= WIDTH_MAX);
        }
    }
}
