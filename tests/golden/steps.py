"""Makes tests/golden/steps.safetensors: ten optimiser steps of PyTorch on the InfoRM loss, in f64.

Run it after tiny.py. For each checkpoint NAME with a bottleneck:

    NAME.noise     eps [10, n, d], one row a sequence
    NAME.losses    the loss before each step; sequences 0, 2, ... are preferred to sequences 1, 3, ...
    NAME.norms     the gradients' norm before clipping
    NAME:TENSOR    what ten steps added to the tensor: a sketch, as in gradients.py

AdamW with decay of matrices only, clipping of the global norm, and a cosine with warm-up, whose shares of the
learning rate transformers' schedule gives.
"""

from pathlib import Path

import torch
from gradients import loss, sketch
from safetensors.torch import load_file, save_file
from tiny import HERE as TINY
from tiny import load
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

STEPS, WARMUP, FINAL_SHARE = 10, 2, 0.1
RATE, BETAS, EPSILON, DECAY, CLIP = 3e-3, (0.9, 0.95), 1e-8, 0.1, 0.5


def shares():
    """Of the peak: transformers starts its warm-up at 0 and reaches the final share after the last step, ours does both one step earlier."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimiser, 0, STEPS - WARMUP - 1, min_lr_rate=FINAL_SHARE)
    found = [(step + 1) / WARMUP for step in range(WARMUP)]
    for _ in range(STEPS - WARMUP):
        found.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return found


def main():
    golden = {}
    generator = torch.Generator().manual_seed(8)
    for name in ["linear", "gated"]:
        model, head, config = load(TINY / name)
        model = model.double().train()
        head = {tensor: value.double().requires_grad_() for tensor, value in head.items()}
        stored = load_file(TINY / f"{name}.safetensors")
        sequences = [ids.tolist() for ids in stored["ids"].split(stored["lengths"].tolist())]
        noise = torch.randn(STEPS, len(sequences), config["latent_dim"], generator=generator)
        parameters = {f"model.{tensor}": value for tensor, value in model.named_parameters()} | head
        before = {tensor: value.detach().clone() for tensor, value in parameters.items()}
        groups = [
            {"params": [value for value in parameters.values() if value.dim() > 1], "weight_decay": DECAY},
            {"params": [value for value in parameters.values() if value.dim() == 1], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)
        losses, norms = [], []
        for step, share in enumerate(shares()):
            for group in optimiser.param_groups:
                group["lr"] = RATE * share
            optimiser.zero_grad()
            total = loss(model, head, sequences, noise[step].double())
            total.backward()
            losses.append(total.item())
            norms.append(torch.nn.utils.clip_grad_norm_(list(parameters.values()), CLIP).item())
            optimiser.step()
        golden[f"{name}.noise"] = noise
        golden[f"{name}.losses"] = torch.tensor(losses, dtype=torch.float64)
        golden[f"{name}.norms"] = torch.tensor(norms, dtype=torch.float64)
        for tensor, value in parameters.items():
            golden[f"{name}:{tensor}"] = sketch(value.detach() - before[tensor])
    save_file(golden, Path(__file__).resolve().with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
