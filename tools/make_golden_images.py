"""Writes tests/data/images: small image files of every kind we read, and what Pillow makes of them.

    python3 tools/make_golden_images.py            needs Pillow >= 10 and numpy

    *.jpg *.png *.webp   the files
    decode.tsv           file, format, stored size, orientation, digests: RGB, upright RGB,
                         planes of SigLIP preprocessing at 64 px without and with padding
    resize.tsv           seed, size, new size, padded?, digest of Pillow's bicubic result
    damage.tsv           file, kind of damage, seed, digest of Pillow's RGB or "refused"

and tests/data/hostile: small files that unpack to very much.

A digest is the first 16 hex digits of SHA-256. Pixels of resize.tsv and the damage of damage.tsv come
from formulas that tests/vision_node/image_cases.c repeats.
"""
import hashlib
import io
import pathlib
import struct
import sys
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "images"
HOSTILE = OUT.parent / "hostile"
SIZE = 64
PAD = (127, 127, 127)
RESIZE_CASES = 500
DAMAGE_CASES = 40
warnings.simplefilter("ignore")


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def mix(i, seed):
    """A 32-bit hash of a place and a seed, for whole arrays at once."""
    x = (np.asarray(i, dtype=np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint64(shift)
        x = (x * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(16))


def pixels(seed, width, height):
    """Noise for odd seeds, only 0 and 255 for even ones: the cubic overshoots most there."""
    v = (mix(np.arange(width * height * 3), seed) >> np.uint64(24)).astype(np.uint8)
    if seed % 2 == 0:
        v = np.where(v > 127, 255, 0).astype(np.uint8)
    return v.reshape(height, width, 3)


def scene(width, height, channels, seed=7):
    """Slopes, an edge and a little noise, so that every coder has something to do."""
    y, x = np.mgrid[0:height, 0:width]
    planes = []
    for c in range(channels):
        v = (x * (3 + c) + y * (5 - c)) % 256 + (mix(np.arange(width * height), seed + c) >> np.uint64(28)).astype(int).reshape(height, width)
        v = np.where((x - width // 2) ** 2 + (y - height // 2) ** 2 < (height // 3) ** 2, 250 - 60 * c, v)
        planes.append(np.clip(v, 0, 255))
    return np.stack(planes, axis=-1).astype(np.uint8)


# ---- PNG of every colour type and depth, interlaced or not: Pillow writes only some of them ----

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_rows(samples, depth):
    """Filter byte and packed samples of each row; samples [h, w, channels]."""
    out = bytearray()
    for y, row in enumerate(samples):
        if depth == 16:
            raw = row.astype(">u2").tobytes()
        elif depth == 8:
            raw = row.astype(np.uint8).tobytes()
        else:
            bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth:].reshape(-1)
            raw = np.packbits(bits).tobytes()
        step = max(1, depth * samples.shape[2] // 8)
        kind = y % 2  # "none" and "sub" in turn
        if kind:
            raw = bytes((b - (raw[i - step] if i >= step else 0)) & 255 for i, b in enumerate(raw))
        out += bytes([kind]) + raw
    return bytes(out)


def png(samples, colour, depth, interlaced=False, extra=b"", palette=None):
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    if interlaced:
        data = b"".join(png_rows(samples[y0::dy, x0::dx], depth) for x0, y0, dx, dy in ADAM7
                        if samples[y0::dy, x0::dx].size)
    else:
        data = png_rows(samples, depth)
    body = zlib.compress(data, 9)
    parts = [b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header)]
    if palette is not None:
        parts.append(png_chunk(b"PLTE", palette))
    parts += [extra, png_chunk(b"IDAT", body[:50]), png_chunk(b"IDAT", body[50:]), png_chunk(b"IEND", b"")]
    return b"".join(parts)


def png_files():
    for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
        for depth in depths:
            channels = PNG_CHANNELS[colour]
            width, height = 37, 23
            noise = mix(np.arange(width * height * channels), 100 + colour * 17 + depth)
            samples = (noise >> np.uint64(32 - depth)).reshape(height, width, channels).astype(np.int64)
            palette, extra = None, b""
            if depth == 16 and colour == 0:
                samples = np.where(samples & 1, samples, samples >> 8)  # half of them below 256
            if colour == 3:
                palette = (mix(np.arange(3 << depth), 5) >> np.uint64(24)).astype(np.uint8).tobytes()
                extra = png_chunk(b"tRNS", bytes(range(0, 1 << min(depth, 4))))
            if colour == 2 and depth == 8:
                extra = png_chunk(b"gAMA", struct.pack(">I", 30000))
                extra += png_chunk(b"tRNS", bytes([0, int(samples[0, 0, 0]), 0, int(samples[0, 0, 1]), 0, int(samples[0, 0, 2])]))
            if colour == 0 and depth == 4:
                extra = png_chunk(b"tRNS", b"\0\x05")
            for interlaced in (False, True):
                name = f"png_c{colour}_d{depth}{'_adam7' if interlaced else ''}.png"
                yield name, png(samples, colour, depth, interlaced, extra, palette)
    few = (mix(np.arange(15 * 9), 9) >> np.uint64(24)).reshape(9, 15, 1) % 11
    yield "png_short_palette.png", png(few, 3, 8, palette=bytes(range(5 * 3)))
    yield "png_1x1.png", png(np.array([[[200, 100, 50]]]), 2, 8)
    yield "png_big_noise.png", png(scene(211, 97, 4), 6, 8)


def exif(orientation, order="<", tag_type=3):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + ("HH" if tag_type == 3 else "I"), *((orientation, 0) if tag_type == 3 else (orientation,)))
    entries = struct.pack(order + "HHI", 0x010F, 2, 4) + b"abc\0"
    entries += struct.pack(order + "HHI", 0x0112, tag_type, 1) + value
    return mark + struct.pack(order + "IH", 8, 2) + entries + struct.pack(order + "I", 0)


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def jpeg_files():
    rgb = Image.fromarray(scene(61, 47, 3))
    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        for quality in (30, 92):
            yield f"jpeg_{name}_q{quality}.jpg", saved(rgb, "JPEG", quality=quality, subsampling=sampling)
        yield f"jpeg_{name}_progressive.jpg", saved(rgb, "JPEG", quality=80, subsampling=sampling, progressive=True)
    yield "jpeg_restart.jpg", saved(rgb, "JPEG", quality=75, restart_marker_blocks=2)
    yield "jpeg_rgb_coded.jpg", saved(rgb, "JPEG", quality=90, keep_rgb=True)
    yield "jpeg_grey.jpg", saved(Image.fromarray(scene(50, 33, 1)[..., 0]), "JPEG", quality=85)
    yield "jpeg_grey_progressive.jpg", saved(Image.fromarray(scene(50, 33, 1)[..., 0]), "JPEG", quality=85, progressive=True)
    cmyk = saved(Image.fromarray(scene(45, 39, 4), "CMYK"), "JPEG", quality=90)
    yield "jpeg_cmyk.jpg", cmyk
    adobe = cmyk.index(b"Adobe")
    yield "jpeg_ycck.jpg", cmyk[: adobe + 11] + b"\x02" + cmyk[adobe + 12:]
    yield "jpeg_1x1.jpg", saved(Image.new("RGB", (1, 1), (10, 200, 30)), "JPEG")
    yield "jpeg_2x9_420.jpg", saved(Image.fromarray(scene(2, 9, 3)), "JPEG", subsampling=2)
    yield "jpeg_big_420.jpg", saved(Image.fromarray(scene(331, 217, 3)), "JPEG", quality=85)
    for orientation in range(1, 9):
        order = "<" if orientation % 2 else ">"
        yield f"jpeg_exif{orientation}.jpg", saved(Image.fromarray(scene(23, 14, 3)), "JPEG", quality=90,
                                                   exif=b"Exif\0\0" + exif(orientation, order))


def webp_box(name, data):
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)


def webp_files():
    rgb, rgba = Image.fromarray(scene(61, 47, 3)), Image.fromarray(scene(61, 47, 4))
    yield "webp_lossy.webp", saved(rgb, "WEBP", quality=60)
    yield "webp_lossless.webp", saved(rgb, "WEBP", lossless=True)
    yield "webp_alpha_lossy.webp", saved(rgba, "WEBP", quality=70, exact=True)
    yield "webp_alpha_lossless.webp", saved(rgba, "WEBP", lossless=True, exact=True)
    frames = [Image.fromarray(scene(32, 24, 4, seed)) for seed in (1, 2, 3)]
    yield "webp_animated.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=50)
    yield "webp_1x1.webp", saved(Image.new("RGB", (1, 1), (1, 2, 250)), "WEBP", lossless=True)
    yield "webp_exif6.webp", saved(Image.fromarray(scene(23, 14, 3)), "WEBP", lossless=True, exif=exif(6))
    # an animation whose first frame covers only a part of the canvas
    frame = saved(Image.fromarray(scene(20, 10, 4)), "WEBP", lossless=True, exact=True)[12:]
    u24 = lambda v: struct.pack("<I", v)[:3]
    head = webp_box(b"VP8X", bytes([0x12, 0, 0, 0]) + u24(39) + u24(29)) + webp_box(b"ANIM", bytes(4) + b"\0\0")
    part = webp_box(b"ANMF", u24(3) + u24(4) + u24(19) + u24(9) + u24(100) + b"\0" + frame)
    body = b"WEBP" + head + part + part
    yield "webp_part_frame.webp", b"RIFF" + struct.pack("<I", len(body)) + body


def exif_png_files():
    for orientation in (3, 8):
        extra = png_chunk(b"eXIf", exif(orientation, ">", 4))
        yield f"png_exif{orientation}.png", png(scene(23, 14, 3), 2, 8, extra=extra)


# ---- what the reference makes of them ----


def to_square(image):
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), PAD)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def resized(image, width, height):
    """Horizontal pass, then vertical: what one call does in every Pillow before 13. From 13 on one call
    may swap the passes when a side grows and the other shrinks; Mipha's reference is Pillow 10.2."""
    return image.resize((width, image.height), Image.BICUBIC).resize((width, height), Image.BICUBIC)


