"""Draws scenes: things, coloured shapes and printed words on varied backgrounds.

    python3 -m tools.demo_model.draw --seed 7 --count 20 --out DIR

writes DIR/00000.jpg ... and DIR/scenes.jsonl with what is in them and questions with true answers.
A scene is a function of its seed only.
"""

import argparse
import io
import json
import math
import pathlib
import random

import numpy
from PIL import Image, ImageDraw, ImageFont

from .things import COLOURS, SHAPES, THINGS, WORDS

EMOJI_FONT = "NotoColorEmoji.ttf"
EMOJI_PIXELS = 109  # The only size the font's bitmaps exist in.
TEXT_FONTS = ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf",
              "DejaVuSansMono-Bold.ttf"]
ASPECTS = [(1, 1), (4, 3), (4, 3), (3, 4), (3, 2)]
MAX_OBJECTS = 5

_cache = {}


def font(name, size):
    key = name, size
    if key not in _cache:
        paths = [name, f"/usr/share/fonts/truetype/noto/{name}", f"/usr/share/fonts/truetype/dejavu/{name}"]
        for path in paths:
            try:
                _cache[key] = ImageFont.truetype(path, size)
                break
            except OSError:
                continue
        else:
            raise SystemExit(f"The font {name} is missing; install fonts-noto-color-emoji and fonts-dejavu-core.")
    return _cache[key]


def thing_sprite(name):
    """The glyph, cropped to what is visible, at the font's own size."""
    if name not in _cache:
        image = Image.new("RGBA", (200, 200))
        ImageDraw.Draw(image).text((20, 20), THINGS[name], font=font(EMOJI_FONT, EMOJI_PIXELS), embedded_color=True)
        box = image.getchannel("A").getbbox()
        if not box:
            raise SystemExit(f"The emoji font has no glyph for {name}.")
        _cache[name] = image.crop(box)
    return _cache[name]


def shape_sprite(name, colour, size, angle):
    """A filled shape drawn at four times its size and reduced, so that its edges are smooth."""
    n = size * 4
    mask = Image.new("L", (n, n), 0)
    d = ImageDraw.Draw(mask)
    c, r = n / 2, n * 0.48

    def polygon(points):
        d.polygon([(c + r * x, c + r * y) for x, y in points], fill=255)

    def around(count, turn=-math.pi / 2, radius=1.0):
        return [(radius * math.cos(turn + 2 * math.pi * i / count),
                 radius * math.sin(turn + 2 * math.pi * i / count)) for i in range(count)]

    if name in ("circle", "ring"):
        d.ellipse([c - r, c - r, c + r, c + r], fill=255)
        if name == "ring":
            d.ellipse([c - r * 0.55, c - r * 0.55, c + r * 0.55, c + r * 0.55], fill=0)
    elif name == "square":
        polygon([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)])
    elif name == "triangle":
        polygon([(0, -0.95), (1, 0.85), (-1, 0.85)])
    elif name == "star":
        outer, inner = around(5), around(5, -math.pi / 2 + math.pi / 5, 0.42)
        polygon([p for pair in zip(outer, inner) for p in pair])
    elif name == "diamond":
        polygon([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])
    elif name == "cross":
        w = 0.32
        polygon([(-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w)])
    elif name == "heart":
        polygon([(0.062 * 16 * math.sin(t) ** 3,
                  -0.062 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) - 0.1)
                 for t in (2 * math.pi * i / 60 for i in range(60))])
    mask = mask.rotate(angle, Image.BICUBIC).resize((size, size), Image.LANCZOS)
    sprite = Image.new("RGBA", (size, size), colour)
    sprite.putalpha(mask)
    return sprite


def word_sprite(text, font_name, width, colour):
    f = font(font_name, 80)
    left, top, right, bottom = f.getbbox(text)
    image = Image.new("L", (right - left + 8, bottom - top + 8), 0)
    ImageDraw.Draw(image).text((4 - left, 4 - top), text, font=f, fill=255)
    height = max(4, round(image.height * width / image.width))
    alpha = image.resize((width, height), Image.LANCZOS)
    sprite = Image.new("RGBA", alpha.size, colour)
    sprite.putalpha(alpha)
    return sprite


def sprite_of(rng, o, side, text_colour):
    """The picture of one object, slightly turned, shaded or set in some font by lot."""
    if o["kind"] == "thing":
        sprite = thing_sprite(o["name"])
        f = side / max(sprite.size)
        sprite = sprite.resize((max(1, round(sprite.width * f)), max(1, round(sprite.height * f))), Image.LANCZOS)
        angle = rng.uniform(-12, 12)
        return sprite.rotate(angle, Image.BICUBIC, expand=True)
    if o["kind"] == "shape":
        return shape_sprite(o["name"], jitter(rng, COLOURS[o["colour"]], 8), side, rng.uniform(-10, 10))
    text = o["name"].upper() if rng.random() < 0.5 else o["name"]
    return word_sprite(text, rng.choice(TEXT_FONTS), side, text_colour)


