"""The linear cases of ops_bench with PyTorch, in the same line format.

    python3 bench/torch_linear.py [--threads 2] [--dtype f32|bf16|f16|int8] [--clock wall|cpu] [--engine onednn]

x is f32 in every case. For bf16 and f16 weights, x is cast to the weights' dtype, as torch demands. int8 is
PyTorch's dynamic quantization: weights in 8 bits with a scale an output, x quantized in the timed part with
one scale for all of it, by the engine that is said (onednn, x86 or fbgemm). With --slice N the weights
are cut into pieces of N outputs, and each is a call; what they make is left in pieces.
"""
import argparse
import time

import torch

SHAPES = [
    (729, 1152, 3456), (729, 1152, 4304), (729, 4304, 1152), (1, 2560, 10240), (8, 2560, 10240),
    (64, 2560, 10240), (789, 2560, 10240), (789, 10240, 2560),
]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "int8": torch.float32}


def layer(args, w):
    if args.slice:
        parts = [part.contiguous() for part in w.split(args.slice)]
        return lambda x: [torch.nn.functional.linear(x, part) for part in parts]
    if args.dtype != "int8":
        return lambda x: torch.nn.functional.linear(x, w)
    torch.backends.quantized.engine = args.engine
    scales = w.abs().amax(1) / 127
    zeros = torch.zeros(len(w), dtype=torch.int64)
    packed = torch.ops.quantized.linear_prepack(torch.quantize_per_channel(w, scales, zeros, 0, torch.qint8), None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--engine", default="onednn")
    parser.add_argument("--slice", type=int, default=0, help="outputs of a call: oneDNN is faster on pieces of large matrices")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    now = time.perf_counter if args.clock == "wall" else time.process_time
    for rows, n_in, n_out in SHAPES:
        x = (torch.rand(rows, n_in) - 0.5).to(DTYPES[args.dtype])
        w = (torch.rand(n_out, n_in) - 0.5).to(DTYPES[args.dtype])
        size = 1 if args.dtype == "int8" else w.element_size()
        with torch.inference_mode():
            call = layer(args, w)
            call(x)
            best, start, rounds = float("inf"), now(), 0
            while rounds < 3 or now() - start < 0.3:
                before = now()
                call(x)
                best = min(best, now() - before)
                rounds += 1
        flops = 2.0 * rows * n_in * n_out
        print(f"torch dtype={args.dtype} rows={rows} n_in={n_in} n_out={n_out} "
              f"threads={args.threads} ms={best * 1e3:.3f} gflops={flops / best / 1e9:.1f} "
              f"gbs={w.numel() * size / best / 1e9:.2f}", flush=True)


main()
