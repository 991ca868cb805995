//! A command's words: its name, and arguments `key=value`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

pub struct Words<'a> {
    pub name: &'a str,
    arguments: BTreeMap<&'a str, &'a str>,
    used: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Words<'a> {
    pub fn of(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        let arguments = words.map(|word| word.split_once('=').unwrap_or((word, "")));
        Self {
            name,
            arguments: arguments.collect(),
            used: RefCell::default(),
        }
    }

    pub fn number(&self, key: &str) -> Option<u64> {
        let (key, value) = self.arguments.get_key_value(key)?;
        self.used.borrow_mut().insert(key);
        Some(value.parse().unwrap_or_else(|_| panic!("{key}={value}")))
    }

    pub fn get(&self, key: &str) -> u64 {
        let given = self.number(key);
        given.unwrap_or_else(|| panic!("{} needs {key}=", self.name))
    }

    /// A mistyped argument must not be taken for none.
    pub fn check_all_used(&self) {
        for key in self.arguments.keys() {
            assert!(self.used.borrow().contains(key), "{}: {key}?", self.name);
        }
    }
}
