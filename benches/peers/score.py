#!/usr/bin/env python3
"""Scoring throughput against PyTorch (transformers), interleaved on the same texts.

    cargo bench --bench score --no-run
    python3 benches/peers/score.py --engine target/release/deps/score-* --model DIR --data PAIRS.jsonl.gz

Needs torch, transformers and numpy. DIR is a checkpoint with an InfoRM or standard head on a Llama-family
backbone. Each round runs every arrangement of PyTorch (f32 and bf16; batches of 1, 8, 16, 32; in arrival
order and sorted by length; padded, as transformers does it) and of the engine once, in turn. Printed are
medians of real tokens a second, and ratios to PyTorch's best arrangement of the same precision.
"""

import argparse
import json
import statistics
import subprocess
import time

import torch
from transformers import LlamaConfig, LlamaModel


def texts_of(engine: str, model: str, data: str, pairs: int) -> list[list[int]]:
    """Token ids exactly as the engine scores them."""
    command = [engine, "--model", model, "--data", data, "--pairs", str(pairs), "--print-ids"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def backbone(folder: str, dtype: torch.dtype) -> LlamaModel:
    from safetensors.torch import load_file

    config = LlamaConfig.from_pretrained(folder)
    model = LlamaModel(config).to(dtype).eval()
    weights = load_file(f"{folder}/model.safetensors")
    own = {k.removeprefix("model."): v.to(dtype) for k, v in weights.items() if k.startswith("model.")}
    model.load_state_dict(own)
    return model


@torch.inference_mode()
def torch_seconds(model: LlamaModel, texts: list[list[int]], batch: int, in_order: bool) -> float:
    if not in_order:
        texts = sorted(texts, key=len)
    started = time.perf_counter()
    for first in range(0, len(texts), batch):
        group = texts[first : first + batch]
        longest = max(map(len, group))
        ids = torch.zeros(len(group), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(group):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        hidden[torch.arange(len(group)), mask.sum(1) - 1].sum().item()
    return time.perf_counter() - started


def engine_seconds(arguments: argparse.Namespace) -> dict[str, float]:
    command = [arguments.engine, "--model", arguments.model, "--data", arguments.data]
    command += ["--pairs", str(arguments.pairs), "--rounds", "1", "--json"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    texts = texts_of(arguments.engine, arguments.model, arguments.data, arguments.pairs)
    tokens = sum(map(len, texts))
    print(f"{len(texts)} texts, {tokens} tokens, {torch.get_num_threads()} threads, torch {torch.__version__}")
    models = {"f32": backbone(arguments.model, torch.float32), "bf16": backbone(arguments.model, torch.bfloat16)}
    seconds: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, model in models.items():
            for batch in (1, 8, 16, 32):
                for order in ("arrival", "sorted"):
                    if batch == 1 and order == "sorted":
                        continue
                    label = f"torch {name}, batches of {batch}, {order}"
                    spent = torch_seconds(model, texts, batch, order == "arrival")
                    seconds.setdefault(label, []).append(spent)
        for label, spent in engine_seconds(arguments).items():
            seconds.setdefault(f"engine {label}", []).append(spent)
    rates = {label: tokens / statistics.median(times) for label, times in seconds.items()}
    best = {name: max(r for label, r in rates.items() if label.startswith(f"torch {name}")) for name in models}
    for label, rate in rates.items():
        name = "bf16" if "bf16" in label else "f32"
        print(f"{label:40} {rate:8.0f} tokens/s   {rate / best[name]:5.2f} of torch's best {name}")


if __name__ == "__main__":
    main()
