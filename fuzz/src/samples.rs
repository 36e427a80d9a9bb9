//! Files of samples: recordings and images, read as data sets are.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use data::{Dataset, Kind, Loader, Transform};

/// The first byte tells the kind of file, the rest is the file.
pub fn run(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    let folder = folder.path();
    let written = match kind % 2 {
        0 => std::fs::write(folder.join("a_1.wav"), bytes).map(|()| None),
        _ => images(folder, bytes).map(|()| Some("train")),
    };
    if let Ok(part) = written {
        read(folder, part);
    }
}

/// IDX files: the bytes are those of the images, and of the labels after the length of the images.
fn images(folder: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let cut = bytes
        .first()
        .map_or(0, |&cut| usize::from(cut).min(bytes.len() - 1) + 1);
    let (images, labels) = bytes
        .get(1..)
        .unwrap_or_default()
        .split_at(cut.saturating_sub(1));
    std::fs::write(folder.join("train-images-idx3-ubyte"), images)?;
    std::fs::write(folder.join("train-labels-idx1-ubyte"), labels)
}

fn read(folder: &Path, part: Option<&str>) {
    let Ok(dataset) = Dataset::open(folder, part) else {
        return;
    };
    let options = [("samples".to_owned(), "32".to_owned())];
    let fit = Transform::parse(Kind::Audio, "fit", &options);
    let audio = dataset.kind() == Kind::Audio;
    let _ = dataset.split(0.5, 1);
    let Ok(mut loader) = Loader::new(dataset, 3, 1) else {
        return;
    };
    if let (true, Ok(fit)) = (audio, fit) {
        let _ = loader.push(fit);
    }
    if loader.start(0).is_ok() {
        while let Some(Ok(_)) = loader.next(&AtomicBool::new(false)) {}
    }
}

/// Recordings of several formats, and a pair of IDX files.
pub fn seeds() -> Vec<Vec<u8>> {
    let wav = |format: u16, channels: u16, bits: u16| {
        let data = crate::bytes::random(u64::from(bits), 64);
        let block = channels * bits.div_ceil(8);
        let mut file = b"\0RIFF".to_vec();
        file.extend((36 + data.len() as u32).to_le_bytes());
        file.extend(b"WAVEfmt ");
        file.extend(16u32.to_le_bytes());
        file.extend(format.to_le_bytes());
        file.extend(channels.to_le_bytes());
        file.extend(8000u32.to_le_bytes());
        file.extend((8000 * u32::from(block)).to_le_bytes());
        file.extend(block.to_le_bytes());
        file.extend(bits.to_le_bytes());
        file.extend(b"data");
        file.extend((data.len() as u32).to_le_bytes());
        file.extend(data);
        file
    };
    let mut images = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3];
    images.extend(0..12);
    let mut idx = vec![1, images.len() as u8];
    idx.extend(images);
    idx.extend([0, 0, 8, 1, 0, 0, 0, 2, 1, 0]);
    vec![
        wav(1, 1, 16),
        wav(1, 2, 8),
        wav(1, 1, 24),
        wav(1, 2, 32),
        wav(3, 1, 32),
        idx,
    ]
}
