//! Windows of images: crops, padding and mirrors.

use crate::image::Pixels;
use crate::random::Random;

/// The `height` × `width` window whose upper left corner is at row `top` and column `left`, which
/// may lie outside; zeros where there is no image.
pub(super) fn window(
    pixels: &Pixels,
    [top, left]: [isize; 2],
    [height, width]: [usize; 2],
) -> Pixels {
    let channels = pixels.channels;
    let mut data = vec![0; height * width * channels];
    // The columns of the window that lie inside the image.
    let first = left.min(0).unsigned_abs().min(width);
    let from = left.max(0).unsigned_abs().min(pixels.width);
    let count = (width - first).min(pixels.width - from);
    for (row, line) in data.chunks_exact_mut((width * channels).max(1)).enumerate() {
        let Some(row) = top
            .checked_add_unsigned(row)
            .and_then(|row| usize::try_from(row).ok())
            .filter(|&row| row < pixels.height)
        else {
            continue;
        };
        let start = (row * pixels.width + from) * channels;
        line[first * channels..(first + count) * channels]
            .copy_from_slice(&pixels.data[start..start + count * channels]);
    }
    Pixels {
        width,
        height,
        channels,
        data,
    }
}

/// torchvision's `center_crop`: zeros around an image that is smaller.
pub(super) fn centre(pixels: &Pixels, size: [usize; 2]) -> Pixels {
    let corner = |image: usize, crop: usize| {
        if image < crop {
            -(((crop - image) / 2) as isize)
        } else {
            ((image - crop) as f64 / 2.0).round_ties_even() as isize
        }
    };
    let corner = [
        corner(pixels.height, size[0]),
        corner(pixels.width, size[1]),
    ];
    window(pixels, corner, size)
}

/// torchvision's `RandomCrop` with `pad_if_needed`: a window anywhere in the image with `padding`
/// zeros on each side, or, where that is smaller, anywhere around it.
pub(super) fn random(
    pixels: &Pixels,
    size: [usize; 2],
    padding: usize,
    random: &mut Random,
) -> Pixels {
    let mut corner = |image: usize, crop: usize| {
        let padded = image + 2 * padding;
        let gap = random.below(padded.abs_diff(crop) + 1) as isize;
        let gap = if padded < crop { -gap } else { gap };
        gap - padding as isize
    };
    let corner = [
        corner(pixels.height, size[0]),
        corner(pixels.width, size[1]),
    ];
    window(pixels, corner, size)
}

/// The window of torchvision's `RandomResizedCrop`: of `scale` of the image's area, of a width of
/// `ratio` of its height, at random; after ten that do not fit, the largest in the middle.
pub(super) fn random_area(
    pixels: &Pixels,
    scale: [f32; 2],
    ratio: [f32; 2],
    random: &mut Random,
) -> Pixels {
    let (height, width) = (pixels.height, pixels.width);
    let [narrow, wide] = ratio.map(f64::from);
    for _ in 0..10 {
        let area = (height * width) as f64 * random.between(scale.map(f64::from));
        let ratio = random.between([narrow.ln(), wide.ln()]).exp();
        let size = [area / ratio, area * ratio].map(|area| area.sqrt().round_ties_even() as usize);
        if (1..=height).contains(&size[0]) && (1..=width).contains(&size[1]) {
            let top = random.below(height - size[0] + 1) as isize;
            let left = random.below(width - size[1] + 1) as isize;
            return window(pixels, [top, left], size);
        }
    }
    let whole = width as f64 / height as f64;
    let size = if whole < narrow {
        [(width as f64 / narrow).round_ties_even() as usize, width]
    } else if whole > wide {
        [height, (height as f64 * wide).round_ties_even() as usize]
    } else {
        [height, width]
    };
    let size = [size[0].clamp(1, height), size[1].clamp(1, width)];
    let corner = [(height - size[0]) / 2, (width - size[1]) / 2].map(|gap| gap as isize);
    window(pixels, corner, size)
}

/// Left becomes right.
pub(super) fn mirror(pixels: &mut Pixels) {
    let channels = pixels.channels;
    let row = pixels.width * channels;
    for row in pixels.data.chunks_exact_mut(row.max(1)) {
        row.reverse();
        // The channels of each pixel are now reversed too.
        row.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
    }
}

/// Up becomes down.
pub(super) fn turn_over(pixels: &mut Pixels) {
    let row = pixels.width * pixels.channels;
    let (upper, lower) = pixels.data.split_at_mut(pixels.height / 2 * row);
    let lower = lower.rchunks_exact_mut(row.max(1));
    for (above, below) in upper.chunks_exact_mut(row.max(1)).zip(lower) {
        above.swap_with_slice(below);
    }
}
