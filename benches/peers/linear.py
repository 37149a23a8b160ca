#!/usr/bin/env python3
"""Our linear layers against PyTorch's (oneDNN), at the shapes of a model's layer.

    python3 benches/peers/linear.py [--model DIR] [--precision bf16] [--rows 96,4096] [--rounds 9]

Needs torch, and cargo to build the bench `linear`. Without --model the shapes are SmolLM2-135M's. In each
round every product is measured in turn by both. Printed are medians of the rounds, and the median of the
rounds' own ratios. Ours computes SwiGLU with gate and up; PyTorch's time is that of the product alone.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from common import Engine, default_threads, note, print_table
from products import Rates, products_of, rate, summed

SMOLLM2_135M = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder whose config.json gives the shapes")
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--rows", default="96,4096", help="rows, comma-separated")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=default_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = json.loads((arguments.model / "config.json").read_text()) if arguments.model else SMOLLM2_135M
    engine = Engine("linear", "--threads", str(arguments.threads))
    groups = [
        [Rates(engine, product, int(rows), arguments.precision) for product in products_of(config)]
        for rows in arguments.rows.split(",")
    ]
    for number in range(arguments.rounds):
        for rates in groups:
            for rates_of_product in rates:
                rates_of_product.round()
        note(f"round {number + 1} of {arguments.rounds}")
    print(f"\n{arguments.precision}, threads {arguments.threads}, rounds {arguments.rounds}; torch {torch.__version__}\n")
    table = []
    for rates in groups:
        for name, some in [(r.product.name, [r]) for r in rates] + [("all four", rates)]:
            ours, theirs = summed(some, "engine"), summed(some, "torch")
            ratio = statistics.median(t / o for o, t in zip(ours, theirs))
            shape = f"{some[0].product.inputs} -> {some[0].product.outputs}" + (" x 2" if some[0].product.gated else "")
            gflops = [round(rate(some, side) / 1e9) for side in ("engine", "torch")]
            table.append([some[0].rows, name, "" if len(some) > 1 else shape, *gflops, ratio])
    print_table(["rows", "product", "shape", "engine GFLOP/s", "torch GFLOP/s", "engine / torch"], table)


if __name__ == "__main__":
    main()
