//! Types and values of attributes.
//!
//! A value is stored as a *key*: an unsigned integer that compares as PostgreSQL
//! compares the values. Byte strings are numbered by a dictionary; their keys are
//! equal where they are, and have no order.

/// What a column holds, beside NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// Integers of up to 64 bits; dates and timestamps as the integers they are.
    Int,
    /// `real` and `double precision`: NaN equals itself and is the greatest, and minus
    /// zero equals zero.
    Float,
    Bool,
    /// Byte strings that are equal where the values are, ordered as the values are if
    /// ranges are asked for.
    Bytes,
}

/// By the name of its type in SQL.
impl std::fmt::Display for ColumnType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Int => "bigint",
            Self::Float => "double precision",
            Self::Bool => "boolean",
            Self::Bytes => "bytea",
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Int(i64),
    Float(f64),
    Bool(bool),
    Bytes(Box<[u8]>),
}

impl Value {
    /// `None` of NULL, which every column may hold.
    pub fn column_type(&self) -> Option<ColumnType> {
        match self {
            Self::Null => None,
            Self::Int(_) => Some(ColumnType::Int),
            Self::Float(_) => Some(ColumnType::Float),
            Self::Bool(_) => Some(ColumnType::Bool),
            Self::Bytes(_) => Some(ColumnType::Bytes),
        }
    }
}

const SIGN: u64 = 1 << 63;

pub(super) fn key_of_int(value: i64) -> u64 {
    value as u64 ^ SIGN
}

pub(super) fn int_of_key(key: u64) -> i64 {
    (key ^ SIGN) as i64
}

pub(super) fn key_of_float(value: f64) -> u64 {
    if value.is_nan() {
        return u64::MAX;
    }
    // Minus zero becomes zero. Floats order like sign-magnitude integers.
    let bits = (value + 0.0).to_bits();
    if bits & SIGN != 0 { !bits } else { bits | SIGN }
}

pub(super) fn float_of_key(key: u64) -> f64 {
    if key == u64::MAX {
        return f64::NAN;
    }
    f64::from_bits(if key & SIGN != 0 { key & !SIGN } else { !key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_as_postgres_orders_values() {
        let ints = [i64::MIN, -2, -1, 0, 1, (1 << 53) + 1, i64::MAX];
        assert!(ints.is_sorted_by(|a, b| key_of_int(*a) < key_of_int(*b)));
        assert!(ints.iter().all(|x| int_of_key(key_of_int(*x)) == *x));
        let floats = [
            f64::NEG_INFINITY,
            f64::MIN,
            -1.0,
            -f64::MIN_POSITIVE,
            0.0,
            5e-324,
            1.0,
            f64::MAX,
            f64::INFINITY,
            f64::NAN,
        ];
        assert!(floats.is_sorted_by(|a, b| key_of_float(*a) < key_of_float(*b)));
        for x in floats {
            let back = float_of_key(key_of_float(x));
            assert!(back == x || (back.is_nan() && x.is_nan()));
        }
        assert_eq!(key_of_float(-0.0), key_of_float(0.0));
        assert_eq!(key_of_float(-f64::NAN), key_of_float(f64::NAN));
    }
}
