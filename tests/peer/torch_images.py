"""The twin of host/data/examples/loading.rs: images a second of processor time with Pillow and
torchvision, in one thread.

usage: torch_images.py FOLDER [SIDE]
       torch_images.py --make FOLDER [IMAGES [WIDTH HEIGHT]]   draws photographs to measure with
"""

import pathlib
import sys
import time

import numpy
import torch
from PIL import Image
from torchvision import datasets, transforms


def make(folder, images=200, width=224, height=224):
    """Images with detail at every scale, as photographs have, of two classes; JPEG at quality 90."""
    random = numpy.random.default_rng(0)
    for number in range(images):
        image = numpy.zeros((height, width, 3))
        for scale in (4, 8, 16, 32, 64):
            coarse = random.integers(0, 256, (height // scale + 2, width // scale + 2, 3), numpy.uint8)
            fine = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
            image += numpy.asarray(fine, numpy.float64) * scale
        image = (image / 124).clip(0, 255).astype(numpy.uint8)
        path = pathlib.Path(folder) / f"class{number % 2}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=90)


def measure(folder, side=224):
    torch.set_num_threads(1)
    prepare = transforms.Compose(
        [
            transforms.RandomResizedCrop(side),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = datasets.ImageFolder(folder, prepare)
    began = time.process_time()
    for image in images:
        pass
    print(f"{len(images)} images: {len(images) / (time.process_time() - began):.0f} a second of processor time")


def main():
    if sys.argv[1] == "--make":
        make(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        measure(sys.argv[1], *map(int, sys.argv[2:]))


main()
