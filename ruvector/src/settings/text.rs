//! Text that takes the type of the default it replaces: the `1` of
//! `RUVECTOR_ZONE=1` is a name, that of `RUVECTOR_ID=1` a number.

use figment::value::{Dict, Value};
use std::time::Duration;

/// The value that `text` means where `default` stands; `None` when the default
/// tells nothing. Text in a file keeps its type, except for durations.
pub fn parse_as(text: &str, default: &Value, is_untyped: bool) -> Result<Option<Value>, String> {
    match default {
        Value::Dict(_, fields) if is_duration(fields) => {
            parse_duration(text).map(|d| Some(duration_value(d)))
        }
        _ if !is_untyped => Ok(None),
        Value::String(..) | Value::Char(..) => Ok(Some(Value::from(text))),
        Value::Array(..) if !text.trim_start().starts_with('[') => {
            let items = text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty());
            Ok(Some(Value::from(items.map(parse_item).collect::<Vec<_>>())))
        }
        _ => Ok(None),
    }
}

/// An item of a list; `2=host:port` is a numbered member.
fn parse_item(item: &str) -> Value {
    let member = item
        .split_once('=')
        .and_then(|(id, address)| Some((id.parse::<u64>().ok()?, address)));
    match member {
        None => Value::from(item),
        Some((id, address)) => Value::from(Dict::from([
            ("id".to_owned(), Value::from(id)),
            ("address".to_owned(), Value::from(address)),
        ])),
    }
}

/// Text where the default is unset: a number, a boolean, else a string. Commas
/// stay, for `host:port,host:port` is no list to figment's own parser.
pub fn parse_free(text: &str) -> Value {
    text.parse().unwrap_or_else(|_| Value::from(text))
}

/// How serde writes a `std::time::Duration`.
pub fn is_duration(fields: &Dict) -> bool {
    fields.len() == 2 && fields.contains_key("secs") && fields.contains_key("nanos")
}

fn duration_value(duration: Duration) -> Value {
    Value::from(Dict::from([
        ("secs".to_owned(), Value::from(duration.as_secs())),
        ("nanos".to_owned(), Value::from(duration.subsec_nanos())),
    ]))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad =
        || format!("{text:?} is not a duration: want a number with ms, s, m or h, as in 200ms");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let millis = match text[digits..].trim() {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(bad)
}

/// The text that [`parse_duration`] reads back.
pub fn duration_text(secs: u64, nanos: u32) -> String {
    match (secs, nanos) {
        (secs, 0) => format!("{secs}s"),
        (secs, nanos) => format!(
            "{}ms",
            secs.saturating_mul(1_000) + u64::from(nanos / 1_000_000)
        ),
    }
}
