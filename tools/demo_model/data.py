"""The pool of training scenes: drawn once, in parallel, kept outside the repository.

Every image goes through the preprocessing of inference (pad to a square with 127, Pillow's bicubic
to the tower's size); only the division by 255 and the normalisation are left for the training loop.
Beside the pixels the pool holds what the drawer knows about each patch, for tower pre-training.
"""

import argparse
import multiprocessing
import pathlib
import pickle
import random

import numpy
from PIL import Image

from .draw import compress, draw_scene, draw_sheet
from .model import CONFIG
from .things import COLOURS, SHAPES, THINGS, WORDS

IMAGE_SIZE = CONFIG["vision"]["image_size"]
PATCH = CONFIG["vision"]["patch_size"]
GRID = IMAGE_SIZE // PATCH

# Patch classes: 0 is background, then things, shapes and words.
CLASSES = ["background", *THINGS, *SHAPES, *WORDS]
CLASS_OF = {name: i for i, name in enumerate(CLASSES)}
COLOUR_OF = {name: i for i, name in enumerate(COLOURS)}
IGNORE = 255

# Seeds of scenes: training uses [0, TRAIN_SEEDS); evaluation and examples start far above.
TRAIN_SEEDS = 10_000_000


def pad_to_square(image):
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), (127, 127, 127))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def to_pixels(image, size=IMAGE_SIZE):
    """uint8 [size, size, 3], exactly as the inference pipeline makes it."""
    return numpy.asarray(pad_to_square(image.convert("RGB")).resize((size, size), Image.BICUBIC))


def patch_labels(image_size, objects):
    """[4, GRID*GRID] uint8: class, colour, 'holds the centre of an object', how many alike."""
    labels = numpy.zeros((4, GRID, GRID), numpy.uint8)
    labels[1] = IGNORE
    side, (width, height) = max(image_size), image_size
    names = [o["name"] for o in objects]
    patches = (numpy.arange(GRID) + 0.5) * PATCH

    def to_canvas(value, extent):
        return (value * extent + (side - extent) / 2) * IMAGE_SIZE / side

    for o in objects:
        cx, cy = to_canvas(o["x"], width), to_canvas(o["y"], height)
        w, h = o["w"] * width * IMAGE_SIZE / side, o["h"] * height * IMAGE_SIZE / side
        dx, dy = (patches[None, :] - cx) / w, (patches[:, None] - cy) / h
        if o["kind"] == "word":
            inside = (abs(dx) < 0.5) & (abs(dy) < 0.5)
        else:
            inside = dx ** 2 + dy ** 2 < 0.25
        row, column = min(GRID - 1, int(cy / PATCH)), min(GRID - 1, int(cx / PATCH))
        inside[row, column] = True
        labels[0][inside] = CLASS_OF[o["name"]]
        labels[1][inside] = COLOUR_OF[o["colour"]] if o["kind"] == "shape" else IGNORE
        labels[3][inside] = names.count(o["name"])
        labels[2][row, column] = 1
    return labels.reshape(4, -1)


def make(seed):
    image, objects = draw_scene(seed)
    rng = random.Random(seed ^ 0x5EED)
    size = image.size
    if rng.random() < 0.85:
        image = compress(image, rng.randint(60, 96))
    if rng.random() < 0.04:
        # A few grey pictures, so that things are also recognised without colour.
        if not any(o["kind"] == "shape" for o in objects):
            image = image.convert("L").convert("RGB")
    return to_pixels(image), patch_labels(size, objects), objects


def make_sheet(seed):
    image, objects = draw_sheet(seed)
    size = image.size
    image = compress(image, random.Random(seed).randint(60, 96))
    return to_pixels(image), patch_labels(size, objects), objects


def pool(folder, count, make=make, workers=2):
    """Loads what `make` draws from folder, drawing what is missing.  Returns (pixels, labels, objects)."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    step = 4096
    pixels = numpy.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), numpy.uint8)
    labels = numpy.empty((count, 4, GRID * GRID), numpy.uint8)
    objects = []
    with multiprocessing.Pool(workers) as workers_pool:
        for start in range(0, count, step):
            path = folder / f"{start:08d}.npz"
            if not path.exists():
                made = workers_pool.map(make, range(start, start + step), chunksize=64)
                temporary = path.with_suffix(".tmp.npz")
                numpy.savez(temporary, pixels=numpy.stack([m[0] for m in made]),
                            labels=numpy.stack([m[1] for m in made]),
                            objects=numpy.frombuffer(pickle.dumps([m[2] for m in made]), numpy.uint8))
                temporary.rename(path)
            with numpy.load(path) as part:
                end = min(count, start + step)
                pixels[start:end] = part["pixels"][:end - start]
                labels[start:end] = part["labels"][:end - start]
                objects += pickle.loads(part["objects"].tobytes())
    return pixels, labels, objects[:count]


def main():
    parser = argparse.ArgumentParser(description="Draws the pool of training scenes.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--count", type=int, default=65536)
    args = parser.parse_args()
    pixels, labels, objects = pool(args.cache, args.count)
    print(f"{len(objects)} scenes, {pixels.nbytes >> 20} MiB of pixels")


if __name__ == "__main__":
    main()
