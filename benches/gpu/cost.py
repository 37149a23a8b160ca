#!/usr/bin/env python3
"""What a batch costs on a GPU at best: the tables of docs/gpu.md.

    python3 benches/gpu/cost.py                      # prints them
    python3 benches/gpu/cost.py --check docs/gpu.md  # fails where the document has others
    python3 benches/gpu/cost.py --write docs/gpu.md

Every figure is arithmetic on sizes and data sheets; none was measured.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Card:
    """NVIDIA's data sheets: dense bf16 with f32 sums, memory bandwidth and size, second-level cache."""

    name: str
    flops: float
    bandwidth: float
    memory: float


CARDS = (
    Card("A100 80GB SXM", 312e12, 2.039e12, 80e9),
    Card("H100 SXM", 989e12, 3.35e12, 80e9),
    Card("H200", 989e12, 4.8e12, 141e9),
    Card("B200", 2250e12, 8.0e12, 180e9),
)


@dataclass(frozen=True)
class Model:
    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.key_value_heads) * self.head_dim

    @property
    def layer_parameters(self) -> int:
        return self.hidden * (self.qkv + self.query + 3 * self.inner)

    @property
    def layer_sides(self) -> int:
        """Rows and columns of a layer's seven weights together."""
        return 7 * self.hidden + self.qkv + self.query + 3 * self.inner

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.vocabulary * self.hidden


MODELS = (
    Model("135M (SmolLM2)", 30, 576, 1536, 9, 3, 64, 49152),
    Model("1.4B (Llama-like)", 24, 2048, 5504, 16, 16, 128, 50304),
    Model("7B (Llama 2)", 32, 4096, 11008, 32, 32, 128, 32000),
)
LATENT = 128
BATCHES = ((1, 16), (1, 512), (16, 512))
PIECES = (128, 512, 2048)
LAUNCH = 3e-6


def cut(rows: int) -> list[int]:
    """src/ops/cuda/products.rs, `next_piece`."""
    pieces = []
    while rows > 0:
        holding = next((piece for piece in PIECES if piece >= rows), None)
        within = next((piece for piece in reversed(PIECES) if piece <= rows), None)
        pieces.append(within if holding is None or (within and holding > 2 * rows) else holding)
        rows -= pieces[-1]
    return pieces


def kernels(model: Model, texts: int, tokens: int) -> list[tuple[str, float, float, int]]:
    """Name, bytes, FLOP and launches of each step of one layer, every row asking."""
    n, h, i, q, a = texts * tokens, model.hidden, model.inner, model.qkv, model.query
    calls = len(cut(n))
    pairs = texts * tokens * (tokens + 1) / 2

    def product(inputs: int, outputs: int, out_bytes: int) -> tuple[float, float]:
        return 2 * (n * inputs + inputs * outputs) + out_bytes * n * outputs, 2 * n * inputs * outputs

    qkv, output, gate_up, down = product(h, q, 4), product(a, h, 8), product(h, 2 * i, 2), product(i, h, 8)
    return [
        ("two RMS norms", 2 * 6 * n * h, 2 * 4 * n * h, 2),
        ("q, k, v product", *qkv, calls),
        ("rotary", 6 * n * q, 3 * n * q, 1),
        ("attention", 2 * n * (q + a), 4 * pairs * a, 1),
        ("output product, added", *output, calls),
        ("gate and up product", *gate_up, calls),
        ("SwiGLU", 6 * n * i, 20 * n * i, 1),
        ("down product, added", *down, calls),
    ]


def floor(card: Card, bytes_: float, flop: float) -> float:
    return max(bytes_ / card.bandwidth, flop / card.flops)


def head(model: Model, texts: int) -> tuple[float, float]:
    return 4 * texts * model.hidden + 4 * 2 * LATENT * model.hidden, 3 * 4 * texts * LATENT * model.hidden


def batch_time(card: Card, model: Model, texts: int, tokens: int) -> float:
    layer = sum(floor(card, bytes_, flop) for _, bytes_, flop, _ in kernels(model, texts, tokens))
    embed = floor(card, 6 * texts * tokens * model.hidden, 0)
    return model.layers * layer + embed + floor(card, *head(model, texts))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def layer_table() -> str:
    rows = []
    texts, tokens = 16, 512
    for model in MODELS:
        for name, bytes_, flop, _ in kernels(model, texts, tokens):
            times = [f"{floor(card, bytes_, flop) * 1e6:.1f}" for card in CARDS]
            bound = "bytes" if bytes_ / CARDS[1].bandwidth > flop / CARDS[1].flops else "FLOP"
            rows.append([model.name, name, f"{bytes_ / 1e6:.1f}", f"{flop / 1e9:.1f}", bound, *times])
        bytes_, flop = head(model, texts)
        times = [f"{floor(card, bytes_, flop) * 1e6:.1f}" for card in CARDS]
        rows.append([model.name, "InfoRM head, once a batch", f"{bytes_ / 1e6:.1f}", f"{flop / 1e9:.1f}", "bytes", *times])
    return table(["model", "step", "MB", "GFLOP", "H100 bound by", *[f"{card.name}, µs" for card in CARDS]], rows)


