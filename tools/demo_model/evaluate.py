"""Scores an exported checkpoint on freshly drawn scenes.

    python3 -m tools.demo_model.evaluate --model models/mipha-demo --seed 1 --count 500

The scenes come from seeds that training never uses.  Answers are decoded greedily by the reference
forward of `reference.py` from the exported float16 weights.  An answer is right when it is exactly
the true one; a caption is right when it names every object of the scene.
"""

import argparse
import collections
import json
import random
import re

import torch

from .draw import compress, draw_scene
from .questions import ask, required_names

EVALUATION_SEED = 1_000_000_000
TARGETS = {"presence": 0.95, "colour": 0.95, "shape": 0.95, "count": 0.90, "caption": 0.85}


def names_all(text, names):
    """Whether every name occurs, singular or plural, as whole words."""
    return all(re.search(rf"\b{re.escape(n)}(s|es)?\b", text) for n in names)


def correct(kind, text, answer, names):
    return names_all(text, names) if kind == "caption" else text == answer


def scenes(seed, count):
    for i in range(count):
        image, objects = draw_scene(EVALUATION_SEED + seed * 1_000_000 + i)
        rng = random.Random(f"evaluate {seed} {i}")
        yield compress(image, rng.randint(65, 95)), objects, ask(rng, objects, count=8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=500, help="scenes")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--json", help="also write the scores to this file")
    parser.add_argument("--show-errors", type=int, default=0)
    args = parser.parse_args()
    from .reference import Reference
    torch.set_num_threads(2)
    model = Reference(args.model)
    right, total, exact, by_answer = (collections.Counter() for _ in range(4))
    pending, shown = [], 0

    def flush():
        nonlocal shown
        # Questions of one length together, so that nothing is spent on padding.
        pending.sort(key=lambda p: len(model.prompt_ids(p[2])[1]) + 100 * (p[1] == "caption"))
        for start in range(0, len(pending), args.batch):
            part = pending[start:start + args.batch]
            answers = model.answer([p[0] for p in part], [p[2] for p in part])
            for (_, kind, question, answer, names), text in zip(part, answers):
                good = correct(kind, text, answer, names)
                total[kind] += 1
                right[kind] += good
                exact[kind] += text == answer
                by_answer[kind, answer, good] += 1
                if not good and shown < args.show_errors:
                    shown += 1
                    print(f"{kind}: {question!r} -> {text!r}, truly {answer!r}")
        pending.clear()

    batch = list(scenes(args.seed, args.count))
    for start in range(0, len(batch), 64):
        part = batch[start:start + 64]
        for feature, (_, objects, asked) in zip(model.features([s[0] for s in part]), part):
            names = required_names(objects)
            pending.extend((feature, k, q, a, names) for k, q, a in asked)
        flush()

    scores = {}
    for kind in sorted(total):
        score = right[kind] / total[kind]
        scores[kind] = {"score": round(score, 4), "questions": total[kind]}
        goal = TARGETS.get(kind)
        remark = "" if goal is None else f"  target {goal:.2f}  {'reached' if score >= goal else 'MISSED'}"
        if kind == "caption":
            scores[kind]["exact"] = round(exact[kind] / total[kind], 4)
            remark += f"  (exactly the drawer's sentence: {scores[kind]['exact']:.4f})"
        print(f"{kind:9s} {score:7.4f}  of {total[kind]:5d}{remark}")
    counted = {a: by_answer["count", a, True] + by_answer["count", a, False]
               for k, a, _ in by_answer if k == "count"}
    scores["count"]["by_answer"] = {a: round(by_answer["count", a, True] / n, 4) for a, n in sorted(counted.items())}
    print("count by true answer:", scores["count"]["by_answer"])
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"seed": args.seed, "scenes": args.count, "scores": scores}, f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
