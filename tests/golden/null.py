"""Golden values of the energy distance's null: brute-force permutations.

    python null.py > null.json

`recipe.py` says what the file holds for points. A window of n and a baseline of m are drawn from one
population by permuting a pool of n + m; what the library fits, it fits to another m of the recipe.
The p-values are of fixed quantiles of the permuted statistic T = E / (1/n + 1/m).
"""

import json
import sys

import numpy as np
from recipe import UNIT, group, points

PERMUTATIONS = 20000
LEVELS = [0.5, 0.1, 0.05, 0.01, 0.002]


def case(name, dimension, groups, window, baseline):
    return {
        "name": name,
        "dimension": dimension,
        "baseline": {"seed": 3, "groups": groups},
        "pool": {"seed": 4, "groups": groups},
        "window": window,
        "samples": baseline,
    }


CASES = [
    case("one cloud", 8, [group(600, 0.0, UNIT)], 100, 500),
    case("two clouds", 16, [group(400, 0.0, UNIT), group(200, 1.0, UNIT / 2)], 300, 300),
    case("small windows", 16, [group(450, 0.0, UNIT), group(150, 0.5, 3 * UNIT)], 32, 568),
]


def main():
    generator = np.random.default_rng(0)
    for case in CASES:
        pool = points(case["dimension"], case["pool"])
        n, m = case["window"], case["samples"]
        distances = np.linalg.norm(pool[:, None] - pool[None], axis=2)
        weights = np.full((PERMUTATIONS, n + m), -1.0 / m)
        for row in weights:
            row[generator.permutation(n + m)[:n]] = 1.0 / n
        energies = -np.einsum("ij,ij->i", weights @ distances, weights)
        case["mean"] = float(energies.mean())
        case["levels"] = LEVELS
        case["quantiles"] = [float(np.quantile(energies, 1 - level)) for level in LEVELS]
    json.dump(CASES, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
