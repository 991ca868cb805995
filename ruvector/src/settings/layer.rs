//! One source of settings: the file, one variable, or one flag.

use super::SettingsError;
use super::text::{parse_as, parse_free};
use figment::value::{Dict, Value};
use std::path::Path;

const VARIABLE_PREFIX: &str = "RUVECTOR_";
/// Variables that are ours and no settings: build caches of the scripts, and
/// what the command line reads itself.
const VARIABLES_ELSEWHERE: [&str; 3] = ["CACHE", "CONFIG", "COORDINATORS"];
/// The one of them that is a setting too, where a process has it: it is usual to
/// export it for `ctl`, which must not keep a coordinator from starting.
const SHARED_VARIABLE: &str = "coordinators";

#[derive(Clone, Debug)]
pub struct Layer {
    origin: String,
    values: Dict,
    /// Values are text that takes the type of the default at its place.
    is_text: bool,
    /// Keys that the process does not have are passed over.
    is_lenient: bool,
}

impl Layer {
    pub fn new(origin: impl Into<String>, values: Dict) -> Self {
        Self {
            origin: origin.into(),
            values,
            is_text: false,
            is_lenient: false,
        }
    }

    pub fn from_file(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let bad = |problem: String| SettingsError::BadToml {
            path: path.to_owned(),
            problem,
        };
        let table: toml::Table = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let values = Value::serialize(&table).map_err(|e| bad(e.to_string()))?;
        let values = values
            .into_dict()
            .ok_or_else(|| bad("not a table".to_owned()))?;
        Ok(Self::new(format!("file {}", path.display()), values))
    }

    /// `RUVECTOR_NODE__LISTEN` is `node.listen`; `None` for other variables.
    pub fn from_variable((name, text): (String, String)) -> Option<Self> {
        let key = name.strip_prefix(VARIABLE_PREFIX)?;
        let is_lenient = VARIABLES_ELSEWHERE.contains(&key);
        let key = key.to_lowercase();
        if is_lenient && key != SHARED_VARIABLE {
            return None;
        }
        let path: Vec<&str> = key.split("__").collect();
        Some(Self {
            is_text: true,
            is_lenient,
            ..Self::new(name.clone(), nest(&path, &text))
        })
    }

    /// A flag of its own for a dotted key.
    pub fn from_flag(flag: &str, key: &str, text: &str) -> Self {
        let path: Vec<&str> = key.split('.').collect();
        Self {
            is_text: true,
            ..Self::new(flag, nest(&path, text))
        }
    }

    /// `--set key=value`.
    pub fn from_assignment(assignment: &str) -> Result<Self, SettingsError> {
        let (key, text) = assignment
            .split_once('=')
            .ok_or_else(|| SettingsError::BadValue {
                origin: format!("--set {assignment}"),
                problem: "want key=value, as in --set transport.allow_plaintext_off_loopback=true"
                    .to_owned(),
            })?;
        let origin = format!("--set {key}");
        Ok(Self::from_flag(&origin, key.trim(), text.trim()))
    }

    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn values(&self) -> &Dict {
        &self.values
    }

    pub fn find(&self, key: &str) -> Option<Value> {
        Value::from(self.values.clone()).find(key)
    }

    /// Its keys for which `is_first` holds, and the others.
    pub fn split(self, is_first: impl Fn(&str) -> bool) -> (Self, Self) {
        let (first, second) = self
            .values
            .clone()
            .into_iter()
            .partition(|(key, _)| is_first(key));
        let with = |values| Self {
            values,
            ..self.clone()
        };
        (with(first), with(second))
    }

    /// The layer with every key known to the schema and every text typed by it.
    pub fn checked_against(self, schema: &Dict) -> Result<Self, SettingsError> {
        let values = self.check(self.values.clone(), schema, "")?;
        Ok(Self { values, ..self })
    }

    fn check(&self, values: Dict, schema: &Dict, above: &str) -> Result<Dict, SettingsError> {
        let mut checked = Dict::new();
        for (key, value) in values {
            let path = format!("{above}{key}");
            let Some(default) = schema.get(&key) else {
                if self.is_lenient {
                    continue;
                }
                return Err(SettingsError::UnknownKey {
                    origin: self.origin.clone(),
                    key: path,
                    known: schema.keys().cloned().collect::<Vec<_>>().join(", "),
                });
            };
            checked.insert(key, self.check_value(value, default, &path)?);
        }
        Ok(checked)
    }

    fn check_value(
        &self,
        value: Value,
        default: &Value,
        path: &str,
    ) -> Result<Value, SettingsError> {
        match (value, default) {
            (Value::Dict(_, values), Value::Dict(_, schema)) if !schema.is_empty() => self
                .check(values, schema, &format!("{path}."))
                .map(Value::from),
            (Value::String(_, text), default) => {
                let parsed = parse_as(&text, default, self.is_text).map_err(|problem| {
                    SettingsError::BadValue {
                        origin: self.origin.clone(),
                        problem: format!("`{path}`: {problem}"),
                    }
                })?;
                Ok(parsed.unwrap_or_else(|| match self.is_text {
                    true => parse_free(&text),
                    false => Value::from(text),
                }))
            }
            (value, _) => Ok(value),
        }
    }
}

fn nest(path: &[&str], text: &str) -> Dict {
    let (first, rest) = path
        .split_first()
        .expect("a split yields at least one part");
    let value = match rest {
        [] => Value::from(text),
        rest => Value::from(nest(rest, text)),
    };
    Dict::from([((*first).to_owned(), value)])
}
