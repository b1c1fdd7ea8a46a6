"""Draws the small fixed set on which the tests score the shipped checkpoint.

    python3 -m tools.demo_model.scoring_set --out tests/data/demo_scenes

Writes small JPEGs and scenes.jsonl, one object a line: id, image, prompts, answers, kinds.  The
answers are the drawer's knowledge, not a model's output.  Where the kind is "caption" the answer is
the list of names that must occur in the caption, singular or plural; every other answer is compared
exactly.
"""

import argparse
import json
import pathlib
import random

from .draw import draw_scene
from .questions import ask, required_names

SCORING_SEED = 2_000_000_000  # Far from the seeds of training, validation and evaluation.


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "scenes.jsonl", "w", encoding="utf-8") as lines:
        for i in range(args.count):
            seed = SCORING_SEED + i
            rng = random.Random(seed)
            image, objects = draw_scene(seed, rng.choice([160, 200, 256, 320]))
            name = f"scene-{i:02d}.jpg"
            image.save(args.out / name, quality=rng.randint(70, 92))
            asked = ask(rng, objects, count=8)
            lines.write(json.dumps({
                "id": f"scene-{i:02d}", "image": name,
                "prompts": [q for _, q, _ in asked],
                "answers": [required_names(objects) if k == "caption" else a for k, _, a in asked],
                "kinds": [k for k, _, _ in asked]}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
