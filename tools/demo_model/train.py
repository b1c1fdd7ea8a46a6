"""Trains the demonstration checkpoint.

    python3 -m tools.demo_model.train --seed 1 --cache /tmp/demo_pool --work /tmp/demo_run --out models/mipha-demo

Stages, each resumable from --work:
  tower   the vision tower learns to say, patch by patch, what is there (in the paper the tower
          comes pre-trained from SigLIP);
  text    the decoder learns the language of questions and answers without any image (in the paper
          it comes pre-trained as Phi-2);
  align   paper, first stage: only the projector learns, on captions;
  all     paper, second stage: everything learns, on all kinds of questions;
  sheets  the tower alone again, on crowded sheets of words and things beside the scenes, because
          reading was what the model did worst;
  more    everything again, on all kinds of questions, with sheets beside the scenes for the tower.
"""

import argparse
import json
import math
import pathlib
import random
import time

import numpy
import tokenizers
import torch
import torch.nn.functional as F

from . import data, export, tokenizer as text_tools
from .model import CONFIG, Mipha
from .questions import ask

SHORT, LONG = 16, 32  # Slots for a question with its answer, and for a caption with its question.
COLOUR_COUNT, COUNT_CLASSES = len(data.COLOURS), 6
VALIDATION_SEED = 20_000_000

STAGES = {
    # steps, images a step, peak rate of AdamW, and how much higher the rate of Muon is.
    "tower": dict(steps=2400, batch=32, rate=2e-3, matrix_rate=2.5),
    "text": dict(steps=120, batch=32, rate=2e-3, matrix_rate=1.0),
    "align": dict(steps=80, batch=32, rate=2e-3, matrix_rate=1.0),
    "all": dict(steps=2600, batch=32, rate=2e-3, matrix_rate=1.0),
    "sheets": dict(steps=4200, batch=8, sheets=24, rate=1.5e-3, matrix_rate=1.0),
    "more": dict(steps=1800, batch=32, sheets=8, rate=1.5e-3, matrix_rate=1.0),
}
TOWER_RATE_IN_ALL = 0.5
PATCH_LOSS_IN_ALL = 0.3  # The patch labels go on supporting the tower while everything learns.


class PatchHead(torch.nn.Module):
    """Reads the tower's patches during its pre-training; not part of the checkpoint."""

    def __init__(self):
        super().__init__()
        width = CONFIG["vision"]["hidden_size"]
        self.sizes = [len(data.CLASSES), COLOUR_COUNT, 2, COUNT_CLASSES]
        self.norm = torch.nn.LayerNorm(width)
        self.linear = torch.nn.Linear(width, sum(self.sizes))

    def forward(self, x, labels):
        out = self.linear(self.norm(x.float())).split(self.sizes, -1)
        kind, colour, centre, alike = labels.long().unbind(1)
        inside = kind.flatten() > 0
        loss = F.cross_entropy(out[0].flatten(0, 1), kind.flatten())
        loss = loss + F.cross_entropy(out[1].flatten(0, 1), colour.flatten(), ignore_index=data.IGNORE)
        loss = loss + F.cross_entropy(out[2].flatten(0, 1), centre.flatten())
        loss = loss + F.cross_entropy(out[3].flatten(0, 1)[inside], alike.flatten()[inside])
        with torch.no_grad():
            scores = {
                "class": (out[0].argmax(-1) == kind)[kind > 0].float().mean().item(),
                "colour": (out[1].argmax(-1) == colour)[colour != data.IGNORE].float().mean().item(),
                "centre": (out[2].argmax(-1) == centre)[centre > 0].float().mean().item(),
                "alike": (out[3].argmax(-1) == alike)[kind > 0].float().mean().item(),
            }
        return loss, scores


class Optimizer:
    """Muon for the matrices inside the networks, AdamW for everything else."""

    def __init__(self, groups, matrix_rate, decay=0.02):
        self.factors = 1.0, matrix_rate
        matrices, others = [], []
        for parameters, scale in groups:
            m = [p for n, p in parameters if p.dim() == 2 and "embed" not in n and "lm_head" not in n
                 and "linear" not in n]
            o = [p for n, p in parameters if not any(p is q for q in m)]
            if m:
                matrices.append({"params": m, "scale": scale})
            if o:
                others.append({"params": o, "scale": scale})
        self.parts = [torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)]
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=1e-3, weight_decay=decay,
                                               adjust_lr_fn="match_rms_adamw"))

    def step(self, rate):
        for part, factor in zip(self.parts, self.factors):
            for group in part.param_groups:
                group["lr"] = rate * group["scale"] * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self):
        return [p.state_dict() for p in self.parts]

    def load(self, state):
        for part, s in zip(self.parts, state):
            part.load_state_dict(s)


def schedule(step, steps, peak, warm=60):
    """Linear warm-up, flat, then linear decay over the last 60 % of the stage."""
    return peak * min(1.0, (step + 1) / warm, (steps - step) / (0.6 * steps))


