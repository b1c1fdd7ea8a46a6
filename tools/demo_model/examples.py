"""Draws the example images and their manifest.

    python3 -m tools.demo_model.examples --out examples

Between them the files cover what a folder of real pictures holds: JPEG, PNG and WebP, one rotated by
its EXIF tag, one grey, one CMYK, one with alpha, one with a palette.
"""

import argparse
import json
import pathlib
import random

from PIL import Image, ImageDraw, ImageFilter

from .draw import draw_scene
from .questions import ask
from .things import COLOURS, THINGS, WORDS


def parse(text):
    """'2 red star, dog, say hello' as a list of objects."""
    objects = []
    for part in text.split(", "):
        words = part.split()
        count = int(words.pop(0)) if words[0].isdigit() else 1
        if words[0] == "say":
            assert words[1] in WORDS
            one = {"kind": "word", "name": words[1]}
        elif words[0] in COLOURS:
            one = {"kind": "shape", "colour": words[0], "name": words[1]}
        else:
            assert words[0] in THINGS
            one = {"kind": "thing", "name": words[0]}
        objects += [dict(one) for _ in range(count)]
    return objects


# file, seed, size, contents, kinds of question (None: any)
EXAMPLES = [
    ("farm.jpg", 1, (640, 480), "cow, pig, chicken, tree", None),
    ("signals.png", 2, (480, 360), "red circle, blue star, yellow triangle", None),
    ("cafe.webp", 3, (800, 600), "say coffee, donut, cookie", None),
    ("frogs.jpg", 4, (512, 512), "4 frog", None),
    ("harbour.webp", 5, (600, 450), "2 boat, whale, say open", None),
    ("portrait-exif.jpg", 6, (480, 640), "penguin, green heart, crown", None),
    ("grey.jpg", 7, (400, 300), "3 elephant, say zoo", ["count", "read", "presence", "where"]),
    ("cmyk.jpg", 8, (640, 480), "2 purple diamond, apple, pumpkin", None),
    ("alpha.png", 9, (360, 360), "unicorn, rainbow", None),
    ("palette.png", 10, (320, 240), "orange ring, robot", None),
    ("stars.jpg", 11, (320, 240), "5 white star", None),
    ("street.jpg", 12, (720, 540), "taxi, bus, house, say stop", None),
    ("music.png", 13, (480, 360), "guitar, drum, trumpet, say music", None),
    ("one-rocket.webp", 14, (450, 600), "rocket", None),
    ("shapes.jpg", 15, (600, 400), "black cross, green square, red heart, blue ring", None),
]
EXAMPLE_SEED = 3_000_000_000


def save(image, path):
    name = path.name
    if name == "portrait-exif.jpg":
        # Stored lying on its side; orientation 6 says "turn clockwise to view".
        exif = Image.Exif()
        exif[0x0112] = 6
        image.rotate(90, expand=True).save(path, quality=88, exif=exif)
    elif name == "grey.jpg":
        image.convert("L").save(path, quality=88)
    elif name == "cmyk.jpg":
        image.convert("CMYK").save(path, quality=90)
    elif name == "alpha.png":
        mask = Image.new("L", image.size, 0)
        ImageDraw.Draw(mask).rounded_rectangle([12, 12, image.width - 13, image.height - 13], 50, fill=255)
        image.putalpha(mask.filter(ImageFilter.GaussianBlur(6)))
        image.save(path, optimize=True)
    elif name == "palette.png":
        image.quantize(128).save(path, optimize=True)
    elif path.suffix == ".png":
        image.save(path, optimize=True)
    else:
        image.save(path, quality=86)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--answers", type=pathlib.Path, help="also write the true answers to this file")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    truth = {}
    with open(args.out / "manifest.jsonl", "w", encoding="utf-8") as lines:
        for name, seed, size, text, kinds in EXAMPLES:
            image, objects = draw_scene(EXAMPLE_SEED + seed, objects=parse(text), size=size)
            save(image, args.out / name)
            asked = ask(random.Random(f"example {seed}"), objects, count=4, kinds=kinds)
            lines.write(json.dumps({"id": path_stem(name), "image": name, "prompts": [q for _, q, _ in asked]}) + "\n")
            truth[name] = {q: a for _, q, a in asked}
    if args.answers:
        args.answers.write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def path_stem(name):
    return name.rsplit(".", 1)[0]


if __name__ == "__main__":
    main()