def planes(image):
    """SigLIP: resize, rescale in double, normalise in float32, channels first."""
    v = np.asarray(resized(image, SIZE, SIZE))
    r = (v.astype(np.float64) * 0.00392156862745098).astype(np.float32)
    out = (r - np.float32(0.5)) / np.float32(0.5)
    return np.ascontiguousarray(out.transpose(2, 0, 1), dtype="<f4").tobytes()


def rgb_of(data):
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        return image.convert("RGB")


def decode_row(name, data):
    image = Image.open(io.BytesIO(data))
    rgb = image.convert("RGB")
    image = Image.open(io.BytesIO(data))
    upright = ImageOps.exif_transpose(image).convert("RGB")
    orientation = image.getexif().get(0x0112, 1)
    return [name, image.format, *rgb.size, orientation, digest(rgb.tobytes()), digest(upright.tobytes()),
            digest(planes(rgb)), digest(planes(to_square(rgb)))]


def damaged(data, kind, seed):
    if kind == "cut":  # keep seed sixteenths
        return data[: len(data) * seed // 16]
    out = bytearray(data)  # 1 to 4 bytes replaced
    for j in range(1 + seed % 4):
        place, value = int(mix(2 * j, seed)), int(mix(2 * j + 1, seed))
        out[place % len(out)] = value & 255
    return bytes(out)


def damage_rows(name, data):
    for kind, seeds in (("cut", range(1, 16)), ("flip", range(DAMAGE_CASES))):
        for seed in seeds:
            try:
                rgb = rgb_of(damaged(data, kind, seed))
                yield name, kind, seed, digest(rgb.tobytes())
            except Exception:  # whatever the library raises is a refusal
                yield name, kind, seed, "refused"


def resize_rows():
    draw = np.random.default_rng(2024)
    for seed in range(RESIZE_CASES):
        limit = (16, 120, 700)[seed % 3]
        width, height = (int(v) for v in draw.integers(1, limit + 1, 2))
        out = int(draw.integers(1, 97)), int(draw.integers(1, 97))
        if seed % 11 == 0:
            out = width, out[1]
        if seed % 13 == 0:
            out = out[0], height
        padded = seed % 4 == 1
        image = Image.fromarray(pixels(seed, width, height))
        result = resized(to_square(image) if padded else image, *out)
        yield seed, width, height, *out, int(padded), digest(result.tobytes())


def hostile_files():
    """Complete and valid, so that only a limit stops them: black pictures, and a comment of 100 MB."""
    def black(side):
        z = zlib.compressobj(9)
        row = bytes(1 + (side + 7) // 8)
        data = b"".join(z.compress(row) for _ in range(side)) + z.flush()
        return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
                + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b""))

    comment = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    return [("sides_30000.png", black(30000)), ("sides_7900.png", black(7900)),
            ("comment.png", png(pixels(5, 16, 16), 2, 8, extra=comment))]


def write_table(name, comment, rows):
    text = "".join("\t".join(str(v) for v in row) + "\n" for row in rows)
    (OUT / name).write_text(f"# {comment}; written by tools/{pathlib.Path(sys.argv[0]).name}\n" + text)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    files = [f for maker in (jpeg_files, png_files, exif_png_files, webp_files) for f in maker()]
    for name, data in files:
        (OUT / name).write_bytes(data)
    write_table("decode.tsv", "file format width height orientation rgb upright planes padded_planes",
                [decode_row(name, data) for name, data in files])
    write_table("damage.tsv", "file kind seed digest-or-refused",
                [row for name, data in files for row in damage_rows(name, data)])
    write_table("resize.tsv", "seed width height new_width new_height padded digest", resize_rows())
    HOSTILE.mkdir(exist_ok=True)
    for name, data in hostile_files():
        (HOSTILE / name).write_bytes(data)
    print(f"{len(files)} files, {sum(len(d) for _, d in files)} bytes in {OUT}")


if __name__ == "__main__":
    main()
