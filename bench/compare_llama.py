#!/usr/bin/env python3
"""The decoder against llama.cpp, at the sizes of Phi-2 with random weights, in turns.

    pip install gguf numpy
    python3 bench/compare_llama.py --llama DIR [--build build/release] [--threads 2] [--rounds 3]

DIR is a source tree of llama.cpp with its library built in DIR/build (cmake -B build -DCMAKE_BUILD_TYPE=Release,
target llama); the sources of the PyPI package llama-cpp-python bring one along in vendor/llama.cpp.  It is asked
through llama_peer.c, which this program compiles.  Every matrix has its real size, the network is cut in depth
(--layers), weights are random: time does not depend on them.  A row names our products and their format:

    int8 over q8       Q8_0      both: 8-bit codes of weights, a scale each 32, activations in 8 bits
    int8 over q4       Q4_0      4-bit codes likewise
    bf16 over bf16     BF16

prefill is a prompt of 789 tokens.  Ours computes logits of the last row only, like theirs, and in the last
layer nothing else for the rows before it: with 4 layers that saves a fifth of the work, with 32 a fortieth,
so the printed prefill ratio is also given as it would be without that saving.  decode is one token for each of
one or eight sequences, the context being 800 with it.  gain is how many single tokens eight together cost.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

import gguf
import numpy

ROOT = pathlib.Path(__file__).resolve().parent.parent
WIDTH, INNER, HEADS, VOCAB, PROMPT, CONTEXT = 2560, 10240, 32, 51200, 789, 800
PAIRS = [("q8", "int8", gguf.GGMLQuantizationType.Q8_0), ("q4", "int8", gguf.GGMLQuantizationType.Q4_0),
         ("bf16", "bf16", gguf.GGMLQuantizationType.BF16)]
REQUESTS = {"prefill": f"prefill {PROMPT}", "decode 1": f"decode 1 {CONTEXT}", "decode 8": f"decode 8 {CONTEXT}"}
KV_BYTES, WARM_UPS = "400M", 14  # until prompts have written to all of ours once; theirs is written when it is opened
RNG = numpy.random.default_rng(1)


# ---- ours ------------------------------------------------------------------------------------------


def write_ours(args, folder, kind):
    """Random weights with Mipha-3B's sizes, in blocks where the format has them; the tower is as small as can be."""
    mipha, plain = args.build / "bin" / "mipha", folder.with_name("plain")
    subprocess.run([mipha, "model", "random", "-o", folder if kind == "bf16" else plain, "--tower-layers", "2",
                    "--decoder-layers", str(args.layers)], check=True)
    if kind != "bf16":
        subprocess.run([mipha, "model", "quantize", plain, "-o", folder, "--bits", kind[1:]], check=True,
                       stdout=subprocess.DEVNULL)


# ---- theirs ----------------------------------------------------------------------------------------


