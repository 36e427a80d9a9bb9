//! Images and their transforms against what Pillow, torchvision and OpenCV make of the same files
//! (`tests/images`, written by `tests/images/figures.py`); and whatever bytes a file holds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use data::{Dataset, Kind, Loader, Transform};
use proptest::prelude::*;

/// The pixels of an image, `[channels, height, width]`, 0 to 255.
#[derive(Debug, PartialEq)]
struct Image {
    shape: Vec<usize>,
    values: Vec<u8>,
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/images")
        .join(name)
}

fn transform(name: &str, options: &[(&str, &str)]) -> Transform {
    let options: Vec<_> = options
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    Transform::parse(Kind::Image, name, &options).unwrap()
}

/// The image in a file after transforms.
fn made(path: &Path, transforms: &[Transform]) -> Result<Image, data::Error> {
    let mut loader = Loader::new(Dataset::open(path, None)?, 1, 1)?;
    for transform in transforms {
        loader.push(transform.clone())?;
    }
    loader.start(0)?;
    let batch = loader.next(&AtomicBool::new(false)).unwrap()?;
    let values = batch.samples.to_f32().unwrap();
    Ok(Image {
        shape: loader.sample_shape()?,
        values: values
            .iter()
            .map(|value| (255.0 * value).round() as u8)
            .collect(),
    })
}

fn read(name: &str) -> Image {
    made(&file(name), &[]).unwrap()
}

/// The largest and the mean difference of two images of one shape.
fn difference(one: &Image, other: &Image) -> (u8, f64) {
    assert_eq!(one.shape, other.shape);
    let pairs = one.values.iter().zip(&other.values);
    let differences = pairs.map(|(&a, &b)| a.abs_diff(b));
    let sum: f64 = differences.clone().map(f64::from).sum();
    (differences.max().unwrap(), sum / one.values.len() as f64)
}

#[test]
fn lossless_files_hold_the_same_pixels_whatever_their_form() {
    let scene = read("files/scene.png");
    assert_eq!(scene.shape, [3, 35, 45]);
    // Alpha is left out, and 16 bits are rounded to 8, which are exact here.
    for name in ["scene.bmp", "scene.tif", "alpha.png", "deep.png"] {
        assert_eq!(read(&format!("files/{name}")), scene, "{name}");
    }
    for name in ["grey", "palette"] {
        assert_eq!(
            read(&format!("files/{name}.png")),
            read(&format!("decoded/{name}-png.png")),
            "{name}"
        );
    }
}

#[test]
fn jpegs_decode_as_in_pillow_up_to_rounding() {
    for name in ["baseline", "progressive", "grey", "cmyk", "turned"] {
        let ours = read(&format!("files/{name}.jpg"));
        let (largest, mean) = difference(&ours, &read(&format!("decoded/{name}-jpg.png")));
        println!("{name}: {largest} {mean}");
        assert!(largest <= 4 && mean < 0.5, "{name}: {largest}, {mean}");
    }
}

#[test]
fn an_image_is_upright_and_its_shape_too() {
    assert_eq!(read("files/turned.jpg").shape, [3, 45, 35]);
}

#[test]
fn forms_that_are_not_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let renamed = folder.path().join("photo.jpg");
    std::fs::copy(file("files/other.webp"), &renamed).unwrap();
    let floats = made(&file("files/floats.tif"), &[]).unwrap_err();
    let webp = made(&renamed, &[]).unwrap_err();
    assert_eq!((floats.code(), webp.code()), ("data.sample", "data.sample"));
    assert!(floats.to_string().contains("floats.tif"), "{floats}");
    let message = webp.to_string();
    assert!(
        message.contains("photo.jpg") && message.contains("WebP"),
        "{message}"
    );
}

#[test]
fn transforms_without_chance_equal_those_of_torchvision() {
    let size = |height, width| [("height", height), ("width", width)];
    let cases = [
        (
            "resize-short-18",
            transform("resize", &[("short-side", "18")]),
        ),
        ("resize-15x25", transform("resize", &size("15", "25"))),
        ("resize-60x70", transform("resize", &size("60", "70"))),
        (
            "centre-crop-24x30",
            transform("centre-crop", &size("24", "30")),
        ),
        (
            "centre-crop-30x48",
            transform("centre-crop", &size("30", "48")),
        ),
        (
            "flip-horizontal",
            transform("flip", &[("probability", "1")]),
        ),
        (
            "flip-vertical",
            transform("flip", &[("direction", "vertical"), ("probability", "1")]),
        ),
    ];
    for (name, transform) in cases {
        let ours = made(&file("files/scene.png"), &[transform]).unwrap();
        assert_eq!(ours, read(&format!("expected/{name}.png")), "{name}");
    }
    let grey = transform("channels", &[("count", "1")]);
    let rgb = transform("channels", &[("count", "3")]);
    let ours = made(&file("files/scene.png"), &[grey, rgb]).unwrap();
    assert_eq!(ours, read("expected/grey.png"));
}

