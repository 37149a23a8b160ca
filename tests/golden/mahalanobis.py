"""Golden values of the Mahalanobis distance, from scikit-learn's LedoitWolf.

    python mahalanobis.py > mahalanobis.json

`recipe.py` says what the file holds for points; `mahalanobis_golden.rs` draws the same. Latents are
rounded to single precision, the baseline is not.
"""

import json
import sys

import numpy as np
from recipe import UNIT, group, points
from sklearn.covariance import LedoitWolf


def case(name, dimension, baseline, latents):
    return {
        "name": name,
        "dimension": dimension,
        "baseline": {"seed": 1, "groups": baseline},
        "latents": {"seed": 2, "groups": latents},
    }


NEAR_AND_FAR = [group(4, 0.0, UNIT), group(3, 1.0, 4 * UNIT, 0.5), group(3, -5.0, UNIT)]

CASES = [
    case(
        "more latents than dimensions",
        8,
        [group(40, 0.0, UNIT), group(60, 3.0, UNIT / 2), group(50, -2.0, 2 * UNIT, 2.0**-5)],
        NEAR_AND_FAR,
    ),
    case(
        "fewer latents than dimensions",
        32,
        [group(7, 0.0, UNIT, 0.125), group(5, 0.5, 2 * UNIT)],
        NEAR_AND_FAR,
    ),
    case("no direction stands out", 16, [group(48, 0.0, UNIT)], NEAR_AND_FAR),
    case("dimension 1", 1, [group(30, 0.1, UNIT), group(10, 2.0, 2 * UNIT)], NEAR_AND_FAR),
    case("on one line", 5, [group(5, 0.25), group(9, 1.0), group(3, -2.0)], NEAR_AND_FAR),
    case(
        "one coordinate varies", 5, [group(40, 0.3, 0.0, 0.1)], [group(10, 0.5, UNIT, 0.25)]
    ),
    case(
        "dimension 128",
        128,
        [group(100, 0.0, UNIT), group(150, 0.5, 1.5 * UNIT, 2.0**-6), group(50, -1.0, 2 * UNIT)],
        NEAR_AND_FAR,
    ),
    case(
        "far from the origin",
        20,
        [group(60, 1e4, UNIT / 4), group(30, 1e4 + 4.1, UNIT, 2.0**-4), group(40, 1e4 - 5.0, UNIT)],
        [group(4, 1e4, UNIT), group(3, 1e4 + 2.0, UNIT, 0.5), group(3, 0.0, UNIT)],
    ),
]


def main():
    for case in CASES:
        fitted = LedoitWolf().fit(points(case["dimension"], case["baseline"]))
        latents = points(case["dimension"], case["latents"]).astype(np.float32)
        case["shrinkage"] = float(fitted.shrinkage_)
        case["distances"] = np.sqrt(fitted.mahalanobis(latents.astype(np.float64))).tolist()
    json.dump(CASES, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
