//! Images in files: JPEG, PNG, BMP and TIFF, recognised by their first bytes.

use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::error::Error;

/// The ends of names of files that are taken for images.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "bmp", "tif", "tiff"];

/// Bytes of a file.
const MAXIMUM_FILE_BYTES: u64 = 256 << 20;

/// Pixels along a side.
const MAXIMUM_SIDE: usize = 1 << 15;

/// Pixels of an image, decoded or resized: a square of 8192.
pub(crate) const MAXIMUM_PIXELS: usize = 1 << 26;

/// Bytes that a decoder may hold: four channels of 16 bits, and half as much to work with.
const MAXIMUM_DECODER_BYTES: u64 = 12 * MAXIMUM_PIXELS as u64;

/// An image of 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pixels {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub(crate) channels: usize,
    /// `[height, width, channels]`.
    pub(crate) data: Vec<u8>,
}

/// Whether a file is taken for an image, by its name.
pub(crate) fn is_named(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    EXTENSIONS
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

/// The image in a file, upright and in RGB. Errors: `data.sample`.
pub(crate) fn read(path: &Path) -> Result<Pixels, Error> {
    let bytes = bytes(path)?;
    guarded(|| decode(&bytes)).map_err(|reason| Error::sample(path, reason))
}

/// The height and the width that [`read`] gives, by the file's header. Errors: `data.sample`.
pub(crate) fn size(path: &Path) -> Result<[usize; 2], Error> {
    let bytes = bytes(path)?;
    let header = guarded(|| match format(&bytes)? {
        ImageFormat::Jpeg => {
            let mut decoder = jpeg(&bytes)?;
            let size = jpeg_size(&mut decoder)?;
            Ok((size, jpeg_orientation(&decoder)))
        }
        format => {
            let mut decoder = other(&bytes, format)?;
            let orientation = decoder.orientation().map_err(|error| error.to_string())?;
            Ok((decoder.dimensions(), orientation))
        }
    });
    let ((width, height), orientation) = header.map_err(|reason| Error::sample(path, reason))?;
    let (width, height) = (width as usize, height as usize);
    Ok(match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => [width, height],
        _ => [height, width],
    })
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(MAXIMUM_FILE_BYTES + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| Error::sample(path, error))?;
    if bytes.len() as u64 > MAXIMUM_FILE_BYTES {
        let reason = format!("it has more than {MAXIMUM_FILE_BYTES} bytes");
        return Err(Error::sample(path, reason));
    }
    Ok(bytes)
}

/// Runs a decoder. One that panics on a file has found it damaged.
fn guarded<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err("damaged: the decoder failed on it".to_owned()))
}

fn format(bytes: &[u8]) -> Result<ImageFormat, String> {
    let wanted = "JPEG, PNG, BMP and TIFF are read";
    match image::guess_format(bytes) {
        Ok(
            format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Bmp | ImageFormat::Tiff),
        ) => Ok(format),
        Ok(format) => Err(format!("an image of the format {format:?}: {wanted}")),
        Err(_) => Err(format!("not an image of a known format: {wanted}")),
    }
}

fn decode(bytes: &[u8]) -> Result<Pixels, String> {
    let (mut image, orientation) = match format(bytes)? {
        ImageFormat::Jpeg => {
            let mut decoder = jpeg(bytes)?;
            let (width, height) = jpeg_size(&mut decoder)?;
            if !jpeg_ends(bytes) {
                return Err("truncated: the end of the image is missing".to_owned());
            }
            let orientation = jpeg_orientation(&decoder);
            let data = decoder.decode().map_err(|error| error.to_string())?;
            let image = RgbImage::from_raw(width, height, data)
                .ok_or("damaged: it has not the size that it announces")?;
            (DynamicImage::ImageRgb8(image), orientation)
        }
        format => {
            let mut decoder = other(bytes, format)?;
            let orientation = decoder.orientation().map_err(|error| error.to_string())?;
            if matches!(decoder.color_type(), ColorType::Rgb32F | ColorType::Rgba32F) {
                return Err("it holds floating-point samples: integers are read".to_owned());
            }
            let image = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
            (image, orientation)
        }
    };
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    Ok(Pixels {
        width: image.width() as usize,
        height: image.height() as usize,
        channels: 3,
        data: image.into_raw(),
    })
}

/// Refuses sizes that no image here may have.
fn check_size(width: usize, height: usize) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err("there is no pixel in it".to_owned());
    }
    if width > MAXIMUM_SIDE || height > MAXIMUM_SIDE || width * height > MAXIMUM_PIXELS {
        return Err(format!(
            "{width} × {height} pixels: at most {MAXIMUM_SIDE} along a side and {MAXIMUM_PIXELS} \
             in all are read"
        ));
    }
    Ok(())
}

fn other<'a>(bytes: &'a [u8], format: ImageFormat) -> Result<impl ImageDecoder + 'a, String> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAXIMUM_DECODER_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    check_size(width as usize, height as usize)?;
    Ok(decoder)
}

type Jpeg<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

/// A decoder that has read the headers and decodes to RGB. As libjpeg does, it fills in what a
/// damaged stream lacks.
fn jpeg(bytes: &[u8]) -> Result<Jpeg<'_>, String> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(MAXIMUM_SIDE)
        .set_max_height(MAXIMUM_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder
        .decode_headers()
        .map_err(|error| error.to_string())?;
    Ok(decoder)
}

fn jpeg_size(decoder: &mut Jpeg<'_>) -> Result<(u32, u32), String> {
    let (width, height) = decoder
        .dimensions()
        .ok_or("damaged: it does not tell its size")?;
    check_size(width, height)?;
    Ok((width as u32, height as u32))
}

fn jpeg_orientation(decoder: &Jpeg<'_>) -> Orientation {
    decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms)
}

/// Whether the markers of a JPEG lead to the one that ends the image (ITU-T T.81, annex B).
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| byte == 0xff) {
        let (Some(&marker), Some(after)) = (rest.get(at + 1), rest.get(at + 2..)) else {
            return false;
        };
        rest = match marker {
            0xd9 => return true,
            // Fill: the next byte may be the marker.
            0xff => &rest[at + 1..],
            // A stuffed 0xff of the coded data, and markers that stand alone.
            0x00 | 0x01 | 0xd0..=0xd8 => after,
            _ => {
                let length = match after {
                    [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
                    _ => return false,
                };
                after.get(length..).unwrap_or_default()
            }
        };
    }
    false
}
