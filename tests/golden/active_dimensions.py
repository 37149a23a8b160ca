"""Golden numbers of active latent dimensions (Burda et al. 2016) and mean margins, from NumPy.

    python active_dimensions.py > active_dimensions.json
"""

import json
import sys

import numpy as np

random = np.random.default_rng(0)
cases = []
for rows, dimension in [(2, 1), (6, 3), (16, 12), (24, 6)]:
    # On both sides of the threshold, far from zero too.
    spread = random.uniform(0, 0.2, dimension)
    mu = random.normal(random.normal(0, 3, dimension), spread, (rows, dimension))
    # The log variance does not count.
    logvar = random.normal(-2, 5, (rows, dimension))
    posterior = np.concatenate([mu, logvar], axis=1).astype(np.float32)
    rewards = random.normal(0, 2, rows).astype(np.float32)
    chosen, rejected = np.split(rewards.astype(np.float64), 2)
    cases.append(
        {
            "dimension": dimension,
            "posterior": posterior.ravel().tolist(),
            "active": int((posterior[:, :dimension].astype(np.float64).var(axis=0) > 0.01).sum()),
            "rewards": rewards.tolist(),
            "margin": float((chosen - rejected).mean()),
        }
    )
json.dump(cases, sys.stdout)
