#!/usr/bin/env python3
"""Pictures a second from files to answers: mipha against transformers in a Python loop.

    pip install -r bench/requirements.txt
    python3 bench/end_to_end.py --build build/release [--images 96] [--rounds 3]

The demonstration model answers one question about each picture.  The pictures are the example images, each
moved sideways by another number of pixels, so that none is equal to another and nothing is answered from a
cache.  In turns:

embedded   `mipha annotate`, everything in one process; its start and the loading of the model are timed
cluster    `mipha annotate --broker` on a running `mipha up` (broker, vision node, lm node, Redis, started
           again for every round, so that its cache is empty); the start of `annotate` is timed
loop       transformers, one picture after the other, keys and values cached; imports and loading not timed
batches    the same with 16 pictures at once, which needs prompts of equal length, as here

All are greedy, f32 activations, the same number of threads, at most 32 new tokens.  A row is the median of
the rounds; ratio is the rate of embedded divided by the rate of the row.  The answers are compared.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from PIL import Image, ImageChops
from transformers import DynamicCache

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tools.demo_model.reference import Reference  # noqa: E402

QUESTION, NEW_TOKENS, BATCH = "What do you see?", 32, 16


def write_images(folder, count):
    sources = sorted(p for p in (ROOT / "examples").iterdir() if p.suffix in (".jpg", ".png", ".webp"))
    for i in range(count):
        image = Image.open(sources[i % len(sources)]).convert("RGB")
        ImageChops.offset(image, i // len(sources), 0).save(folder / f"{i:04d}.png", compress_level=1)


@torch.inference_mode()
def answers_of(reference, images):
    """Greedy, one prompt for all, so that all sequences are equally long until the first ends."""
    features = reference.features(images)
    x = torch.stack([reference.embeddings(f, QUESTION) for f in features])
    cache, out, running = DynamicCache(), [[] for _ in images], list(range(len(images)))
    step = {"inputs_embeds": x}
    for _ in range(NEW_TOKENS):
        logits = reference.decoder(**step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        best = logits[:, -1].argmax(-1)
        for i, token in enumerate(best.tolist()):
            if i in running:
                out[i].append(token)
        running = [i for i in running if out[i][-1] != reference.end]
        if not running:
            break
        step = {"input_ids": best[:, None]}
    return [reference.tokenizer.decode([t for t in ids if t != reference.end]).strip() for ids in out]


def run_loop(reference, files, batch):
    answers = {}
    for first in range(0, len(files), batch):
        part = files[first:first + batch]
        images = [Image.open(f) for f in part]
        answers.update(zip((f.name for f in part), answers_of(reference, images)))
    return answers


def run_mipha(args, folder, out, *more):
    subprocess.run([args.build / "bin" / "mipha", "annotate", "-q", "--no-exif", "-n", str(NEW_TOKENS), "-p", QUESTION,
                    "-o", out, "--overwrite", *more, folder], check=True)


def answers_in(out):
    lines = (json.loads(line) for line in out.read_text().splitlines())
    return {pathlib.Path(line["image"]).name: line for line in lines if "image" in line}


def run_cluster(args, folder, out, scratch):
    """Seconds of annotate alone, on a cluster with an empty cache."""
    ready = scratch / "ready"
    ready.unlink(missing_ok=True)
    up = subprocess.Popen([args.build / "bin" / "mipha", "up", "--ready-file", ready, "--threads", str(args.threads),
                           "--log-level", "error"], stdout=subprocess.DEVNULL)
    try:
        while not (ready.exists() and ready.read_text().strip()):
            if up.poll() is not None:
                raise SystemExit("mipha up did not start")
            time.sleep(0.05)
        start = time.perf_counter()
        run_mipha(args, folder, out, "--broker", ready.read_text().strip())
        return time.perf_counter() - start
    finally:
        up.terminate()
        up.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["MIPHA_MODEL"] = str(ROOT / "models" / "mipha-demo")
    reference = Reference(ROOT / "models" / "mipha-demo")
    for part in (reference.tower, reference.decoder):
        part.set_attn_implementation("sdpa")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        folder, out = scratch / "images", scratch / "out.jsonl"
        folder.mkdir()
        write_images(folder, args.images)
        files = sorted(folder.iterdir())
        run_loop(reference, files[:BATCH], BATCH)  # warms up
        times = {"embedded": [], "cluster": [], "loop": [], "batches": []}
        for _ in range(args.rounds):
            start = time.perf_counter()
            run_mipha(args, folder, out, "--threads", str(args.threads))
            times["embedded"].append(time.perf_counter() - start)
            ours = answers_in(out)
            times["cluster"].append(run_cluster(args, folder, out, scratch))
            clustered = answers_in(out)
            for name, batch in (("loop", 1), ("batches", BATCH)):
                start = time.perf_counter()
                theirs = run_loop(reference, files, batch)
                times[name].append(time.perf_counter() - start)
    same = sum(ours[n]["text"] == theirs[n] for n in theirs)
    both = sum(ours[n]["text"] == clustered[n]["text"] for n in theirs)
    mine = statistics.median(times["embedded"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:10s} {len(files) / middle:7.1f} images/s   ratio {middle / mine:5.2f}")
    print(f"{same} of {len(files)} answers equal transformers', {both} those of the cluster")


if __name__ == "__main__":
    main()
