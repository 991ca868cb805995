//! What an example is told: a data set, and `name=value` behind it.

pub struct Arguments(Vec<String>);

impl Arguments {
    pub fn given() -> Self {
        Self(std::env::args().skip(1).collect())
    }

    pub fn first(&self) -> Option<&str> {
        self.0.first().map(String::as_str)
    }

    pub fn value(&self, name: &str, default: &str) -> String {
        let mut values = self.0.iter();
        let given = values.find_map(|a| a.strip_prefix(name)?.strip_prefix('='));
        given.unwrap_or(default).to_owned()
    }
}
