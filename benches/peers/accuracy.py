#!/usr/bin/env python3
"""Rewards against PyTorch's in f32, on the same weights and texts.

    python3 benches/peers/accuracy.py --model DIR --data PAIRS.jsonl.gz [--pairs 512]

Needs torch, transformers, safetensors, and cargo to build the bench `score`. PyTorch scores one text at a
time, its head in f32 throughout. Errors are relative to the standard deviation of PyTorch's f32 rewards. A
pair is decided by which answer has the greater reward; decisions are compared where the f32 rewards are
further apart than --margin of that standard deviation.
"""

import argparse
import math
from pathlib import Path

import torch
from common import Engine, default_threads, note, print_table
from reference import Reference

CHUNK = 64


def torch_rewards(model: Path, precision: str, texts: list[list[int]]) -> list[float]:
    reference = Reference(model, precision)
    rewards = []
    for first in range(0, len(texts), CHUNK):
        rewards += reference.rewards(texts[first : first + CHUNK])
        note(f"torch {precision}: {len(rewards)} of {len(texts)} texts")
    return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs, JSONL")
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--margin", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=default_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    engine = Engine("score", "--model", str(arguments.model), "--threads", str(arguments.threads))
    texts = engine.ask(command="encode", data=str(arguments.data.resolve()), pairs=arguments.pairs)["texts"]
    engine.ask(command="texts", texts=texts)
    rewards = {}
    for precision in ("f32", "bf16"):
        request = {"precision": precision, "shared": True, "budget": 8192, "repeats": 1, "rewards": True}
        answer = engine.ask(command="score", **request)
        if answer["seconds"] is not None:
            rewards[f"engine {precision}"] = answer["rewards"]
        note(f"engine {precision}: done")
    for precision in ("f32", "bf16"):
        rewards[f"torch {precision}"] = torch_rewards(arguments.model, precision, texts)

    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in rewards.items()}
    exact = columns.pop("torch f32")
    scale = exact.std().item()
    margins = exact[0::2] - exact[1::2]
    decided = margins.abs() > arguments.margin * scale
    rms = math.sqrt(exact.square().mean().item())
    print(
        f"\n{len(texts)} texts, {sum(map(len, texts)):,} tokens; torch {torch.__version__}; rewards of torch f32: "
        f"standard deviation {scale:.4f}, root mean square {rms:.4f}\n"
        f"{int(decided.sum())} of {len(margins)} pairs have a margin above {arguments.margin} standard deviations\n"
    )
    table = []
    for name in ("engine f32", "engine bf16", "torch bf16"):
        if name not in columns:
            continue
        values = columns[name]
        error = (values - exact).abs() / scale
        agree = ((values[0::2] - values[1::2]).sign() == margins.sign())[decided]
        quantiles = [f"{error.quantile(q).item():.1e}" for q in (0.5, 0.99, 1.0)]
        share = 100 * agree.double().mean().item() if len(agree) else math.nan
        table.append([name, *quantiles, f"{int(agree.sum())} of {len(agree)}", share])
    print_table(["against torch f32", "median error", "99 %", "greatest", "decisions that agree", "%"], table)


if __name__ == "__main__":
    main()