#[test]
fn colours_blur_sharpening_and_equalisation_are_those_of_their_models() {
    let scene = file("files/scene.png");
    // The largest and the mean difference allowed, in parts of 255. OpenCV rounds the chroma of RGB
    // images to 8 bits on the way; here it stays.
    let cases = [
        (
            "brightness-1.3",
            "colour-jitter",
            &[("brightness", "1.3,1.3")][..],
            (0, 0.0),
        ),
        (
            "contrast-0.6",
            "colour-jitter",
            &[("contrast", "0.6,0.6")],
            (0, 0.0),
        ),
        (
            "saturation-1.7",
            "colour-jitter",
            &[("saturation", "1.7,1.7")],
            (0, 0.0),
        ),
        ("hue-0.2", "colour-jitter", &[("hue", "0.2,0.2")], (1, 0.05)),
        ("blur-1.3", "blur", &[("sigma", "1.3")], (1, 0.01)),
        ("sharpen-2.5", "sharpen", &[("factor", "2.5")], (0, 0.0)),
        (
            "clahe",
            "clahe",
            &[("clip-limit", "2.5"), ("rows", "3"), ("columns", "4")],
            (4, 0.5),
        ),
    ];
    for (name, of, options, (most, most_mean)) in cases {
        let ours = made(&scene, &[transform(of, options)]).unwrap();
        let (largest, mean) = difference(&ours, &read(&format!("expected/{name}.png")));
        println!("{name}: {largest} {mean}");
        assert!(
            largest <= most && mean <= most_mean,
            "{name}: {largest}, {mean}"
        );
    }
    let options = [("clip-limit", "2.5"), ("rows", "3"), ("columns", "4")];
    let grey = [
        transform("channels", &[("count", "1")]),
        transform("clahe", &options),
        transform("channels", &[("count", "3")]),
    ];
    assert_eq!(
        made(&scene, &grey).unwrap(),
        read("expected/clahe-grey.png")
    );
}

#[test]
fn noise_has_its_deviation() {
    let grey = transform("colour-jitter", &[("contrast", "0,0")]);
    let level = made(&file("files/scene.png"), std::slice::from_ref(&grey)).unwrap();
    let noise = transform("noise", &[("deviation", "0.1")]);
    let noisy = made(&file("files/scene.png"), &[grey, noise]).unwrap();
    let pairs = noisy.values.iter().zip(&level.values);
    let squares = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    let deviation = (squares.sum::<f64>() / noisy.values.len() as f64).sqrt() / 255.0;
    assert!((deviation - 0.1).abs() < 0.005, "{deviation}");
}

/// A data set of the scene's crops, of two classes and all forms, in a new folder.
fn classes(folder: &Path) -> PathBuf {
    let forms = [
        "scene.png",
        "baseline.jpg",
        "scene.bmp",
        "turned.jpg",
        "scene.tif",
    ];
    for (number, form) in forms.iter().cycle().take(13).enumerate() {
        let class = folder.join(["cat", "Dog"][number % 2]);
        std::fs::create_dir_all(&class).unwrap();
        let name = format!("{number:02}-{form}");
        std::fs::copy(file("files").join(form), class.join(name)).unwrap();
    }
    folder.to_owned()
}

/// The samples and labels of an epoch, batch after batch.
fn epoch(mut loader: Loader, number: u64) -> Vec<(Vec<f32>, Vec<i64>)> {
    loader.start(number).unwrap();
    let running = AtomicBool::new(false);
    std::iter::from_fn(|| loader.next(&running))
        .map(|batch| {
            let batch = batch.unwrap();
            let labels = batch.labels.unwrap().to_i64().unwrap();
            (batch.samples.to_f32().unwrap(), labels)
        })
        .collect()
}

