"""Rates of a layer's four products, ours and PyTorch's, on the same machine and in turn."""

import statistics
import time
from dataclasses import dataclass

import torch

from common import Engine, rest

# A turn takes about this long.
TURN_SECONDS = 0.05
ASSUMED_FLOPS = 400e9
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True)
class Product:
    name: str
    inputs: int
    outputs: int
    gated: bool = False

    def flop(self, rows: int) -> int:
        return 2 * rows * self.inputs * self.outputs * (2 if self.gated else 1)


def products_of(config: dict) -> list[Product]:
    """The products of a layer, from a checkpoint's config.json."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    key_value_heads = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or hidden // heads
    return [
        Product("qkv", hidden, (heads + 2 * key_value_heads) * width),
        Product("attention output", heads * width, hidden),
        Product("gate, up", hidden, inner, gated=True),
        Product("down", inner, hidden),
    ]


class Rates:
    """Seconds a product, round by round: `engine[i]` and `torch[i]` were taken one after the other."""

    def __init__(self, engine: Engine, product: Product, rows: int, precision: str):
        self.process, self.product, self.rows, self.precision = engine, product, rows, precision
        self.repeats = max(1, round(TURN_SECONDS * ASSUMED_FLOPS / product.flop(rows)))
        columns = product.outputs * (2 if product.gated else 1)
        self.x = torch.randn(rows, product.inputs).to(DTYPES[precision])
        self.weight = torch.randn(columns, product.inputs).to(DTYPES[precision])
        self.engine: list[float] = []
        self.torch: list[float] = []

    def round(self) -> None:
        turns = [self._engine_turn, self._torch_turn]
        for turn in turns if len(self.torch) % 2 else reversed(turns):
            turn()
            rest()

    def _engine_turn(self) -> None:
        product = {"inputs": self.product.inputs, "outputs": self.product.outputs, "gated": self.product.gated}
        answer = self.process.ask(precision=self.precision, product=product, rows=self.rows, repeats=self.repeats)
        self.engine.append(answer["seconds"] or float("inf"))

    @torch.inference_mode()
    def _torch_turn(self) -> None:
        linear = torch.nn.functional.linear
        linear(self.x, self.weight)
        started = time.perf_counter()
        for _ in range(self.repeats):
            linear(self.x, self.weight)
        self.torch.append((time.perf_counter() - started) / self.repeats)


def summed(rates: list[Rates], side: str) -> list[float]:
    """Seconds of all the products together, round by round."""
    return [sum(times) for times in zip(*(getattr(r, side) for r in rates))]


def rate(rates: list[Rates], side: str) -> float:
    """FLOP/s of all the products together, median of the rounds."""
    return sum(r.product.flop(r.rows) for r in rates) / statistics.median(summed(rates, side))
