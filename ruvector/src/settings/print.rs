//! Settings as the TOML file that would give them.

use super::Settings;
use super::text::duration_text;
use serde::Serialize;
use serde_json::Value as Json;

/// Unset settings have no TOML form and are listed as comments.
pub fn to_toml<C: Serialize>(settings: &Settings<C>) -> String {
    let mut unset = Vec::new();
    let mut table = table_of(&settings.frame, &mut unset);
    table.extend(table_of(&settings.process, &mut unset));
    let mut text = String::new();
    for key in unset {
        text.push_str(&format!("# {key} is not set\n"));
    }
    text + &toml::to_string_pretty(&table).expect("a table of plain values prints")
}

fn table_of<T: Serialize>(settings: &T, unset: &mut Vec<String>) -> toml::Table {
    let json = serde_json::to_value(settings).expect("a configuration struct serializes");
    match to_table(json, "", unset) {
        toml::Value::Table(table) => table,
        other => unreachable!("a configuration is a struct, not {other}"),
    }
}

fn to_table(json: Json, path: &str, unset: &mut Vec<String>) -> toml::Value {
    match json {
        Json::Object(fields) => {
            let number = |name| fields.get(name).and_then(Json::as_u64);
            if let (2, Some(secs), Some(nanos)) = (fields.len(), number("secs"), number("nanos")) {
                return duration_text(secs, u32::try_from(nanos).unwrap_or(0)).into();
            }
            let mut table = toml::Table::new();
            for (key, value) in fields {
                let below = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                if value.is_null() {
                    unset.push(below);
                } else {
                    table.insert(key, to_table(value, &below, unset));
                }
            }
            toml::Value::Table(table)
        }
        Json::Array(items) => items
            .into_iter()
            .map(|item| to_table(item, path, unset))
            .collect::<Vec<_>>()
            .into(),
        Json::Bool(value) => value.into(),
        Json::String(text) => text.into(),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64().unwrap_or(f64::INFINITY).into(),
        },
        Json::Null => toml::Value::String(String::new()),
    }
}
