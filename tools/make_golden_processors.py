#!/usr/bin/env python3
"""Writes tests/data/images/processors.tsv: what the image processors of Hugging Face make of pictures.

    python3 tools/make_golden_processors.py        needs transformers 4.38.2 and Pillow 10.2, which the
                                                   authors pin

    processor seed width height resize size padded digest

The picture comes from the formula of make_golden_images.py; padded pictures are first laid on a square of
the processor's mean colour, as the authors' expand2square does. digest: the first 16 hex digits of the
SHA-256 of the float32 planes. Rows are written for shapes from thin lines to the same size, odd rests
included.
"""
import numpy as np
import transformers
from PIL import Image

from make_golden_images import OUT, digest, mix, pixels, write_table

CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
N = 60


def processor(kind, resize, size):
    if kind == "siglip":
        return transformers.SiglipImageProcessor(size={"height": size, "width": size}, image_mean=HALF[0],
                                                 image_std=HALF[1])
    mean, std = CLIP if kind == "clip" else IMAGENET
    make = transformers.CLIPImageProcessor if kind == "clip" else transformers.BitImageProcessor
    return make(size={"shortest_edge": resize}, crop_size={"height": size, "width": size}, resample=3,
                image_mean=mean, image_std=std)


def expand(image, mean):
    """To a square of int(255 mean), the picture in the middle, an odd rest below and to the right."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(255 * m) for m in mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def rows():
    for kind in ("siglip", "clip", "dinov2"):
        for i in range(N):
            seed = 9000 + 100 * len(kind) + i
            a, b, c, d = (int(mix(k, seed)) for k in range(4))
            width, height = 4 + a % 120, 4 + b % 120
            if i % 10 == 0:
                width = 4 + a % 900
            size = 16 + c % 50
            resize = size + (d % 3) * 9 if kind != "siglip" else size
            if i % 10 == 5:
                width, height = resize + i, resize
            image = Image.fromarray(pixels(seed, width, height))
            p, padded = processor(kind, resize, size), i % 3 == 1
            if padded:
                image = expand(image, p.image_mean)
            planes = p(image, return_tensors="np")["pixel_values"][0]
            assert planes.dtype == np.float32 and planes.shape == (3, size, size)
            yield (kind, seed, width, height, resize, size, int(padded), digest(np.ascontiguousarray(planes).tobytes()))


if __name__ == "__main__":
    write_table("processors.tsv", "processor seed width height resize size padded digest", list(rows()))