fn augmenting(path: &Path, batch_size: usize, threads: usize) -> Loader {
    let dataset = Dataset::open(path, None).unwrap();
    let mut loader = Loader::new(dataset, batch_size, threads).unwrap();
    loader.shuffle(11);
    let size = [("height", "16"), ("width", "20")];
    let jitter = [
        ("brightness", "0.4"),
        ("contrast", "0.4"),
        ("saturation", "0.4"),
        ("hue", "0.1"),
    ];
    let mean = ("mean", "0.485,0.456,0.406");
    for (name, options) in [
        ("random-resized-crop", &size[..]),
        ("flip", &[]),
        ("colour-jitter", &jitter),
        ("noise", &[("deviation", "0,0.1")]),
        ("blur", &[("sigma", "0.1,2"), ("probability", "0.5")]),
        (
            "clahe",
            &[("rows", "2"), ("columns", "3"), ("probability", "0.5")],
        ),
        ("sharpen", &[("factor", "0.5,2"), ("probability", "0.5")]),
        (
            "random-crop",
            &[("height", "15"), ("width", "17"), ("padding", "2")],
        ),
        ("normalize", &[mean, ("deviation", "0.229,0.224,0.225")]),
    ] {
        loader.push(transform(name, options)).unwrap();
    }
    loader
}

#[test]
fn class_folders_have_the_classes_and_the_order_of_torchvision() {
    let folder = tempfile::tempdir().unwrap();
    let path = classes(folder.path());
    std::fs::copy(file("files/scene.png"), path.join("beside.png")).unwrap();
    std::fs::write(path.join("cat/notes.txt"), "no image").unwrap();
    let all = Dataset::open(&path, None).unwrap();
    assert_eq!(
        (all.len(), all.classes()),
        (13, &["Dog".into(), "cat".into()][..])
    );
    assert_eq!(all.name(0).unwrap(), "Dog/01-baseline.jpg");
    let reordered = all
        .with_classes(vec!["cat".into(), "cow".into(), "Dog".into()])
        .unwrap();
    let labels = |dataset: Dataset| {
        let mut loader = Loader::new(dataset, 13, 1).unwrap();
        let size = [("height", "2"), ("width", "2")];
        loader.push(transform("centre-crop", &size)).unwrap();
        epoch(loader, 0).remove(0).1
    };
    assert_eq!(labels(all.clone()), [vec![0; 6], vec![1; 7]].concat());
    assert_eq!(labels(reordered), [vec![2; 6], vec![0; 7]].concat());
    let refusal = all.with_classes(vec!["cat".into()]).unwrap_err();
    assert_eq!(refusal.code(), "data.classes");
}

#[test]
fn parts_are_folders_of_class_folders_and_a_class_may_be_called_train() {
    let folder = tempfile::tempdir().unwrap();
    classes(&folder.path().join("train"));
    classes(&folder.path().join("val"));
    std::fs::remove_dir_all(folder.path().join("val/cat")).unwrap();
    assert_eq!(
        Dataset::parts(folder.path()).unwrap(),
        ["train", "validation"]
    );
    let validation = Dataset::open(folder.path(), Some("validation")).unwrap();
    assert_eq!((validation.len(), validation.classes().len()), (6, 2));
    let vehicles = tempfile::tempdir().unwrap();
    for class in ["car", "train"] {
        std::fs::create_dir(vehicles.path().join(class)).unwrap();
        let to = vehicles.path().join(class).join("1.png");
        std::fs::copy(file("files/scene.png"), to).unwrap();
    }
    assert!(Dataset::parts(vehicles.path()).unwrap().is_empty());
    assert_eq!(
        Dataset::open(vehicles.path(), None).unwrap().classes(),
        ["car", "train"]
    );
}

#[test]
fn images_without_class_folders_have_no_labels() {
    let all = Dataset::open(&file("expected"), None).unwrap();
    assert!(all.classes().is_empty() && all.len() > 10);
    assert_eq!(
        all.with_classes(Vec::new()).unwrap_err().code(),
        "data.classes"
    );
    let different = Loader::new(all, 4, 1).unwrap().sample_shape().unwrap_err();
    assert_eq!(different.code(), "data.shape");
    assert!(different.to_string().contains("resize"), "{different}");
}

