#!/usr/bin/env python3
"""The engine against PyTorch and transformers, at the sizes of Mipha-3B with random weights.

    pip install -r bench/requirements.txt
    python3 bench/compare.py --build build/release [--dtype bf16] [--torch-dtypes f32,bf16] [--rounds 5]

Writes a checkpoint with every matrix at its real size and fewer layers (every layer costs the same, so a
ratio of layers is a ratio of networks; --tower-layers 27 --decoder-layers 32 are the real numbers), then
asks the engines in turns, so that whatever else the machine does hits all.  A row is the medians of the
rounds: our milliseconds and rate and the share of this machine's ceiling, then for each dtype of PyTorch
its milliseconds and the ratio theirs / ours: above 1 we are faster.  The ceilings, one core's fused
multiply-adds in L1 times the threads and a plain read of memory, come from ops_bench in the same run.

theirs: SiglipVisionModel and PhiForCausalLM of transformers, scaled-dot-product attention, inference mode,
the same number of threads, a DynamicCache, weights and activations in the dtype that is said.  Our engine
keeps activations and sums in float32 whatever the weights are, so f32 is the same arithmetic and bf16 is a
coarser one that PyTorch runs on the bf16 instructions of the processor.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

import torch
import transformers
from safetensors.torch import save_file
from transformers import DynamicCache, PhiConfig, PhiForCausalLM, SiglipVisionConfig, SiglipVisionModel

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOWER = dict(hidden_size=1152, intermediate_size=4304, num_attention_heads=16, image_size=384, patch_size=14)
PHI = dict(hidden_size=2560, intermediate_size=10240, num_attention_heads=32, partial_rotary_factor=0.4,
           vocab_size=51200, max_position_embeddings=2048)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
PATCHES, PROMPT, CONTEXT = 729, 789, 800
CASES = [("encode", 1, 0), ("encode", 4, 0), ("prefill", PROMPT, PATCHES), ("decode", 1, CONTEXT), ("decode", 8, CONTEXT)]


class Theirs:
    def __init__(self, args, dtype):
        self.dtype = DTYPES[dtype]
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        # Our tower runs the layers in front of hidden state -2: one fewer than there are.
        tower = SiglipVisionConfig(**TOWER, num_hidden_layers=args.tower_layers - 1, vision_use_head=False)
        phi = PhiConfig(**PHI, num_hidden_layers=args.decoder_layers)
        self.tower = SiglipVisionModel._from_config(tower, attn_implementation="sdpa").to(self.dtype).eval()
        self.phi = PhiForCausalLM._from_config(phi, attn_implementation="sdpa").to(self.dtype).eval()
        self.projector = torch.nn.Sequential(torch.nn.Linear(1152, 2560), torch.nn.GELU(),
                                             torch.nn.Linear(2560, 2560)).to(self.dtype).eval()
        self.pixels = (torch.rand(4, 3, 384, 384) - 0.5).to(self.dtype)
        self.features = (torch.rand(1, PATCHES, 1152) - 0.5).to(self.dtype)
        self.ids = torch.arange(PROMPT)[None] % 200
        self.caches = {}

    def work(self, what, a):
        """Multiply-adds times two, and bytes of weights in elements, that a case needs at the least."""
        tower, phi, head = (sum(p.numel() for n, p in m.named_parameters() if p.dim() == 2 and "embed" not in n)
                            for m in (self.tower, self.phi.model, self.phi.lm_head))
        layers, width = len(self.phi.model.layers), PHI["hidden_size"]
        if what == "encode":
            pairs = a * PATCHES * PATCHES * 2 * TOWER["hidden_size"] * self.tower.config.num_hidden_layers
            return 2 * (a * PATCHES * (tower + 588 * 1152) + pairs), tower
        if what == "prefill":
            linear = a * phi + PATCHES * sum(p.numel() for p in self.projector.parameters()) + head
            return 2 * (linear + a * (a + 1) * width * layers), phi + head
        return 2 * a * (phi + head + 2 * CONTEXT * width * layers), phi + head

    def tensors(self, dtype):
        """What the checkpoint holds, under its published names; the tower has one layer more than runs."""
        out = {}
        for name, value in self.tower.state_dict().items():
            name = name if name.startswith("vision_model.") else "vision_model." + name
            out["model.vision_tower." + name] = value
        last = max(int(n.split(".layers.")[1].split(".")[0]) for n in out if ".layers." in n)
        for name in [n for n in out if f".layers.{last}." in n]:
            out[name.replace(f".layers.{last}.", f".layers.{last + 1}.")] = out[name]
        out.update({"model.mm_projector." + n: v for n, v in self.projector.state_dict().items()})
        out.update(self.phi.state_dict())
        return {n: v.to(dtype).contiguous().clone() for n, v in out.items() if "rotary" not in n}

    def cache(self, batch):
        if batch not in self.caches:
            heads, size = PHI["num_attention_heads"], PHI["hidden_size"] // PHI["num_attention_heads"]
            cache = DynamicCache()
            for layer in range(self.phi.config.num_hidden_layers):
                kv = torch.rand(2, batch, heads, CONTEXT - 1, size).to(self.dtype)
                cache.update(kv[0], kv[1], layer)
            self.caches[batch] = cache
        return self.caches[batch]

    @torch.inference_mode()
    def run(self, what, a, b):
        start = time.perf_counter()
        if what == "encode":
            self.tower(pixel_values=self.pixels[:a])
        elif what == "prefill":
            text = self.phi.get_input_embeddings()(self.ids)
            image = self.projector(self.features)
            embeds = torch.cat((text[:, :35], image, text[:, 35 + b:]), 1)
            self.phi(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        else:
            cache = self.cache(a)
            start = time.perf_counter()
            self.phi(input_ids=self.ids[0, :a, None], past_key_values=cache, use_cache=True)
            elapsed = time.perf_counter() - start
            cache.crop(-1)  # one token less again
            return elapsed * 1e3
        return (time.perf_counter() - start) * 1e3


def write_checkpoint(folder, theirs, args):
    save_file(theirs.tensors(DTYPES[args.dtype]), folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["MiphaPhiForCausalLM"], "model_type": "mipha_phi", "hidden_act": "gelu_new",
              "num_hidden_layers": args.decoder_layers, "num_key_value_heads": PHI["num_attention_heads"],
              "layer_norm_eps": 1e-05, "rope_theta": 10000.0, "image_aspect_ratio": "pad",
              "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "tie_word_embeddings": False, **PHI,
              "vision_config": {
                  "vision_tower": {"model_type": "mipha_vision_model", "num_channels": 3,
                                   "vision_model_name_or_path": "siglip-so400m-patch14-384",
                                   "num_hidden_layers": args.tower_layers, "hidden_act": "gelu_pytorch_tanh",
                                   "layer_norm_eps": 1e-06, "mm_vision_select_layer": -2,
                                   "mm_vision_select_feature": "patch", **TOWER},
                  "mm_projector": {"model_type": "mipha_projector", "mm_projector_type": "mlp2x_gelu",
                                   "mm_hidden_size": 1152, "hidden_size": 2560}}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor", "resample": 3, "rescale_factor": 1 / 255,
        "size": {"height": 384, "width": 384}}))
    shutil.copy(ROOT / "tests" / "data" / "tokenizer" / "tokenizer.json", folder)


def ceiling(args, case, field):
    """A number of ops_bench, the best of three: the peak of one thread, or bytes read by all threads."""
    command = [args.build / "bench" / "ops_bench", "--threads", str(args.threads), "--only", case]
    out = "".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3))
    lines = (line.split()[1:] for line in out.splitlines() if line.startswith(case))
    return max(float(dict(word.split("=") for word in line)[field]) for line in lines)


def measure(args, ask, theirs, peak, read):
    rates = {"encode": lambda a: (a, "images/s"), "prefill": lambda a: (a, "tokens/s"), "decode": lambda a: (a, "tokens/s")}
    heads = "".join(f" {'torch ' + d + ' ms':>14s} {'ratio':>6s}" for d in theirs)
    print(f"{'case':24s} {'ours ms':>9s} {'rate':>17s} {'of ceiling':>16s}{heads}")
    for what, a, b in CASES:
        mine, other = [], {d: [] for d in theirs}
        for i in range(args.rounds + 1):  # the first one warms up
            times = ask(what, a, b), {d: t.run(what, a, b) for d, t in theirs.items()}
            if i:
                mine.append(times[0])
                for d in theirs:
                    other[d].append(times[1][d])
        ours = statistics.median(mine)
        n, unit = rates[what](a)
        flops, weights = next(iter(theirs.values())).work(what, a)
        kv = a * CONTEXT * 2 * PHI["hidden_size"] * args.decoder_layers * 4
        if what == "decode":
            moved = weights * DTYPES[args.dtype].itemsize + kv
            share = f"{moved / ours / 1e6 / read:.0%} of read"
        else:
            share = f"{flops / ours / 1e6 / peak:.0%} of FMA"
        name = f"{what} {a}" + (f", context {b}" if what == "decode" else "")
        columns = "".join(f" {statistics.median(t):14.1f} {statistics.median(t) / ours:6.2f}" for t in other.values())
        print(f"{name:24s} {ours:9.1f} {n / ours * 1e3:8.1f} {unit} {share:>16s}{columns}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the checkpoint")
    parser.add_argument("--torch-dtypes", default="f32,bf16", help="of PyTorch's weights and activations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tower-layers", type=int, default=5)
    parser.add_argument("--decoder-layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    theirs = {d: Theirs(args, d) for d in args.torch_dtypes.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(pathlib.Path(folder), next(iter(theirs.values())), args)
        ours = subprocess.Popen([args.build / "bench" / "engine_bench", folder, str(args.threads)],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        device = ours.stdout.readline().strip()
        if not device:
            raise SystemExit("engine_bench did not start")

        def ask(what, a, b):
            ours.stdin.write(f"{what} {a} {b}\n")
            ours.stdin.flush()
            return float(ours.stdout.readline().split()[1])

        peak, read = args.threads * ceiling(args, "peak", "gflops"), ceiling(args, "read", "gbs")
        print(f"{device}; torch {torch.__version__}, transformers {transformers.__version__}, "
              f"{args.threads} threads, checkpoint {args.dtype}, "
              f"{args.tower_layers - 1} tower and {args.decoder_layers} decoder layers run, "
              f"median of {args.rounds} rounds in turns; ceilings {peak:.0f} GFLOP/s, {read:.1f} GB/s")
        measure(args, ask, theirs, peak, read)
        ours.stdin.close()
        ours.wait()


if __name__ == "__main__":
    main()
