"""Golden values of the loss, AdamW and the learning rate, from PyTorch and transformers.

    python loss.py > loss.json
"""

import json
import sys

import torch
from torch.nn.functional import logsigmoid
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

torch.set_default_dtype(torch.float64)
# Tie and both ends of the sigmoid are among the margins.
MARGINS = [0.0, 60.0, -60.0, 0.3, -1.7, 8.0]
DIMENSION = 3


def divergence(posterior, reduction):
    mu, logvar = posterior.chunk(2, dim=1)
    if reduction == "collapsed":
        mu, logvar = mu.mean(1, keepdim=True), logvar.mean(1, keepdim=True)
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
    chosen, rejected = kl.chunk(2)
    return kl.mean() if reduction == "sample_mean" else (chosen + rejected).mean()


def loss_case(reduction, beta):
    generator = torch.Generator().manual_seed(len(reduction))
    pairs = len(MARGINS)
    # Halves, so that the margins are exact in 32 bits.
    rejected = torch.randint(-4, 5, (pairs,), generator=generator) / 2
    margins = torch.tensor(MARGINS).float().double()
    reward = torch.cat([rejected + margins, rejected]).float().double().requires_grad_()
    posterior = torch.randn(2 * pairs, 2 * DIMENSION, generator=generator)
    posterior = (1.5 * posterior).float().double().requires_grad_()
    margin = reward[:pairs] - reward[pairs:]
    preference = -logsigmoid(margin).mean()
    kl = None if reduction == "none" else divergence(posterior, reduction)
    total = preference if kl is None else preference + beta * kl
    total.backward()
    case = {
        "reduction": reduction,
        "beta": beta,
        "pairs": pairs,
        "reward": reward.tolist(),
        "total": total.item(),
        "preference": preference.item(),
        "kl": 0.0 if kl is None else kl.item(),
        "accuracy": (margin > 0).double().mean().item(),
        "reward_gradient": reward.grad.tolist(),
    }
    if kl is not None:
        case |= {
            "posterior": posterior.flatten().tolist(),
            "posterior_gradient": posterior.grad.flatten().tolist(),
        }
    return case


def adamw_case(beta2, weight_decay, clip_norm):
    """`mean(((x * scale) weight^T - y)^2)`; weight decay on the matrix only."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator).float().double()
    x, y, weight, scale = draw(5, 3), 3 * draw(5, 4), draw(4, 3), draw(3)
    case = {
        "learning_rate": 0.02,
        "beta2": beta2,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
        "x": x.flatten().tolist(),
        "y": y.flatten().tolist(),
        "weight": weight.flatten().tolist(),
        "scale": scale.tolist(),
        "steps": [],
    }
    weight.requires_grad_(), scale.requires_grad_()
    groups = [
        {"params": [weight], "weight_decay": weight_decay},
        {"params": [scale], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, beta2), eps=1e-8)
    for step in range(20):
        share = 1.0 - step / 40
        for group in optimiser.param_groups:
            group["lr"] = case["learning_rate"] * share
        optimiser.zero_grad()
        (((x * scale) @ weight.T - y) ** 2).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_([weight, scale], clip_norm)
        optimiser.step()
        case["steps"].append(
            {
                "share": share,
                "norm": norm.item(),
                "weight": weight.flatten().tolist(),
                "scale": scale.tolist(),
            }
        )
    return case


def schedule_case(kind, steps, warmup):
    """transformers counts the warm-up from 0 and would reach the end one step after the last. Here
    the first step moves already and the last one is at the final share: transformers' rate of the
    next step while it rises, and that of a run of one step less afterwards."""

    def rates(total):
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        if kind == "cosine":
            scheduler = get_cosine_with_min_lr_schedule_with_warmup(
                optimiser, warmup, total, min_lr_rate=0.1
            )
        elif kind == "linear":
            scheduler = get_linear_schedule_with_warmup(optimiser, warmup, total)
        else:
            scheduler = get_constant_schedule_with_warmup(optimiser, warmup)
        found = []
        for _ in range(steps + 1):
            found.append(scheduler.get_last_lr()[0])
            optimiser.step()
            scheduler.step()
        return found

    found = rates(steps - 1)
    return {
        "kind": kind,
        "warmup_share": warmup / steps,
        "final_share": 0.1 if kind == "cosine" else 0.0,
        "shares": [found[step + (step < warmup)] for step in range(steps)],
    }


def main():
    golden = {
        "dimension": DIMENSION,
        "loss": [
            loss_case(reduction, beta)
            for reduction in ("sum", "sample_mean", "collapsed")
            for beta in (0.0, 0.001, 0.1, 1.0)
        ]
        + [loss_case("none", 0.1)],
        "adamw": [
            adamw_case(0.95, 0.1, 1.0),
            adamw_case(0.999, 0.0, 0.25),
            adamw_case(0.95, 0.5, 1e9),
        ],
        "schedule": [
            schedule_case("cosine", 100, 3),
            schedule_case("cosine", 37, 0),
            schedule_case("linear", 50, 10),
            schedule_case("constant", 20, 4),
        ],
    }
    json.dump(golden, sys.stdout, indent=1)
    print()


main()