def write_theirs(path, kind, layers):
    w = gguf.GGUFWriter(path, "phi2")
    w.add_context_length(2048)
    w.add_embedding_length(WIDTH)
    w.add_feed_forward_length(INNER)
    w.add_block_count(layers)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_layer_norm_eps(1e-5)
    w.add_rope_dimension_count(32)
    w.add_vocab_size(VOCAB)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([f"t{i}" for i in range(VOCAB)])
    w.add_token_types([1] * VOCAB)
    w.add_token_merges(["t 0"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    some = gguf.quants.quantize(RNG.normal(0, 0.02, (256, INNER)).astype(numpy.float32), kind)

    def matrix(name, n_out, n_in):
        row = gguf.quants.quant_shape_to_byte_shape((1, n_in), kind)[1]
        data = numpy.resize(some[:, :row], (n_out, row))
        w.add_tensor(name + ".weight", data, raw_dtype=kind)

    def vector(name, n):
        w.add_tensor(name, RNG.normal(0, 0.02, n).astype(numpy.float32))

    matrix("token_embd", VOCAB, WIDTH)
    matrix("output", VOCAB, WIDTH)
    vector("output.bias", VOCAB)
    vector("output_norm.weight", WIDTH)
    vector("output_norm.bias", WIDTH)
    for i in range(layers):
        for name, n_out, n_in in (("attn_qkv", 3 * WIDTH, WIDTH), ("attn_output", WIDTH, WIDTH),
                                  ("ffn_up", INNER, WIDTH), ("ffn_down", WIDTH, INNER)):
            matrix(f"blk.{i}.{name}", n_out, n_in)
            vector(f"blk.{i}.{name}.bias", n_out)
        vector(f"blk.{i}.attn_norm.weight", WIDTH)
        vector(f"blk.{i}.attn_norm.bias", WIDTH)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def compile_peer(args, folder):
    peer, libraries = folder / "llama_peer", args.llama / "build" / "bin"
    subprocess.run(["cc", "-O2", "-D_POSIX_C_SOURCE=200809L", ROOT / "bench" / "llama_peer.c", "-o", peer,
                    "-I", args.llama / "include", "-I", args.llama / "ggml" / "include", "-L", libraries,
                    f"-Wl,-rpath,{libraries}", "-lllama", "-lggml", "-lggml-base"], check=True)
    return peer


# ---- in turns --------------------------------------------------------------------------------------


class Engine:
    """A program that answers requests with milliseconds, one line each."""

    def __init__(self, *command):
        self.p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self):
        line = self.p.stdout.readline()
        if not line:
            raise SystemExit(f"{self.p.args[0]} ended")
        return line

    def send(self, request):
        self.p.stdin.write(request + "\n")
        self.p.stdin.flush()
        return self.line()

    def close(self):
        self.p.stdin.close()
        self.p.wait()


class Ours(Engine):
    def __init__(self, args, folder, products):
        super().__init__(args.build / "bin" / "mipha", "bench", "--json", "--model", folder, "--dtype", products,
                         "--threads", str(args.threads), "--kv-bytes", KV_BYTES, "-")
        self.line()  # how long it took to be ready
        self.device = json.loads(self.line())["device"]

    def ask(self, request):
        return json.loads(self.send(request.replace("prefill", "prefill 1")))["ms"]


class Theirs(Engine):
    def __init__(self, args, folder):
        super().__init__(compile_peer(args, folder), folder / "theirs.gguf", str(args.threads))
        self.device = self.line().strip().removeprefix("ready ")

    def ask(self, request):
        return float(self.send(request).split()[1])


def measure(engines, rounds):
    """case -> medians of each engine; in every round they answer in turns, each case before the next."""
    times = {case: [[] for _ in engines] for case in REQUESTS}
    for _ in range(WARM_UPS):
        engines[0].ask(REQUESTS["prefill"])
    for case, request in REQUESTS.items():
        for i in range(rounds + 1):  # the first one warms up
            for k, engine in enumerate(engines):
                ms = engine.ask(request)
                if i:
                    times[case][k].append(ms)
    return {case: [statistics.median(t) for t in of] for case, of in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", default="q8,q4,bf16")
    args = parser.parse_args()
    linear = args.layers * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    unsaved = 1 - (2 * WIDTH * WIDTH + 2 * WIDTH * INNER) / linear  # of the last layer, for all rows but one
    print(f"{'format':8s} {'case':10s} {'ours ms':>9s} {'llama ms':>9s} {'theirs / ours':>14s}")
    for kind, products, theirs in [p for p in PAIRS if p[0] in args.formats.split(",")]:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            write_ours(args, folder / "ours", kind)
            write_theirs(folder / "theirs.gguf", theirs, args.layers)
            engines = [Ours(args, folder / "ours", products), Theirs(args, folder)]
            result = measure(engines, args.rounds)
            for engine in engines:
                engine.close()
        for case, (m, t) in result.items():
            more = f"   {t / m * unsaved:.2f} without the saving" if case == "prefill" else ""
            print(f"{kind:8s} {case:10s} {m:9.1f} {t:9.1f} {t / m:14.2f}{more}", flush=True)
        gains = [8 * result["decode 1"][k] / result["decode 8"][k] for k in range(2)]
        print(f"{kind:8s} {'gain of 8':10s} {gains[0]:9.2f} {gains[1]:9.2f}", flush=True)
    print(f"ours: {engines[0].device}; llama.cpp: {engines[1].device}; {args.threads} threads, {args.layers} layers, "
          f"medians of {args.rounds} rounds in turns")


if __name__ == "__main__":
    main()
