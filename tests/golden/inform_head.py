#!/usr/bin/env python3
"""Golden values of the InfoRM head's forward and backward, by PyTorch's autograd in f64.

    python tests/golden/inform_head.py      # writes tests/golden/inform_head.txt; needs torch (2.15 made the file)

One line an array, `name count values...`, for a linear (`linear.`) and a gated decode (`gated.`). Inputs are rounded to f32,
the weight of the encoder to a sum of two bf16 numbers. The loss is a fixed combination of rewards and divergences.
"""

import math
from pathlib import Path

import torch

ROWS, HIDDEN, LATENT, SEED, STREAM, EPSILON = 5, 24, 6, 7, 3, 1e-5
MASK = 0xFFFFFFFF


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011)."""
    for step in range(10):
        k = [(key[0] + step * 0x9E3779B9) & MASK, (key[1] + step * 0xBB67AE85) & MASK]
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [(second >> 32) ^ counter[1] ^ k[0], second & MASK, (first >> 32) ^ counter[3] ^ k[1], first & MASK]
    return counter


def standard_normal(count: int) -> torch.Tensor:
    values = []
    for block in range((count + 3) // 4):
        bits = philox([block, 0, STREAM, 0], [SEED, 0])
        for size, turn in (bits[:2], bits[2:]):
            radius = math.sqrt(-2 * math.log((size + 1) / 2**32))
            values += [radius * math.cos(turn / 2**32 * math.tau), radius * math.sin(turn / 2**32 * math.tau)]
    return torch.tensor(values[:count], dtype=torch.float64)


def leaf(generator: torch.Generator, *shape: int, scale: float = 1.0) -> torch.Tensor:
    values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
    return values.float().double().requires_grad_()


def two_parts(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    high = weight.float().bfloat16()
    return high, (weight.float() - high.float()).bfloat16()


def case(name: str, gated: bool, lines: list[str]) -> None:
    generator = torch.Generator().manual_seed(11 + gated)
    x, scale = leaf(generator, ROWS, HIDDEN), leaf(generator, HIDDEN, scale=0.5)
    high, rest = two_parts(torch.randn(2 * LATENT, HIDDEN, generator=generator) / math.sqrt(HIDDEN))
    encode = (high.double() + rest.double()).requires_grad_()
    decode = leaf(generator, *((8 * LATENT, LATENT) if gated else (LATENT,)), scale=0.3)
    down = leaf(generator, 4 * LATENT, scale=0.3) if gated else None
    of_reward, of_divergence = leaf(generator, ROWS).detach(), leaf(generator, ROWS).detach()
    eps = standard_normal(ROWS * LATENT).reshape(ROWS, LATENT)

    h = x / (x.pow(2).mean(1, keepdim=True) + EPSILON).sqrt() * scale
    posterior = h @ encode.T
    mu, logvar = posterior.split(LATENT, 1)
    s = mu + (logvar / 2).exp() * eps
    if gated:
        gate, up = (s @ decode.T).split(4 * LATENT, 1)
        rewards = (torch.nn.functional.silu(gate) * up) @ down
    else:
        rewards = s @ decode
    divergence = 0.5 * (mu.pow(2) + logvar.exp() - 1 - logvar).sum(1)
    ((rewards * of_reward).sum() + (divergence * of_divergence).sum()).backward()

    arrays = {
        "x": x, "scale": scale, "encode_high": high, "encode_rest": rest, "decode": decode, "d_reward": of_reward,
        "d_divergence": of_divergence, "posterior": posterior, "rewards": rewards, "divergence": divergence, "d_x": x.grad,
        "d_scale": scale.grad, "d_encode": encode.grad, "d_decode": decode.grad,
    }
    if gated:
        arrays |= {"down": down, "d_down": down.grad}
    for key, values in arrays.items():
        numbers = values.detach().double().flatten().tolist()
        lines.append(f"{name}.{key} {len(numbers)} " + " ".join(f"{value:.9g}" for value in numbers))


def main() -> None:
    lines: list[str] = []
    case("linear", False, lines)
    case("gated", True, lines)
    Path(__file__).with_suffix(".txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