def normalise(pixels):
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    return ((x / 255 - 0.5) / 0.5).bfloat16()


def batch_order(count, batch, steps, seed):
    """Indices of every step: shuffled passes over the pool."""
    rng = numpy.random.default_rng(seed)
    passes = max(1, math.ceil(batch * steps / count))
    order = numpy.concatenate([rng.permutation(count) for _ in range(passes)])
    return order[:batch * steps].reshape(steps, batch)


def pack(text, rows, width):
    """rows: per image a list of (question, answer).  Returns ids and targets [B, n, width]."""
    n = max(len(r) for r in rows)
    ids = torch.full((len(rows), n, width), text.end)
    targets = torch.full((len(rows), n, width), -1)
    for i, row in enumerate(rows):
        for j, (question, answer) in enumerate(row):
            tokens, start = text.pair(question, answer)
            if len(tokens) > width:
                continue
            ids[i, j, :len(tokens)] = torch.tensor(tokens)
            targets[i, j, start - 1:len(tokens) - 1] = torch.tensor(tokens[start:])
    return ids, targets


def answer_logits(model, states, targets):
    """Logits and targets at the places that are trained: answers and their end."""
    chosen = [t >= 0 for t in targets]
    x = torch.cat([s[c] for s, c in zip(states, chosen)])
    return model.logits(x).float(), torch.cat([t[c] for t, c in zip(targets, chosen)])


def questions(rng, objects, stage):
    if stage == "align":
        return ask(rng, objects, count=0, captions=2)
    return ask(rng, objects, count=8 if stage == "text" else 4, captions=1)


def split_rows(asked):
    captions = [[(q, a) for k, q, a in one if k == "caption"] for one in asked]
    others = [[(q, a) for k, q, a in one if k != "caption"] for one in asked]
    return captions, others


@torch.no_grad()
def validate(model, text, pixels, objects):
    """Share of answers that greedy decoding would give exactly, by kind.

    With the true answer fed in, every token is the most probable one if and only if greedy decoding
    produces that answer, so no generation is needed here.
    """
    right, total = {}, {}
    rng = random.Random(7)
    for start in range(0, len(objects), 64):
        asked = [ask(rng, o, count=10) for o in objects[start:start + 64]]
        image = model.project(model.tower(normalise(pixels[start:start + 64])))
        ids, targets = pack(text, [[(q, a) for _, q, a in one] for one in asked], LONG)
        states, = model.answer_states(torch.tensor(text.system), image, [ids])
        good = (model.logits(states).argmax(-1) == targets) | (targets < 0)
        good = good.all(-1)
        for i, one in enumerate(asked):
            for j, (kind, _, _) in enumerate(one):
                right[kind] = right.get(kind, 0) + good[i, j].item()
                total[kind] = total.get(kind, 0) + 1
    return {k: round(right[k] / total[k], 4) for k in sorted(total)}


