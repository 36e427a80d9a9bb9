//! Recordings in WAV files: integer samples of 8 to 32 bits or 32-bit floats.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};

use hound::{SampleFormat, WavReader};

use crate::error::Error;

/// Samples of one recording, over all its channels: over 3 hours at 16 kHz.
const MAXIMUM_SAMPLES: u64 = 1 << 28;

/// A recording on disk.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) path: PathBuf,
    /// Samples of one channel.
    pub(crate) samples: usize,
    /// The position of its class among the class names.
    pub(crate) label: Option<usize>,
}

/// Reads a recording's header, and checks that the file holds what it announces. Gives the
/// samples of one channel and the sample rate in Hz. Errors: `data.sample`.
pub(crate) fn inspect(path: &Path) -> Result<(usize, u32), Error> {
    let reader = open(path)?;
    let spec = reader.spec();
    let total = u64::from(reader.len());
    let samples = reader.duration() as usize;
    let file_bytes = std::fs::metadata(path)
        .map_err(|error| Error::sample(path, error))?
        .len();
    let announced = total.saturating_mul(u64::from(spec.bits_per_sample).div_ceil(8));
    let start = reader
        .into_inner()
        .stream_position()
        .map_err(|error| Error::sample(path, error))?;
    let held = file_bytes.saturating_sub(start);
    if held < announced {
        let reason =
            format!("truncated: it holds {held} of the {announced} bytes of sound it announces");
        return Err(Error::sample(path, reason));
    }
    if samples == 0 {
        return Err(Error::sample(path, "there is no sound in it"));
    }
    if total > MAXIMUM_SAMPLES {
        let reason = format!("{total} samples are more than {MAXIMUM_SAMPLES}");
        return Err(Error::sample(path, reason));
    }
    Ok((samples, spec.sample_rate))
}

/// The samples of a recording, in −1 to 1, its channels averaged. Errors: `data.sample`.
pub(crate) fn read(path: &Path) -> Result<Vec<f32>, Error> {
    let mut reader = open(path)?;
    let spec = reader.spec();
    let values: Result<Vec<f32>, hound::Error> = match spec.sample_format {
        SampleFormat::Float => reader.samples::<f32>().collect(),
        SampleFormat::Int => {
            let scale = (1i64 << (spec.bits_per_sample - 1)) as f32;
            let samples = reader.samples::<i32>();
            samples.map(|sample| Ok(sample? as f32 / scale)).collect()
        }
    };
    let values = values.map_err(|error| Error::sample(path, error))?;
    let channels = usize::from(spec.channels);
    if channels == 1 {
        return Ok(values);
    }
    let frames = values.chunks_exact(channels);
    Ok(frames
        .map(|frame| frame.iter().sum::<f32>() / channels as f32)
        .collect())
}

fn open(path: &Path) -> Result<WavReader<BufReader<File>>, Error> {
    let file = File::open(path).map_err(|error| Error::sample(path, error))?;
    let reader = WavReader::new(BufReader::new(file)).map_err(|error| {
        Error::sample(path, format!("not a WAV file that can be read: {error}"))
    })?;
    let spec = reader.spec();
    let readable = match spec.sample_format {
        SampleFormat::Float => spec.bits_per_sample == 32,
        SampleFormat::Int => (8..=32).contains(&spec.bits_per_sample),
    };
    if !readable || spec.channels == 0 || spec.sample_rate == 0 {
        let reason = format!(
            "{} channels of {}-bit samples at {} Hz are not supported",
            spec.channels, spec.bits_per_sample, spec.sample_rate
        );
        return Err(Error::sample(path, reason));
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use hound::WavSpec;
    use proptest::prelude::*;

    use super::*;

    fn spec(channels: u16) -> WavSpec {
        WavSpec {
            channels,
            sample_rate: 8000,
            bits_per_sample: 16,
            sample_format: SampleFormat::Int,
        }
    }

    fn write(path: &Path, channels: u16, samples: &[i16]) {
        let mut writer = hound::WavWriter::create(path, spec(channels)).unwrap();
        for &sample in samples {
            writer.write_sample(sample).unwrap();
        }
        writer.finalize().unwrap();
    }

    #[test]
    fn samples_are_scaled_and_channels_averaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        write(&path, 2, &[16384, 0, -32768, -32768]);
        assert_eq!(inspect(&path).unwrap(), (2, 8000));
        assert_eq!(read(&path).unwrap(), [0.25, -1.0]);
    }

    #[test]
    fn a_truncated_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.wav");
        write(&path, 1, &[1; 100]);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 50]).unwrap();
        let error = inspect(&path).unwrap_err();
        assert_eq!(error.code(), "data.sample");
        let message = error.to_string();
        assert!(
            message.contains("cut.wav") && message.contains("150 of the 200"),
            "{message}"
        );
    }

    #[test]
    fn a_file_without_sound_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("silent.wav");
        write(&path, 1, &[]);
        assert!(inspect(&path).unwrap_err().to_string().contains("no sound"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(cut in 0usize..300, at in 0usize..300, value: u8) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.wav");
            write(&path, 2, &[7; 100]);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(cut);
            std::fs::write(&path, &bytes).unwrap();
            if inspect(&path).is_ok() {
                let _ = read(&path);
            }
        }
    }
}
