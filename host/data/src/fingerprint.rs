//! A data set in 64 bits: whether a training that goes on has the data that it had.

use compute::random::splitmix64;

use crate::dataset::Dataset;

/// A running hash.
struct Hash(u64);

impl Hash {
    fn number(&mut self, number: u64) {
        self.0 = splitmix64(self.0 ^ splitmix64(number));
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        for piece in text.as_bytes().chunks(8) {
            let mut bytes = [0; 8];
            bytes[..piece.len()].copy_from_slice(piece);
            self.number(u64::from_le_bytes(bytes));
        }
    }
}

impl Dataset {
    /// 64 bits of the class names and of every sample's name and label, in order. Contents are not
    /// read.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Hash(0);
        hash.number(self.classes().len() as u64);
        self.classes().iter().for_each(|class| hash.text(class));
        for index in 0..self.len() {
            hash.text(&self.name(index).unwrap_or_default());
            hash.number(self.label(index).map_or(u64::MAX, |label| label as u64));
        }
        hash.0
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn images(folder: &Path, labels: &[u8]) -> Dataset {
        let count = (labels.len() as u32).to_be_bytes();
        let size = 1u32.to_be_bytes();
        let header = [0x803u32.to_be_bytes(), count, size, size].concat();
        let pixels = vec![0; labels.len()];
        let write = |name: &str, bytes: Vec<u8>| std::fs::write(folder.join(name), bytes).unwrap();
        write("train-images-idx3-ubyte", [header, pixels].concat());
        let header = [0x801u32.to_be_bytes(), count].concat();
        write(
            "train-labels-idx1-ubyte",
            [header, labels.to_vec()].concat(),
        );
        Dataset::open(folder, Some("train")).unwrap()
    }

    #[test]
    fn the_same_data_has_the_same_and_other_samples_or_labels_have_another() {
        let folder = tempfile::tempdir().unwrap();
        let of = |labels: &[u8]| images(folder.path(), labels).fingerprint();
        let first = of(&[0, 1, 0, 1]);
        assert_eq!(first, of(&[0, 1, 0, 1]));
        assert_ne!(first, of(&[0, 1, 1, 0]));
        assert_ne!(first, of(&[0, 1, 0, 1, 1]));
        let whole = images(folder.path(), &[0, 1, 0, 1]);
        let (part, rest) = whole.split(0.5, 1).unwrap();
        assert_ne!(part.fingerprint(), rest.fingerprint());
        assert_eq!(
            part.fingerprint(),
            whole.split(0.5, 1).unwrap().0.fingerprint()
        );
    }
}