class Run:
    def __init__(self, args):
        self.args = args
        self.work = args.work
        self.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        path = self.work / "tokenizer.json"
        if not path.exists():
            text_tools.build(args.seed).save(str(path))
        self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self.text = text_tools.Text(self.tokenizer)
        self.model, self.head, self.head2 = Mipha(), PatchHead(), PatchHead()
        self.log_file = open(self.work / "log.jsonl", "a", encoding="utf-8")
        self.pixels = None

    def load_data(self):
        if self.pixels is None:
            self.pixels, self.labels, self.objects = data.pool(self.args.cache, self.args.scenes)
            self.sheet_pixels, self.sheet_labels, _ = data.pool(
                self.args.cache / "sheets", self.args.sheets, data.make_sheet)
            made = [data.make(VALIDATION_SEED + i) for i in range(256)]
            self.check = numpy.stack([m[0] for m in made]), [m[2] for m in made]

    def log(self, **record):
        line = json.dumps(record)
        print(line, flush=True)
        print(line, file=self.log_file, flush=True)

    def state_path(self, stage, final):
        return self.work / (f"{stage}.pt" if final else f"{stage}.partial.pt")

    def save(self, stage, step, optimizer, final):
        path = self.state_path(stage, final)
        torch.save({"model": self.model.state_dict(), "head": self.head.state_dict(), "step": step,
                    "head2": self.head2.state_dict(),
                    "optimizer": None if final else optimizer.state()}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    def restore(self, path, optimizer=None):
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.head2.load_state_dict(state["head2"])
        if optimizer:
            optimizer.load(state["optimizer"])
        return state["step"]

    def groups(self, stage):
        named = list(self.model.named_parameters())
        tower = [(n, p) for n, p in named if "vision_tower" in n]
        projector = [(n, p) for n, p in named if "mm_projector" in n]
        decoder = [(n, p) for n, p in named if "vision_tower" not in n and "mm_projector" not in n]
        if stage in ("tower", "sheets"):
            return [(tower, 1.0), (list(self.head.named_parameters()), 1.0),
                    (list(self.head2.named_parameters()), 1.0)]
        if stage == "text":
            return [(decoder, 1.0)]
        if stage == "align":
            return [(projector, 1.0)]
        # The last tower layer is not part of the path to the decoder and keeps its weights.
        last = f"layers.{CONFIG['vision']['num_hidden_layers'] - 1}."
        return [([(n, p) for n, p in tower if last not in n], TOWER_RATE_IN_ALL), (projector, 1.0),
                (decoder, 1.0), (list(self.head.named_parameters()), TOWER_RATE_IN_ALL)]

    def run(self, stage):
        if self.state_path(stage, True).exists():
            self.restore(self.state_path(stage, True))
            return
        self.load_data()
        settings = dict(STAGES[stage])
        if self.args.steps and self.args.steps.split("=")[0] == stage:
            settings["steps"] = int(self.args.steps.split("=")[1])
        steps, size = settings["steps"], settings["batch"]
        groups = self.groups(stage)
        for p in self.model.parameters():
            p.requires_grad_(False)
        for parameters, _ in groups:
            for _, p in parameters:
                p.requires_grad_(True)
        optimizer = Optimizer(groups, settings["matrix_rate"])
        trained = [p for parameters, _ in groups for _, p in parameters]
        first = 0
        if self.state_path(stage, False).exists():
            first = self.restore(self.state_path(stage, False), optimizer)
        seed = self.args.seed * 1000 + list(STAGES).index(stage)
        order = batch_order(self.args.scenes, size, steps, seed)
        sheets = batch_order(self.args.sheets, settings.get("sheets", 0), steps, seed + 500)
        began, recent, saved = time.time(), [], time.time()
        for step in range(first, steps):
            loss, scores = self.loss(stage, step, order[step], sheets[step])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step(schedule(step, steps, settings["rate"]))
            recent.append(loss.item())
            if (step + 1) % 50 == 0 or step + 1 == steps:
                self.log(stage=stage, step=step + 1, loss=round(sum(recent) / len(recent), 4),
                         seconds=round(time.time() - began, 1), **{k: round(v, 4) for k, v in scores.items()})
                recent = []
            if stage in ("align", "all", "more") and ((step + 1) % 250 == 0 or step + 1 == steps):
                self.log(stage=stage, step=step + 1, exact=validate(self.model, self.text, *self.check))
            if time.time() - saved > 120:
                self.save(stage, step + 1, optimizer, False)
                saved = time.time()
        self.save(stage, steps, optimizer, True)

    def patches(self, index, sheets):
        """Pixels and patch labels of the scenes and, behind them, the sheets of one step."""
        pixels = numpy.concatenate([self.pixels[index], self.sheet_pixels[sheets]])
        labels = numpy.concatenate([self.labels[index], self.sheet_labels[sheets]])
        return normalise(pixels), torch.from_numpy(labels)

    def loss(self, stage, step, index, sheets):
        pixels, labels = self.patches(index, sheets)
        if stage in ("tower", "sheets"):
            layers = self.model.model.vision_tower.vision_model.encoder.layers
            before = self.model.tower(pixels)
            # Both the hidden state that will be used and the one after the last layer are trained.
            used, scores = self.head(before, labels)
            last, _ = self.head2(layers[-1](before), labels)
            return used + 0.3 * last, scores
        rng = random.Random((self.args.seed, stage, step).__repr__())
        objects = [self.objects[i] for i in index]
        captions, others = split_rows([questions(rng, o, stage) for o in objects])
        packed = [pack(self.text, captions, LONG)]
        if stage != "align":
            packed.append(pack(self.text, others, SHORT))
        if stage == "text":
            # One empty patch stands where the image would be.
            image = torch.zeros(len(index), 1, CONFIG["text"]["hidden_size"], dtype=torch.bfloat16)
        else:
            features = self.model.tower(pixels)
            image = self.model.project(features[:len(index)])
        states = self.model.answer_states(torch.tensor(self.text.system), image, [p[0] for p in packed])
        logits, targets = answer_logits(self.model, states, [p[1] for p in packed])
        right = (logits.argmax(-1) == targets).float().mean().item()
        loss, scores = F.cross_entropy(logits, targets), {"token_accuracy": right}
        if stage in ("all", "more"):
            patch_loss, patch_scores = self.head(features, labels)
            scores.update(answer_loss=loss.item(), patch_class=patch_scores["class"])
            loss = loss + PATCH_LOSS_IN_ALL * patch_loss
        return loss, scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=98304, help="scenes in the training pool")
    parser.add_argument("--sheets", type=int, default=32768, help="crowded sheets for the tower")
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="where the pool of scenes is kept")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="where states and the log are kept")
    parser.add_argument("--out", type=pathlib.Path, help="where the checkpoint is written at the end")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", help="STAGE=N, to shorten a stage for a trial")
    parser.add_argument("--stages", default=",".join(STAGES),
                        help="in order; finished ones are only loaded")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args)
    for stage in args.stages.split(","):
        run.run(stage)
    if args.out:
        export.write(run.model, run.tokenizer, args.out)


if __name__ == "__main__":
    main()
