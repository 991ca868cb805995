//! `NAME=VALUE` words: of the command line, and of each command that is served.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// What was given and not taken yet. A name that nobody takes is an error, so that a
/// misspelt option does not measure something else.
pub struct Options(BTreeMap<String, String>);

impl Options {
    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self> {
        let pair = |word: &str| -> Result<(String, String)> {
            let (name, value) = word
                .split_once('=')
                .with_context(|| format!("'{word}' is not of the form NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        };
        Ok(Self(words.map(pair).collect::<Result<_>>()?))
    }

    pub fn take<T>(&mut self, name: &str, default: T) -> Result<T>
    where
        T: FromStr<Err: Display>,
    {
        match self.0.remove(name) {
            Some(value) => parsed(name, &value),
            None => Ok(default),
        }
    }

    /// Comma-separated values.
    pub fn take_list<T>(&mut self, name: &str, default: &[T]) -> Result<Vec<T>>
    where
        T: FromStr<Err: Display> + Clone,
    {
        match self.0.remove(name) {
            Some(values) => values.split(',').map(|v| parsed(name, v)).collect(),
            None => Ok(default.to_vec()),
        }
    }

    pub fn finish(&self) -> Result<()> {
        match self.0.keys().next() {
            Some(name) => bail!("no option '{name}' here"),
            None => Ok(()),
        }
    }
}

fn parsed<T>(name: &str, value: &str) -> Result<T>
where
    T: FromStr<Err: Display>,
{
    match value.parse() {
        Ok(value) => Ok(value),
        Err(error) => bail!("{name}={value}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_once_and_leftovers_are_refused() {
        let mut options = Options::parse(["ef=20", "rows=1,2"].into_iter()).unwrap();
        assert_eq!(options.take("ef", 7).unwrap(), 20);
        assert_eq!(options.take("ef", 7).unwrap(), 7);
        assert!(options.finish().is_err());
        assert_eq!(options.take_list::<usize>("rows", &[]).unwrap(), [1, 2]);
        assert!(options.finish().is_ok());
    }

    #[test]
    fn words_and_values_that_say_nothing_are_refused() {
        assert!(Options::parse(["ef"].into_iter()).is_err());
        let mut options = Options::parse(["ef=many"].into_iter()).unwrap();
        assert!(options.take("ef", 1).is_err());
    }
}
