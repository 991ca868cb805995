//! Reads the data set: IDX files, compressed, as Debian's package has them.
//! Pixels become elements from 0 to 255.

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;
use std::fs::File;
use std::io::Read;
use std::path::Path;

pub const DIMENSIONS: usize = 784;
const IMAGES_MAGIC: u32 = 0x0803;
const LABELS_MAGIC: u32 = 0x0801;
/// More than any IDX file of this family holds; a length beyond is damage.
const ITEMS_MAX: u32 = 1_000_000;

pub struct Images {
    pixels: Vec<f32>,
}

impl Images {
    pub fn len(&self) -> usize {
        self.pixels.len() / DIMENSIONS
    }

    pub fn get(&self, i: usize) -> &[f32] {
        &self.pixels[i * DIMENSIONS..(i + 1) * DIMENSIONS]
    }

    /// `count` of them, evenly spread.
    pub fn sample(&self, count: usize) -> impl Iterator<Item = &[f32]> {
        let count = count.min(self.len());
        (0..count).map(move |i| self.get(i * self.len() / count))
    }
}

pub struct TrainingSet {
    pub images: Images,
    pub labels: Vec<u8>,
}

pub fn training_set(folder: &Path) -> anyhow::Result<TrainingSet> {
    let images = images(&folder.join("train-images-idx3-ubyte.gz"))?;
    let (header, labels) = read(&folder.join("train-labels-idx1-ubyte.gz"), 8)?;
    ensure!(
        word(&header, 0) == LABELS_MAGIC,
        "the labels are no IDX file of labels"
    );
    ensure!(
        labels.len() == images.len(),
        "{} images have {} labels",
        images.len(),
        labels.len()
    );
    Ok(TrainingSet { images, labels })
}

pub fn test_images(folder: &Path) -> anyhow::Result<Images> {
    images(&folder.join("t10k-images-idx3-ubyte.gz"))
}

fn images(path: &Path) -> anyhow::Result<Images> {
    let (header, pixels) = read(path, 16)?;
    let [magic, count, height, width] = [0, 1, 2, 3].map(|i| word(&header, i));
    ensure!(
        magic == IMAGES_MAGIC && height == 28 && width == 28,
        "{} holds no 28×28 images",
        path.display()
    );
    ensure!(
        count > 0 && count <= ITEMS_MAX,
        "{} claims {count} images",
        path.display()
    );
    ensure!(
        pixels.len() == count as usize * DIMENSIONS,
        "{} is cut short",
        path.display()
    );
    Ok(Images {
        pixels: pixels.into_iter().map(f32::from).collect(),
    })
}

fn word(header: &[u8], i: usize) -> u32 {
    u32::from_be_bytes([
        header[4 * i],
        header[4 * i + 1],
        header[4 * i + 2],
        header[4 * i + 3],
    ])
}

fn read(path: &Path, header_bytes: usize) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "{} is not there: install Debian's package dataset-fashion-mnist, or name the folder by --data",
            path.display()
        ),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let bytes_max = u64::from(ITEMS_MAX) * DIMENSIONS as u64;
    let mut header = Vec::new();
    GzDecoder::new(file)
        .take(bytes_max)
        .read_to_end(&mut header)
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        header.len() > header_bytes,
        "{} is cut short",
        path.display()
    );
    let body = header.split_off(header_bytes);
    Ok((header, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn idx(magic: u32, count: u32, body: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut gz = GzEncoder::new(file.reopen().expect("reopens"), Compression::fast());
        for word in [magic, count, 28, 28] {
            gz.write_all(&word.to_be_bytes()).expect("writes");
        }
        gz.write_all(body).expect("writes");
        gz.finish().expect("writes");
        file
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        let whole = idx(IMAGES_MAGIC, 2, &[7; 2 * DIMENSIONS]);
        let read = images(whole.path()).expect("two images");
        assert_eq!((read.len(), read.get(1)[0]), (2, 7.0));
        assert!(
            images(idx(IMAGES_MAGIC, 3, &[7; 2 * DIMENSIONS]).path()).is_err(),
            "cut short"
        );
        assert!(
            images(idx(LABELS_MAGIC, 2, &[7; 2 * DIMENSIONS]).path()).is_err(),
            "labels"
        );
        assert!(
            images(idx(IMAGES_MAGIC, u32::MAX, &[7; 9]).path()).is_err(),
            "absurd count"
        );
        assert!(images(Path::new("/nonexistent")).is_err());
    }
}
