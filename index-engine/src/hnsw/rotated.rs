//! What codes and sketches see of a stored vector.
//!
//! Vectors of f32 are stored rotated. Those of f16 are stored as they came, for rounded
//! once more their distances would be others; they are rotated whenever they are encoded.

use std::borrow::Cow;

use super::{Hnsw, rotation};
use crate::distance::Lane;
use crate::params::Element;

impl Hnsw {
    /// As rotated floats; for cosine of length one.
    pub(crate) fn rotated<'a>(&self, vector: &'a [Lane]) -> Cow<'a, [Lane]> {
        match rotation(self.coding.as_ref(), self.compact.as_ref()) {
            Some(rotation) if self.scorer.element() == Element::F16 => {
                let floats = self.scorer.floats(vector);
                let rotated = rotation.apply(&floats[..self.dimensions]);
                Cow::Owned(Lane::pack(&rotated).into_vec())
            }
            _ => Cow::Borrowed(vector),
        }
    }
}
