//! What a caller may ask of a row's attributes, with the meaning that SQL gives it.

use super::value::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A condition on the columns of an index, which are named by position. A row is found
/// where the condition is true: a comparison with NULL is neither true nor false, and so
/// is its negation.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    Compare {
        column: usize,
        is: Comparison,
        value: Value,
    },
    /// `column IN (values)`
    In {
        column: usize,
        values: Vec<Value>,
    },
    IsNull {
        column: usize,
    },
    /// `AND`; true of no conditions.
    All(Vec<Filter>),
    /// `OR`; false of no conditions.
    Any(Vec<Filter>),
    Not(Box<Filter>),
}

impl Filter {
    pub fn compare(column: usize, is: Comparison, value: Value) -> Self {
        Self::Compare { column, is, value }
    }

    pub fn equal(column: usize, value: Value) -> Self {
        Self::compare(column, Comparison::Equal, value)
    }

    /// `column BETWEEN least AND most`
    pub fn between(column: usize, least: Value, most: Value) -> Self {
        Self::All(vec![
            Self::compare(column, Comparison::GreaterOrEqual, least),
            Self::compare(column, Comparison::LessOrEqual, most),
        ])
    }

    pub fn is_not_null(column: usize) -> Self {
        Self::Not(Box::new(Self::IsNull { column }))
    }
}
