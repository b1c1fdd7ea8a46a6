#!/usr/bin/env python3
"""The engine against PyTorch and transformers on the same random weights, in turns.

    pip install -r bench/requirements.txt
    python3 bench/compare.py --build build/release [--theirs f32,bf16] [--rounds 5]
    python3 bench/compare.py --build build/cuda --device cuda --tower-layers 27 --decoder-layers 32 --theirs bf16,bf16+compile

`mipha model random` writes a checkpoint with every matrix at its size in Mipha-3B; on a CPU the network is cut in depth
(every layer costs the same, so a ratio of layers is close to a ratio of networks).  Then `mipha bench -` and PyTorch
run each case in turns, so that whatever else the machine does hits all.  A row is the medians of the rounds: our
milliseconds, rate and shares of this machine's ceilings as `mipha bench` measures them, then for each way of PyTorch its
milliseconds and the ratio theirs / ours: above 1 we are faster.

encode N           N pictures through the tower
prefill N T        N prompts of T rows with a picture each, projected in the timed part, until the first token
decode N C         one token for each of N sequences with C positions of keys and values
caption N, answer N   N pictures to 64 or 3 tokens each: tower, projector, prefill, decoding

theirs: SiglipVisionModel and PhiForCausalLM of transformers, scaled-dot-product attention, inference mode, the same number
of threads, weights and activations in the type that is said, a DynamicCache; caption and answer in batches of 8 and 32, on a
CPU also of 1, the best of which counts.  "+compile": torch.compile, with CUDA graphs for decoding and a StaticCache.  On the CPU our
engine keeps activations and sums in float32, so f32 is the same arithmetic and bf16 a coarser one.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import transformers
from safetensors.torch import load_file
from transformers import DynamicCache, PhiConfig, PhiForCausalLM, SiglipVisionConfig, SiglipVisionModel, StaticCache

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOWER = dict(hidden_size=1152, intermediate_size=4304, num_attention_heads=16, image_size=384, patch_size=14)
PHI = dict(hidden_size=2560, intermediate_size=10240, num_attention_heads=32, partial_rotary_factor=0.4,
           vocab_size=51200, max_position_embeddings=2048)
TOWER_LAYERS, PHI_LAYERS = "model.vision_tower.vision_model.encoder.layers.", "model.layers."
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
PATCHES, BEFORE, BEHIND = 729, 30, 30
CPU_CASES = ["encode 1", "encode 4", "prefill 1 789", "decode 1 800", "decode 8 800"]
CUDA_CASES = ["encode 1", "encode 8", "encode 32", "prefill 1 789", "prefill 8 789", "decode 1 800", "decode 8 800",
              "decode 64 800", "answer 128", "caption 128"]
BATCHES = {"cpu": (1, 8, 32), "cuda": (8, 32)}


def count_layers(weights, prefix):
    return 1 + max(int(k.removeprefix(prefix).split(".")[0]) for k in weights if k.startswith(prefix))


class Theirs:
    def __init__(self, way, args, weights):
        name, _, extra = way.partition("+")
        self.dtype, self.device, self.compiles = DTYPES[name], args.device, extra == "compile"
        torch.set_num_threads(args.threads)
        # Our tower runs the layers in front of hidden state -2: one fewer than there are.
        tower = SiglipVisionConfig(**TOWER, num_hidden_layers=count_layers(weights, TOWER_LAYERS) - 1,
                                    vision_use_head=False)
        phi = PhiConfig(**PHI, num_hidden_layers=count_layers(weights, PHI_LAYERS), bos_token_id=None, eos_token_id=None)
        self.tower = self.place(SiglipVisionModel._from_config(tower, attn_implementation="sdpa"),
                                {k.removeprefix("model.vision_tower."): v for k, v in weights.items()} |
                                {k.removeprefix("model.vision_tower.vision_model."): v for k, v in weights.items()})
        self.phi = self.place(PhiForCausalLM._from_config(phi, attn_implementation="sdpa"), weights)
        projector = torch.nn.Sequential(torch.nn.Linear(1152, 2560), torch.nn.GELU(), torch.nn.Linear(2560, 2560))
        self.projector = self.place(projector, {k.removeprefix("model.mm_projector."): v for k, v in weights.items()})
        self.step, self.encoder = self.phi, self.tower
        if self.compiles:
            self.encoder = torch.compile(self.tower, mode="max-autotune-no-cudagraphs", dynamic=False)
            self.step = torch.compile(self.phi, mode="max-autotune", dynamic=False)
        self.caches = {}

    def place(self, module, weights):
        found = module.load_state_dict({k: v for k, v in weights.items() if k in module.state_dict()}, strict=False)
        left = [k for k in found.missing_keys if "post_layernorm" not in k and "rotary" not in k]
        if left:
            raise SystemExit(f"the checkpoint has no {left[0]}")
        return module.to(self.device, self.dtype).eval()

    def random(self, *shape):
        return (torch.rand(*shape, device=self.device) - 0.5).to(self.dtype)

    def new_cache(self, batch, length):
        if not self.compiles:
            return DynamicCache()
        return StaticCache(config=self.phi.config, max_cache_len=length, max_batch_size=batch, device=self.device,
                           dtype=self.dtype)

    def prompts(self, batch, tokens, features):
        ids = torch.randint(200, (batch, tokens - PATCHES), device=self.device)
        text = self.phi.get_input_embeddings()(ids)
        return torch.cat((text[:, :BEFORE], self.projector(features), text[:, BEFORE:]), 1)

    def prefill(self, batch, tokens, features, cache):
        positions = torch.arange(tokens, device=self.device)
        out = self.phi(inputs_embeds=self.prompts(batch, tokens, features), past_key_values=cache, use_cache=True,
                       cache_position=positions, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def decode(self, ids, cache, position):
        at = torch.full((1,), position, device=self.device)
        out = self.step(input_ids=ids, past_key_values=cache, use_cache=True, cache_position=at)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def timed(self, work):
        self.sync()
        start = time.perf_counter()
        work()
        self.sync()
        return (time.perf_counter() - start) * 1e3

    def sync(self):
        if self.device != "cpu":
            torch.cuda.synchronize()

    def jobs(self, n, new_tokens, batch):
        tokens = BEFORE + PATCHES + BEHIND
        for first in range(0, n, batch):
            size = min(batch, n - first)
            features = self.encoder(pixel_values=self.random(size, 3, 384, 384)).last_hidden_state
            cache = self.new_cache(size, tokens + new_tokens)
            ids = self.prefill(size, tokens, features, cache)
            for i in range(new_tokens - 1):
                ids = self.decode(ids, cache, tokens + i)

    @torch.inference_mode()
    def run(self, case):
        what, *numbers = case.split()
        n, tokens = int(numbers[0]), int(numbers[-1])
        if what == "encode":
            pixels = self.random(n, 3, 384, 384)
            return self.timed(lambda: self.encoder(pixel_values=pixels))
        if what == "prefill":
            features, cache = self.random(n, PATCHES, 1152), self.new_cache(n, tokens)
            return self.timed(lambda: self.prefill(n, tokens, features, cache))
        if what == "decode":
            if (n, tokens) not in self.caches:
                self.caches = {(n, tokens): self.new_cache(n, tokens)}
                self.prefill(n, tokens - 1, self.random(n, PATCHES, 1152), self.caches[n, tokens])
            cache, ids = self.caches[n, tokens], torch.zeros(n, 1, dtype=torch.long, device=self.device)
            ms = self.timed(lambda: self.decode(ids, cache, tokens - 1))
            if not self.compiles:
                cache.crop(-1)  # one token less again
            return ms
        new = {"caption": 64, "answer": 3}[what]
        # A batch size has its share of the pictures, so that the sizes cost about the same to try.
        return min(self.timed(lambda b=b: self.jobs(max(b, n // 8), new, b)) * n / max(b, n // 8) for b in [b for b in BATCHES[self.device] if b <= n] or [n])


class Ours:
    def __init__(self, args, folder):
        command = [args.build / "bin" / "mipha", "bench", "--json", "--model", folder, "--device", args.device,
                   "--threads", str(args.threads), "--dtype", args.products, "-"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready, self.machine = self.answer(), self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("mipha bench ended")
        return json.loads(line)

    def run(self, case):
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        return self.answer()


def measure(args, ours, theirs):
    heads = "".join(f" {'torch ' + w + ' ms':>22s} {'ratio':>6s}" for w in theirs)
    print(f"{'case':16s} {'ours ms':>10s} {'rate':>20s} {'of peak':>8s} {'of bytes':>8s}{heads}")
    for case in args.case or (CPU_CASES if args.device == "cpu" else CUDA_CASES):
        mine, other = [], {w: [] for w in theirs}
        for i in range(args.rounds + 1):  # the first one warms up
            result, times = ours.run(case), {w: t.run(case) for w, t in theirs.items()}
            if i:
                mine.append(result)
                for w in theirs:
                    other[w].append(times[w])
        middle = sorted(mine, key=lambda r: r["ms"])[(len(mine) - 1) // 2]
        columns = "".join(f" {statistics.median_low(t):22.1f} {statistics.median_low(t) / middle['ms']:6.2f}" for t in other.values())
        share = f"{middle['of_bytes']:8.0%}" if middle["bytes"] else f"{'':8s}"
        print(f"{case:16s} {middle['ms']:10.1f} {middle['rate']:10.1f} {middle['unit']:9s} {middle['of_flops']:8.0%} {share}"
              f"{columns}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the checkpoint")
    parser.add_argument("--products", default="auto", help="how ours multiplies: auto (exact), bf16, int8 or fp8")
    parser.add_argument("--theirs", default=None, help="types of PyTorch, each perhaps with +compile")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=pathlib.Path, help="a folder that `mipha model random` wrote, whatever type and layers; else one is made")
    parser.add_argument("--tower-layers", type=int, default=5)
    parser.add_argument("--decoder-layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("case", nargs="*")
    args = parser.parse_args()
    ways = (args.theirs or ("f32,bf16" if args.device == "cpu" else "bf16")).split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or temporary
        if not args.model:
            subprocess.run([args.build / "bin" / "mipha", "model", "random", "-o", folder, "--dtype", args.dtype,
                            "--tower-layers", str(args.tower_layers), "--decoder-layers", str(args.decoder_layers)], check=True)
        weights = load_file(pathlib.Path(folder) / "model.safetensors")
        stored = next(iter(weights.values())).dtype
        theirs = {w: Theirs(w, args, weights) for w in ways}
        del weights
        ours = Ours(args, folder)
        m = ours.machine
        print(f"{m['device']}; torch {torch.__version__}, transformers {transformers.__version__}, {args.threads} threads, "
              f"checkpoint {str(stored).removeprefix('torch.')}, {m['tower_layers']} tower and {m['decoder_layers']} decoder layers run, ready in "
              f"{ours.ready['ready_ms']:.0f} ms, median of {args.rounds} rounds in turns; ceilings "
              f"{m['flops_per_s'] / 1e12:.2f} TFLOP/s, {m['bytes_per_s'] / 1e9:.1f} GB/s")
        measure(args, ours, theirs)
        ours.process.stdin.close()
        sys.exit(ours.process.wait())


if __name__ == "__main__":
    main()
