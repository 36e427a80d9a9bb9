//! Images and labels in IDX files, plain or gzipped (LeCun, Cortes and Burges, "The MNIST
//! database"): a magic number of two zero bytes, an element type and a rank, then the sizes as
//! big-endian 32-bit integers, then the elements.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::Error;
use crate::image::Pixels;

/// Bytes that one file may hold when decompressed.
const MAXIMUM_BYTES: u64 = 4 << 30;

/// Grey images with their labels, in memory.
#[derive(Debug)]
pub(crate) struct Images {
    /// Of the file of images.
    pub(crate) path: PathBuf,
    /// Height and width in pixels.
    pub(crate) size: [usize; 2],
    /// One byte for each pixel, image after image.
    pub(crate) pixels: Vec<u8>,
    /// The label of each image.
    pub(crate) labels: Vec<u8>,
}

impl Images {
    /// Reads a pair of files. Errors: `data.format`.
    pub(crate) fn open(images: &Path, labels: &Path) -> Result<Self, Error> {
        let (sizes, pixels) = read(images, 3)?;
        let &[count, height, width] = &*sizes else {
            return Err(Error::format(images, "images have three dimensions"));
        };
        if count == 0 || height == 0 || width == 0 {
            return Err(Error::format(images, "there are no images in it"));
        }
        let labels_path = labels;
        let labels = read_labels(labels)?;
        if labels.len() != count {
            let reason = format!("{} labels for {count} images", labels.len());
            return Err(Error::format(labels_path, reason));
        }
        Ok(Self {
            path: images.to_owned(),
            size: [height, width],
            pixels,
            labels,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// An image.
    pub(crate) fn read(&self, index: usize) -> Pixels {
        let [height, width] = self.size;
        let image = self.pixels.chunks_exact(height * width).nth(index);
        Pixels {
            width,
            height,
            channels: 1,
            data: image.unwrap_or_default().to_vec(),
        }
    }
}

/// The labels in a file. Errors: `data.format`.
pub(crate) fn read_labels(path: &Path) -> Result<Vec<u8>, Error> {
    Ok(read(path, 1)?.1)
}

/// The sizes and the bytes of a file of unsigned bytes with `rank` dimensions.
fn read(path: &Path, rank: usize) -> Result<(Vec<usize>, Vec<u8>), Error> {
    let file = File::open(path).map_err(|error| Error::format(path, error))?;
    let file = BufReader::new(file);
    let parsed = if path.extension().is_some_and(|extension| extension == "gz") {
        parse(&mut MultiGzDecoder::new(file), rank)
    } else {
        parse(&mut { file }, rank)
    };
    parsed.map_err(|reason| Error::format(path, reason))
}

fn parse(reader: &mut impl Read, rank: usize) -> Result<(Vec<usize>, Vec<u8>), String> {
    let mut header = vec![0; 4 + 4 * rank];
    reader
        .read_exact(&mut header)
        .map_err(|error| format!("the header of an IDX file cannot be read: {error}"))?;
    if header[..4] != [0, 0, 8, rank as u8] {
        return Err(format!(
            "not an IDX file of unsigned bytes with {rank} dimensions: it begins with {:02x?}",
            &header[..4]
        ));
    }
    let sizes: Vec<usize> = header[4..]
        .chunks_exact(4)
        .map(|size| {
            size.iter()
                .fold(0, |value, &byte| value << 8 | usize::from(byte))
        })
        .collect();
    let length = sizes
        .iter()
        .try_fold(1u64, |product, &size| product.checked_mul(size as u64))
        .filter(|&length| length <= MAXIMUM_BYTES)
        .ok_or_else(|| format!("sizes {sizes:?} are more than {MAXIMUM_BYTES} bytes"))?;
    let mut bytes = Vec::new();
    reader
        .take(length + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    match (bytes.len() as u64).cmp(&length) {
        std::cmp::Ordering::Equal => Ok((sizes, bytes)),
        std::cmp::Ordering::Less => Err(format!(
            "truncated: it holds {} of the {length} bytes that its sizes {sizes:?} announce",
            bytes.len()
        )),
        std::cmp::Ordering::Greater => Err(format!(
            "there are bytes after the {length} that its sizes {sizes:?} announce"
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(sizes: &[u32], elements: usize) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, sizes.len() as u8];
        bytes.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
        bytes.extend((0..elements).map(|value| value as u8));
        bytes
    }

    #[test]
    fn a_file_gives_its_sizes_and_bytes() {
        let (sizes, bytes) = parse(&mut &*file(&[2, 3, 1], 6), 3).unwrap();
        assert_eq!((sizes, bytes), (vec![2, 3, 1], vec![0, 1, 2, 3, 4, 5]));
    }

    #[test]
    fn a_file_that_is_not_what_it_announces_is_refused() {
        let refused = |bytes: &[u8]| parse(&mut { bytes }, 3).unwrap_err();
        assert!(refused(&file(&[2, 3, 1], 5)).contains("holds 5 of the 6"));
        assert!(refused(&file(&[2, 3, 1], 7)).contains("bytes after"));
        assert!(refused(&file(&[2, 3], 6)).contains("3 dimensions"));
        assert!(refused(&file(&[u32::MAX, u32::MAX, u32::MAX], 0)).contains("more than"));
        assert!(refused(&[0, 0]).contains("header"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), rank in 1usize..4) {
            let _ = parse(&mut &*bytes, rank);
        }
    }
}