#[test]
fn damaged_files_are_named_and_skipped_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = classes(folder.path());
    let cut = |name: &str| {
        let bytes = std::fs::read(path.join(name)).unwrap();
        std::fs::write(path.join(name), &bytes[..bytes.len() * 3 / 4]).unwrap();
    };
    cut("cat/00-scene.png");
    cut("Dog/01-baseline.jpg");
    cut("Dog/03-turned.jpg");
    std::fs::write(path.join("cat/empty.tif"), []).unwrap();
    let running = AtomicBool::new(false);
    let mut loader = augmenting(&path, 4, 2);
    loader.start(0).unwrap();
    let refusal = std::iter::from_fn(|| loader.next(&running)).find_map(Result::err);
    assert_eq!(refusal.unwrap().code(), "data.sample");
    for threads in [1, 3] {
        let (left, damaged) = Dataset::open_readable(&path, None, threads, &running).unwrap();
        let messages: Vec<_> = damaged.iter().map(ToString::to_string).collect();
        let names = ["Dog/01", "Dog/03", "cat/00", "cat/empty"];
        assert_eq!((messages.len(), left.len()), (names.len(), 10));
        for (message, name) in messages.iter().zip(names) {
            assert!(message.contains(name), "{message}");
        }
    }
    for class in ["cat", "Dog"] {
        for entry in std::fs::read_dir(path.join(class)).unwrap() {
            std::fs::write(entry.unwrap().path(), b"BM").unwrap();
        }
    }
    let nothing = Dataset::open_readable(&path, None, 2, &running).unwrap_err();
    assert_eq!(nothing.code(), "data.sample");
    assert!(
        nothing.to_string().contains("none of its 14 samples"),
        "{nothing}"
    );
}

#[test]
fn no_transform_follows_the_normalisation() {
    let path = file("files/scene.png");
    let normalize = transform("normalize", &[("mean", "0,0,0"), ("deviation", "1,1,1")]);
    let flip = transform("flip", &[]);
    let refusal = made(&path, &[normalize, flip]).unwrap_err();
    assert_eq!(refusal.code(), "data.transform");
    let one = transform("normalize", &[("mean", "0"), ("deviation", "1")]);
    assert_eq!(made(&path, &[one]).unwrap_err().code(), "data.transform");
}

#[test]
fn options_that_no_transform_takes_are_refused() {
    let code = |name: &str, options: &[(&str, &str)]| {
        let options: Vec<_> = options
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Transform::parse(Kind::Image, name, &options)
            .unwrap_err()
            .code()
    };
    assert_eq!(code("fit", &[]), "data.transform");
    assert_eq!(
        code("resize", &[("short-side", "9"), ("width", "9")]),
        "option.unknown"
    );
    for (name, option, value) in [
        ("resize", "short-side", "0"),
        ("resize", "height", "9"),
        ("centre-crop", "height", "99999999"),
        ("flip", "direction", "both"),
        ("flip", "probability", "1.5"),
        ("blur", "sigma", "3,2"),
        ("blur", "sigma", "NaN"),
        ("noise", "deviation", "1,2,3"),
        ("channels", "count", "4"),
        ("colour-jitter", "hue", "0.6"),
        ("clahe", "rows", "0"),
        ("normalize", "mean", "a"),
    ] {
        assert_eq!(
            code(name, &[(option, value)]),
            "option.value",
            "{name} {option} {value}"
        );
    }
}

#[test]
fn a_size_beyond_reason_is_refused_before_memory_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.bmp");
    let mut bytes = std::fs::read(file("files/scene.bmp")).unwrap();
    // Width and height of a BMP's header.
    bytes[18..22].copy_from_slice(&30_000u32.to_le_bytes());
    bytes[22..26].copy_from_slice(&30_000u32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let refusal = made(&path, &[]).unwrap_err().to_string();
    assert!(refusal.contains("30000 × 30000 pixels"), "{refusal}");
    let path = folder.path().join("long.png");
    std::fs::copy(file("files/scene.png"), &path).unwrap();
    let resize = transform("resize", &[("short-side", "16384")]);
    let refusal = made(&path, std::slice::from_ref(&resize)).unwrap_err();
    assert_eq!(refusal.code(), "data.batch-size");
    let crop = transform("centre-crop", &[("height", "8"), ("width", "8")]);
    let refusal = made(&path, &[resize, crop]).unwrap_err().to_string();
    assert!(refusal.contains("would have more than"), "{refusal}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn batches_do_not_depend_on_the_number_of_threads(
        batch_size in 1usize..15,
        number in 0u64..1000,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = classes(folder.path());
        let one = epoch(augmenting(&path, batch_size, 1), number);
        for threads in [2, 3, 8] {
            prop_assert_eq!(&one, &epoch(augmenting(&path, batch_size, threads), number));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_a_decoder_panic(
        form in 0usize..8,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let forms = [
            "scene.png", "scene.bmp", "scene.tif", "deep.png",
            "baseline.jpg", "progressive.jpg", "cmyk.jpg", "turned.jpg",
        ];
        let mut bytes = std::fs::read(file("files").join(forms[form])).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(forms[form]);
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = made(&path, &[transform("resize", &[("short-side", "8")])]) {
            prop_assert_eq!(error.code(), "data.sample");
            prop_assert!(!error.to_string().contains("decoder failed"), "{}", error);
        }
    }
}
