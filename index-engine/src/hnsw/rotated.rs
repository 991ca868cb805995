//! What codes and sketches see of a stored vector.
//!
//! Vectors of f32 are stored rotated. Those of f16 are stored as they came, for rounded
//! once more their distances would be others; they are rotated whenever they are encoded.

use std::borrow::Cow;

use super::{Coding, Hnsw, rotation};
use crate::codes::{Lookup, ORIGIN_ASKED_MAX};
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

    /// A query as codes see it.
    pub(crate) fn lookup(&self, coding: &Coding, target: &[Lane]) -> Lookup {
        Lookup::from(coding.origin.point(), &self.rotated(target))
    }

    /// Is there something to settle before the first vector is linked?
    pub(crate) fn wants_origin(&self) -> bool {
        let coding = self.coding.as_ref();
        coding.is_some_and(|coding| !coding.origin.is_settled())
    }

    /// The caller is the writer: published vectors stay as they are meanwhile.
    pub(crate) fn settle_origin(&self) {
        if let Some(coding) = &self.coding {
            coding.origin.settle(|| {
                // Spread over what there is: the first may be of another time.
                let len = self.vectors.len();
                let asked = len.min(ORIGIN_ASKED_MAX);
                let nth = |i| (u64::from(i) * u64::from(len) / u64::from(asked)) as u32;
                let rotated = |id| self.rotated(self.vectors.get(id)).into();
                (0..asked).map(nth).map(rotated).collect()
            });
        }
    }

    /// Writes the sketch of a vector that is about to be linked, which nobody can reach
    /// yet. Returns the origin, and the vector as codes see it.
    pub(super) fn sketch<'a>(
        &'a self,
        coding: &'a Coding,
        id: u32,
    ) -> (&'a [Lane], Cow<'a, [Lane]>) {
        assert!(coding.origin.is_settled(), "vector {id} is linked before");
        let origin = coding.origin.point();
        let rotated = self.rotated(self.vectors.get(id));
        coding
            .sketches
            .write(id, Lane::view(&rotated), Lane::view(origin));
        (origin, rotated)
    }
}
