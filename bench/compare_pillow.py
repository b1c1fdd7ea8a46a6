#!/usr/bin/env python3
"""Files to the pixels a tower takes: ours against Pillow, which the reference preprocesses with.

    pip install -r bench/requirements.txt
    python3 bench/compare_pillow.py --build build/release [--rounds 5] [FILE...]

Without FILE, example pictures enlarged to three sizes, as JPEG of quality 90.  Both decode, pad to a square and
resize to 384 x 384 (bicubic) on one thread; processor time, medians of the rounds, in turns.  ratio is Pillow's
time divided by ours.
"""

import argparse
import pathlib
import statistics
import subprocess
import tempfile
import time

from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = [(640, 480), (1920, 1080), (4000, 3000)]
SIDE, REPEATS = 384, 7


def write_pictures(folder):
    picture = Image.open(ROOT / "examples" / "farm.jpg").convert("RGB")
    for width, height in SIZES:
        path = folder / f"{width}x{height}.jpg"
        picture.resize((width, height), Image.BICUBIC).save(path, quality=90)
        yield path


def pillow(path):
    """Milliseconds of decoding, and of padding and resizing."""
    start = time.thread_time()
    image = Image.open(path).convert("RGB")
    decoded = time.thread_time()
    side = max(image.size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    square.resize((SIDE, SIDE), Image.BICUBIC)
    return (decoded - start) * 1e3, (time.thread_time() - decoded) * 1e3


def ours(build, path):
    line = subprocess.run([build / "bench" / "image_bench", path, "--rounds", str(REPEATS)], check=True,
                          capture_output=True, text=True).stdout
    fields = dict(field.split("=", 1) for field in line.split()[1:] if "=" in field)
    return float(fields["decode_ms"]), float(fields["resize_ms"])


def medians(pairs):
    return [statistics.median(column) for column in zip(*pairs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        files = args.files or list(write_pictures(pathlib.Path(scratch)))
        print(f"{'picture':24} {'decode ms':>10} {'Pillow':>8} {'ratio':>6} {'resize ms':>10} {'Pillow':>8} {'ratio':>6}")
        for path in files:
            rounds = [(ours(args.build, path), medians([pillow(path) for _ in range(REPEATS)])) for _ in range(args.rounds)]
            (decode, resize), (decode_p, resize_p) = (medians(side) for side in zip(*rounds))
            print(f"{path.name:24} {decode:10.2f} {decode_p:8.2f} {decode_p / decode:6.2f} "
                  f"{resize:10.2f} {resize_p:8.2f} {resize_p / resize:6.2f}", flush=True)


if __name__ == "__main__":
    main()
