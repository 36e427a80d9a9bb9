//! Files of samples: recordings and images, read as data sets are.

use std::path::Path;
use std::sync::Once;
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
    end_on_own_panics();
    let folder = folder.path();
    let written = match kind % 3 {
        0 => std::fs::write(folder.join("a_1.wav"), bytes).map(|()| None),
        1 => idx(folder, bytes).map(|()| Some("train")),
        _ => image(folder, bytes).map(|()| None),
    };
    if let Ok(part) = written {
        read(folder, part);
    }
}

/// A panic of a decoder that the project depends on is caught by what calls it; any other ends the
/// run.
fn end_on_own_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let end = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location();
            if !place.is_some_and(|place| place.file().contains("/registry/src/")) {
                end(panic);
            }
        }));
    });
}

/// An image of a class.
fn image(folder: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir(folder.join("class"))?;
    std::fs::write(folder.join("class/image.png"), bytes)
}

/// IDX files: the bytes are those of the images, and of the labels after the length of the images.
fn idx(folder: &Path, bytes: &[u8]) -> std::io::Result<()> {
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
    let _ = dataset.split(0.5, 1);
    let kind = dataset.kind();
    let Ok(mut loader) = Loader::new(dataset, 3, 1) else {
        return;
    };
    const SIZE: &[(&str, &str)] = &[("height", "8"), ("width", "7")];
    let transforms: &[(&str, &[(&str, &str)])] = match kind {
        Kind::Audio => &[("fit", &[("samples", "32")])],
        Kind::Image => &[
            ("resize", SIZE),
            ("random-crop", &[("height", "4"), ("width", "4")]),
        ],
    };
    for (name, options) in transforms {
        let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let options: Vec<_> = options.iter().map(text).collect();
        if let Ok(transform) = Transform::parse(kind, name, &options) {
            let _ = loader.push(transform);
        }
    }
    if loader.start(0).is_ok() {
        while let Some(Ok(_)) = loader.next(&AtomicBool::new(false)) {}
    }
}

/// Recordings of several formats, a pair of IDX files, and the images that the tests read.
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
    let mut seeds = vec![
        wav(1, 1, 16),
        wav(1, 2, 8),
        wav(1, 1, 24),
        wav(1, 2, 32),
        wav(3, 1, 32),
        idx,
    ];
    let files = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/images/files");
    let mut paths: Vec<_> = std::fs::read_dir(files)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    for file in paths.iter().filter_map(|path| std::fs::read(path).ok()) {
        seeds.push([vec![2], file].concat());
    }
    seeds
}