def distance(a, b):
    return math.dist(a, b)


def jitter(rng, colour, amount):
    return tuple(max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)


def background(rng, size, avoid):
    """A background none of whose colours is close to a colour in `avoid`, and a name for it."""
    width, height = size
    for attempt in range(200):
        value = rng.choice(["light", "light", "middle", "dark"])
        low, high = {"light": (170, 250), "middle": (90, 180), "dark": (20, 90)}[value]
        first = tuple(rng.randint(low, high) for _ in range(3))
        second = jitter(rng, first, 40)
        if all(distance(c, a) > 105 for c in (first, second) for a in avoid):
            break
    else:
        # Six or more colours at once leave little room; a grey between them is the least bad.
        first = second = max(((g, g, g) for g in range(60, 220, 10)),
                             key=lambda c: min(distance(c, a) for a in avoid))
    kind = rng.choice(["plain", "gradient", "noise", "stripes", "checker"])
    y, x = numpy.mgrid[0:height, 0:width].astype(numpy.float32)
    if kind == "plain":
        t = numpy.zeros((height, width), numpy.float32)
    elif kind == "gradient":
        a = rng.uniform(0, 2 * math.pi)
        t = x * math.cos(a) + y * math.sin(a)
        t = (t - t.min()) / max(1e-6, t.max() - t.min())
    elif kind == "stripes":
        a, step = rng.choice([0, math.pi / 2, math.pi / 4]), rng.uniform(0.04, 0.16) * max(size)
        t = ((x * math.cos(a) + y * math.sin(a)) // step % 2)
    elif kind == "checker":
        step = rng.uniform(0.06, 0.18) * max(size)
        t = ((x // step + y // step) % 2)
    else:
        t = numpy.random.default_rng(rng.getrandbits(32)).random((height, width), numpy.float32)
    pixels = numpy.asarray(first, numpy.float32) * (1 - t[..., None]) + numpy.asarray(second, numpy.float32) * t[..., None]
    return Image.fromarray(pixels.astype(numpy.uint8)), kind


def contents(rng):
    """Chooses what is in a scene: a list of {kind, name, colour?}."""
    objects, used = [], set()
    total = rng.choice([1, 2, 2, 3, 3, 4, 4, 5, 5])
    style = rng.random()
    if style < 0.35 and total > 1:
        # Several of the same kind, for counting; the rest of the places go to other objects.
        same = rng.randint(2, total)
        if rng.random() < 0.6:
            name = rng.choice(list(THINGS))
            objects += [{"kind": "thing", "name": name} for _ in range(same)]
        else:
            name = rng.choice(SHAPES)
            colour = rng.choice(list(COLOURS))
            mixed = rng.random() < 0.3
            objects += [{"kind": "shape", "name": name,
                         "colour": rng.choice(list(COLOURS)) if mixed else colour} for _ in range(same)]
        used.add(name)
    while len(objects) < total:
        kind = rng.choices(["thing", "shape", "word"], [0.5, 0.35, 0.15])[0]
        if kind == "word":
            if any(o["kind"] == "word" for o in objects):
                continue
            objects.append({"kind": "word", "name": rng.choice(WORDS)})
        else:
            name = rng.choice(list(THINGS) if kind == "thing" else SHAPES)
            if name in used:
                continue
            used.add(name)
            objects.append({"kind": kind, "name": name})
            if kind == "shape":
                objects[-1]["colour"] = rng.choice(list(COLOURS))
    rng.shuffle(objects)
    return objects


def place(rng, size, boxes):
    """Finds a centre for every box so that they hardly touch, or returns None."""
    width, height = size
    gap = 0.02 * max(size)
    for attempt in range(30):
        centres = []
        for w, h in boxes:
            for trial in range(40):
                cx = rng.uniform(w / 2 + gap, width - w / 2 - gap)
                cy = rng.uniform(h / 2 + gap, height - h / 2 - gap)
                if all(abs(cx - x) > (w + bw) / 2 + gap or abs(cy - y) > (h + bh) / 2 + gap
                       for (x, y), (bw, bh) in zip(centres, boxes)):
                    centres.append((cx, cy))
                    break
            else:
                break
        if len(centres) == len(boxes):
            return centres
    return None


def draw_scene(seed, long_side=None, objects=None, size=None):
    """Returns (RGB image, list of objects with position and size as fractions of the image).

    Without long_side, objects and size, all three are drawn by lot.
    """
    rng = random.Random(seed)
    if long_side is None:
        long_side = rng.choice([128, 160, 200, 256, 320])
    a, b = rng.choice(ASPECTS)
    if size is None:
        size = (long_side * a // max(a, b), long_side * b // max(a, b))
    long_side = max(size)
    objects = [dict(o) for o in objects] if objects else contents(rng)
    shrink = 1.0
    while True:
        sides = []
        for o in objects:
            scale = {1: (0.3, 0.55), 2: (0.26, 0.42), 3: (0.24, 0.36)}.get(len(objects), (0.21, 0.3))
            side = rng.uniform(*scale) * shrink * long_side
            if o["kind"] == "word":
                # Words need width: about 9 to 13 of 128 pixels a letter.
                per_letter = rng.uniform(0.07, 0.1) if len(objects) > 2 else rng.uniform(0.08, 0.13)
                side = max(0.2, min(0.62, per_letter * len(o["name"]))) * long_side * max(shrink, 0.9)
                side = min(side, 0.9 * size[0])
            sides.append(side)
        sprites = []
        colours = [COLOURS[o["colour"]] for o in objects if o["kind"] == "shape"]
        text_colour = rng.choice([COLOURS["black"], COLOURS["white"]])
        avoid = colours + ([text_colour] * any(o["kind"] == "word" for o in objects))
        for o, side in zip(objects, sides):
            sprites.append(sprite_of(rng, o, max(10, round(side)), text_colour))
        centres = place(rng, size, [s.size for s in sprites])
        if centres:
            break
        shrink *= 0.93
    image, kind = background(rng, size, avoid)
    for o, sprite, (cx, cy) in zip(objects, sprites, centres):
        corner = round(cx - sprite.width / 2), round(cy - sprite.height / 2)
        image.paste(sprite, corner, sprite)
        o.update(x=cx / size[0], y=cy / size[1], w=sprite.width / size[0], h=sprite.height / size[1])
    return image, objects


def draw_sheet(seed):
    """A crowded picture, mostly of words, that only the pre-training of the tower sees.

    A scene holds a word in one of three pictures; a sheet holds six to ten at once, so the tower
    learns to read from far fewer pictures.  Returns what draw_scene returns.
    """
    rng = random.Random(f"sheet {seed}")
    side = rng.choice([128, 160, 200, 256])
    text_colour = rng.choice([COLOURS["black"], COLOURS["white"]])
    shape_colour = rng.choice(list(COLOURS))
    image, _ = background(rng, (side, side), [text_colour, COLOURS[shape_colour]])
    objects, boxes = [], []
    names = rng.sample(WORDS, 14) + rng.sample(list(THINGS), 5) + rng.sample(SHAPES, 1)
    rng.shuffle(names)
    for name in names:
        if name in WORDS:
            o = {"kind": "word", "name": name}
            extent = max(0.2, min(0.62, rng.uniform(0.07, 0.13) * len(name)))
        else:
            o = {"kind": "thing", "name": name} if name in THINGS else \
                {"kind": "shape", "name": name, "colour": shape_colour}
            extent = rng.uniform(0.2, 0.34)
        sprite = sprite_of(rng, o, max(10, round(extent * side)), text_colour)
        w, h = sprite.size
        for trial in range(30):
            cx, cy = (rng.uniform(s / 2 + 1, side - s / 2 - 1) for s in (w, h))
            if all(abs(cx - x) > (w + bw) / 2 + 2 or abs(cy - y) > (h + bh) / 2 + 2 for x, y, bw, bh in boxes):
                boxes.append((cx, cy, w, h))
                image.paste(sprite, (round(cx - w / 2), round(cy - h / 2)), sprite)
                o.update(x=cx / side, y=cy / side, w=w / side, h=h / side)
                objects.append(o)
                break
    return image, objects


def compress(image, quality):
    """The image as it looks after a trip through JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def main():
    from .questions import ask, required_names
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--long-side", type=int, help="pixels; without it sizes vary")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "scenes.jsonl", "w", encoding="utf-8") as lines:
        for i in range(args.count):
            seed = args.seed * 1_000_000 + i
            image, objects = draw_scene(seed, args.long_side)
            name = f"{i:05d}.jpg"
            image.save(args.out / name, quality=random.Random(seed).randint(70, 95))
            qa = ask(random.Random(seed + 1), objects)
            lines.write(json.dumps({
                "id": f"{i:05d}", "image": name,
                "prompts": [q for _, q, _ in qa],
                "answers": [required_names(objects) if k == "caption" else a for k, _, a in qa],
                "kinds": [k for k, _, _ in qa]}) + "\n")


if __name__ == "__main__":
    main()
