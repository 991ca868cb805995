//! Two-dimensional arrays in numpy's `.npy` files: as much of the format as the data
//! sets use (versions 1 to 3, little-endian `f4`, `i4`, `i8`, C order).

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Rows of equal length in one piece of memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix<T> {
    columns: usize,
    values: Vec<T>,
}

impl<T: Copy> Matrix<T> {
    pub fn len(&self) -> usize {
        self.values.len() / self.columns
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn row(&self, row: usize) -> &[T] {
        &self.values[row * self.columns..][..self.columns]
    }

    pub fn rows(&self) -> impl Iterator<Item = &[T]> {
        self.values.chunks_exact(self.columns)
    }

    pub fn push(&mut self, row: &[T]) {
        assert_eq!(row.len(), self.columns, "a row of another length");
        self.values.extend_from_slice(row);
    }

    /// No rows yet, and room for so many.
    pub fn empty(columns: usize, rows: usize) -> Self {
        assert!(columns > 0, "rows of nothing");
        Self {
            columns,
            values: Vec::with_capacity(columns * rows),
        }
    }
}

struct Header {
    element: String,
    rows: usize,
    columns: usize,
}

/// The first `rows_max` rows of an array of `f4`.
pub fn floats(path: &Path, rows_max: usize) -> Result<Matrix<f32>> {
    read(path, rows_max, |element, bytes, values| {
        ensure!(element == "<f4", "elements are {element}, not <f4");
        let (parts, _) = bytes.as_chunks::<4>();
        values.extend(parts.iter().map(|b| f32::from_le_bytes(*b)));
        Ok(())
    })
}

/// The first `rows_max` rows of an array of `i4` or `i8` that are numbers of rows.
pub fn ids(path: &Path, rows_max: usize) -> Result<Matrix<u32>> {
    read(path, rows_max, |element, bytes, values| {
        match element {
            "<i4" => {
                let (parts, _) = bytes.as_chunks::<4>();
                values.extend(parts.iter().map(|b| u32::from_le_bytes(*b)));
            }
            "<i8" => {
                let (parts, _) = bytes.as_chunks::<8>();
                for part in parts {
                    values.push(i64::from_le_bytes(*part).try_into()?);
                }
            }
            _ => bail!("elements are {element}, neither <i4 nor <i8"),
        }
        Ok(())
    })
}

/// `decode` appends a row's elements; it knows its type by numpy's name.
fn read<T>(
    path: &Path,
    rows_max: usize,
    decode: impl Fn(&str, &[u8], &mut Vec<T>) -> Result<()>,
) -> Result<Matrix<T>> {
    let context = || path.display().to_string();
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).with_context(context)?);
    let header = header(&mut file).with_context(context)?;
    let width: usize = header.element[2..].parse().with_context(context)?;
    let rows = header.rows.min(rows_max);
    let bytes = file.get_ref().metadata()?.len();
    let wanted = rows
        .checked_mul(header.columns)
        .and_then(|n| n.checked_mul(width));
    ensure!(
        wanted.is_some_and(|wanted| wanted as u64 <= bytes),
        "{}: shorter than its header says",
        path.display()
    );
    let mut values = Vec::with_capacity(rows * header.columns);
    let mut row = vec![0; header.columns * width];
    for _ in 0..rows {
        file.read_exact(&mut row).with_context(context)?;
        decode(&header.element, &row, &mut values).with_context(context)?;
    }
    Ok(Matrix {
        columns: header.columns,
        values,
    })
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (60000, 784), }`
fn header(file: &mut impl Read) -> Result<Header> {
    let mut start = [0; 8];
    file.read_exact(&mut start)?;
    ensure!(start.starts_with(b"\x93NUMPY"), "not an npy file");
    let bytes = if start[6] == 1 {
        let mut bytes = [0; 2];
        file.read_exact(&mut bytes)?;
        u16::from_le_bytes(bytes).into()
    } else {
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes)?;
        u32::from_le_bytes(bytes)
    };
    let mut text = String::new();
    file.take(bytes.into()).read_to_string(&mut text)?;
    let after = |name: &str| {
        let value = text.split_once(&format!("'{name}':")).map(|(_, rest)| rest);
        value.map(str::trim_start).context("an incomplete header")
    };
    ensure!(after("fortran_order")?.starts_with("False"), "not C order");
    let element = after("descr")?.strip_prefix('\'');
    let element = element.and_then(|e| e.split('\'').next());
    let element = element.filter(|e| ["<f4", "<i4", "<i8"].contains(e));
    let shape = after("shape")?.strip_prefix('(');
    let shape = shape.and_then(|s| s.split(')').next()).unwrap_or_default();
    let Some((rows, columns)) = shape.split_once(',') else {
        bail!("the shape ({shape}) is not of two dimensions");
    };
    let (rows, columns) = (rows.trim().parse()?, columns.trim().parse()?);
    ensure!(columns > 0, "rows of nothing");
    Ok(Header {
        element: element.context("elements of another type")?.to_owned(),
        rows,
        columns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(descr: &str, shape: &str, body: &[u8]) -> tempfile::NamedTempFile {
        let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(body);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn the_first_rows_come_as_written() {
        let body: Vec<u8> = [1.0f32, -2.0, 3.5, 4.0, 5.0, 6.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let file = file("<f4", "(3, 2)", &body);
        let all = floats(file.path(), usize::MAX).unwrap();
        assert_eq!((all.len(), all.columns()), (3, 2));
        assert_eq!(all.row(1), [3.5, 4.0]);
        let first = floats(file.path(), 1).unwrap();
        assert_eq!(first.rows().collect::<Vec<_>>(), [[1.0, -2.0]]);
    }

    #[test]
    fn ids_of_either_width_are_row_numbers() {
        let narrow: Vec<u8> = [7i32, 9].iter().flat_map(|x| x.to_le_bytes()).collect();
        let wide: Vec<u8> = [7i64, 9].iter().flat_map(|x| x.to_le_bytes()).collect();
        for (descr, body) in [("<i4", narrow), ("<i8", wide)] {
            let file = file(descr, "(1, 2)", &body);
            assert_eq!(ids(file.path(), 10).unwrap().row(0), [7, 9]);
        }
        let file = file("<i8", "(1, 1)", &(-1i64).to_le_bytes());
        assert!(ids(file.path(), 10).is_err());
    }

    #[test]
    fn truncated_and_foreign_files_are_refused() {
        for (descr, shape, bytes) in [
            ("<f4", "(2, 2)", 12),
            ("<f8", "(1, 1)", 8),
            ("<f4", "(4,)", 16),
            ("<f4", "(99999999999, 99999999999)", 16),
        ] {
            let file = file(descr, shape, &vec![0; bytes]);
            assert!(floats(file.path(), usize::MAX).is_err(), "{descr} {shape}");
        }
        let foreign = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(foreign.path(), b"not an array at all").unwrap();
        assert!(floats(foreign.path(), 1).is_err());
    }
}
