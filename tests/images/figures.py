"""Writes the images that the tests read, and what Pillow, torchvision and OpenCV make of them:
FOLDER/files/ (one image in each form that is read), FOLDER/decoded/ (Pillow's pixels of each, where
they are not those of scene.png), FOLDER/expected/ (transforms of scene.png).

The scene is drawn here: no picture of anyone's is in it.

usage: figures.py FOLDER
"""

import pathlib
import sys

import cv2
import numpy
import torchvision.transforms.functional as functional
from PIL import Image, ImageEnhance, ImageOps

WIDTH, HEIGHT = 45, 35


def scene():
    """Gradients, a disc, stripes and a little noise, in RGB."""
    y, x = numpy.mgrid[0:HEIGHT, 0:WIDTH].astype(numpy.float64)
    red = 40 + 180 * x / WIDTH
    green = 30 + 190 * y / HEIGHT
    blue = 128 + 100 * numpy.sin(x / 5) * numpy.cos(y / 7)
    disc = (x - 28) ** 2 + (y - 15) ** 2 < 9**2
    red[disc], green[disc], blue[disc] = 230, 60, 40
    stripes = (y > 26) & ((x // 4) % 2 == 0)
    red[stripes], green[stripes], blue[stripes] = 20, 25, 200
    image = numpy.stack([red, green, blue], -1)
    image += numpy.random.default_rng(7).normal(0, 2, image.shape)
    return Image.fromarray(image.round().clip(0, 255).astype(numpy.uint8))


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def files(image, folder):
    """One file of each form; Pillow's pixels of those that are not lossless or not RGB."""
    forms = folder / "files"
    save(image, forms / "scene.png", optimize=True)
    save(image, forms / "scene.bmp")
    save(image, forms / "scene.tif", compression="tiff_lzw")
    alpha = Image.fromarray((numpy.arange(HEIGHT * WIDTH) % 256).astype(numpy.uint8).reshape(HEIGHT, WIDTH))
    with_alpha = image.copy()
    with_alpha.putalpha(alpha)
    save(with_alpha, forms / "alpha.png", optimize=True)
    save(image, forms / "baseline.jpg", quality=90, subsampling=2)
    save(image, forms / "progressive.jpg", quality=90, subsampling=0, progressive=True)
    save(image.convert("L"), forms / "grey.jpg", quality=90)
    save(image.convert("CMYK"), forms / "cmyk.jpg", quality=95)
    exif = Image.Exif()
    exif[274] = 6
    save(image, forms / "turned.jpg", quality=90, exif=exif)
    save(image.convert("L"), forms / "grey.png", optimize=True)
    save(image.quantize(32), forms / "palette.png", optimize=True)
    deep = numpy.asarray(image)[..., ::-1].astype(numpy.uint16) * 257
    (forms / "deep.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    floats = numpy.asarray(image.convert("L")).astype(numpy.float32)
    Image.fromarray(floats).crop((0, 0, 4, 4)).save(forms / "floats.tif")
    image.crop((0, 0, 4, 4)).save(forms / "other.webp", lossless=True)
    for name in ["baseline.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "turned.jpg", "grey.png", "palette.png"]:
        decoded = ImageOps.exif_transpose(Image.open(forms / name)).convert("RGB")
        save(decoded, folder / "decoded" / (name.replace(".", "-") + ".png"), optimize=True)


def opencv(image, change):
    """Applies a change of OpenCV's to the luma of an image."""
    ycrcb = cv2.cvtColor(numpy.asarray(image), cv2.COLOR_RGB2YCrCb)
    ycrcb[..., 0] = change(ycrcb[..., 0])
    return Image.fromarray(cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB))


def expected(image, folder):
    results = {
        "resize-short-18": functional.resize(image, 18),
        "resize-15x25": functional.resize(image, [15, 25]),
        "resize-60x70": functional.resize(image, [60, 70]),
        "centre-crop-24x30": functional.center_crop(image, [24, 30]),
        "centre-crop-30x48": functional.center_crop(image, [30, 48]),
        "flip-horizontal": functional.hflip(image),
        "flip-vertical": functional.vflip(image),
        "grey": functional.rgb_to_grayscale(image, 3),
        "brightness-1.3": functional.adjust_brightness(image, 1.3),
        "contrast-0.6": functional.adjust_contrast(image, 0.6),
        "saturation-1.7": functional.adjust_saturation(image, 1.7),
        "sharpen-2.5": ImageEnhance.Sharpness(image).enhance(2.5),
    }
    tensor = functional.pil_to_tensor(image)
    results["hue-0.2"] = functional.to_pil_image(functional.adjust_hue(tensor, 0.2))
    results["blur-1.3"] = functional.to_pil_image(functional.gaussian_blur(tensor, 9, 1.3))
    grey = numpy.asarray(image.convert("L"))
    clahe = cv2.createCLAHE(clipLimit=2.5, tileGridSize=(4, 3))
    results["clahe-grey"] = Image.fromarray(clahe.apply(grey)).convert("RGB")
    results["clahe"] = opencv(image, clahe.apply)
    for name, result in results.items():
        save(result, folder / "expected" / f"{name}.png", optimize=True)


def main():
    folder = pathlib.Path(sys.argv[1])
    image = scene()
    files(image, folder)
    expected(image, folder)


main()