def batch_table() -> str:
    rows = []
    for model in MODELS:
        for texts, tokens in BATCHES:
            launches = model.layers * sum(count for *_, count in kernels(model, texts, tokens)) + 6
            times = [batch_time(card, model, texts, tokens) for card in CARDS]
            cells = [f"{time * 1e3:.2f} ({texts * tokens / time / 1e6:.2f})" for time in times]
            rows.append([model.name, f"{texts} x {tokens}", str(launches), f"{launches * LAUNCH * 1e3:.1f}", *cells])
    return table(["model", "texts x tokens", "launches", "at 3 µs, ms", *[card.name for card in CARDS]], rows)


def memory_table() -> str:
    rows = []
    for model in MODELS:
        n = 16 * 512
        padded = -(-n // PIECES[-1]) * PIECES[-1]
        weights = 2 * model.parameters
        batch = padded * (2 * 4 * model.hidden + 2 * model.hidden + (4 + 2 + 2) * model.qkv + 2 * model.query + 2 * 3 * model.inner)
        rows.append([model.name, f"{model.parameters / 1e9:.2f}", f"{weights / 1e9:.2f}", f"{batch / 1e9:.2f}"])
    return table(["model", "parameters, 10^9", "weights, GB", "a batch of 8,192 tokens, GB"], rows)


def padding_table() -> str:
    rows = []
    for count in (16, 100, 300, 1000, 3000, 8192, 10000):
        pieces = cut(count)
        rows.append([str(count), " + ".join(str(piece) for piece in pieces) if len(pieces) < 7 else f"{len(pieces)} calls",
                     f"{sum(pieces) / count:.2f}"])
    return table(["rows", "calls", "computed / asked"], rows)


def training_flop(model: Model, texts: int, tokens: int, rank: int) -> float:
    """Of a step's products and attention; `rank` 0 trains everything, else adapters of all linear layers."""
    n, pairs = texts * tokens, texts * tokens * (tokens + 1) / 2
    weights = 2 * n * model.layer_parameters
    adapters = 2 * n * rank * model.layer_sides
    # Forward: the scores and the sums. Back: the scores and d_p twice, d_q, d_k and d_v.
    attention = (2 + 7) * 2 * pairs * model.query
    products = (2 * weights + 3 * adapters) if rank else 3 * weights
    return model.layers * (products + attention)


def training_table() -> str:
    rows = []
    texts, tokens, rank = 16, 512, 16
    n = texts * tokens
    for model in MODELS:
        # x, its norm, q, k, v, what was attended; the same of the MLP, gate and up, and what SwiGLU makes of them.
        layer = n * (12 * model.hidden + 2 * model.qkv + 2 * model.query + 6 * model.inner)
        recomputed = n * 4 * model.hidden * model.layers + layer
        adapters = model.layers * rank * model.layer_sides
        for mode, memory, its_rank in (
            ("full", 18 * model.parameters, 0),
            ("lora, rank 16", 2 * model.parameters + 18 * adapters, rank),
        ):
            flop = training_flop(model, texts, tokens, its_rank)
            times = [f"{flop / card.flops * 1e3:.0f}" for card in CARDS]
            cells = [f"{value / 1e9:.1f}" for value in (memory, model.layers * layer, recomputed)]
            rows.append([model.name, mode, *cells, f"{flop / 1e12:.1f}", *times])
    header = ["model", "mode", "parameters, GB", "activations, GB", "recomputed, GB", "TFLOP"]
    return table(header + [f"{card.name}, ms" for card in CARDS], rows)


TABLES = {"layer": layer_table, "batch": batch_table, "memory": memory_table, "padding": padding_table, "training": training_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, metavar="FILE")
    parser.add_argument("--write", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    file = arguments.check or arguments.write
    if file is None:
        for make in TABLES.values():
            print(make() + "\n")
        return
    before = file.read_text()
    after = before
    for name, make in TABLES.items():
        block = re.compile(rf"(<!-- table: {name} -->\n)(?:.*?\n)??(<!-- end -->)", re.S)
        if not block.search(after):
            sys.exit(f"{file}: no place for the table `{name}`")
        after = block.sub(lambda match: match[1] + make() + "\n" + match[2], after)
    if arguments.write:
        file.write_text(after)
    elif after != before:
        sys.exit(f"{file}: its tables are not what benches/gpu/cost.py computes: run it with --write")


if __name__ == "__main__":
    main()
