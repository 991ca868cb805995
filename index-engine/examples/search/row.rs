//! A row of a data set, as it is searched.

use index_engine::{Element, Half, Vector};

/// A vector in the element that is searched.
#[derive(Clone)]
pub enum Row {
    F32(Vec<f32>),
    F16(Vec<Half>),
}

impl Row {
    /// Rounded to halves where these are searched.
    pub fn of(values: Vec<f32>, element: Element) -> Self {
        match element {
            Element::F16 => Self::F16(values.into_iter().map(Half::from_f32).collect()),
            _ => Self::F32(values),
        }
    }

    pub fn squared_distance(&self, other: &Self) -> f32 {
        let square = |(x, y): (f32, f32)| (x - y) * (x - y);
        match (self, other) {
            (Self::F32(a), Self::F32(b)) => {
                let pairs = a.iter().copied().zip(b.iter().copied());
                pairs.map(square).sum()
            }
            (Self::F16(a), Self::F16(b)) => {
                let floats = |halves: &[Half]| -> Vec<f32> {
                    halves.iter().map(|half| half.to_f32()).collect()
                };
                floats(a).into_iter().zip(floats(b)).map(square).sum()
            }
            _ => f32::INFINITY,
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(&**values),
            Self::F16(values) => size_of_val(&**values),
        }
    }
}

impl<'a> From<&'a Row> for Vector<'a> {
    fn from(row: &'a Row) -> Self {
        match row {
            Row::F32(values) => values.into(),
            Row::F16(values) => values.into(),
        }
    }
}
