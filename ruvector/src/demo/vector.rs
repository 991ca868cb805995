//! The type `vector` in its binary format: two 16-bit numbers, dimensions and
//! zero, then the elements, all in network order.

use std::error::Error;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

#[derive(Debug)]
pub struct Vector<'a>(pub &'a [f32]);

/// Appends the binary format.
pub fn encode(elements: &[f32], out: &mut Vec<u8>) -> Result<(), std::num::TryFromIntError> {
    out.extend_from_slice(&u16::try_from(elements.len())?.to_be_bytes());
    out.extend_from_slice(&0u16.to_be_bytes());
    for element in elements {
        out.extend_from_slice(&element.to_be_bytes());
    }
    Ok(())
}

impl ToSql for Vector<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let mut bytes = Vec::with_capacity(4 + 4 * self.0.len());
        encode(self.0, &mut bytes)?;
        out.extend_from_slice(&bytes);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        ty.name() == "vector"
    }

    to_sql_checked!();
}
