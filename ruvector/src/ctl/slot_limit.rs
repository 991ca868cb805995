//! `ctl slot-limit`: how much WAL a source's server may retain for its slot.

use super::table::bytes;
use super::{Ctl, Report, source, usage};
use crate::failure::Failure;
use clap::Args;
use proto::v1::SetSlotHoldLimitRequest;
use serde::Serialize;

#[derive(Args)]
pub struct SlotLimitArgs {
    /// The source's number or its name
    source: String,
    /// Bytes, with KiB, MiB, GiB or TiB behind the number if you like; `never` lets the
    /// slot wait for ever, `default` is the consumer's slot_hold_limit_bytes
    limit: String,
}

#[derive(Serialize)]
pub struct SlotLimit {
    source_id: u64,
    name: String,
    /// Absent: the consumer's setting is in force.
    slot_hold_limit_bytes: Option<u64>,
}

pub async fn set(ctl: &Ctl, args: SlotLimitArgs) -> Result<SlotLimit, Failure> {
    let limit_bytes = parse(&args.limit).map_err(usage)?;
    let seen = ctl.leader_status().await?;
    let source = source::find(&seen, &args.source)?;
    let request = SetSlotHoldLimitRequest {
        source_id: source.id.0,
        limit_bytes,
    };
    ctl.lead(|mut leader| async move { leader.set_slot_hold_limit(request).await })
        .await?;
    Ok(SlotLimit {
        source_id: source.id.0,
        name: source.name.clone(),
        slot_hold_limit_bytes: limit_bytes,
    })
}

const UNITS: [(&str, u64); 4] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

fn parse(text: &str) -> Result<Option<u64>, String> {
    match text {
        "default" => return Ok(None),
        "never" => return Ok(Some(0)),
        _ => {}
    }
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (digits, factor) = match unit {
        Some((unit, factor)) => (text.trim_end_matches(unit).trim_end(), *factor),
        None => (text, 1),
    };
    let number: Option<u64> = digits.parse().ok();
    let limit = number.and_then(|number| number.checked_mul(factor));
    match limit.filter(|bytes| *bytes > 0) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(format!(
            "{text:?} is no amount of WAL: write bytes, 64GiB, never or default"
        )),
    }
}

impl Report for SlotLimit {
    fn text(&self) -> String {
        let Self {
            source_id, name, ..
        } = self;
        let limit = match self.slot_hold_limit_bytes {
            None => "follows the consumer's slot_hold_limit_bytes".to_owned(),
            Some(0) => {
                "lets its slot wait for ever; max_slot_wal_keep_size of the server is what is left"
                    .to_owned()
            }
            Some(limit) => format!("lets its slot retain {} of WAL", bytes(limit)),
        };
        format!("Source {source_id} ({name}) {limit}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_a_limit_is_an_amount_never_or_the_default_and_nothing_else() {
        assert_eq!(parse("default"), Ok(None));
        assert_eq!(parse("never"), Ok(Some(0)));
        assert_eq!(parse("1048576"), Ok(Some(1 << 20)));
        assert_eq!(parse("64GiB"), Ok(Some(64 << 30)));
        assert_eq!(parse("2 TiB"), Ok(Some(2 << 40)));
        // A slip must not end the slot's life: 0 is written `never`.
        for wrong in [
            "0",
            "0GiB",
            "-1",
            "64GB",
            "",
            "GiB",
            "99999999TiB",
            "1.5GiB",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
