//! Where a process's settings come from, and which wins:
//! default < file < `RUVECTOR_…` variable < flag.
//!
//! The typed struct with its defaults belongs to the process's crate, what every
//! process has beside it is the [`Frame`]; the defaults of both are also the
//! schema here: a key that they do not have is an error that names where it was
//! written. Values from variables and flags are text, and take the type that the
//! default at their place has.

mod frame;
mod layer;
mod print;
#[cfg(test)]
mod tests;
mod text;

pub use frame::{Frame, LogFormat};
pub use layer::Layer;
pub use print::to_toml;

use figment::value::{Dict, Value};
use figment::{Figment, Profile};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the configuration file {path}: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not valid TOML: {problem}")]
    BadToml { path: PathBuf, problem: String },
    #[error("{origin} has an unknown setting `{key}`; known here: {known}")]
    UnknownKey {
        origin: String,
        key: String,
        known: String,
    },
    #[error("{origin}: {problem}")]
    BadValue { origin: String, problem: String },
}

/// What a process runs with.
pub struct Settings<C> {
    pub frame: Frame,
    pub process: C,
}

/// The layers above the defaults, weakest first.
pub struct Layers(Vec<Layer>);

impl Layers {
    pub fn gather(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = Layer>,
    ) -> Result<Self, SettingsError> {
        let mut layers = Vec::new();
        layers.extend(file.map(Layer::from_file).transpose()?);
        let mut variables: Vec<_> = variables
            .into_iter()
            .filter_map(Layer::from_variable)
            .collect();
        variables.sort_by(|a, b| a.origin().cmp(b.origin()));
        layers.extend(variables);
        layers.extend(flags);
        Ok(Self(layers))
    }

    /// What the layers say about a dotted key, as text; for defaults that follow
    /// from another setting.
    pub fn text(&self, key: &str) -> Option<String> {
        let found = self.0.iter().rev().find_map(|layer| layer.find(key))?;
        found.into_string()
    }

    /// The effective settings over these defaults.
    pub fn resolve<C>(&self, frame: Frame, process: &C) -> Result<Settings<C>, SettingsError>
    where
        C: Serialize + DeserializeOwned,
    {
        let frame = dict_of(&frame);
        let process = dict_of(process);
        let mut schema = process.clone();
        schema.extend(frame.clone());
        let mut merged = [
            Figment::from(Layer::new("the defaults", frame.clone())),
            Figment::from(Layer::new("the defaults", process)),
        ];
        for layer in &self.0 {
            let layer = layer.clone().checked_against(&schema)?;
            let (of_frame, of_process) = layer.split(|key| frame.contains_key(key));
            let [frame, process] = merged;
            merged = [frame.merge(of_frame), process.merge(of_process)];
        }
        Ok(Settings {
            frame: merged[0].extract().map_err(bad_value)?,
            process: merged[1].extract().map_err(bad_value)?,
        })
    }
}

fn dict_of<T: Serialize>(settings: &T) -> Dict {
    let value = Value::serialize(settings).expect("a configuration struct serializes");
    value.into_dict().expect("a configuration is a struct")
}

fn bad_value(error: figment::Error) -> SettingsError {
    let origin = match &error.metadata {
        Some(metadata) => metadata.name.to_string(),
        None => "the settings".to_owned(),
    };
    let key = error.path.join(".");
    let problem = match key.is_empty() {
        true => error.kind.to_string(),
        false => format!("`{key}`: {}", error.kind),
    };
    SettingsError::BadValue { origin, problem }
}

impl figment::Provider for Layer {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(self.origin().to_owned())
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values().clone()))
    }
}
