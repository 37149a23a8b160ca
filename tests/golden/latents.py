"""Golden values of the latents' diagnostics, from PyTorch and NumPy.

    python latents.py > latents.json
"""

import json
import sys

import numpy as np
import torch
from torch.distributions import Normal, kl_divergence

ANSWERS = 50
# Posterior means of very different spread: two units are on either side of the limit of 0.01.
SPREAD = [1.5, 0.3, 0.13, 0.08, 0.01, 0.0]


def main():
    generator = np.random.default_rng(3)
    d = len(SPREAD)
    centre = generator.normal(size=d)
    mean = (centre + generator.normal(size=(ANSWERS, d)) * SPREAD).astype(np.float32)
    sigma = np.exp(generator.normal(-0.5, 0.7, size=(ANSWERS, d))).astype(np.float32)
    posterior = Normal(torch.tensor(mean).double(), torch.tensor(sigma).double())
    kl = kl_divergence(posterior, Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())).numpy()
    variance = mean.astype(np.float64).var(axis=0)
    json.dump(
        {
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "mean": mean.tolist(),
            "sigma": sigma.tolist(),
            "kl": kl.sum(axis=1).mean(),
            "kl_by_dimension": kl.mean(axis=0).tolist(),
            "mean_variance": variance.tolist(),
            "active_units": int((variance > 0.01).sum()),
            "sigma_mean": sigma.astype(np.float64).mean(),
        },
        sys.stdout,
    )
    print()


main()
