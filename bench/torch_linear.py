"""The linear cases of ops_bench with PyTorch, in the same line format.

    python3 bench/torch_linear.py [--threads 2] [--dtype f32|bf16|f16] [--clock wall|cpu]

x is f32 in every case. For bf16 and f16 weights, x is cast to the weights' dtype, as torch demands.
"""
import argparse
import time

import torch

SHAPES = [
    (729, 1152, 3456), (729, 1152, 4304), (729, 4304, 1152), (1, 2560, 10240), (8, 2560, 10240),
    (64, 2560, 10240), (789, 2560, 10240), (789, 10240, 2560),
]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    now = time.perf_counter if args.clock == "wall" else time.process_time
    for rows, n_in, n_out in SHAPES:
        x = (torch.rand(rows, n_in) - 0.5).to(DTYPES[args.dtype])
        w = (torch.rand(n_out, n_in) - 0.5).to(DTYPES[args.dtype])
        with torch.inference_mode():
            torch.nn.functional.linear(x, w)
            best, start, rounds = float("inf"), now(), 0
            while rounds < 3 or now() - start < 0.3:
                before = now()
                torch.nn.functional.linear(x, w)
                best = min(best, now() - before)
                rounds += 1
        flops = 2.0 * rows * n_in * n_out
        print(f"torch dtype={args.dtype} rows={rows} n_in={n_in} n_out={n_out} "
              f"threads={args.threads} ms={best * 1e3:.3f} gflops={flops / best / 1e9:.1f} "
              f"gbs={w.numel() * w.element_size() / best / 1e9:.2f}", flush=True)


main()
