"""Makes gradients.safetensors and shared_gradients.safetensors: the gradients of the InfoRM loss, from PyTorch's autograd.

Run it after tiny.py. The first is over the sequences of NAME.safetensors, the second over sequences that begin alike, which
it holds as `ids` and `lengths`. For each checkpoint NAME with a bottleneck:

    NAME.noise     eps [n, d] of the reparameterised latents, one row a sequence
    NAME.loss      the loss; sequences 0, 2, ... are preferred to sequences 1, 3, ...
    NAME:TENSOR    the gradient's norm, then 32 sums over all its entries with random signs

Two gradients whose sums agree agree in every entry (Johnson and Lindenstrauss 1984).
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny import HERE as TINY
from tiny import decode, last_hidden, load, posterior

BETA = 0.1
SUMS = 32


def signs(count):
    """[SUMS, count]: bit j of the splitmix64 hash of i, as -1 or 1."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    bits = (z >> np.arange(SUMS, dtype=np.uint64)[:, None]) & np.uint64(1)
    return 2.0 * bits.astype(np.float64) - 1.0


def sketch(gradient):
    values = gradient.detach().double().numpy().ravel()
    sums = signs(values.size) @ values
    return torch.tensor([np.linalg.norm(values), *sums], dtype=torch.float64)


def loss(model, head, sequences, noise):
    mu, logvar = posterior(head, last_hidden(model, sequences))
    reward = decode(head, mu + torch.exp(logvar / 2) * noise)
    preference = -torch.nn.functional.logsigmoid(reward[0::2] - reward[1::2]).mean()
    divergence = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1)
    return preference + BETA * (divergence[0::2] + divergence[1::2]).mean()


def alike(generator):
    """Three pairs: two to one prompt of 90 tokens, of which one pair has 40 more in common; and one that ends where the
    other begins to differ."""

    def tokens(count):
        return torch.randint(5, 60, (count,), generator=generator).tolist()

    prompt, longer, other = tokens(90), tokens(40), tokens(75)
    first = [prompt + longer + tokens(33), prompt + longer + tokens(70)]
    second = [prompt + tokens(20), prompt + tokens(1)]
    third = [other + tokens(64), other]
    return [*first, *second, *third]


def gradients(name, sequences, generator):
    golden = {}
    model, head, config = load(TINY / name)
    noise = torch.randn(len(sequences), config["latent_dim"], generator=generator)
    head = {tensor: value.requires_grad_() for tensor, value in head.items()}
    total = loss(model, head, sequences, noise)
    total.backward()
    golden[f"{name}.noise"] = noise
    golden[f"{name}.loss"] = total.detach()[None]
    parameters = {f"model.{tensor}": value for tensor, value in model.named_parameters()} | head
    for tensor, value in parameters.items():
        golden[f"{name}:{tensor}"] = sketch(value.grad)
    return golden


def main():
    here = Path(__file__).resolve().parent
    generator = torch.Generator().manual_seed(5)
    golden = {}
    for name in ["linear", "gated"]:
        stored = load_file(TINY / f"{name}.safetensors")
        sequences = [ids.tolist() for ids in stored["ids"].split(stored["lengths"].tolist())]
        golden |= gradients(name, sequences, generator)
    save_file(golden, here / "gradients.safetensors")

    sequences = alike(generator)
    golden = {
        "ids": torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int32),
        "lengths": torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int32),
    }
    for name in ["linear", "gated"]:
        golden |= gradients(name, sequences, generator)
    save_file(golden, here / "shared_gradients.safetensors")


if __name__ == "__main__":
    main()
